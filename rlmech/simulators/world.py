"""An environment in the middle of an episode: reset, stepped, copied, and who is in it. Plain: any Gymnasium one."""

from __future__ import annotations

from typing import Any, Self
from weakref import WeakValueDictionary

import gymnasium as gym

from rlmech.simulators.box2d import renew_world
from rlmech.simulators.copying import copied, prove
from rlmech.untyped import Row, Stepped

_PROVED: WeakValueDictionary[int, gym.Env] = WeakValueDictionary()
"""By `id`, environments of which a copy was found to go on alike."""


class World:
    """An environment that can be copied in the middle of an episode.

    Args:
        env: Any Gymnasium environment.

    Attributes:
        env: The environment.
        entities: Who was there at the last observation: a row of the simulator's `entity_columns` each; empty where the
            simulator tells of none.
        over: Whether the episode that was begun here is over.
    """

    def __init__(self, env: gym.Env) -> None:
        self.env = env
        self.entities: list[Row] = []
        self.over = False

    def reset(self, *, seed: int) -> tuple[object, dict[str, object]]:
        """Begin an episode."""
        self.over = False
        renew_world(self.env)
        return self.env.reset(seed=seed)

    def step(self, action: object) -> Stepped:
        """Take an action."""
        result: Any = self.env.step(action)
        self.over = bool(result[2] or result[3])
        return result

    def copied(self) -> Self:
        """A copy as it is now, about which nothing is proved.

        Raises:
            CopyError: The environment cannot be copied.
        """
        twin = type(self)(copied(self.env)[0])
        twin.entities, twin.over = self.entities, self.over
        return twin

    def fork(self) -> Self:
        """A copy that goes on from here, alike and apart: nothing that happens in one is seen in the other.

        That it does is checked the first time: it holds the same, two copies take the same step, and the original stays
        as it is.

        Raises:
            CopyError: The environment cannot be copied, or a copy goes on differently.
        """
        twin = self.copied()
        if _PROVED.get(id(self.env)) is not self.env:
            prove(self, twin)
            _PROVED[id(self.env)] = self.env
        _PROVED[id(twin.env)] = twin.env
        return twin
