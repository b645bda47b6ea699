"""Pairs for interchanges: base and source runs, and what the causal model says of base with the other's variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.many_rows import n_rows, rows_of, scores_of
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, ObservationError
from rlmech.features.rows import states_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InterchangePairs:
    """Base and source observations, and what an interchange of the variable should lead to.

    Attributes:
        base: Observations, one row per pair.
        source: Their counterparts, row by row.
        expected: Per pair, the action (number or name) that the causal model gives for the base with the variable of
            the source; None where `counterfactual` says it.
        counterfactual: Observations of the base with the variable of the source: what the policy does there is
            expected. None where `expected` says it.
        clusters: A label for each pair, say its episode, by which pairs are split and resampled. None: every pair by
            itself.

    Raises:
        ObservationError: They do not pair up.
        ConfigError: Both or neither of `expected` and `counterfactual`.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.planted_subspace()
        >>> pairs = rlm.features.InterchangePairs(base=known.base, source=known.source, expected=known.expected)
        >>> len(pairs)
        2000
    """

    base: Observation
    source: Observation
    expected: Sequence[int | str] | np.ndarray | Tensor | None = None
    counterfactual: Observation | None = None
    clusters: Any = None

    def __post_init__(self) -> None:
        if (self.expected is None) == (self.counterfactual is None):
            raise ConfigError(
                "What an interchange leads to is said once.",
                given="neither expected nor counterfactual" if self.expected is None else "both of them",
                expected="the causal model's actions, or the observations that the policy is to be asked about",
                fix="expected=actions, or counterfactual=observations",
            )
        told = self.counterfactual if self.expected is None else self.expected
        sizes = {"base": n_rows(self.base), "source": n_rows(self.source), "expected": n_rows(told)}  # type: ignore[arg-type]
        if self.clusters is not None:
            sizes["clusters"] = len(self.clusters)
        if len(set(sizes.values())) > 1 or not len(self):
            raise ObservationError(
                "Base, source and what is expected do not pair up.",
                given=", ".join(f"{size} {name}" for name, size in sizes.items()),
                expected="as many of each, at least one",
                fix="give the counterpart of each base observation, in the same order",
            )

    def __len__(self) -> int:
        return n_rows(self.base)

    def actions(self, policy: HookedPolicy) -> Int[Tensor, " pair"]:
        """The expected actions as numbers.

        Raises:
            MetricError: The policy has no such action.
        """
        if self.expected is None:
            assert self.counterfactual is not None  # noqa: S101  # __post_init__ saw to it
            return scores_of(policy, self.counterfactual).argmax(-1).cpu()
        n = scores_of(policy, rows_of(self.base, slice(0, 1))).shape[-1]
        given = self.expected.tolist() if isinstance(self.expected, Tensor) else self.expected
        return torch.tensor([policy.spec.action_number(item, n_actions=n) for item in given])

    def labels(self) -> np.ndarray:
        """Numbers of the clusters."""
        return np.arange(len(self)) if self.clusters is None else np.unique(self.clusters, return_inverse=True)[1]


@explain_misuse
def interchange_pairs(
    policy: HookedPolicy,
    recording: Recording,
    *,
    change: Callable[[Any, Any], Any],
    n_pairs: int = 2000,
    seed: int = 0,
) -> InterchangePairs:
    """Draw pairs of states of the same episode, and make the observations in which one has the other's variable.

    Half of the pairs are drawn among those in which the counterfactual changes the action, where there are enough: else
    most interchanges would be expected to change nothing.

    Args:
        policy: The policy that was recorded.
        recording: Its episodes; they are the clusters.
        change: From base and source observations to the base with the variable of the source, all of them at once.
        n_pairs: Pairs.
        seed: Of the draws.

    Raises:
        ConfigError: `change` gives something else than observations, or the policy does the same in every
            counterfactual as in its base.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = torch.nn.init.zeros_(net.bias), net.weight.data.copy_(torch.tensor([[0, 0, -9.0, -3], [0, 0, 9, 3]]))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(8), progress=False)
        >>> def angle(base, source):
        ...     return torch.cat([base[:, :2], source[:, 2:3], base[:, 3:]], dim=1)
        >>> pairs = rlm.features.interchange_pairs(policy, recording, change=angle, n_pairs=40)
        >>> len(pairs)
        40
    """
    states = states_of(policy, recording)
    rng = np.random.default_rng(seed)
    base = rng.integers(len(states), size=8 * n_pairs)
    order = np.argsort(states.episode, kind="stable")
    length = np.bincount(states.episode)
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    episode = states.episode[base]
    source = order[start[episode] + (rng.random(len(base)) * length[episode]).astype(int)]
    of_base, of_source = _tensors(states.rows(base)), _tensors(states.rows(source))
    made = change(of_base, of_source)
    if n_rows(made) != len(base):
        raise ConfigError(
            "A change gives an observation for each pair.",
            given=f"{n_rows(made)} observations of {len(base)} pairs",
            expected="as many as it was given",
            fix="return base with some of its features replaced by source's",
        )
    moved = (scores_of(policy, made).argmax(-1) != scores_of(policy, of_base).argmax(-1)).cpu().numpy()
    if moved.ndim != 1 or not moved.any():
        raise ConfigError(
            "No interchange of the variable changes an action.",
            given=f"{len(base)} pairs; the policy does the same in each base and its counterfactual",
            expected="a variable that some decisions depend on",
            fix="choose another variable, or states in which it matters",
        )
    half = n_pairs - min(n_pairs // 2, int(moved.sum()))
    chosen = np.concatenate([np.flatnonzero(moved)[: n_pairs - half], np.flatnonzero(~moved)[:half]])
    chosen = rng.permutation(chosen)
    return InterchangePairs(
        base=rows_of(of_base, chosen),
        source=rows_of(of_source, chosen),
        counterfactual=rows_of(made, chosen),
        clusters=episode[chosen],
    )


def _tensors(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: torch.as_tensor(value) for key, value in obs.items()}
    return torch.as_tensor(obs)
