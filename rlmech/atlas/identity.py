"""Table A: who an agent is, what it returns here and what was published, with VecNormalize's statistics and without."""

from __future__ import annotations

import numpy as np
from torch import nn

from rlmech.adapters.load import load
from rlmech.atlas.agents import Agent, published, random_episodes
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import Inside, States
from rlmech.core.policy import HookedPolicy
from rlmech.episodes import compare_rollouts, record
from rlmech.errors import ConfigError
from rlmech.nets.untrained import untrained
from rlmech.untyped import JsonObject


def identity_row(agent: Agent, states: States, sizes: Sizes) -> JsonObject:
    """The row of an agent."""
    policy, inside = agent.policy, Inside.of(agent.policy, states.raw)
    mean = float(states.returns.mean())
    error = 2 * float(states.returns.std(ddof=1)) / len(states.returns) ** 0.5
    told = published(agent.path)
    fits = None if told is None else mean + error >= told[0] and mean - error <= told[1]
    paired = sizes.paired
    twins = [
        record(untrained(policy, 1 + k), agent.env, seeds=paired, progress=False).episodes["return"].mean()
        for k in range(sizes.n_untrained)
    ]
    row: JsonObject = {
        "environment": agent.env.spec.id if agent.env.spec else "",
        "is_of_d16": agent.is_of_d16,
        "is_discrete": agent.is_discrete,
        "return": mean,
        "return_low": mean - error,
        "return_high": mean + error,
        "published_low": None if told is None else told[0],
        "published_high": None if told is None else told[1],
        "fits": fits,
        "return_random": float(random_episodes(agent.env, paired)[0].mean()),
        "return_untrained": float(np.mean(twins)),
        "scores": policy.output_kind,
        "activation": " ".join(inside.kinds),
        "widths": " ".join(str(policy.hook_dict[name].size("neuron")) for name in inside.layers),
        "n_parameters": sum(parameter.numel() for parameter in policy.module.parameters()),
        "wrappers": " ".join(policy.spec.env_wrappers),
        "has_statistics": agent.has_statistics,
        "idle": float(states.idle.mean()),
        "n_states": len(states.raw),
    }
    return row | (_without_statistics(agent, sizes) if agent.has_statistics else {})


def _without_statistics(agent: Agent, sizes: Sizes) -> JsonObject:
    """What the policy returns without the statistics, on the same seeds."""
    bare = load(agent.path, vecnormalize=False)
    found = compare_rollouts(agent.policy, agent.env, conditions={"bare": bare}, seeds=sizes.paired, progress=False)
    one = found.sel(condition="bare")
    return {
        "return_with": float(found["return"].sel(condition="baseline").mean()),
        "return_without": float(one["return"].mean()),
        "lost": -float(one["delta_return"]),
        "lost_low": -float(one["delta_return_high"]),
        "lost_high": -float(one["delta_return_low"]),
    }


def linear_of(policy: HookedPolicy, hook: str) -> nn.Linear:
    """The linear layer of a hook point.

    Raises:
        ConfigError: There is none of that name.
    """
    path = hook.removesuffix(".hook_out")
    for name, module in policy.module.named_modules():
        if isinstance(module, nn.Linear) and (name == path or name.endswith(f".{path}")):
            return module
    raise ConfigError(
        f"There is no linear layer at {hook}.",
        given=type(policy.module).__name__,
        expected="a network of linear layers",
        fix="leave the policy out",
    )


def hidden_weights(policy: HookedPolicy, layers: list[str]) -> list[np.ndarray]:
    """The weights before each hidden layer, in order."""
    names, found = list(policy.hook_dict), list[np.ndarray]()
    for layer in layers:
        before = [name for name in names[: names.index(layer)] if policy.hook_dict[name].kind == "linear"]
        found.append(linear_of(policy, before[-1]).weight.detach().double().numpy())
    return found
