"""The states that an agent is asked in: evenly from its own greedy episodes, with those in which nothing moves told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rlmech.arguments import explain_misuse
from rlmech.atlas.agents import Agent
from rlmech.atlas.sizes import Sizes
from rlmech.core.cache import ActivationCache
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes import record
from rlmech.first_look.neurons import acting_layers

STILL = 1e-3
"""A state is idle where no feature moves to the next one by so much of its standard deviation."""
MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class States:
    """States of an agent.

    Attributes:
        raw: As the environment gives them.
        seen: As the network is fed.
        step: The change to the next state, as the network is fed; NaN at the end of an episode.
        idle: Whether nothing moves: the next state is the same but for a thousandth of each feature's spread.
        episode: The seed of its episode.
        returns: Of the episodes, all that were recorded.
    """

    raw: Float[np.ndarray, "row feature"]
    seen: Float[np.ndarray, "row feature"]
    step: Float[np.ndarray, "row feature"]
    idle: Bool[np.ndarray, " row"]
    episode: Int[np.ndarray, " row"]
    returns: Float[np.ndarray, " seed"]


def states_of(agent: Agent, sizes: Sizes) -> States:
    """Record an agent's greedy episodes and take states evenly from those that are for states."""
    n_seeds = max(sizes.state_seeds, sizes.return_seeds)
    recording = record(agent.policy, agent.env, seeds=range(n_seeds), progress=False)
    returns = recording.episodes["return"].to_numpy(dtype=float)
    last = sizes.state_seeds
    while (recording.steps["seed"] < last).sum() < sizes.n_states and last < MOST_SEEDS:
        last *= 2
        if last > n_seeds:
            n_seeds = last
            recording = record(agent.policy, agent.env, seeds=range(last), progress=False)
    episode = recording.steps["seed"].to_numpy()
    own = np.flatnonzero(episode < last)
    rows = own[np.linspace(0, len(own) - 1, min(sizes.n_states, len(own))).round().astype(int)]
    raw: Any = np.asarray(recording.observations)
    seen = fed(agent.policy, raw)
    ends = np.r_[episode[1:] != episode[:-1], True]
    step = np.where(ends[:, None], np.nan, np.concatenate([seen[1:], seen[-1:]]) - seen)
    moved = np.abs(np.where(ends[:, None], np.inf, step)) / np.maximum(seen[own].std(0), 1e-12)
    idle = moved.max(1) < STILL
    return States(
        raw=raw[rows], seen=seen[rows], step=step[rows], idle=idle[rows], episode=episode[rows], returns=returns
    )


def fed(policy: HookedPolicy, raw: Any) -> Float[np.ndarray, "row feature"]:
    """What a network is fed of observations: normalised, where there are statistics."""
    return policy.run_with_cache(raw, "hook_obs")[1]["hook_obs"].detach().double().numpy()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inside:
    """The hidden units of an acting network, and what they did in some states.

    Attributes:
        layers: Hook names of the hidden activations, in order.
        kinds: Of each, the function: `tanh`, `relu`, ...
        units: A site for each unit.
        cache: Their values.
    """

    layers: list[str]
    kinds: list[str]
    units: list[Site]
    cache: ActivationCache

    @classmethod
    def of(cls, policy: HookedPolicy, raw: Any) -> Inside:
        """Those of a policy."""
        layers = [name for name in acting_layers(policy) if policy.hook_dict[name].axes == ("batch", "neuron")]
        kinds = [str(policy.points[name].address.node.op) for name in layers]
        units = hidden_units(policy)
        cache = policy.run_with_cache(raw, layers or "hook_obs")[1]
        return cls(layers=layers, kinds=kinds, units=units, cache=cache)

    def values(self, layer: int) -> Float[np.ndarray, "row unit"]:
        """What the units of a layer did."""
        return self.cache[self.layers[layer]].detach().double().numpy()


@explain_misuse
def hidden_units(policy: HookedPolicy) -> list[Site]:
    """Every unit of the hidden layers that the scores are computed from, after its activation; a critic's are not.

    Args:
        policy: The policy.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> rlm.atlas.hidden_units(rlm.HookedPolicy(net, torch.rand(2, 4)))[:2]
        [Site('1.hook_out', neuron=0), Site('1.hook_out', neuron=1)]
    """
    layers = [name for name in acting_layers(policy) if policy.hook_dict[name].axes == ("batch", "neuron")]
    return [site for name in layers for site in policy.sites(name, over="neuron")]


def unit_of(site: Site) -> int:
    """The number of a unit in its layer."""
    return int(dict(site.selection)["neuron"])  # type: ignore[arg-type]  # single units
