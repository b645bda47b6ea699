"""rl-agents checkpoints and live agents as a `HookedPolicy`, without the rl-agents package.

A checkpoint is `{"state_dict", "optimizer"}` of the agent's `value_net`; its architecture stands in the agent's JSON
configuration. The networks are `rlmech.nets`', which compute what upstream's compute, bit for bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from rlmech.adapters.environment import (
    action_space_of,
    check_spec,
    in_environment,
    observation_space_of,
    read_spec,
    with_own_entities,
)
from rlmech.adapters.rl_agents.config import (
    Config,
    find_metadata,
    inferred,
    model_config,
    read_config,
    refuse_dropout,
    split_run,
)
from rlmech.adapters.rl_agents.plan import RlAgentsPlan, sized
from rlmech.adapters.safe import as_tensors, fit_weights
from rlmech.adapters.spaces import draw_observations
from rlmech.core.policy import HookedPolicy
from rlmech.errors import CheckpointError, ConfigError, EnvironmentFitError
from rlmech.spec import PolicySpec

EXAMPLES = 8
ENTITIES = 5
"""As many as highway-env shows unless told otherwise: of a policy whose weights fit any number, and no file says."""


def owns(values: Any) -> bool:
    """Whether what a file holds are the weights of a network of rl-agents, by their names."""
    inner = values.get("state_dict", values) if isinstance(values, Mapping) else {}
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        return False
    try:
        inferred(inner, name="")
    except CheckpointError:
        return False
    return True


def open_checkpoint(
    path: Path,
    values: Any,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    env_config: Mapping[str, Any] | None = None,
    env: Any = None,
    observation_space: spaces.Space[Any] | None = None,
    device: str = "cpu",
) -> HookedPolicy:
    """Open a checkpoint of an rl-agents DQN agent.

    Args:
        path: The `.tar` or `.pt` file.
        values: What `torch.load` read of it.
        config: The agent's configuration, or a run's metadata with `agent` and `env`; without it the `metadata*.json`
            beside the file, and without that what the tensors tell.
        env_config: The environment's configuration, for names, units and the shape of observations.
        env: The environment itself, instead.
        observation_space: The observation space, where there is neither.
        device: Where to put the network.

    Raises:
        CheckpointError: The file is damaged or unsafe, or its weights are not those of the configuration.
        ConfigError: The configuration is malformed, or does not tell enough.
        EnvironmentFitError: The observations or actions are not those of the network.
    """
    tensors = _state_dict(values, name=path.name)
    run = find_metadata(path) if config is None else read_config(config)
    given, of_run = (None, None) if run is None else split_run(run)
    env_config = of_run if env is None and env_config is None else env_config
    model = sized(model_config(given, tensors, name=path.name), tensors)
    if run is None:
        warnings.warn(
            f"{path.name}: no configuration was given or found beside it, so ReLU is assumed; give the "
            "agent's configuration, load(path, config='agent.json'), to be sure",
            stacklevel=3,
        )
    spec = read_spec(env, env_config)
    plan = RlAgentsPlan(
        model=model,
        observation_shape=_observation_shape(
            model, space=observation_space or observation_space_of(env), spec=spec, name=path.name
        ),
        n_actions=int(model["out"]),
    )
    network = plan.build()
    fix = "give the configuration that the checkpoint was trained with"
    fit_weights(network, tensors, name=path.name, fix=fix if given is not None else "give it with config=")
    plan.check_shape()
    return open_plan(plan, network.to(device), spec=spec)


def open_plan(plan: RlAgentsPlan, network: nn.Module, *, spec: PolicySpec) -> HookedPolicy:
    """Wrap a network that was built by a plan."""
    own = with_own_entities(spec, plan.observation_shape)
    check_spec(own, shape=plan.observation_shape, n_actions=plan.n_actions)
    policy = HookedPolicy(
        network,
        draw_observations(plan.observation_space, EXAMPLES),
        spec=own,
        output_kind="q_values",
        observation_space=plan.observation_space,
        action_space=plan.action_space,
    )
    return in_environment(policy, spec)


def from_rl_agents(agent: Any, *, env: Any = None) -> HookedPolicy:
    """Open a live rl-agents DQN agent: its own network, which may train on underneath.

    Args:
        agent: An object with a `value_net` and an `env`.
        env: The environment, where the agent has none.

    Raises:
        ConfigError: It is no such object, or its network keeps a dropout alive.
        EnvironmentFitError: The environment's observations are not one Box.
    """
    network, env = getattr(agent, "value_net", None), env or getattr(agent, "env", None)
    if not isinstance(network, nn.Module) or env is None:
        raise ConfigError(
            f"{type(agent).__name__} is not a DQN agent of rl-agents.",
            given=f"env {type(env).__name__}, value_net {type(network).__name__}",
            expected="an agent with a torch module `value_net` and an `env`",
            fix="wrap the network itself: HookedPolicy(module, example_obs)",
        )
    for module in network.modules():
        config = getattr(module, "config", None)
        if isinstance(config, Mapping):
            refuse_dropout(config, type(module).__name__)
    space, action_space = observation_space_of(env), action_space_of(env)
    if not isinstance(space, spaces.Box):
        raise EnvironmentFitError(
            "The environment's observations are not one array.",
            given=f"observation_space {space}",
            expected="a Box, or a Tuple of one for each agent",
            fix="give the environment that the agent acts in: from_rl_agents(agent, env=env)",
        )
    return HookedPolicy(
        network,
        draw_observations(space, EXAMPLES),
        spec=read_spec(env, None),
        output_kind="q_values",
        observation_space=space,
        action_space=action_space,
    )


def _state_dict(values: Any, *, name: str) -> dict[str, Tensor]:
    """Take the network out of `{"state_dict", "optimizer"}`; a bare state dict stands for itself."""
    inner = values.get("state_dict", values) if isinstance(values, Mapping) else values
    return as_tensors(inner, name=name)


def _observation_shape(
    model: Config, *, space: spaces.Space[Any] | None, spec: PolicySpec, name: str
) -> tuple[int, ...]:
    """The shape of an observation: from the space, the environment's configuration, or the model's own."""
    if isinstance(space, spaces.Box):
        return space.shape
    if spec.entities and spec.features:
        return (len(spec.entities), len(spec.features))
    grid = spec.env_config.get("observation") or {}
    if grid.get("type") == "OccupancyGrid":
        return _grid_shape(grid)
    match model["type"]:
        case "ConvolutionalNetwork" if model["in_height"] and model["in_width"]:
            return (model["in_channels"], model["in_height"], model["in_width"])
        case "EgoAttentionNetwork":
            return (ENTITIES, model["in"])  # its weights fit any number, and it takes any
        case "ConvolutionalNetwork":
            raise ConfigError(
                f"{name} does not tell how many rows and columns an observation has: its weights fit several.",
                given="no env_config, no env and no observation_space",
                expected="one of them",
                fix="load(..., env_config='env.json'), or observation_space=gymnasium.spaces.Box(-1, 1, "
                f"({model['in_channels']}, 11, 11))",
            )
        case _:
            return (model["in"],)


def _grid_shape(grid: Mapping[str, Any]) -> tuple[int, ...]:
    """highway-env's occupancy grid: features x rows x columns, with its defaults."""
    extent = grid.get("grid_size", [[-27.5, 27.5], [-27.5, 27.5]])
    steps = grid.get("grid_step", [5, 5])
    cells = [math.floor((high - low) / step) for (low, high), step in zip(extent, steps, strict=True)]
    return (len(grid.get("features", ["presence", "vx", "vy", "on_road"])), *cells)
