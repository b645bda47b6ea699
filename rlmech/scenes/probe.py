"""Many states of one vehicle in a scene, observed one after the other in one scratch copy, decided in one batch.

A state is set, observed and undone: no copy for each, so a state costs a fraction of a millisecond where rows are
vehicles (fourteen milliseconds for other observations).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from rlmech.errors import SceneError, nearest
from rlmech.scenes.pair import aligned_rows
from rlmech.simulators.highway.staging.changes import check_numbers, drive, place
from rlmech.simulators.highway.staging.reachable import obstructions
from rlmech.simulators.highway.staging.rows import has_rows, own_rows

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy
    from rlmech.scenes.scene import Scene

RowOrder = Literal["own", "aligned"]
UNITS = {"along": "m", "sideways": "m", "x": "m", "y": "m", "speed": "m/s", "heading": "rad"}
CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One state, as the policy would see it.

    Attributes:
        observation: What it sees.
        rows: Row by vehicle number, where rows are vehicles.
        reasons: What speaks against the state; empty where it was not asked, or nothing does.
    """

    observation: Any
    rows: Mapping[int, int]
    reasons: tuple[str, ...]


class Probe:
    """A scratch copy of a scene.

    Args:
        scene: The scene; it stays as it is.
        rows: `own`: as the environment would show each state. `aligned`: every vehicle in its row, whatever it does.
    """

    def __init__(self, scene: Scene, *, rows: RowOrder = "own") -> None:
        if rows not in ("own", "aligned"):
            raise SceneError(
                "There is no such order of rows.", given=repr(rows), expected="'own' or 'aligned'", fix="name one"
            )
        stage = scene.stage.fork()
        stage.road  # noqa: B018  # raises where there is none
        self._scene, self._stage = replace(scene, stage=stage), stage
        self._rowed = has_rows(stage)
        self._fixed = aligned_rows(scene) if self._rowed and rows == "aligned" else None

    def state(self, number: int) -> dict[str, float]:
        """A vehicle's present state, in m, m/s and rad; `along` and `sideways` count from it."""
        vehicle = self._stage.vehicle(number)
        x, y = map(float, vehicle.position)
        speed, heading = float(vehicle.speed), float(vehicle.heading)
        return {"along": 0.0, "sideways": 0.0, "x": x, "y": y, "speed": speed, "heading": heading}

    def look(self, number: int, changes: Mapping[str, float], *, judge: bool = False) -> Look:
        """Observe the scene with a vehicle in another state.

        Args:
            number: The vehicle.
            changes: `along` and `sideways` in m from where it is; `x`, `y` in m, `speed` in m/s and `heading` in rad
                as they shall be. What is not named stays.
            judge: Whether to ask if the state is reachable.
        """
        with self._changed(number, changes) as before:
            rows = {} if not self._rowed else own_rows(self._stage) if self._fixed is None else self._fixed
            observation = self._scene.observed_in(rows)
            reasons = obstructions(self._stage, number, speed_before=before) if judge else ()
        return Look(observation=observation, rows=rows, reasons=reasons)

    @contextmanager
    def _changed(self, number: int, changes: Mapping[str, float]) -> Generator[float]:
        vehicle = self._stage.vehicle(number)
        kept = dict(vars(vehicle))
        try:
            if "along" in changes or "sideways" in changes:
                drive(self._stage, vehicle, along=changes.get("along", 0.0), sideways=changes.get("sideways", 0.0))
            if {"x", "y", "heading"} & set(changes):
                old = dict(zip(("x", "y", "heading"), (*vehicle.position, vehicle.heading), strict=True))
                place(self._stage, vehicle, **{name: float(changes.get(name, value)) for name, value in old.items()})
            vehicle.speed = changes.get("speed", vehicle.speed)
            yield float(kept["speed"])
        finally:
            vars(vehicle).clear()
            vars(vehicle).update(kept)


def check_quantities(names: Sequence[str], allowed: Sequence[str]) -> None:
    """Check the names of quantities.

    Raises:
        SceneError: One is not among those allowed.
    """
    for name in names:
        if name not in allowed:
            close = nearest(name, allowed)
            raise SceneError(
                f"A vehicle has no quantity {name!r} to vary.",
                given=repr(name),
                expected=f"one of {list(allowed)}",
                fix=f"did you mean {close[0]!r}?" if close else "name one of them",
            )


def check_values(values: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, np.ndarray]:
    """Values by quantity as increasing, finite arrays.

    Raises:
        SceneError: They are not.
    """
    arrays = {name: np.asarray(one, dtype=np.float64) for name, one in values.items()}
    for name, one in arrays.items():
        if one.ndim != 1 or one.size < 2 or not np.all(np.diff(one) > 0):
            raise SceneError(
                f"The values of {name} are not a grid.",
                given=f"{name} of shape {list(one.shape)}",
                expected="at least two increasing numbers",
                fix=f"e.g. {name}=np.linspace(-20, 20, 41)",
            )
        check_numbers(**{name: float(one.sum())})
    return arrays


def batched(observations: Sequence[Any]) -> Any:
    """Observations as a batch."""
    first = observations[0]
    if isinstance(first, Mapping):
        return {key: np.stack([np.asarray(one[key]) for one in observations]) for key in first}
    return np.stack([np.asarray(one) for one in observations])


def scores_of(policy: HookedPolicy, observations: Sequence[Any]) -> Float[np.ndarray, "pair action"]:
    """Action scores of many observations, in chunks."""
    with torch.no_grad():
        parts = [
            policy(batched(observations[start : start + CHUNK])).cpu().numpy()
            for start in range(0, len(observations), CHUNK)
        ]
    return np.concatenate(parts)


def actions_of(policy: HookedPolicy, observations: Sequence[Any]) -> Int[np.ndarray, pair]:
    """Best actions of many observations.

    Raises:
        SceneError: The policy's actions are continuous, or it has a memory.
    """
    check_discrete(policy)
    return scores_of(policy, observations).argmax(-1)


def check_discrete(policy: HookedPolicy) -> None:
    """Check that a policy chooses among actions.

    Raises:
        SceneError: It does not.
    """
    if policy.is_recurrent:
        raise SceneError(
            "What a policy with a memory does in a state follows from what it has seen before.",
            given="a recurrent policy",
            expected="a policy that decides by the observation alone",
            fix="look at scene.decide(policy, state=...).scores along the change instead",
        )
    if policy.output_kind == "mean_action":
        raise SceneError(
            "A continuous action changes with everything: it does not flip.",
            given="a policy whose output is the mean action",
            expected="a policy with discrete actions",
            fix="look at scene.decide(policy).scores along the change instead",
        )


def action_names(policy: HookedPolicy, scene: Scene) -> list[str]:
    """Names of the actions; their numbers where there are none."""
    n = int(policy.hook_dict[f"hook_{policy.output_kind}"].shape[-1] or 0)
    names = policy.spec.actions or scene.spec.actions
    return list(names) if len(names) == n else [str(action) for action in range(n)]
