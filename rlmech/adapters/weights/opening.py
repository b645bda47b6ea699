"""Opening weights: in the network that the user gives, or in the one that their names tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlmech.adapters.environment import action_space_of, check_spaces, check_spec, observation_space_of, read_spec
from rlmech.adapters.safe import fit_weights
from rlmech.adapters.spaces import Observation, draw_observations
from rlmech.adapters.weights.content import joined, weights_for, weights_in
from rlmech.adapters.weights.layers import build
from rlmech.core.output_leaves import Selector
from rlmech.core.points import OutputKind
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError
from rlmech.untyped import Settings

EXAMPLES = 8


def open_weights(
    values: Any,
    *,
    name: str,
    module: nn.Module | None = None,
    activation: Any = None,
    output_kind: OutputKind | None = None,
    scores: Selector | Sequence[Selector] | None = None,
    value: Selector | None = None,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
    env: Any = None,
    env_config: Settings | None = None,
    device: str = "cpu",
) -> HookedPolicy:
    """Open what a file of weights holds.

    Args:
        values: What was read of it.
        name: What to call the file in errors.
        module: The network that the weights are of; None for the one that their names tell.
        activation: What stands between the layers, where they tell the network.
        output_kind: What the scores are.
        scores: Which output is the scores, as `HookedPolicy` takes it.
        value: Which is the value.
        observation_space: The observation space; by default the environment's, else as wide as the first layer.
        action_space: The action space; by default the environment's.
        env: The environment.
        env_config: Its configuration, for names and units.
        device: Where to put the network.

    Raises:
        CheckpointError: There are no weights, or not this network's.
        ConfigError: Something must be given.
        EnvironmentFitError: The environment is not one for this policy.
    """
    if isinstance(values, nn.Module):
        network, told = values, output_kind
    else:
        found = weights_in(values, name=name)
        if module is None:
            weights = found[""] if list(found) == [""] else _main(found)
            network, told = build(weights, activation=activation, name=name)
        else:
            network, told, weights = module, output_kind, weights_for(module, found)
        fit_weights(network, weights, name=name, fix="give the network that these weights were saved from: module=net")
    network = network.eval().to(device)
    space = observation_space or observation_space_of(env)
    actions = action_space or action_space_of(env)
    example = _example(network, space, name)
    policy = HookedPolicy(
        network,
        example,
        spec=read_spec(env, env_config),
        output_kind=output_kind or told,
        observation_space=space,
        action_space=actions,
        scores=scores,
        value=value,
    )
    if env is not None and space is not None and actions is not None:
        check_spaces(env, space, actions)
    check_spec(policy.spec, shape=space.shape if space is not None else None, n_actions=None)
    return policy


def _main(found: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of a checkpoint with several state dicts: its one network, or its actor and critic together."""
    optimisers = {key for key in found if "optim" in key.lower() or "target" in key.lower()}
    kept = {key: weights for key, weights in found.items() if key not in optimisers}
    return next(iter(kept.values())) if len(kept) == 1 else joined(kept)


def _example(network: nn.Module, space: spaces.Space | None, name: str) -> Observation:
    parameter = next(network.parameters(), torch.zeros(()))
    if space is None:
        first = next((layer for layer in network.modules() if _has_width(layer)), None)
        if first is None or not isinstance(first, nn.Linear):
            raise ConfigError(
                f"{name} does not tell what an observation is.",
                given=f"a {type(network).__name__}, and no env and no observation_space",
                expected="one of them",
                fix="load(path, module=net, observation_space=env.observation_space)",
            )
        space = spaces.Box(-np.inf, np.inf, (first.in_features,), np.float32)
    drawn = draw_observations(space, EXAMPLES)
    if isinstance(drawn, dict):
        return {key: part.to(parameter.device) for key, part in drawn.items()}
    return cast(Observation, drawn.to(parameter.device))


def _has_width(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding | nn.LSTM | nn.GRU | nn.RNN)
