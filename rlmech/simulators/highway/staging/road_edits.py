"""Edits of the road's rules, and of what is observed and nothing else: functions of a scene that give another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from rlmech.errors import SceneError, nearest
from rlmech.simulators.highway.staging import changes
from rlmech.simulators.highway.staging.editable import (
    OBSERVED_ONLY,
    Changed,
    Editable,
    Named,
    SceneEdit,
    number_of,
    worded,
)
from rlmech.simulators.highway.staging.rows import has_rows
from rlmech.simulators.highway.staging.stage import Stage
from rlmech.simulators.highway.staging.ways import Lane, LaneIndex, lane_index

S = TypeVar("S", bound=Editable)


def set_spawn_rate(scene: S, probability: float) -> S:
    """Set how likely a new vehicle comes at each step; for what follows, the scene looks the same.

    Args:
        scene: The scene; it stays as it is.
        probability: In [0, 1].

    Raises:
        SceneError: Not a probability, or traffic does not come and go in this environment.
    """
    if "spawn_probability" not in getattr(scene.stage.base, "config", {}):
        raise SceneError(
            "No vehicles come during an episode of this environment.",
            given=str(scene.stage.env),
            expected="an environment with a spawn rate, e.g. intersection-v2",
            fix="scene.add puts vehicles on the road",
        )
    if not 0 <= probability <= 1:
        raise SceneError(
            "A spawn rate is a probability.", given=probability, expected="0 to 1", fix="give a number between"
        )

    def change(stage: Stage) -> Changed:
        stage.base.config["spawn_probability"] = float(probability)
        return None, ()

    return scene.changed("set_spawn_rate", f"new vehicles with probability {probability:g} a step", change)


def set_priority(scene: S, lanes: Lane | Sequence[Lane] | Literal["all"], priority: int) -> S:
    """Give lanes another right of way; traffic yields to who is on a lane of higher priority.

    Args:
        scene: The scene; it stays as it is.
        lanes: One or several, `(from, to, number)`; or "all".
        priority: The level; intersections have 0 to 3.

    Raises:
        SceneError: No such lane, or nobody regards priorities on this road.
    """
    from highway_env.road.regulation import RegulatedRoad

    if not isinstance(scene.stage.road, RegulatedRoad):
        raise SceneError(
            "Nobody regards the lanes' priorities on this road.",
            given=str(scene.stage.env),
            expected="an intersection",
            fix="use rlm.make_env('intersection-v2')",
        )
    known: Any = scene.stage.road.network.lanes_dict()
    several = isinstance(lanes, Sequence) and not (isinstance(lanes, tuple) and isinstance(lanes[0], str))
    chosen: list[Any] = list(lanes) if several else [lanes]  # type: ignore[arg-type]
    indices: list[LaneIndex] = list(known) if lanes == "all" else [lane_index(scene.stage, one) for one in chosen]

    def change(stage: Stage) -> Changed:
        changes.set_priority(stage, dict.fromkeys(indices, priority))
        return None, ()

    which = "all lanes" if lanes == "all" else ", ".join(map(str, indices))
    return scene.changed("set_priority", f"priority {priority} for {which}", change)


def set_feature(scene: S, vehicle: Named = None, *, row: int | None = None, **values: float) -> S:
    """Change what is observed of a vehicle and nothing else: an observation off the simulator's manifold.

    Args:
        scene: The scene; it stays as it is.
        vehicle: Its number, or "ego".
        row: Its row in the observation, instead.
        values: By feature name, the value in its physical unit, not clipped: `set_feature(3, x=10.0)`.

    Raises:
        SceneError: No such vehicle in the observation, or no such feature.
    """
    changes.check_numbers(**values)
    number = number_of(scene, vehicle, row=row)
    names = scene.spec.names("feature")
    unknown = [name for name in values if name not in names]
    if unknown or not values or not has_rows(scene.stage) or number not in scene.rows:
        close = nearest(unknown[0], names) if unknown else []
        raise SceneError(
            f"There is no observed feature {unknown[0]!r}." if unknown else "No feature to be set is observed here.",
            given=f"vehicle {number}, {values}",
            expected=f"features of {list(names)} of vehicles {sorted(scene.rows)}"
            if scene.rows
            else "rows of vehicles",
            fix=f"did you mean {close[0]!r}?" if close else "scene.spec.features lists them with their units",
        )
    specs = {spec.name: spec for spec in scene.spec.features}
    columns = {
        names.index(name): float(specs[name].normalised(np.array([value], dtype=float))[0])
        for name, value in values.items()
    }
    what = f"vehicle {number} seen with {worded(values, {name: specs[name].unit for name in values})}"
    edit = SceneEdit(kind="set_feature", vehicle=number, what=what, reasons=(OBSERVED_ONLY,))
    features = dict(scene.features) | {number: {**scene.features.get(number, {}), **columns}}
    return scene.shown(scene.stage, (*scene.edits, edit), features)
