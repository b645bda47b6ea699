"""Vehicles into the kernel's arrays and back, member by member.

Written back are the types that highway-env would have given: whether a number is Python's or numpy's decides how later
code computes with it.
"""

from __future__ import annotations

import ctypes
import math
import struct
import threading
from typing import Any

import numpy as np
from highway_env.road.lane import AbstractLane
from highway_env.road.regulation import RegulatedRoad
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.controller import MDPVehicle
from highway_env.vehicle.objects import Obstacle

from rlmech.simulators.highway.fast.kernel import SIZES
from rlmech.simulators.highway.fast.known import IDM, KINDS, MOST_ENTITIES, OBSTACLE, PLAIN
from rlmech.simulators.highway.fast.lanes import LaneTable

MOST_ROADS = 8  # of a route
OF_TRAFFIC = (
    *("ACC_MAX", "COMFORT_ACC_MAX", "COMFORT_ACC_MIN", "DISTANCE_WANTED", "TIME_WANTED", "POLITENESS"),
    *("LANE_CHANGE_MIN_ACC_GAIN", "LANE_CHANGE_MAX_BRAKING_IMPOSED", "LANE_CHANGE_DELAY"),
)
OF_CONTROL = ("KP_A", "KP_HEADING", "KP_LATERAL", "TAU_PURSUIT", "MAX_STEERING_ANGLE")
"""Class constants in the order of the kernel's `Settings`: of the traffic, and of every vehicle with a controller."""
OWN = {"DELTA", "LENGTH", "WIDTH", "MAX_SPEED", "MIN_SPEED"}
"""Constants that a vehicle may have for itself."""
SHADOWING = frozenset({name for cls in (*KINDS, Obstacle) for name in dir(cls) if not name.startswith("__")} - OWN)
"""Names of the classes: a vehicle that has one of its own is not what its class says."""
CONTROL = ("n", "n_all", "n_lanes", "frames", "phase", "i", "j", "answer", "fresh", "regulated", "steps", "every")
"""Members of the kernel's `Control`."""

_ENTITY = struct.Struct("18d23q")
_STATE = struct.Struct("8d")  # the first members of `Entity`: those that the kernel changes
_TOLD, _TOLD_AT = struct.Struct("13q"), 8 * 18  # from `kind` to `limited`
_TARGET, _TARGET_AT = struct.Struct("q"), 8 * 20
_HIT, _HIT_AT = struct.Struct("2q"), 8 * 21  # crashed, impact
_IMPACT, _IMPACT_AT = struct.Struct("2d"), 8 * 9
_ROUTE, _ROUTE_AT = struct.Struct("10q"), 8 * 31
_SIZE = 8 * SIZES["Entity"]


class Desk(threading.local):
    """A thread's arrays: a call in another thread does not touch them."""

    def __init__(self) -> None:
        self.entities = ctypes.create_string_buffer(_SIZE * MOST_ENTITIES)
        self.control = (ctypes.c_int64 * SIZES["Control"])()
        self.settings = (ctypes.c_double * SIZES["Settings"])()
        arrays = (self.control, self.entities, self.settings)
        self.control_at, self.entities_at, self.settings_at = map(ctypes.addressof, arrays)
        self.scratch = np.zeros(0)

    def room(self, size: int) -> int:
        """Address of that many numbers that stay until the next call."""
        if self.scratch.size < size:
            self.scratch = np.zeros(size)
        return self.scratch.ctypes.data


desk = Desk()


def pack_settings(dt: float) -> bool:
    """The constants as they are at this moment; false where the classes differ."""
    control = [getattr(IDMVehicle, name) for name in OF_CONTROL]
    if control != [getattr(MDPVehicle, name) for name in OF_CONTROL]:
        return False
    traffic = [getattr(IDMVehicle, name) for name in OF_TRAFFIC]
    try:
        desk.settings[:] = (*traffic, *control, AbstractLane.VEHICLE_LENGTH, dt)
    except TypeError:
        return False
    return True


