"""What edits do to a simulator: vehicles placed, driven along, sped up, and the rules of the road.

Everything here changes the stage that it is given; scenes hand over a copy. A vehicle that comes onto another lane
follows it from then on, and keeps its goal. Nothing is drawn from the environment's generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmech.errors import SceneError
from rlmech.simulators.highway.staging.stage import Stage
from rlmech.simulators.highway.staging.ways import Lane, further, goals, lane_index, plan

if TYPE_CHECKING:
    from highway_env.vehicle.controller import ControlledVehicle


def place(stage: Stage, vehicle: ControlledVehicle, *, x: float, y: float, heading: float) -> None:
    """Put a vehicle somewhere, in m and rad; its lane, and its way from there, follow."""
    before = vehicle.lane_index
    vehicle.position, vehicle.heading = np.array([x, y], dtype=np.float64), float(heading)
    vehicle.lane_index = stage.road.network.get_closest_lane_index(vehicle.position, vehicle.heading)
    vehicle.lane = stage.road.network.get_lane(vehicle.lane_index)
    if vehicle.lane_index == before or not hasattr(vehicle, "target_lane_index"):
        return
    vehicle.target_lane_index = vehicle.lane_index
    if vehicle.route:
        goal = vehicle.route[-1][1]
        plan(stage, vehicle, goal if goal in goals(stage, vehicle.lane_index) else vehicle.lane_index[1])


def drive(stage: Stage, vehicle: ControlledVehicle, *, along: float = 0.0, sideways: float = 0.0) -> None:
    """Move a vehicle some metres along its way and to the right of where it is, as seen in driving direction."""
    position, lateral = vehicle.lane.local_coordinates(vehicle.position)
    turned = float(vehicle.lane.local_angle(vehicle.heading, position))
    index, position = further(stage, vehicle, along)
    lane = stage.road.network.get_lane(index)
    x, y = lane.position(position, lateral + sideways)
    place(stage, vehicle, x=x, y=y, heading=float(lane.heading_at(position)) + turned)


def put_on_lane(stage: Stage, vehicle: ControlledVehicle, lane: Lane, *, at: float | None) -> None:
    """Put a vehicle in the middle of a lane, `at` m from its start, or beside where it is now."""
    way = stage.road.network.get_lane(lane_index(stage, lane, beside=vehicle))
    position = float(way.local_coordinates(vehicle.position)[0]) if at is None else at
    x, y = way.position(position, 0.0)
    place(stage, vehicle, x=x, y=y, heading=float(way.heading_at(position)))


def accelerate(stage: Stage, vehicle: ControlledVehicle, *, acceleration: float, seconds: float) -> None:
    """Set a vehicle where, and as fast as, it would be had it accelerated for the last seconds.

    v' = v + a t and s' = s + a t² / 2, from its present state; who brakes does not roll back.
    """
    speed = float(vehicle.speed)
    moving = seconds
    if acceleration < 0 <= speed:
        moving = min(seconds, -speed / acceleration)
    gained = speed * moving + acceleration * moving**2 / 2 - speed * seconds
    vehicle.speed = speed + acceleration * moving
    drive(stage, vehicle, along=gained)


def new_vehicle(
    stage: Stage, *, lane: Lane | None, at: float | None, pose: tuple[float, float, float] | None, speed: float | None
) -> Any:
    """A vehicle of the environment's own traffic, on a lane or at (x, y, heading); not yet on the road."""
    from highway_env.utils import class_from_path

    kind: Any = class_from_path(stage.base.config["other_vehicles_type"])
    if pose is None:
        index = lane_index(stage, 0 if lane is None else lane, beside=stage.ego)
        way = stage.road.network.get_lane(index)
        position = float(way.local_coordinates(stage.ego.position)[0]) if at is None else at
        x, y = way.position(position, 0.0)
        pose = (float(x), float(y), float(way.heading_at(position)))
    vehicle = kind(stage.road, np.array(pose[:2], dtype=np.float64), pose[2], 0.0)
    vehicle.speed = float(vehicle.lane.speed_limit or 0.0) if speed is None else speed
    vehicle.target_speed = max(vehicle.speed, 0.0)
    return vehicle


def set_priority(stage: Stage, levels: Mapping[tuple[str, str, int], int]) -> None:
    """Give lanes another right of way, on a road of the stage's own."""
    network = stage.road.network = copy.deepcopy(stage.road.network)
    for index, priority in levels.items():
        network.get_lane(index).priority = priority
    for number in stage.numbers:
        vehicle = stage.vehicle(number)
        vehicle.lane = network.get_lane(vehicle.lane_index)


def check_numbers(**values: float | None) -> None:
    """Check that what is given is finite.

    Raises:
        SceneError: A value is not.
    """
    wrong = {name: value for name, value in values.items() if value is not None and not math.isfinite(value)}
    if wrong:
        raise SceneError(
            "A state has finite numbers.",
            given=", ".join(f"{name}={value}" for name, value in wrong.items()),
            expected="metres, m/s, rad or s",
            fix="give a finite number",
        )
