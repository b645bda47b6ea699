"""What an environment or its configuration tells about a policy: names and units, and the spaces.

highway-env's are taken by duck type (`unwrapped.config`), others by their simulator: none is imported, none stepped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmech.core.other_shapes import spec_for
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EnvironmentFitError, ObservationError
from rlmech.simulators.env import spec_of
from rlmech.spec import PolicySpec, spec_from_config


def read_spec(env: Any, env_config: Mapping[str, Any] | None) -> PolicySpec:
    """The spec that a configuration gives, or a live environment's own; empty where there is neither."""
    config = environment_config(env) if env_config is None else dict(env_config)
    if config is not None:
        return spec_from_config(config)
    live = single_environment(env)
    own = spec_of(live) if isinstance(live, gym.Env) else PolicySpec()
    return own if own.actions or own.labels or own.features else PolicySpec()


def environment_config(env: Any) -> dict[str, Any] | None:
    """The configuration of a live environment as JSON values, with its `id`; None where it has none."""
    env = single_environment(env)
    config = getattr(getattr(env, "unwrapped", None), "config", None)
    if not isinstance(config, Mapping):
        return None
    made = getattr(env, "spec", None)
    values = {"id": made.id} if made is not None else {}
    return json.loads(json.dumps(dict(config) | values, default=_plain))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def single_environment(env: Any) -> Any:
    """The first environment of a vectorised one that holds them in this process; any other as it is."""
    inner = getattr(getattr(env, "unwrapped", env), "envs", None)
    return inner[0] if inner else env


def observation_space_of(env: Any) -> spaces.Space[Any] | None:
    """The observation space of an environment; of a multi-agent one, the first agent's."""
    return _first(getattr(env, "observation_space", None))


def action_space_of(env: Any) -> spaces.Space[Any] | None:
    """The action space of an environment; of a multi-agent one, the first agent's."""
    return _first(getattr(env, "action_space", None))


def _first(space: Any) -> Any:
    return space.spaces[0] if isinstance(space, spaces.Tuple) else space


def with_own_entities(spec: PolicySpec, shape: tuple[int, ...] | None) -> PolicySpec:
    """A spec with as many entities as the policy was trained with, where the environment's differs in nothing else.

    Args:
        spec: What the environment tells.
        shape: Shape of one observation of the policy; None where it is no single array.
    """
    other = shape is not None and len(shape) == 2 and shape[1] == len(spec.features) and spec.entities
    return spec_for(spec, shape[0]) if other and shape is not None else spec


def in_environment(policy: HookedPolicy, spec: PolicySpec) -> HookedPolicy:
    """The policy for as many entities as its environment shows.

    Args:
        policy: The policy, for as many as it was trained with.
        spec: What the environment tells.

    Raises:
        EnvironmentFitError: Its network takes no other number.
    """
    if not spec.entities or len(spec.entities) == len(policy.spec.entities):
        return policy
    try:
        return policy.fitting(np.zeros((1, len(spec.entities), len(spec.features)), np.float32))
    except ObservationError as error:
        raise EnvironmentFitError(
            "The environment's observations are not those of the policy.",
            given=f"{len(spec.entities)} entities x {len(spec.features)} features in the environment; on them the "
            f"network says: {error.given.partition('it says: ')[2]}",
            expected=error.expected,
            fix="give the configuration of the environment that the policy was trained in",
        ) from error


def check_spec(spec: PolicySpec, *, shape: tuple[int, ...] | None, n_actions: int | None) -> None:
    """Check that an environment's names are those of the policy's axes.

    Args:
        spec: What the environment tells.
        shape: Shape of one observation of the policy; None where it is no single array.
        n_actions: Actions that the policy scores; None where they are not counted.

    Raises:
        EnvironmentFitError: They are not.
    """
    named = (len(spec.entities), len(spec.features))
    if spec.entities and spec.features and shape is not None and int(np.prod(shape)) != int(np.prod(named)):
        raise EnvironmentFitError(
            "The environment's observations are not those of the policy.",
            given=f"{named[0]} entities x {named[1]} features in the environment",
            expected=f"observations of shape {list(shape)}",
            fix="give the configuration of the environment that the policy was trained in",
        )
    if spec.actions and n_actions is not None and len(spec.actions) != n_actions:
        raise EnvironmentFitError(
            "The environment's actions are not those of the policy.",
            given=f"{len(spec.actions)} actions in the environment: {', '.join(spec.actions)}",
            expected=f"{n_actions} actions",
            fix="give the configuration of the environment that the policy was trained in",
        )


def check_spaces(env: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Check that an environment has the policy's spaces: kind, shape, number of actions.

    Raises:
        EnvironmentFitError: It has others.
    """
    given = observation_space_of(env), action_space_of(env)
    for what, own, theirs in zip(("observations", "actions"), (observation_space, action_space), given, strict=True):
        if theirs is not None and _signature(own) != _signature(theirs) and not _more_entities(env, own, theirs):
            raise EnvironmentFitError(
                f"The environment's {what} are not those of the policy.",
                given=f"{theirs} in the environment",
                expected=f"{own}",
                fix="give the environment that the policy was trained in, with the same wrappers",
            )


def _more_entities(env: Any, own: spaces.Space[Any], theirs: spaces.Space[Any]) -> bool:
    """Whether an environment that says which of its rows are entities differs in their number alone."""
    if not (isinstance(own, spaces.Box) and isinstance(theirs, spaces.Box)):
        return False
    if len(own.shape) != 2 or len(theirs.shape) != 2 or own.shape[1:] != theirs.shape[1:]:
        return False
    return len(read_spec(env, None).entities) == theirs.shape[0]


def _signature(space: spaces.Space[Any]) -> tuple[Any, ...]:
    match space:
        case spaces.Discrete():
            return ("Discrete", int(space.n))
        case spaces.MultiDiscrete():
            return ("MultiDiscrete", *space.nvec.tolist())
        case spaces.Dict():
            return ("Dict", *((key, _signature(sub)) for key, sub in sorted(space.spaces.items())))
        case spaces.Box() if len(space.shape) == 3 and space.dtype == np.uint8:  # an image, channels first or last
            return ("Box", *sorted(space.shape))
        case _:
            return (type(space).__name__, *(space.shape or ()))
