"""Which roads the kernel knows: those of highway-env's own classes, whose functions nobody has replaced.

Asked at every decision, so that what a user adds or changes in the middle of an episode is seen. Cost: 10 microseconds.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from highway_env import utils
from highway_env.road.lane import AbstractLane, CircularLane, SineLane, StraightLane
from highway_env.road.regulation import RegulatedRoad
from highway_env.road.road import Road, RoadNetwork
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.controller import ControlledVehicle, MDPVehicle
from highway_env.vehicle.kinematics import Vehicle
from highway_env.vehicle.objects import Obstacle, RoadObject

from rlmech.simulators.highway.fast.kernel import kernel
from rlmech.simulators.highway.fast.lanes import LaneTable, lane_table

IDM, MDP, PLAIN, OBSTACLE = range(4)
KINDS: dict[type, int] = {IDMVehicle: IDM, MDPVehicle: MDP, Vehicle: PLAIN}
"""Classes of vehicles, by the kernel's numbers."""
MOST_ENTITIES = 512

_LANE = ("position", "heading_at", "width_at", "local_coordinates")
_REPEATED: dict[object, tuple[str, ...]] = {
    IDMVehicle: ("act", "step", "acceleration", "desired_gap", "change_lane_policy", "mobil"),
    MDPVehicle: ("act",),
    ControlledVehicle: (
        *("act", "follow_road", "steering_control", "speed_control"),
        "predict_trajectory_constant_speed",
    ),
    Vehicle: ("act", "step", "clip_actions", "on_state_update", "velocity"),
    RoadObject: (
        *("handle_collisions", "_is_colliding", "polygon", "lane_distance_to", "direction"),
        "front_distance_to",
    ),
    Road: ("act", "step", "neighbour_vehicles", "close_objects_to"),
    RegulatedRoad: ("step", "enforce_road_rules", "respect_priorities", "is_conflict_possible"),
    RoadNetwork: (
        *("get_lane", "get_closest_lane_index", "side_lanes", "next_lane"),
        "position_heading_along_route",
    ),
    AbstractLane: ("distance_with_heading", "on_lane", "is_reachable_from", "after_end", "local_angle"),
    StraightLane: _LANE,
    CircularLane: _LANE,
    SineLane: ("position", "heading_at", "local_coordinates"),
    utils: (
        *("wrap_to_pi", "not_zero", "do_every", "rotated_rectangles_intersect", "has_corner_inside", "rect_corners"),
        *("are_polygons_intersecting", "point_in_rotated_rectangle", "point_in_rectangle", "interval_distance"),
    ),
}
"""What the kernel repeats: where one of these is not highway-env's own, its code is not repeated but run."""


def _is_original(owner: Any, name: str) -> bool:
    found = vars(owner)[name]
    found = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
    path = f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__
    return f"{found.__module__}.{found.__qualname__}" == f"{path}.{name}"


_ORIGINAL = all(_is_original(owner, name) for owner, names in _REPEATED.items() for name in names)
_READ = [(vars(owner), itemgetter(*names, names[0])) for owner, names in _REPEATED.items()]
_FOUND = [get(table) for table, get in _READ]


def unknown(road: Road) -> str | None:
    """Why a road as it is now is left to highway-env; None where it is not."""
    library = kernel()
    if isinstance(library, str):
        return library
    found = known_lanes(road)
    return found if isinstance(found, str) else None


def known_lanes(road: Road) -> LaneTable | str:
    """The table of a road's lanes, or why the road is not for the kernel."""
    if not _ORIGINAL or [get(table) for table, get in _READ] != _FOUND:
        return "a function of highway-env has been replaced in this process"
    if road.record_history:
        return "the road keeps its vehicles' history"
    regulated = isinstance(road, RegulatedRoad)
    stranger = _stranger(road, regulated=regulated)
    if stranger is not None:
        return stranger
    lanes = lane_table(road.network)
    if lanes is None:
        return "the road has lanes that are neither straight, circular nor sine"
    if regulated and not (lanes.one_lane and lanes.limited and road.YIELD_DURATION == 0.0):
        return "its right of way is not that of roads of one lane with a speed limit"
    return lanes


def _stranger(road: Road, *, regulated: bool) -> str | None:
    if len(road.vehicles) + len(road.objects) > MOST_ENTITIES:
        return f"there are more than {MOST_ENTITIES} vehicles"
    for one in road.vehicles:
        if type(one) not in KINDS or (regulated and type(one) is Vehicle):
            return f"vehicles of class {type(one).__name__} are moved by highway-env"
        if one.road is not road:
            return "a vehicle is of another road"
    for one in road.objects:
        if type(one) is not Obstacle:
            return f"objects of class {type(one).__name__} are known to highway-env alone"
    return None
