"""A grid that is played in: who is where after every observation, and whether the episode ended in success.

MiniGrid's `info` is empty; what its own `step` rewards at the end of an episode is noted while it runs, whatever
wrappers make of it. Nothing is drawn from the environment's generator. Cost: about 0.1 ms a step.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import gymnasium as gym

from rlmech.simulators.copying import copied
from rlmech.simulators.minigrid.objects import objects_of, table
from rlmech.simulators.minigrid.view import Seen, view_of
from rlmech.simulators.world import World
from rlmech.untyped import Stepped

if TYPE_CHECKING:
    from minigrid.minigrid_env import MiniGridEnv

SUCCESS = "success"


class GridWorld(World):
    """One of MiniGrid's environments, and who is where; it can be copied in the middle of an episode.

    Args:
        env: The environment.

    Attributes:
        entities: The agent and the objects as they were at the last observation: rows of `OBJECT_COLUMNS`.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._known: list[Any] = []  # the objects by their numbers, from 1; holds them, so that no other takes an id()
        self._numbers: dict[int, int] = {}
        self._view = view_of(env)

    @property
    def base(self) -> Any:
        """The environment without its wrappers."""
        return self.env.unwrapped

    def reset(self, *, seed: int) -> tuple[object, dict[str, object]]:
        """Begin an episode; its objects are numbered anew."""
        self._known, self._numbers = [], {}
        result = super().reset(seed=seed)
        self.look()
        return result

    def step(self, action: object) -> Stepped:
        """Take an action; `info` tells `success` too."""
        with _noting(self.base) as noted:
            observation, reward, terminated, truncated, info = super().step(action)
        self.look()
        return observation, reward, terminated, truncated, {**info, SUCCESS: any(noted)}

    def copied(self) -> Self:
        """A copy as it is now, about which nothing is proved."""
        twin = type(self).__new__(type(self))
        twin.env, twin._known = copied(self.env, self._known)
        twin._numbers = {id(one): number for number, one in enumerate(twin._known, start=1)}
        twin._view, twin.entities, twin.over = self._view, self.entities, self.over
        return twin

    def look(self) -> None:
        """Note who is where, and number what has come."""
        for one in objects_of(self.base):
            if id(one) not in self._numbers:
                self._known.append(one)
                self._numbers[id(one)] = len(self._known)
        self.entities = table(self.base, self._numbers, Seen.of(self.base, self._view))


@contextmanager
def _noting(base: MiniGridEnv) -> Generator[list[bool]]:
    """While it is entered, whether the environment's own step ended an episode with a reward is noted."""
    noted: list[bool] = []
    step = base.step

    def noting(action: object) -> Any:
        result = step(action)
        noted.append(bool(result[2]) and float(result[1]) > 0)
        return result

    base.step = noting
    try:
        yield noted
    finally:
        del base.step
