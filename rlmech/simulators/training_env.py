"""The environment that a policy was trained in, made from its spec: renamed ids, keywords and wrappers.

Ids are mapped only where a published agent's return comes out in the later version (`benchmarks/zoo_returns.py`).
Wrappers are made by name only where they are installed libraries' own; what a file names is never imported else.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmech.errors import ConfigError

RENAMED = {
    "LunarLander-v2": "LunarLander-v3",
    "LunarLanderContinuous-v2": "LunarLanderContinuous-v3",
    "Hopper-v3": "Hopper-v4",
}
"""An id that Gymnasium cannot make any longer -> the one where published agents return what they did."""
LIBRARIES = (
    *("sb3_contrib.common.wrappers.", "stable_baselines3.common.atari_wrappers.", "gymnasium.wrappers."),
    "minigrid.wrappers.",
)
"""Where wrappers may be taken from by name."""
_CALL = re.compile(r"([\w.]+)(?:\((.*)\))?", re.DOTALL)


def current_id(env_id: str) -> str:
    """The id of today for an environment."""
    today = RENAMED.get(env_id, env_id)
    return today if today in gym.registry else env_id


def later_ids(env_id: str) -> list[str]:
    """Later versions of an environment that are registered, the next one first.

    Example:
        >>> later_ids("Hopper-v3")
        ['Hopper-v4', 'Hopper-v5']
    """
    name, _, version = env_id.rpartition("-v")
    others = [
        known for known in gym.registry if known.startswith(f"{name}-v") and known.removeprefix(f"{name}-v").isdecimal()
    ]
    number = int(version) if version.isdecimal() else 0
    return sorted(
        (known for known in others if int(known.rpartition("-v")[2]) > number),
        key=lambda known: int(known.rpartition("-v")[2]),
    )


def wrapped(env: gym.Env, wrappers: tuple[str, ...]) -> gym.Env:
    """An environment with the wrappers that a run names, the innermost first.

    Raises:
        ConfigError: A wrapper is not one of an installed library, or does not take its keywords.
    """
    for text in wrappers:
        found = _CALL.fullmatch(text.strip())
        name, given = (found[1], found[2]) if found else (text, None)
        try:
            if name == "frame_stack":
                env = StackedFrames(env, n=int(given or 1))
                continue
            path = f"gymnasium.{name.removeprefix('gym.')}" if name.startswith("gym.wrappers.") else name
            if not path.startswith(LIBRARIES):
                raise ImportError(f"it is none of {', '.join(library.rstrip('.') for library in LIBRARIES)}")
            module, _, kind = path.rpartition(".")
            env = getattr(importlib.import_module(module), kind)(env, **(json.loads(given) if given else {}))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"The policy was trained in an environment with a wrapper that cannot be made here: {text}.",
                given=str(error),
                expected="a wrapper of an installed library",
                fix="make the environment yourself, with all of its wrappers in this order: " + ", ".join(wrappers),
            ) from error
    return env


class StackedFrames(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """The last observations side by side, as Stable-Baselines3's `VecFrameStack` puts them: zeros before the first.

    Channels are stacked for images, the last axis for any other observation.

    Args:
        env: The environment, with observations of one Box.
        n: How many.
    """

    def __init__(self, env: gym.Env[Any, Any], n: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, n=n)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box):
            raise ValueError(f"observations of one Box can be stacked, not {space}")
        shape = space.shape
        image = len(shape) == 3 and space.dtype == np.uint8
        self.n, self._axis = n, 0 if image and shape[0] < shape[2] else -1
        low, high = (np.repeat(bound, n, axis=self._axis) for bound in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)  # type: ignore[union-attr]
        self._stack = np.zeros_like(low, dtype=space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        """Begin an episode with an empty stack."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._stack = np.zeros_like(self._stack)
        return self._pushed(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Act, and push what is observed."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._pushed(observation), reward, terminated, truncated, info

    def _pushed(self, observation: np.ndarray) -> np.ndarray:
        size = observation.shape[self._axis]
        self._stack = np.roll(self._stack, -size, axis=self._axis)
        place: list[Any] = [slice(None)] * self._stack.ndim
        place[self._axis] = slice(-size, None) if self._axis == -1 else slice(self._stack.shape[0] - size, None)
        self._stack[tuple(place)] = observation
        return self._stack.copy()
