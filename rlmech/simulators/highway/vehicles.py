"""Read the vehicles of a highway-env road into rows of `VEHICLE_COLUMNS`.

Only attributes are read and only the simulator's own lane geometry is called: nothing is observed, drawn or changed.
What a vehicle means to do is read from its controller (route, target lane, target speed), which the policy does not
see. Cost: about 0.02 ms a vehicle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlmech.simulators.highway.measures import Encounter, Rectangle

STRAIGHT = math.radians(30)  # a junction's lane that turns by less goes straight on
TO_ITSELF = (math.nan,) * 4
NO_LANE = ("", "", -1, math.nan, math.nan)


class Plans:
    """Where vehicles mean to go: read off their routes, which the simulator shortens as they are driven."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, str]] = {}  # by the vehicle's number
        self._turns: dict[tuple[Any, Any], str] = {}  # by road; empty where there was no choice of road

    def copy(self) -> Plans:
        """The same plans, to go on apart from these."""
        twin = Plans()
        twin._known, twin._turns = dict(self._known), dict(self._turns)
        return twin

    def of(self, number: int, vehicle: Any, network: Any) -> tuple[str, str]:
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

    def _turn(self, network: Any, road: tuple[Any, Any, Any]) -> str:
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
) -> list[tuple[Any, ...]]:
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
    rectangles = [_rectangle(body) for body in bodies]
    rule = hasattr(road, "respect_priorities")
    return [
        (
            numbers[i],
            rows[i],
            type(v).__name__,
            *bodies[i],
            bool(v.crashed),
            rectangles[i].vx,
            rectangles[i].vy,
            *(_towards(rectangles[0], rectangles[i], v) if i else TO_ITSELF),
            *_lane(v),
            *plans.of(numbers[i], v, road.network),
            *_controls(v),
            v.lane.priority if v.lane else -1,
            rule and i > 0 and _goes_first(v, vehicles[0]),
            bool(getattr(v, "is_yielding", False)),
            clipped[i],
        )
        for i, v in enumerate(vehicles)
    ]


def _body(vehicle: Any) -> tuple[float, ...]:
    x, y = vehicle.position.tolist()
    return (x, y, float(vehicle.heading), float(vehicle.speed), float(vehicle.LENGTH), float(vehicle.WIDTH))


def _rectangle(body: tuple[float, ...]) -> Rectangle:
    x, y, heading, speed, length, width = body
    vx, vy = speed * math.cos(heading), speed * math.sin(heading)
    return Rectangle(x=x, y=y, heading=heading, vx=vx, vy=vy, length=length, width=width)


def _towards(ego: Rectangle, other: Rectangle, vehicle: Any) -> tuple[float, float, float, float]:
    meeting = Encounter.of(ego, other)
    ttc = meeting.ttc if vehicle.collidable and vehicle.solid else math.nan
    return meeting.distance, meeting.gap, meeting.closing_speed, ttc


def _lane(vehicle: Any) -> tuple[str, str, int, float, float]:
    if vehicle.lane is None:
        return NO_LANE
    start, end, index = vehicle.lane_index
    along, across = vehicle.lane.local_coordinates(vehicle.position)
    return str(start), str(end), int(index), float(along), float(across)


def _controls(vehicle: Any) -> tuple[int, float]:
    """Lanes to the right that it steers for, and the speed that it tracks."""
    target: Any = getattr(vehicle, "target_lane_index", None)
    here = vehicle.lane_index
    change = int(target[2]) - int(here[2]) if target and here and target[:2] == here[:2] else 0
    return change, float(getattr(vehicle, "target_speed", math.nan))


def _goes_first(vehicle: Any, ego: Any) -> bool:
    """What `RegulatedRoad.respect_priorities` says: the higher lane goes first, of equals the one in front."""
    if vehicle.lane.priority != ego.lane.priority:
        return bool(vehicle.lane.priority > ego.lane.priority)
    return bool(vehicle.front_distance_to(ego) <= ego.front_distance_to(vehicle))


def _turn(network: Any, start: Any, end: Any) -> str:
    """Which way a road turns where others could have been taken; empty where none could."""
    if len(network.graph.get(start, {})) < 2:
        return ""
    lane = network.graph[start][end][0]
    turned = math.remainder(lane.heading_at(lane.length) - lane.heading_at(0), math.tau)
    if abs(turned) < STRAIGHT:
        return "straight"
    return "right" if turned > 0 else "left"