def pack(i: int, one: Any, lanes: LaneTable) -> bool:
    """Put a vehicle or obstacle into row i; false where it is in no state that the kernel knows."""
    own = one.__dict__
    if not SHADOWING.isdisjoint(own):
        return False
    kind = KINDS.get(type(one), OBSTACLE)
    position, target, timer, steering, acceleration, delta, impact = one.position, 0.0, 0.0, 0.0, 0.0, 0.0, None
    lane = lanes.number.get(one.lane_index)
    if lane is None or one.lane is not lanes.lanes[lane]:
        return False
    if type(position) is not np.ndarray or position.dtype != np.float64 or position.shape != (2,):
        return False
    target_lane, route, changes, fastest, slowest = lane, None, False, 0.0, 0.0
    if kind != OBSTACLE:
        impact, action = one.impact, one.action
        steering, acceleration = action["steering"], action["acceleration"]
        fastest, slowest = one.MAX_SPEED, one.MIN_SPEED
        if kind != PLAIN:
            target, route, target_lane = one.target_speed, one.route, lanes.number.get(one.target_lane_index)
        if kind == IDM:
            timer, delta, changes = one.timer, one.DELTA, one.enable_lane_change
    yielding = own.get("is_yielding", False)
    if target_lane is None or (yielding and not ("color" in own and own.get("yield_timer", -1) >= 0)):
        return False
    told = _route(route, lanes)
    if told is None:
        return False
    x, y = position.tolist()
    ix, iy = (0.0, 0.0) if impact is None else impact
    heading, speed = one.heading, one.speed
    if not (math.isfinite(x + y + heading + speed) and math.isfinite(ix + iy + target + timer)):
        return False
    sizes = (one.LENGTH, one.WIDTH, one.diagonal, fastest, slowest)
    reals = (x, y, heading, speed, target, timer, steering, acceleration, delta, ix, iy, *sizes, 0.0, 0.0)
    flags = (one.crashed, impact is not None, one.check_collisions, one.collidable, bool(changes), bool(yielding))
    _ENTITY.pack_into(desk.entities, i * _SIZE, *reals, kind, lane, target_lane, *flags, 0, -1, 0, 0, *told)
    return True


def _route(route: Any, lanes: LaneTable) -> tuple[int, ...] | None:
    """Length, preferred lane of the first road, and roads; None for a route that is too long or leads nowhere.

    Only roads of one lane are looked up by their number: `predict` is for regulated roads, which have no others.
    """
    if not route:
        return (0, -1, 0, 0, 0, 0, 0, 0, 0, 0)
    if len(route) > MOST_ROADS:
        return None
    first = route[0][2]
    roads = [lanes.number.get((a, b, 0), -1) for a, b, _ in route]
    if -1 in roads:
        return None
    return (len(route), -1 if first is None else first, *roads, *(0,) * (MOST_ROADS - len(roads)))


def pack_plans(i: int, one: Any, lanes: LaneTable) -> None:
    """Put a vehicle's new target lane and route into its row."""
    _TARGET.pack_into(desk.entities, i * _SIZE + _TARGET_AT, lanes.number[one.target_lane_index])
    _ROUTE.pack_into(desk.entities, i * _SIZE + _ROUTE_AT, *(_route(one.route, lanes) or ()))


def pack_hit(i: int, one: Any) -> None:
    """Put what a collision did to a vehicle into its row."""
    impact = one.impact
    _HIT.pack_into(desk.entities, i * _SIZE + _HIT_AT, one.crashed, impact is not None)
    if impact is not None:
        _IMPACT.pack_into(desk.entities, i * _SIZE + _IMPACT_AT, *impact)


def write_back(i: int, one: Any, lanes: LaneTable, had: list[bool] | None) -> None:
    """Give a vehicle the state of row i, in the types that highway-env gives it."""
    at = i * _SIZE
    x, y, heading, speed, _, timer, steering, acceleration = _STATE.unpack_from(desk.entities, at)
    told = _TOLD.unpack_from(desk.entities, at + _TOLD_AT)
    kind, lane, target_lane, crashed, impact, _, _, _, yielding, yielded, speed_from, timer_reset, limited = told
    position = one.position
    position[0] = x
    position[1] = y
    one.heading = np.float64(heading)
    sort = np.float64 if type(one.speed) is np.float64 else float
    one.speed = sort(speed)
    pedals = {"steering": steering, "acceleration": sort(acceleration) if limited else acceleration}
    if kind == PLAIN:
        one.action.update(pedals)  # nobody decides anew: it is still the action that was given
    else:
        one.action = pedals
        if one.target_lane_index != lanes.index[target_lane]:
            one.target_lane_index = lanes.index[target_lane]
    if kind == IDM:
        one.timer = np.float64(timer) if type(one.timer) is np.float64 and not timer_reset else timer
    index = lanes.index[lane]
    if one.lane_index != index:
        one.lane_index, one.lane = index, lanes.lanes[lane]
    if crashed:
        one.crashed = True
    if not impact:
        one.impact = None
    if speed_from != -1:
        one.target_speed = 0 if speed_from == -2 else lanes.lanes[speed_from].speed_limit
    if had is not None and (yielded or had[i]):
        _write_yielding(one, yielding=bool(yielding), anew=bool(yielded))


def _write_yielding(one: Any, *, yielding: bool, anew: bool) -> None:
    one.is_yielding = yielding
    if anew:
        one.yield_timer = 0
    if yielding:
        one.color = RegulatedRoad.YIELDING_COLOR
    else:
        one.__dict__.pop("color", None)
