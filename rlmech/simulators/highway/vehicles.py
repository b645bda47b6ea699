"""Read the vehicles of a highway-env road into rows of `VEHICLE_COLUMNS`.

Only attributes are read and only the simulator's own lane geometry is called: nothing is observed, drawn or changed.
What a vehicle means to do is read from its controller (route, target lane, target speed), which the policy does not
see. Cost: about 0.005 ms a vehicle, four times that without the compiled part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmech.simulators.highway import fast
from rlmech.simulators.highway.measures import Encounter, Rectangle
from rlmech.untyped import Row

if TYPE_CHECKING:
    from highway_env.road.road import Road, RoadNetwork
    from highway_env.vehicle.controller import ControlledVehicle

STRAIGHT = math.radians(30)  # a junction's lane that turns by less goes straight on
TO_ITSELF = (math.nan, math.nan, math.nan, math.nan)
NO_LANE = ("", "", -1, math.nan, math.nan)


class Plans:
    """Where vehicles mean to go: read off their routes, which the simulator shortens as they are driven."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, str]] = {}  # by the vehicle's number
        self._turns: dict[tuple[object, object], str] = {}  # by road; empty where there was no choice of road

    def copy(self) -> Plans:
        """The same plans, to go on apart from these."""
        twin = Plans()
        twin._known, twin._turns = dict(self._known), dict(self._turns)
        return twin

    def of(self, number: int, vehicle: ControlledVehicle, network: RoadNetwork) -> tuple[str, str]:
        """Destination and turn of a vehicle, as they are or, when nothing is left of its route, as they last were."""
        route = getattr(vehicle, "route", None)
        known = self._known.get(number, ("", ""))
        if not route:
            return known
        for road in (vehicle.target_lane_index, *route):
            turn = self._turn(network, road)
            if turn:
                break
        else:
            turn = known[1]
        plan = self._known[number] = (str(route[-1][1]), turn)
        return plan

    def _turn(self, network: RoadNetwork, road: Row) -> str:
        ends = road[:2]
        if ends not in self._turns:
            self._turns[ends] = _turn(network, *ends)
        return self._turns[ends]


def table(
    vehicles: Sequence[Any],
    *,
    road: Any,
    numbers: Sequence[int],
    rows: Sequence[int],
    clipped: Sequence[bool],
    plans: Plans,
) -> list[Row]:
    """Rows of `VEHICLE_COLUMNS`, in the order of the vehicles.

    Args:
        vehicles: Vehicles and objects of the road, the ego first.
        road: The road.
        numbers: The number that each keeps for the episode.
        rows: The observation row of each; -1: not observed.
        clipped: Whether some of its observed numbers were clipped.
        plans: What is known of their routes; brought up to date.
    """
    bodies = [_body(v) for v in vehicles]
    turns = [(math.cos(body[2]), math.sin(body[2])) for body in bodies]
    rule = hasattr(road, "respect_priorities")
    to_ego, places, first = _measured(vehicles, bodies, turns, road, rule=rule)
    ego_priority = vehicles[0].lane.priority if vehicles[0].lane else -1
    network = road.network
    table_rows: list[Row] = []
    for i, v in enumerate(vehicles):
        body, (cos, sin), lane = bodies[i], turns[i], v.lane
        speed, number = body[3], numbers[i]
        distance, gap, closing_speed, ttc = to_ego[i]
        if lane is None:
            priority, where = -1, NO_LANE
        else:
            start, end, index = v.lane_index
            priority, where = lane.priority, (str(start), str(end), int(index), *places[i])
        table_rows.append(
            (
                number,
                rows[i],
                type(v).__name__,
                *body,
                bool(v.crashed),
                speed * cos,
                speed * sin,
                distance,
                gap,
                closing_speed,
                ttc if v.collidable and v.solid else math.nan,
                *where,
                *plans.of(number, v, network),
                *_controls(v),
                priority,
                rule and i > 0 and (first[i] if priority == ego_priority else bool(priority > ego_priority)),
                bool(getattr(v, "is_yielding", False)),
                clipped[i],
            )
        )
    return table_rows


Measured = tuple[Sequence[tuple[float, float, float, float]], Sequence[Sequence[float]], Sequence[bool]]


def _measured(
    vehicles: Sequence[ControlledVehicle],
    bodies: Sequence[tuple[float, ...]],
    turns: Sequence[tuple[float, float]],
    road: Road,
    *,
    rule: bool,
) -> Measured:
    """Of each: distance, gap, closing speed and time to collision; coordinates on its lane; goes first among equals."""
    if fast.has_kernel():
        from rlmech.simulators.highway.fast import measuring

        positions = np.array([body[:2] for body in bodies])
        places = measuring.along_and_across(vehicles, positions, road.network)
        first = measuring.in_front(positions, [body[2] for body in bodies]) if rule else [False] * len(vehicles)
        moving = [
            (x, y, cos, sin, speed * cos, speed * sin, length, width)
            for (x, y, _, speed, length, width), (cos, sin) in zip(bodies, turns, strict=True)
        ]
        return measuring.towards(moving), places or [_place(v) for v in vehicles], first
    rectangles = [_rectangle(body, *turn) for body, turn in zip(bodies, turns, strict=True)]
    ego = rectangles[0]
    meetings = [Encounter.of(ego, other) for other in rectangles[1:]]
    to_ego: list[tuple[float, float, float, float]] = [
        TO_ITSELF,
        *((m.distance, m.gap, m.closing_speed, m.ttc) for m in meetings),
    ]
    return to_ego, [_place(v) for v in vehicles], [rule and _in_front(v, vehicles[0]) for v in vehicles]


def _body(vehicle: Any) -> tuple[float, ...]:
    x, y = vehicle.position.tolist()
    return (x, y, float(vehicle.heading), float(vehicle.speed), float(vehicle.LENGTH), float(vehicle.WIDTH))


def _rectangle(body: tuple[float, ...], cos: float, sin: float) -> Rectangle:
    x, y, heading, speed, length, width = body
    return Rectangle(x=x, y=y, heading=heading, vx=speed * cos, vy=speed * sin, length=length, width=width)


def _place(vehicle: Any) -> tuple[float, float]:
    if vehicle.lane is None:
        return NO_LANE[-2:]
    along, across = vehicle.lane.local_coordinates(vehicle.position)
    return float(along), float(across)


def _controls(vehicle: ControlledVehicle) -> tuple[int, float]:
    """Lanes to the right that it steers for, and the speed that it tracks."""
    target: Any = getattr(vehicle, "target_lane_index", None)
    here = vehicle.lane_index
    steers = target is not here and target and here and target[:2] == here[:2]
    return int(target[2]) - int(here[2]) if steers else 0, float(getattr(vehicle, "target_speed", math.nan))


def _in_front(vehicle: ControlledVehicle, ego: ControlledVehicle) -> bool:
    """What `RegulatedRoad.respect_priorities` says of equals: the one in front goes first."""
    return bool(vehicle.front_distance_to(ego) <= ego.front_distance_to(vehicle))


def _turn(network: RoadNetwork, start: Any, end: Any) -> str:
    """Which way a road turns where others could have been taken; empty where none could."""
    if len(network.graph.get(start, {})) < 2:
        return ""
    lane = network.graph[start][end][0]
    turned = math.remainder(lane.heading_at(lane.length) - lane.heading_at(0), math.tau)
    if abs(turned) < STRAIGHT:
        return "straight"
    return "right" if turned > 0 else "left"
