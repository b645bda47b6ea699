"""Many states of one entity in a scene, observed one after the other in one scratch copy, decided in one batch.

A state is set, observed and undone: no copy for each, so a state costs a fraction of a millisecond where rows are
vehicles, and in grids (fourteen milliseconds for a road's other observations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int

from rlmech.core.acting import as_numpy
from rlmech.errors import SceneError, nearest
from rlmech.scenes.pair import aligned_rows
from rlmech.simulators.highway.staging.changes import check_numbers

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy
    from rlmech.scenes.scene import Scene

RowOrder = Literal["own", "aligned"]
Named = TypeVar("Named")
CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One state, as the policy would see it.

    Attributes:
        observation: What it sees; None where the simulator cannot be in the state at all.
        rows: Row by an entity's number, where rows are entities.
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
        stage, staging = scene.stage.fork(), scene.staging
        staging.check_editable(stage)
        self._scene, self._stage, self._staging = replace(scene, stage=stage), stage, staging
        self._rowed = staging.has_rows(stage)
        self._fixed = aligned_rows(scene) if self._rowed and rows == "aligned" else None

    def state(self, number: int) -> dict[str, float]:
        """The quantities of an entity as they are now, by name."""
        return self._staging.state(self._stage, number)

    def look(self, number: int, changes: Mapping[str, float], *, judge: bool = False) -> Look:
        """Observe the scene with an entity in another state.

        Args:
            number: The entity.
            changes: Quantities as they shall be: on a road `along` and `sideways` in m from where a vehicle is; `x`,
                `y` in m, `speed` in m/s and `heading` in rad; in a grid `x` and `y` in cells and the agent's
                `direction` in quarter turns. What is not named stays.
            judge: Whether to ask if the state is reachable.
        """
        blocked = self._staging.blocked(self._stage, number, changes)
        if blocked:
            return Look(observation=None, rows={}, reasons=(blocked,))
        with self._staging.varied(self._stage, number, changes) as before:
            own = self._staging.own_rows(self._stage) if self._rowed and self._fixed is None else self._fixed
            rows = own or {}
            observation = self._scene.observed_in(rows)
            reasons = self._staging.obstructions(self._stage, number, before) if judge else ()
        return Look(observation=observation, rows=rows, reasons=reasons)


def check_quantities(names: Sequence[str], allowed: Sequence[str]) -> None:
    """Check the names of quantities.

    Raises:
        SceneError: One is not among those allowed.
    """
    for name in names:
        if name not in allowed:
            close = nearest(name, allowed)
            raise SceneError(
                f"There is no quantity {name!r} to vary.",
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
            as_numpy(policy(batched(observations[start : start + CHUNK])))
            for start in range(0, len(observations), CHUNK)
        ]
    return np.concatenate(parts)


def actions_of(policy: HookedPolicy, observations: Sequence[object]) -> Int[np.ndarray, pair]:
    """Best actions of many observations.

    Raises:
        SceneError: The policy's actions are continuous, or it has a memory.
    """
    check_discrete(policy)
    return scores_of(policy, observations).argmax(-1)


def check_discrete(policy: HookedPolicy) -> None:
    """Check that a policy chooses among actions.

    Raises:
        SceneError: It does not, or it has a memory.
        MetricError: It makes several choices at once.
    """
    if policy.choices is not None:
        raise policy.choices.several("What an action is, cell by cell,", policy.spec.choices)
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


def named_entities(
    entity: str, given: Mapping[str, Named | None], *, ending: str = "", form: str = "..."
) -> Named | None:
    """What was given for the word that the simulator has for its entities; the other words must be left out.

    Args:
        entity: The simulator's word; empty where it has none.
        given: By word, what was given for it.
        ending: What the argument's name has after the word.
        form: How it is given, for the message.

    Raises:
        SceneError: Something is given for a word of other simulators.
    """
    for word, value in given.items():
        if value is not None and word != entity:
            raise SceneError(
                f"There are no {word}s in this environment.",
                given=f"{word}{ending}={value!r}",
                expected=f"{entity}{ending}={form}" if entity in given else "an environment whose state is known",
                fix="scene.entities shows who is there",
            )
    return given.get(entity)
