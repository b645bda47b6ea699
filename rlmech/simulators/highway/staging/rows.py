"""What the policy would see: observations of an edited scene, row by row, without observing the environment again.

Where observation rows are vehicles, each is written as highway-env's Kinematics does, bit for bit, into the row asked
for: `own_rows` are the environment's (sorted anew; a shuffle keeps places), and any others can be given. A fraction of
a millisecond where highway-env takes fourteen. Other observations are made by the environment's own code, in a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from rlmech.simulators.highway import traffic
from rlmech.simulators.highway.staging.stage import EGO, Stage
from rlmech.simulators.staging import Rows, through_wrappers

if TYPE_CHECKING:
    pass


def has_rows(stage: Stage) -> bool:
    """Whether the rows of an observation are the ego and its neighbours."""
    return stage.has_road and traffic.has_rows(type(stage.base.observation_type))


def n_rows(stage: Stage) -> int:
    """Rows of an observation, the ego's included."""
    return int(stage.base.observation_type.vehicles_count)


def own_rows(stage: Stage) -> dict[int, int]:
    """The rows that the environment's own observation gives to the vehicles in sight.

    Sorted observations are sorted anew. Shuffled ones keep everybody's row, and who comes into view takes the first
    free one: one of the orders that the environment could draw.
    """
    seen = _neighbours(stage)
    rows = dict.fromkeys(stage.in_sight, -1) | {EGO: 0}
    if stage.base.observation_type.order == "sorted":
        return rows | {number: row for row, number in enumerate(seen, start=1)}
    kept = {number: stage.in_sight[number] for number in seen if stage.in_sight[number] > 0}
    free = iter(sorted(set(range(1, n_rows(stage))) - set(kept.values())))
    return rows | {number: kept[number] if number in kept else next(free) for number in seen}


def _neighbours(stage: Stage) -> list[int]:
    """Whom the observation shows beside the ego, in the environment's order."""
    kind, numbers = stage.base.observation_type, {id(stage.vehicle(number)): number for number in stage.in_sight}
    road = copy.copy(stage.road)
    obstacles = {id(one) for one in stage.road.objects}
    everyone = [stage.vehicle(number) for number in stage.in_sight]
    road.vehicles = [one for one in everyone if id(one) not in obstacles]
    road.objects = [one for one in everyone if id(one) in obstacles]
    found = road.close_objects_to(
        kind.observer_vehicle,
        stage.base.PERCEPTION_DISTANCE,
        count=kind.vehicles_count - 1,
        see_behind=kind.see_behind,
        sort=_is_exit(kind) or kind.order == "sorted",
        vehicles_only=_is_exit(kind) or not kind.include_obstacles,
    )
    return [numbers[id(one)] for one in found]


def observe_rows(stage: Stage, rows: Rows) -> Float32[np.ndarray, "entity feature"]:
    """The observation, before wrappers, with vehicles in the rows given and zeros in the others."""
    kind = stage.base.observation_type
    placed = [(row, stage.vehicle(number)) for number, row in rows.items() if row >= 0]
    origin = None if kind.absolute else stage.ego.to_dict()
    states = [_state(kind, one, None if row == 0 else origin) for row, one in placed]
    values = np.array([[state.get(name, np.nan) for name in kind.features] for state in states], dtype=np.float64)
    if kind.normalize:
        for column, name in enumerate(kind.features):
            if name in kind.features_range:
                low, high = kind.features_range[name]
                values[:, column] = -1 + (values[:, column] - low) * 2 / (high - low)  # as highway_env.utils.lmap
                if kind.clip:
                    values[:, column] = np.clip(values[:, column], -1, 1)
    seen = np.zeros((n_rows(stage), len(kind.features)), dtype=np.float32)
    seen[[row for row, _ in placed]] = values.astype(np.float32)
    return seen


def _state(kind: Any, vehicle: Any, origin: Mapping[str, float] | None) -> dict[str, float]:
    """A vehicle's features in physical units, less the ego's where they are relative to it."""
    ego = vehicle is kind.observer_vehicle
    state: dict[str, float] = vehicle.to_dict(None, observe_intentions=ego or kind.observe_intentions)
    if ego and _is_exit(kind):
        exit_lane = kind.env.road.network.get_lane(("1", "2", -1))
        state["x"] = exit_lane.local_coordinates(vehicle.position)[0]
    if origin is not None:
        state |= {name: state[name] - origin[name] for name in ("x", "y", "vx", "vy")}
    return state


def _is_exit(kind: object) -> bool:
    from highway_env.envs.common.observation import ExitObservation

    return isinstance(kind, ExitObservation)


def observe(stage: Stage, rows: Rows) -> Any:
    """The observation as the environment's wrappers give it, with vehicles in the rows given where it has rows."""
    if has_rows(stage):
        return through_wrappers(stage.env, observe_rows(stage, rows))
    twin = stage.fork()  # other observations may draw from the generator, or keep what they saw before
    obstacles = {id(one) for one in twin.road.objects}
    everyone = [twin.vehicle(number) for number in twin.in_sight]
    twin.road.vehicles = [one for one in everyone if id(one) not in obstacles]
    return through_wrappers(twin.env, twin.base.observation_type.observe())
