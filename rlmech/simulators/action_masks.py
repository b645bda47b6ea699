"""What may be done, as a part of what is observed: for policies that choose among the actions that a mask leaves open.

The mask is the environment's own: its method `action_masks()`, as sb3-contrib has it, or `info["action_mask"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmech.errors import EnvironmentFitError
from rlmech.untyped import JsonObject, Settings, Stepped

OBSERVATION_KEY, MASK_KEY = "observation", "action_mask"


def masked_space(observed: spaces.Space, acted: spaces.Space) -> spaces.Dict:
    """An observation space with the mask of an action space: sb3-contrib's have two booleans for a bit of MultiBinary.

    Args:
        observed: What is observed; it stands under `observation`, or under its own keys where it is a dict.
        acted: The action space.
    """
    parts = observed.spaces if isinstance(observed, spaces.Dict) else {OBSERVATION_KEY: observed}
    size = spaces.flatdim(acted) * (2 if isinstance(acted, spaces.MultiBinary) else 1)
    dtype: Any = np.bool_
    return spaces.Dict([*parts.items(), (MASK_KEY, spaces.Box(0, 1, (size,), dtype))])


def with_masks(env: gym.Env, space: spaces.Space | None) -> gym.Env:
    """An environment whose observations hold its action mask, if the policy wants one and they do not.

    Args:
        env: The environment.
        space: The policy's observation space.
    """
    wants = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
    own = env.observation_space
    has = isinstance(own, spaces.Dict) and MASK_KEY in own.spaces
    return MaskedObservation(env) if wants and not has else env


def with_mask_of(env: gym.Env, observation: Any, space: spaces.Space | None) -> Any:
    """An observation with the mask of the environment's state, if the policy wants one and it holds none.

    Args:
        env: The environment, in that state.
        observation: What is observed there.
        space: The policy's observation space.

    Raises:
        EnvironmentFitError: The environment tells its mask only in the info of a step.
    """
    masked = with_masks(env, space)
    if masked is env or not isinstance(masked, MaskedObservation):
        return observation
    return masked.masked(observation, {})


class MaskedObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Observations as a dict of what the environment gives and its action mask.

    Args:
        env: The environment; what it observes stands under `observation`, or under its own keys where it is a dict.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = masked_space(env.observation_space, env.action_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[object, dict[str, object]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self.masked(observation, info), info

    def step(self, action: object) -> Stepped:
        """Act."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self.masked(observation, info), reward, terminated, truncated, info

    def masked(self, observation: Any, info: Settings) -> JsonObject:
        """An observation and the mask beside it.

        Args:
            observation: What the environment observes.
            info: What it says beside.

        Raises:
            EnvironmentFitError: There is no mask.
        """
        mask = info.get(MASK_KEY)
        if mask is None:
            try:
                mask = self.get_wrapper_attr("action_masks")()
            except AttributeError as error:
                raise EnvironmentFitError(
                    "The policy chooses among the actions that a mask leaves open, and the environment gives none.",
                    given=f"{type(self.unwrapped).__name__} without action_masks() and without info['action_mask']",
                    expected="one of the two",
                    fix="give the environment that the policy was trained in, with a method action_masks() "
                    "that returns a boolean for each action",
                ) from error
        flat = np.asarray(np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else mask)
        parts = observation if isinstance(observation, Mapping) else {OBSERVATION_KEY: observation}
        return {**parts, MASK_KEY: flat.reshape(-1).astype(np.bool_)}
