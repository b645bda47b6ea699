"""A sequence is the step, again and again: one program for all of them, the state carried along, a cache that stacks.

    scores_t, state_t = step(obs_t, state_{t-1})

Bit for bit what calling the step by hand gives. Cost: a forward pass a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.axes import Axis
from rlmech.core.cache import ActivationCache
from rlmech.core.edit import AtSteps
from rlmech.core.hook_point import HookFunction, HookPoint, at_step
from rlmech.core.names import Names
from rlmech.core.observation import Observation, ObservationFormat
from rlmech.errors import ObservationError, SiteError, StateError
from rlmech.untyped import JsonObject, Settings


class SteppingPolicy(Protocol):
    """What a sequence asks of the policy that runs it."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Hook points that make up the state."""
        ...

    def point(self, name: str) -> HookPoint:
        """The hook point of a name."""
        ...

    def with_state(self, obs: Observation, state: Mapping[str, object] | None) -> Observation:
        """Observations met in a state, as one observation."""
        ...

    def run_with_cache(self, obs: Observation, names: Names) -> tuple[Tensor, ActivationCache]:
        """Scores and activations."""
        ...


def run_sequence(
    policy: SteppingPolicy,
    form: ObservationFormat,
    obs: Observation,
    state: Settings | None,
    *,
    names: Sequence[str],
    attached: Sequence[tuple[str, HookFunction]],
    episode_start: Any,
) -> tuple[Float[Tensor, "batch step action"], ActivationCache]:
    """Run steps one after the other; see `HookedPolicy.run_sequence`.

    Args:
        policy: The policy.
        form: What its observations are, of one step.
        obs: `[batch step ...]`.
        state: The state before the first step, or None.
        names: The activations to keep.
        attached: Hooks that act, by name.
        episode_start: `[batch step]`, or None.
    """
    arrays = _arrays(form, obs)
    n_rows, n_steps = next(iter(arrays.values())).shape[:2]
    _check_steps(attached, n_steps)
    starts = None if episode_start is None else torch.as_tensor(np.asarray(episode_start))
    if starts is not None and tuple(starts.shape) != (n_rows, n_steps):
        raise StateError(
            "episode_start says of each row and step whether an episode begins there.",
            given=f"shape {list(starts.shape)}",
            expected=f"[{n_rows} {n_steps}]",
            fix="give one truth value for each row and step",
        )
    wanted = tuple(dict.fromkeys((*names, *policy.state_names)))
    scores: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    axes: dict[str, tuple[Axis, ...]] = {}
    for step in range(n_steps):
        seen = {key: value[:, step] for key, value in arrays.items()}
        given = policy.with_state(seen if form.takes_dict else seen[""], state)
        if starts is not None:
            given = form.restarted(given, starts[:, step])
        with at_step(step):
            now, cache = policy.run_with_cache(given, wanted)
        state = {name: cache[name] for name in policy.state_names} or None
        scores.append(now)
        for name, values in kept.items():
            values.append(cache[name])
    for name in names:
        first, *rest = policy.point(name).axes
        axes[name] = (first, "step", *rest)
    values = {name: torch.stack(values, dim=1) for name, values in kept.items()}
    return torch.stack(scores, dim=1), ActivationCache(values, axes=axes)


def _arrays(form: ObservationFormat, obs: Observation) -> JsonObject:
    """The observation's arrays, all of as many rows and steps."""
    given: JsonObject = {key: obs[key] for key in obs} if isinstance(obs, Mapping) else {"": obs}
    arrays = {
        key: value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value)) for key, value in given.items()
    }
    wanted = {key: tuple(shape) for key, shape in form.observed.items()}
    sizes = {tuple(value.shape[:2]) for value in arrays.values()}
    fits = arrays.keys() == wanted.keys() and all(
        value.ndim == len(wanted[key]) + 2 and tuple(value.shape[2:]) == wanted[key] for key, value in arrays.items()
    )
    if not fits or len(sizes) != 1 or 0 in next(iter(sizes)):
        raise ObservationError(
            "That is no sequence of the policy's observations.",
            given="; ".join(f"{key or 'an array'} {list(value.shape)}" for key, value in arrays.items()),
            expected="; ".join(
                f"{key or 'an array'} [batch step {' '.join(map(str, shape))}]" for key, shape in wanted.items()
            )
            + ", at least one row and one step",
            fix="stack the steps along a second axis: torch.stack(observations, dim=1)",
        )
    return arrays


def _check_steps(attached: Sequence[tuple[str, HookFunction]], n_steps: int) -> None:
    for name, function in attached:
        if isinstance(function, AtSteps) and max(function.steps) >= n_steps:
            raise SiteError(
                "The sequence ends before a step at which an edit acts.",
                given=f"{n_steps} steps, and an edit of {name!r} at step {max(function.steps)}",
                expected=f"a step from 0 to {n_steps - 1}",
                fix="choose an earlier step, or give a longer sequence",
            )
