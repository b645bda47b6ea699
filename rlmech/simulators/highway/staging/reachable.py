"""Whether the simulator could have come to a vehicle's state, and what speaks against it.

Checked: bodies overlap; off every lane; across or against its lane; a speed out of the vehicle's range, or one that
its limits of acceleration do not allow since the last decision. Not checked: whether a whole past leads there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rlmech.simulators.highway.staging.stage import Stage

if TYPE_CHECKING:
    from highway_env.vehicle.controller import ControlledVehicle

SLACK = 1e-6
MOST_ACROSS = math.pi / 4
"""rad; the lane keeping of highway-env never turns further from a lane."""


def obstructions(
    stage: Stage, number: int, *, speed_before: float | None = None, seconds: float | None = None
) -> tuple[str, ...]:
    """What speaks against a vehicle's state; empty where nothing does.

    Args:
        stage: Where it is.
        number: The vehicle.
        speed_before: Its speed before an edit, in m/s; None where it was not there.
        seconds: How long it had to change its speed; by default since the last decision.
    """
    vehicle = stage.vehicle(number)
    return (*_overlaps(stage, vehicle), *_misplaced(vehicle), *_speed(stage, vehicle, speed_before, seconds))


def _overlaps(stage: Stage, vehicle: ControlledVehicle) -> list[str]:
    from highway_env.utils import are_polygons_intersecting

    found: list[str] = []
    still = vehicle.velocity * 0.0
    for number in stage.numbers:
        other = stage.vehicle(number)
        if other is vehicle or not (other.solid and other.collidable and stage.is_on_road(number)):
            continue
        x, y = other.position - vehicle.position
        if math.hypot(x, y) > (vehicle.diagonal + other.diagonal) / 2:
            continue
        if are_polygons_intersecting(vehicle.polygon(), other.polygon(), still, still)[0]:
            found.append(f"overlaps vehicle {number}")
    return found


def _misplaced(vehicle: ControlledVehicle) -> list[str]:
    along, across = vehicle.lane.local_coordinates(vehicle.position)
    if not vehicle.on_road:
        beside = abs(across) - vehicle.lane.width_at(along) / 2
        beyond = max(along - vehicle.lane.length, -along)
        return [f"off the road by {max(beside, beyond):.1f} m"]
    angle = abs(float(vehicle.lane.local_angle(vehicle.heading, along)))
    if angle > math.pi / 2:
        return [f"heading against its lane, {angle:.2f} rad off"]
    return [f"heading across its lane, {angle:.2f} rad off"] if angle > MOST_ACROSS + SLACK else []


def _speed(stage: Stage, vehicle: Any, before: float | None, seconds: float | None) -> list[str]:
    speed = float(vehicle.speed)
    targets = getattr(vehicle, "target_speeds", None)
    if targets is not None:
        low, high = float(min(targets)), float(max(targets))
    else:
        limit = vehicle.lane.speed_limit
        low, high = 0.0, float(vehicle.MAX_SPEED if limit is None else limit)
    if before is not None:
        low, high = min(low, before), max(high, before)
    found: list[str] = []
    if not low - SLACK <= speed <= high + SLACK:
        found.append(f"speed {speed:.1f} m/s outside {low:.1f} to {high:.1f} m/s")
    if before is not None:
        most = largest_change_of_speed(stage, vehicle, seconds=seconds)
        if abs(speed - before) > most + SLACK:
            found.append(
                f"speed jumps by {speed - before:+.1f} m/s, its limit since the last decision is {most:.1f} m/s"
            )
    return found


def largest_change_of_speed(stage: Stage, vehicle: Any, *, seconds: float | None = None) -> float:
    """How far two choices can part a vehicle's speed in some time, by default between two decisions, in m/s.

    Traffic accelerates by at most `ACC_MAX`; an ego approaches its target speed exponentially, at the rate `KP_A`.
    """
    if seconds is None:
        seconds = 1.0 / float(stage.base.config["policy_frequency"])
    targets = getattr(vehicle, "target_speeds", None)
    if targets is not None:
        span = float(max(targets)) - float(min(targets))
        return span * (1.0 - math.exp(-float(vehicle.KP_A) * seconds))
    if hasattr(vehicle, "ACC_MAX"):
        return float(vehicle.ACC_MAX) * seconds
    kind = stage.base.action_type
    strongest = max((abs(float(end)) for end in getattr(kind, "acceleration_range", (6.0,))), default=6.0)
    return strongest * seconds
