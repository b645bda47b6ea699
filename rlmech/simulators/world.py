"""An environment in the middle of an episode: reset, stepped, copied, and who is in it. Plain: any Gymnasium one."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym


class World:
    """An environment that can be copied in the middle of an episode.

    Args:
        env: Any Gymnasium environment.

    Attributes:
        env: The environment.
        entities: Who was there at the last observation: a row of the simulator's `entity_columns` each; empty where the
            simulator tells of none.
    """

    def __init__(self, env: gym.Env) -> None:
        self.env = env
        self.entities: list[tuple[Any, ...]] = []

    def reset(self, *, seed: int) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take an action."""
        return self.env.step(action)

    def fork(self) -> World:
        """A copy that goes on from here, alike and apart: nothing that happens in one is seen in the other.

        Raises:
            Exception: Whatever the environment raises where it cannot be copied.
        """
        return type(self)(copy.deepcopy(self.env))
