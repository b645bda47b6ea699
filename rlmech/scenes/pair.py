"""Pairs of observations for activation patching, in which every vehicle keeps its row.

Taking one vehicle away moves all those behind it one row up in a sorted observation, and brings in who was not shown
for want of rows. A patch of row 3 would then compare two vehicles. Here the others stay, and the row is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from rlmech.errors import SceneError
from rlmech.results import storable
from rlmech.simulators.highway.staging.editable import SceneEdit
from rlmech.simulators.highway.staging.rows import n_rows
from rlmech.simulators.highway.staging.stage import Stage
from rlmech.spec import PolicySpec


class RowedScene(Protocol):
    """A scene that is observed; a `Scene` is one."""

    @property
    def stage(self) -> Stage:
        """The copied simulator."""
        ...

    @property
    def edits(self) -> tuple[SceneEdit, ...]:
        """What was changed since the capture."""
        ...

    @property
    def moment(self) -> object:
        """Which moment of an episode it is."""
        ...

    @property
    def spec(self) -> PolicySpec:
        """Names of what is observed."""
        ...

    @property
    def observation(self) -> ArrayLike:
        """What the policy sees."""
        ...

    @property
    def rows(self) -> Mapping[int, int]:
        """Row by vehicle number."""
        ...

    @property
    def base_rows(self) -> Mapping[int, int]:
        """Row by vehicle number when captured."""
        ...

    def observed_in(self, rows: Mapping[int, int]) -> ArrayLike:
        """The observation with vehicles in given rows."""
        ...


def aligned_rows(scene: RowedScene, base: RowedScene | None = None) -> dict[int, int]:
    """The rows that vehicles keep from a base scene, or from the capture; who was added takes the first free one."""
    kept = scene.base_rows if base is None else base.stage.in_sight
    rows = {number: kept.get(number, -1) for number in scene.stage.in_sight}
    free = iter(sorted(set(range(n_rows(scene.stage))) - set(kept.values())))
    for number in rows:
        if number not in kept and scene.stage.in_sight[number] >= 0:
            rows[number] = next(free, -1)
    return rows


def scene_pair(clean: RowedScene, corrupt: RowedScene) -> xr.Dataset:
    """A scene and its edited version as a dataset of one pair; see `Scene.pair`.

    Raises:
        SceneError: The second was not made from the first by edits.
    """
    made = corrupt.edits[: len(clean.edits)]
    if made != clean.edits or corrupt.moment is not clean.moment:
        raise SceneError(
            "The two scenes are not a scene and its edited version.",
            given=f"edits {[edit.what for edit in clean.edits]} and {[edit.what for edit in corrupt.edits]}",
            expected="the second made from the first by edits",
            fix="e.g. scene.pair(scene.remove(3).move(2, along=5.0))",
        )
    seen, own = np.asarray(clean.observation), np.asarray(corrupt.observation)
    rowed = bool(clean.base_rows)
    rows = aligned_rows(corrupt, clean) if rowed else {}
    aligned = np.asarray(corrupt.observed_in(rows)) if rowed else own
    standing = np.full(n_rows(clean.stage) if rowed else 0, -1)
    for number, row in [*rows.items(), *clean.rows.items()]:
        if row >= 0:
            standing[row] = number
    hidden = sum(rows.get(number, -1) < 0 for number in corrupt.rows)
    axes = _axes(clean, seen)
    edits = corrupt.edits[len(clean.edits) :]
    return storable(
        xr.Dataset(
            {
                "clean": (("pair", *axes), seen[None]),
                "corrupt": (("pair", *axes), aligned[None]),
                "own": (("pair", *axes), own[None]),
                "vehicle": (("pair", "entity"), standing[None]),
                "hidden": ("pair", [hidden]),
                "in_order": ("pair", [bool(np.array_equal(aligned, own))]),
                "reachable": ("pair", [all(edit.reachable for edit in edits)]),
                "edit": ("pair", ["; ".join(edit.what for edit in edits)]),
            },
            coords={axis: names for axis, names in _names(clean, axes).items() if rowed or axis != "entity"},
        ),
        {"rows": "kept from clean" if rowed else "not vehicles", "env": clean.spec.env_id or ""},
    )


def _axes(scene: RowedScene, seen: np.ndarray) -> tuple[str, ...]:
    if scene.base_rows and seen.ndim == 2:
        return ("entity", "feature")
    return ("feature",) if seen.ndim == 1 else tuple(f"axis_{axis}" for axis in range(seen.ndim))


def _names(scene: RowedScene, axes: tuple[str, ...]) -> dict[str, list[str]]:
    if axes != ("entity", "feature"):
        return {}
    return {axis: list(scene.spec.names(axis)) for axis in axes}
