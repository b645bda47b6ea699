"""An attribution's claim on the road: at every step the vehicles that it calls most important are taken from view.

In single decisions an attribution may look true and matter to no episode. Here the policy drives whole episodes without
the vehicles that each attribution calls important, beside random ones and those of the largest exact effect, on the
same seeds. Cost: an attribution a step, and the episodes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.attribution_quality import ALONE, RANDOM, Attributed, players_of
from rlmech.attribution.games import Game, game_of
from rlmech.core.hook_point import HookPoint
from rlmech.core.policy import HookedPolicy
from rlmech.episodes import Condition, compare_rollouts
from rlmech.errors import ConfigError
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.results import storable


@explain_misuse
def driven_removal(
    policy: HookedPolicy,
    env: gym.Env | str,
    *,
    attributions: Mapping[str, Attributed],
    seeds: Iterable[int],
    n_removed: int = 1,
    metric: Metric | MetricFunction | None = None,
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Drive without the vehicles that attributions call most important, whatever their sign.

    Args:
        policy: A policy that observes entities with a presence.
        env: An environment that fits it, or the id of one.
        attributions: By name, functions `fn(policy, obs)` that give `[batch, entity]`; further axes are summed over.
        seeds: Seeds of the episodes.
        n_removed: How many vehicles are taken from view at each step, at most; the ego never is.
        metric: What `leave one out` is measured by; None for the action gap.
        seed: Of the random vehicles and of the bootstrap.
        **options: Those of `compare_rollouts`: workers, path, outcomes...

    Returns:
        As `compare_rollouts`, with a condition for each attribution, `random`, and `leave one out`, the vehicles whose
        absence alone changes the metric most.

    Raises:
        ConfigError: No attributions, or nothing is removed.
        ObservationError: The policy sees no entities, or an attribution does not fit them.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> shares = lambda policy, obs: rlm.attribution.shapley_values(policy, obs)["value"]
        >>> found = rlm.attribution.driven_removal(
        ...     policy, "intersection-v2", attributions={"Shapley": shares}, seeds=range(2), progress=False
        ... )
        >>> found["condition"].values.tolist()
        ['baseline', 'Shapley', 'random', 'leave one out']
    """
    if not attributions or n_removed < 1 or {RANDOM, ALONE} & set(attributions):
        raise ConfigError(
            "There is nothing to take away.",
            given=f"attributions {', '.join(attributions) or 'none'}, n_removed={n_removed}",
            expected=f"attributions by name, none named {RANDOM!r} or {ALONE!r}, and one vehicle or more",
            fix="attributions={'shapley': function}, n_removed=1",
        )
    entrance = next(name for name, point in policy.points.items() if point.address.node.op == "input")
    asked = copy.deepcopy(policy)  # the one that drives is in the middle of a pass when it is asked
    given: dict[str, Attributed | None] = {**attributions, RANDOM: None, ALONE: None}
    conditions = {
        name: Condition(
            edits=[(entrance, _Removal(asked, name, function, n_removed=n_removed, metric=metric, seed=seed))]
        )
        for name, function in given.items()
    }
    result = compare_rollouts(policy, env, conditions=conditions, seeds=seeds, seed=seed, **options)
    return storable(result, {"n_removed": n_removed, "removed": "at each step, the largest in size"})


@dataclass(frozen=True, slots=True)
class _Removal:
    """A hook function on the observation that takes vehicles out of it."""

    policy: HookedPolicy
    name: str
    function: Attributed | None
    n_removed: int
    metric: Metric | MetricFunction | None
    seed: int

    @property
    def __name__(self) -> str:
        return f"without the {self.n_removed} most important vehicles by {self.name}"

    def __call__(self, obs: Tensor, hook: HookPoint) -> Tensor:
        with torch.no_grad():
            game = game_of(self.policy, obs, players="entities", metric=self.metric)
        with torch.enable_grad():
            sizes = np.abs(self._values(game, obs))
        changed = obs.clone()
        for row, playing in enumerate(game.playing):
            there = np.flatnonzero(playing)
            most = there[np.argsort(-sizes[row, there], kind="stable")][: self.n_removed]
            changed[row, torch.from_numpy(most + 1).to(obs.device)] = 0
        return changed

    def _values(self, game: Game, obs: Tensor) -> np.ndarray:
        if self.function is not None:
            return players_of(game, self.function(self.policy, obs.detach()), self.name)
        if self.name == RANDOM:  # drawn from what is seen, so that an episode does not depend on those before it
            drawn = [np.random.default_rng([self.seed, *row.cpu().numpy().tobytes()]) for row in obs]
            return np.stack([rng.random(game.playing.shape[1]) for rng in drawn])
        n = game.playing.shape[1]
        every = np.tile(np.arange(n), (len(obs), 1))
        kept = np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)])
        worth = game.worth(np.arange(len(obs)), every, kept)
        return worth[:, :1] - worth[:, 1:]
