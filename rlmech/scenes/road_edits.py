"""Edits of the road's rules, and of what is observed and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlmech.errors import SceneError, nearest
from rlmech.scenes import changes
from rlmech.scenes.editable import OBSERVED_ONLY, Editable, Named, Outcome, SceneEdit, worded
from rlmech.scenes.rows import has_rows
from rlmech.scenes.stage import Stage
from rlmech.scenes.ways import Lane, LaneIndex, lane_index

if TYPE_CHECKING:
    from rlmech.scenes.scene import Scene

METHODS = (
    "remove",
    "add",
    "move",
    "set_speed",
    "brake",
    "speed_up",
    "reroute",
    "set_spawn_rate",
    "set_priority",
    "set_feature",
)


class RoadEdits(Editable):
    """Spawn rates and priorities; features that are only observed; and any edit by its name."""

    __slots__ = ()

    def set_spawn_rate(self, probability: float) -> Scene:
        """Set how likely a new vehicle comes at each step; for what follows, the scene looks the same.

        Args:
            probability: In [0, 1].

        Raises:
            SceneError: Not a probability, or traffic does not come and go in this environment.
        """
        if "spawn_probability" not in getattr(self.stage.base, "config", {}):
            raise SceneError(
                "No vehicles come during an episode of this environment.",
                given=str(self.stage.env),
                expected="an environment with a spawn rate, e.g. intersection-v2",
                fix="scene.add puts vehicles on the road",
            )
        if not 0 <= probability <= 1:
            raise SceneError(
                "A spawn rate is a probability.", given=probability, expected="0 to 1", fix="give a number between"
            )

        def change(stage: Stage) -> Outcome:
            stage.base.config["spawn_probability"] = float(probability)
            return None, ()

        return self._changed("set_spawn_rate", f"new vehicles with probability {probability:g} a step", change)

    def set_priority(self, lanes: Lane | Sequence[Lane] | Literal["all"], priority: int) -> Scene:
        """Give lanes another right of way; traffic yields to who is on a lane of higher priority.

        Args:
            lanes: One or several, `(from, to, number)`; or "all".
            priority: The level; intersections have 0 to 3.

        Raises:
            SceneError: No such lane, or nobody regards priorities on this road.
        """
        from highway_env.road.regulation import RegulatedRoad

        if not isinstance(self.stage.road, RegulatedRoad):
            raise SceneError(
                "Nobody regards the lanes' priorities on this road.",
                given=str(self.stage.env),
                expected="an intersection",
                fix="use rlm.make_env('intersection-v2')",
            )
        known: Any = self.stage.road.network.lanes_dict()
        several = isinstance(lanes, Sequence) and not (isinstance(lanes, tuple) and isinstance(lanes[0], str))
        chosen: list[Any] = list(lanes) if several else [lanes]  # type: ignore[arg-type]
        indices: list[LaneIndex] = list(known) if lanes == "all" else [lane_index(self.stage, one) for one in chosen]

        def change(stage: Stage) -> Outcome:
            changes.set_priority(stage, dict.fromkeys(indices, priority))
            return None, ()

        which = "all lanes" if lanes == "all" else ", ".join(map(str, indices))
        return self._changed("set_priority", f"priority {priority} for {which}", change)

    def set_feature(self, vehicle: Named = None, *, row: int | None = None, **values: float) -> Scene:
        """Change what is observed of a vehicle and nothing else: an observation off the simulator's manifold.

        Args:
            vehicle: Its number, or "ego".
            row: Its row in the observation, instead.
            values: By feature name, the value in its physical unit, not clipped: `set_feature(3, x=10.0)`.

        Raises:
            SceneError: No such vehicle in the observation, or no such feature.
        """
        changes.check_numbers(**values)
        number = self.number(vehicle, row=row)
        names = self.spec.names("feature")
        unknown = [name for name in values if name not in names]
        if unknown or not values or not has_rows(self.stage) or number not in self.rows:
            close = nearest(unknown[0], names) if unknown else []
            raise SceneError(
                f"There is no observed feature {unknown[0]!r}."
                if unknown
                else "No feature to be set is observed here.",
                given=f"vehicle {number}, {values}",
                expected=f"features of {list(names)} of vehicles {sorted(self.rows)}"
                if self.rows
                else "rows of vehicles",
                fix=f"did you mean {close[0]!r}?" if close else "scene.spec.features lists them with their units",
            )
        specs = {spec.name: spec for spec in self.spec.features}
        columns = {
            names.index(name): float(specs[name].normalised(np.array([value], dtype=float))[0])
            for name, value in values.items()
        }
        what = f"vehicle {number} seen with {worded(values, {name: specs[name].unit for name in values})}"
        edit = SceneEdit(kind="set_feature", vehicle=number, what=what, reasons=(OBSERVED_ONLY,))
        features = dict(self.features) | {number: {**self.features.get(number, {}), **columns}}
        return self._with(self.stage, (*self.edits, edit), features)

    def edited_by(self, edit: Mapping[str, Any]) -> Scene:
        """The scene with one edit made by its method's name.

        Raises:
            SceneError: Not exactly one, or no such edit.
        """
        name = next(iter(edit), "")
        if len(edit) != 1 or name not in METHODS:
            close = nearest(name, METHODS)
            raise SceneError(
                "A scene is edited by one edit of its methods.",
                given=", ".join(f"{key}={value!r}" for key, value in edit.items()) or "nothing",
                expected=f"one of {', '.join(METHODS)}, or an edited scene",
                fix=f"did you mean {close[0]!r}?"
                if close and name not in METHODS
                else "chain edits, and give the scene",
            )
        arguments = edit[name]
        method = getattr(self, name)
        return method(**arguments) if isinstance(arguments, Mapping) else method(arguments)
