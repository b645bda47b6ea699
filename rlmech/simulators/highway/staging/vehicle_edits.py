"""Edits of vehicles: functions of a scene that give another, and say whether its state is reachable.

Units: m, m/s, rad, s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from rlmech.errors import SceneError
from rlmech.simulators.highway.staging import changes
from rlmech.simulators.highway.staging.editable import Changed, Editable, Named, number_of, worded
from rlmech.simulators.highway.staging.reachable import largest_change_of_speed, obstructions
from rlmech.simulators.highway.staging.stage import Stage
from rlmech.simulators.highway.staging.ways import Lane, goals, plan

if TYPE_CHECKING:
    from highway_env.vehicle.controller import ControlledVehicle

S = TypeVar("S", bound=Editable)


def remove(scene: S, vehicle: Named = None, *, row: int | None = None) -> S:
    """Take a vehicle off the road, as if it had never been there at this moment.

    Raises:
        SceneError: No such vehicle, or it is the ego.
    """
    number = number_of(scene, vehicle, row=row)
    if scene.stage.vehicle(number) is scene.stage.ego:
        raise SceneError(
            "The ego cannot be taken away: the policy drives it.",
            given=f"vehicle {number}",
            expected="another vehicle",
            fix="scene.vehicles shows them",
        )

    def change(stage: Stage) -> Changed:
        stage.remove(number)
        return number, ()

    return scene.changed("remove", f"vehicle {number} removed", change)


def add(
    scene: S,
    *,
    lane: Lane | None = None,
    at: float | None = None,
    x: float | None = None,
    y: float | None = None,
    heading: float | None = None,
    speed: float | None = None,
    to: str | None = None,
) -> S:
    """Put a vehicle of the environment's own traffic on the road; it takes the next free number.

    Args:
        scene: The scene; it stays as it is.
        lane: The lane, `(from, to, number)`, or a number on the ego's road; by default the ego's first.
        at: Metres from the lane's start; by default beside the ego.
        x: Position in m, instead of a lane.
        y: Position in m.
        heading: Heading in rad; by default that of the lane.
        speed: Speed in m/s, and the speed that it wishes to keep; by default the lane's limit.
        to: The node that it drives to; needed where traffic follows routes.

    Raises:
        SceneError: No such lane or way, or half a position.
    """
    changes.check_numbers(at=at, x=x, y=y, heading=heading, speed=speed)
    if (x is None) != (y is None) or (x is not None and (lane is not None or at is not None)):
        raise SceneError(
            "A new vehicle stands on a lane, or at x and y.",
            given=f"lane={lane}, at={at}, x={x}, y={y}",
            expected="lane and at, or x and y",
            fix="e.g. scene.add(lane=('o1', 'ir1', 0), at=60.0, speed=8.0, to='o3')",
        )
    number = scene.stage.next_number

    def change(stage: Stage) -> Changed:
        pose = None if x is None or y is None else (x, y, 0.0 if heading is None else heading)
        made = changes.new_vehicle(stage, lane=lane, at=at, pose=pose, speed=speed)
        if heading is not None or pose is not None:
            along = made.lane.local_coordinates(made.position)[0]
            turned = float(made.lane.heading_at(along)) if heading is None else heading
            changes.place(stage, made, x=float(made.position[0]), y=float(made.position[1]), heading=turned)
        _give_route(stage, made, to)
        stage.add(made)
        return number, obstructions(stage, number)

    where = (
        f"at ({x:.1f}, {y:.1f}) m" if x is not None and y is not None else f"on lane {lane}" if lane is not None else ""
    )
    return scene.changed("add", " ".join(part for part in (f"vehicle {number} added", where) if part), change)


def move(
    scene: S,
    vehicle: Named = None,
    *,
    row: int | None = None,
    along: float | None = None,
    sideways: float | None = None,
    lane: Lane | None = None,
    at: float | None = None,
    x: float | None = None,
    y: float | None = None,
    heading: float | None = None,
) -> S:
    """Put a vehicle somewhere else; its speed stays.

    Args:
        scene: The scene; it stays as it is.
        vehicle: Its number, or "ego".
        row: Its row in the observation, instead.
        along: Metres further on its way, negative for back.
        sideways: Metres to the right, as seen in driving direction.
        lane: Onto the middle of this lane: `(from, to, number)`, or a number on its own road.
        at: With `lane`, metres from its start; by default beside where the vehicle is.
        x: New position in m; what is not given stays.
        y: New position in m.
        heading: New heading in rad.

    Raises:
        SceneError: No such vehicle or lane; nothing, or two ways of saying where, given.
    """
    changes.check_numbers(along=along, sideways=sideways, at=at, x=x, y=y, heading=heading)
    number = number_of(scene, vehicle, row=row)
    on_lane, on_way = lane is not None, along is not None or sideways is not None
    freely = x is not None or y is not None or heading is not None
    if on_lane + on_way + freely != 1 or (at is not None and not on_lane):
        raise SceneError(
            "A vehicle is moved along its way, onto a lane, or to a position.",
            given=f"along={along}, sideways={sideways}, lane={lane}, at={at}, x={x}, y={y}, heading={heading}",
            expected="along and sideways; or lane and at; or x, y and heading",
            fix="give one of the three; chain edits for more: scene.move(3, along=5.0).move(3, heading=0.1)",
        )

    def change(stage: Stage) -> Changed:
        moved = stage.vehicle(number)
        if lane is not None:
            changes.put_on_lane(stage, moved, lane, at=at)
        elif on_way:
            changes.drive(stage, moved, along=along or 0.0, sideways=sideways or 0.0)
        else:
            old = (*moved.position, moved.heading)
            x1, y1, turned = (was if now is None else now for was, now in zip(old, (x, y, heading), strict=True))
            changes.place(stage, moved, x=float(x1), y=float(y1), heading=float(turned))
        return number, obstructions(stage, number, speed_before=float(moved.speed))

    given = {"along": along, "sideways": sideways, "lane": lane, "at": at, "x": x, "y": y, "heading": heading}
    return scene.changed("move", f"vehicle {number} moved, {worded(given)}", change)


def set_speed(
    scene: S,
    vehicle: Named = None,
    speed: float | None = None,
    *,
    row: int | None = None,
    by: float | None = None,
    target: float | None = None,
) -> S:
    """Set a vehicle's speed where it is; the speed that it wishes to keep stays.

    Args:
        scene: The scene; it stays as it is.
        vehicle: Its number, or "ego".
        speed: The new speed in m/s; or
        row: Its row in the observation, instead of its number.
        by: the change of it in m/s.
        target: The speed that it wishes to keep, in m/s; an ego with discrete speeds takes the nearest of its own.

    Raises:
        SceneError: No such vehicle; no speed, or two.
    """
    changes.check_numbers(speed=speed, by=by, target=target)
    number = number_of(scene, vehicle, row=row)
    if (speed is None) == (by is None):
        raise SceneError(
            "A speed is set, or changed by something.",
            given=f"speed={speed}, by={by}",
            expected="one of the two, in m/s",
            fix="e.g. scene.set_speed(3, 5.0) or scene.set_speed(3, by=-2.0)",
        )
    before = float(scene.stage.vehicle(number).speed)
    after = before + by if by is not None else float(speed or 0.0)

    def change(stage: Stage) -> Changed:
        driven = stage.vehicle(number)
        driven.speed = after
        if target is not None:
            driven.target_speed = target
        if target is not None and hasattr(driven, "target_speeds"):
            driven.speed_index = driven.speed_to_index(target)
            driven.target_speed = driven.index_to_speed(driven.speed_index)
        return number, obstructions(stage, number, speed_before=before)

    return scene.changed("set_speed", f"vehicle {number} at {after:.2f} m/s instead of {before:.2f}", change)


def brake(scene: S, vehicle: Named = None, *, row: int | None = None, deceleration: float, seconds: float) -> S:
    """Set a vehicle where and as fast as it would be had it braked for the last seconds instead of keeping on.

    Args:
        scene: The scene; it stays as it is.
        vehicle: Its number, or "ego".
        row: Its row in the observation, instead.
        deceleration: In m/s², at least 0.
        seconds: For how long; it does not roll back once it stands.

    Raises:
        SceneError: No such vehicle, or a negative number.
    """
    return _accelerated(scene, "brake", number_of(scene, vehicle, row=row), deceleration, seconds)


def speed_up(scene: S, vehicle: Named = None, *, row: int | None = None, acceleration: float, seconds: float) -> S:
    """Set a vehicle where and as fast as it would be had it accelerated for the last seconds.

    Args:
        scene: The scene; it stays as it is.
        vehicle: Its number, or "ego".
        row: Its row in the observation, instead.
        acceleration: In m/s², at least 0.
        seconds: For how long.

    Raises:
        SceneError: No such vehicle, or a negative number.
    """
    return _accelerated(scene, "speed_up", number_of(scene, vehicle, row=row), acceleration, seconds)


def _accelerated(scene: S, kind: Literal["brake", "speed_up"], number: int, rate: float, seconds: float) -> S:
    changes.check_numbers(rate=rate, seconds=seconds)
    if rate < 0 or seconds < 0:
        raise SceneError(
            "Braking and speeding up are said with positive numbers.",
            given=f"{rate} m/s² for {seconds} s",
            expected="both at least 0",
            fix="use scene.speed_up for scene.brake, or the other way round",
        )
    before = float(scene.stage.vehicle(number).speed)

    def change(stage: Stage) -> Changed:
        driven = stage.vehicle(number)
        changes.accelerate(stage, driven, acceleration=-rate if kind == "brake" else rate, seconds=seconds)
        against = obstructions(stage, number, speed_before=before, seconds=seconds)
        most = largest_change_of_speed(stage, driven, seconds=seconds)
        if abs(driven.speed - before) <= most < rate * seconds and driven.speed != 0:
            against = (*against, f"{rate:.1f} m/s² is more than the vehicle can")
        return number, against

    word = "braked" if kind == "brake" else "sped up"
    return scene.changed(kind, f"vehicle {number} {word} with {rate:.2f} m/s² for {seconds:.2f} s", change)


def reroute(scene: S, vehicle: Named = None, *, row: int | None = None, to: str) -> S:
    """Give a vehicle another goal; for the ego, the destination it is rewarded for reaching or is steered to.

    Args:
        scene: The scene; it stays as it is.
        vehicle: Its number, or "ego".
        row: Its row in the observation, instead.
        to: A node of the road network that it can still reach.

    Raises:
        SceneError: No such vehicle, node or way.
    """
    number = number_of(scene, vehicle, row=row)

    def change(stage: Stage) -> Changed:
        plan(stage, stage.vehicle(number), to)
        return number, ()

    return scene.changed("reroute", f"vehicle {number} drives to {to}", change)


def _give_route(stage: Stage, vehicle: ControlledVehicle, to: str | None) -> None:
    routed = any(getattr(one, "route", None) for one in stage.road.vehicles)
    if to is not None:
        plan(stage, vehicle, to)
    elif routed:
        raise SceneError(
            "Traffic follows routes here: a vehicle without one would leave the road at once.",
            given="to=None",
            expected=f"one of {goals(stage, vehicle.lane_index)}",
            fix=f"say where it drives, e.g. to={goals(stage, vehicle.lane_index)[-1]!r}",
        )
