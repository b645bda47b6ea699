"""Whom the experiment is about: a trained policy, untrained ones of its architecture, and the episodes it drove."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import rlmech as rlm

SHIPPED = "zoo:intersection-ego-attention"
BETTER, WORSE = "FASTER", "SLOWER"
GAP = f"Q({BETTER}) - Q({WORSE})"
RECORDED = ("query_ego", "key_all", "value_all", "attention_combine")
FIRST_SEED = 210_000  # none of them was trained, validated or evaluated on
NOT_FOR_HIGHWAY_ENV = ("id", "import_module")  # rl-agents' own entries of an environment's configuration


def opened(checkpoint: Path | None, config: Path | None, env_config: Path | None) -> tuple[rlm.HookedPolicy, gym.Env]:
    """The shipped policy, or an rl-agents checkpoint, with the environment that it drives in."""
    if checkpoint is None:
        policy = rlm.load(SHIPPED)
        return policy, rlm.make_env("intersection-v2", config=policy.spec.env_config or None)
    if config is None or env_config is None:
        raise SystemExit("An rl-agents checkpoint needs --config and --env-config: its JSON files.")
    made = json.loads(env_config.read_text(encoding="utf-8"))
    settings = {key: value for key, value in made.items() if key not in NOT_FOR_HIGHWAY_ENV}
    env = rlm.make_env(made["id"], config=settings)
    return rlm.load(checkpoint, config=config, env=env), env


def untrained(policy: rlm.HookedPolicy, seed: int) -> rlm.HookedPolicy:
    """A freshly initialised network of the same architecture, with the same names."""
    module = copy.deepcopy(policy.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
    shape = [int(size or 1) for size in policy.hook_dict["hook_obs"].shape[1:]]
    return rlm.HookedPolicy(module, torch.zeros(2, *shape), spec=policy.spec)


def names_of(policy: rlm.HookedPolicy) -> dict[str, str]:
    """Hook names of what the seed analysis recorded, and of the pattern, the scores and the reader behind them."""
    block = next(iter(policy.attention.values()))
    found = {short: policy.sites(f"*{short}.hook_out")[0].name for short in RECORDED}
    hooks = list(policy.hook_dict)
    reader = hooks[hooks.index(block.names["attn_out"]) + 1]
    return found | {"pattern": block.names["pattern"], "scores": block.names["attn_scores"], "reader": reader}


def recorded(policy: rlm.HookedPolicy, env: gym.Env, *, folder: Path, episodes: int) -> rlm.Recording:
    """The policy's own episodes with what its attention computes, recorded once."""
    path = folder / f"{policy.fingerprint}_{episodes}_episodes"
    if path.exists():
        kept = rlm.Recording.load(path)
        if not kept.missing_seeds:
            return kept
        raise SystemExit(f"{path} holds {len(kept)} of {episodes} episodes: remove it, or give another --recordings.")
    names = [name for part, name in names_of(policy).items() if part != "reader"]
    return rlm.record(policy, env, seeds=range(FIRST_SEED, FIRST_SEED + episodes), names=names, path=path)


@dataclass(frozen=True)
class States:
    """The recorded states, and what the policy computed there, as arrays whose first axis is the state."""

    policy: rlm.HookedPolicy
    recording: rlm.Recording

    @cached_property
    def observed(self) -> np.ndarray:
        """`[state entity feature]`."""
        return np.asarray(self.recording.observations)

    @cached_property
    def obs(self) -> torch.Tensor:
        """The same as a tensor."""
        return torch.as_tensor(self.observed)

    @cached_property
    def episode(self) -> np.ndarray:
        """Which episode each state is of."""
        return self.recording.steps["episode"].to_numpy()

    @cached_property
    def there(self) -> np.ndarray:
        """`[state entity]`: which rows hold a vehicle."""
        return self.observed[:, :, self.policy.spec.presence_index] >= 0.5

    def split(self, part: str) -> np.ndarray:
        """One of the four recorded layers, head by head: `[state entity head d_head]`."""
        values = self.recording.activation(names_of(self.policy)[part])
        n_heads = next(iter(self.policy.attention.values())).n_heads
        return values.reshape(*values.shape[:-1], n_heads, -1)

    @cached_property
    def pattern(self) -> np.ndarray:
        """`[state head entity]`."""
        return self.recording.activation(names_of(self.policy)["pattern"])[:, :, 0]

    @cached_property
    def attention_scores(self) -> np.ndarray:
        """`[state head entity]`, scaled and masked."""
        return self.recording.activation(names_of(self.policy)["scores"])[:, :, 0]

    @cached_property
    def scores(self) -> np.ndarray:
        """`[state action]`."""
        return self.recording.scores

    def gap(self, scores: np.ndarray | None = None) -> np.ndarray:
        """How much better FASTER is than SLOWER in each state, in units of return."""
        values = self.scores if scores is None else scores
        return values[:, self.action(BETTER)] - values[:, self.action(WORSE)]

    def action(self, name: str) -> int:
        """The number of an action."""
        return self.policy.spec.actions.index(name)

    def rerun(self, name: str, replacement: Any) -> np.ndarray:
        """Scores with a hook point's value replaced by a function of it."""
        with torch.no_grad():
            return np.asarray(self.policy.run_with_hooks(self.obs, fwd_hooks=[(name, lambda t, hook: replacement(t))]))

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where every vehicle is, seen from the ego: metres ahead and to the left, `[state entity]`, NaN if absent."""
        at = {f.name: (number, f) for number, f in enumerate(self.policy.spec.features)}

        def physical(name: str) -> np.ndarray:
            number, feature = at[name]
            return np.asarray(feature.physical(self.observed[:, :, number]))

        dx, dy = (physical(name) - physical(name)[:, :1] for name in ("x", "y"))
        cos, sin = (physical(name)[:, :1] for name in ("cos_h", "sin_h"))
        hidden = np.where(self.there, 0.0, np.nan)
        return dx * cos + dy * sin + hidden, dx * sin - dy * cos + hidden  # y points down the page in highway-env

    def one_vehicle_each(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Each state once for each vehicle in it, that vehicle moved to row 1; and which state and row it is from.

        The policy treats the rows of other vehicles alike, so that the circuits of `vehicle_1` on these are those of
        any vehicle.
        """
        state, row = np.nonzero(self.there[:, 1:])
        moved, each = self.observed[state].copy(), np.arange(len(state))
        moved[each, 1], moved[each, row + 1] = moved[each, row + 1], moved[each, 1].copy()
        return torch.as_tensor(moved), state, row + 1


def interval(episode: np.ndarray, statistic: Any, *, n_draws: int = 400) -> list[float]:
    """A statistic of the states with its 95 % interval from a bootstrap over episodes: states of one are alike."""
    groups = [np.flatnonzero(episode == number) for number in np.unique(episode)]
    generator = np.random.default_rng(0)
    picked = (generator.integers(len(groups), size=len(groups)) for _ in range(n_draws))
    drawn = np.array([statistic(np.concatenate([groups[i] for i in numbers])) for numbers in picked])
    known = drawn[~np.isnan(drawn)]  # of a few episodes none may have such a state
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return [round(float(value), 4) for value in (statistic(np.arange(len(episode))), low, high)]


def mean_of(states: States, values: np.ndarray) -> list[float]:
    """The mean over the states that have a value, with its interval over episodes."""
    known = ~np.isnan(values)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows][known[rows]].mean()) if known[rows].any() else float("nan")

    return interval(states.episode, mean)
