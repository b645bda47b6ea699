"""Lanes and ways through the road network: which lane is meant, what lies some metres further, where a route can lead.

A lane is `(from, to, number)`, as highway-env names it. Exact: lanes are followed along their centre lines.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rlmech.errors import SceneError, nearest
from rlmech.simulators.highway.staging.stage import Stage

if TYPE_CHECKING:
    from highway_env.road.lane import AbstractLane
    from highway_env.road.road import RoadNetwork
    from highway_env.vehicle.controller import ControlledVehicle

LaneIndex = tuple[str, str, int]
Lane = int | tuple[str, str] | tuple[str, str, int]
"""A lane: its full index, a road `(from, to)` of a single lane, or a number on the vehicle's own road."""


def lane_index(stage: Stage, lane: Lane, *, beside: Any = None) -> LaneIndex:
    """The full index of a lane.

    Args:
        stage: Where.
        lane: As a user names it.
        beside: The vehicle on whose road a bare number counts lanes.

    Raises:
        SceneError: No such lane, with the nearest.
    """
    known: list[LaneIndex] = list(stage.road.network.lanes_dict())
    meant: tuple[Any, ...] = lane if isinstance(lane, tuple) else ()
    if isinstance(lane, int) and beside is not None:
        meant = (*beside.lane_index[:2], lane)
    if len(meant) == 2:
        meant = (*meant, 0)
    for index in known:
        if index == meant:
            return index
    names = {str(index): index for index in known}
    close = nearest(str(meant or lane), names)
    raise SceneError(
        f"The road has no lane {lane!r}.",
        given=repr(lane),
        expected=f"one of {len(known)} lanes (from, to, number): {_some([str(index) for index in known])}",
        fix=f"did you mean {close[0]}?" if close else "scene.vehicles shows the lane that each vehicle is on",
    )


def further(stage: Stage, vehicle: ControlledVehicle, metres: float) -> tuple[LaneIndex, float]:
    """The lane, and the position along it in m, that lie some metres further on a vehicle's way.

    Forwards along its route, or straight on where it has none; backwards to the lane that leads here, where only one
    does. Where the road ends the last lane is extended.
    """
    network = stage.road.network
    index: LaneIndex = vehicle.lane_index
    position = float(network.get_lane(index).local_coordinates(vehicle.position)[0]) + metres
    route = [step for step in vehicle.route or () if step[:2] != index[:2]] if hasattr(vehicle, "route") else []
    while position > (length := float(network.get_lane(index).length)):
        onward = _next(network, index, route)
        if onward is None:
            break
        route = [step for step in route if step[:2] != onward[:2]]
        index, position = onward, position - length
    while position < 0:
        before = _before(network, index)
        if before is None:
            break
        index = before
        position += float(network.get_lane(index).length)
    return index, position


def _next(network: RoadNetwork, index: LaneIndex, route: list[Any]) -> LaneIndex | None:
    lane = network.get_lane(index)
    roads = {to: lanes for to, lanes in network.graph.get(index[1], {}).items() if _leads_on(lane, lanes[0])}
    planned = [step[1] for step in route if step[0] == index[1] and step[1] in roads]
    if not planned:
        ahead = lane.heading_at(lane.length)
        planned = sorted(roads, key=lambda to: abs(roads[to][0].local_angle(ahead, roads[to][0].length)))
    if not planned:
        return None
    return index[1], planned[0], min(index[2], len(roads[planned[0]]) - 1)


def _before(network: RoadNetwork, index: LaneIndex) -> LaneIndex | None:
    lane = network.get_lane(index)
    ways = [(start, roads[index[0]]) for start, roads in network.graph.items() if index[0] in roads]
    before = [(start, lanes) for start, lanes in ways if _leads_on(lanes[0], lane)]
    if len(before) != 1:
        return None
    start, lanes = before[0]
    return start, index[0], min(index[2], len(lanes) - 1)


def _leads_on(lane: AbstractLane, onward: AbstractLane) -> bool:
    """Whether who leaves one lane can go on along another without turning back.

    The outer nodes of an intersection join the road that leads out to the one that leads in, side by side.
    """
    return abs(float(onward.local_angle(lane.heading_at(lane.length), 0.0))) < math.pi / 2


def goals(stage: Stage, index: LaneIndex) -> list[str]:
    """The nodes that a route from a lane can lead to, turning back nowhere, the nearest first."""
    graph = stage.road.network.graph
    reached, waiting = list[str](), [index[:2]]
    seen = set(waiting)
    while waiting:
        start, node = waiting.pop(0)
        end = graph[start][node][0]
        if node not in reached:
            reached.append(node)
        for onward, lanes in sorted(graph.get(node, {}).items()):
            if _leads_on(end, lanes[0]) and (node, onward) not in seen:
                seen.add((node, onward))
                waiting.append((node, onward))
    return reached


def plan(stage: Stage, vehicle: ControlledVehicle, to: str) -> None:
    """Give a vehicle a route from where it is.

    Raises:
        SceneError: No such node, or no way that leads there.
    """
    leading_there = goals(stage, vehicle.lane_index)
    if to not in leading_there:
        nodes = {str(node) for one in stage.road.network.lanes_dict() for node in one[:2]}
        close = nearest(str(to), leading_there)
        raise SceneError(
            f"No way leads from {vehicle.lane_index[0]!r} to {to!r}."
            if to in nodes
            else f"The road network has no node {to!r}.",
            given=repr(to),
            expected=f"a node that the vehicle can still reach: {_some(leading_there)}",
            fix=f"did you mean {close[0]!r}?" if close else "scene.vehicles shows lanes and goals",
        )
    if not hasattr(vehicle, "plan_route_to"):
        raise SceneError(
            "This vehicle follows no route.",
            given=type(vehicle).__name__,
            expected="a vehicle with a route: other traffic, or an ego with discrete meta-actions",
            fix="move it instead: scene.move(vehicle, lane=...)",
        )
    vehicle.target_lane_index = vehicle.lane_index
    vehicle.plan_route_to(to)


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
