"""Whether an environment runs in compiled code, and why not."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlmech.progress import remark

if TYPE_CHECKING:
    import gymnasium as gym

_told: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """What is accelerated of an environment as it is now; true where something is.

    Attributes:
        frames: Whether its traffic moves in compiled code, where the same bits come of it as in the environment's own.
        observations: Whether its observations are made in a faster way, to the same bits.
        why: Why not, in a line; empty where both are.
    """

    frames: bool
    observations: bool
    why: str = ""

    def __bool__(self) -> bool:
        return self.frames or self.observations


def acceleration(env: gym.Env | Any) -> Acceleration:
    """What is accelerated of an environment, as it is now.

    Example:
        >>> import rlmech as rlm
        >>> rlm.simulators.acceleration(rlm.make_env("CartPole-v1"))
        Acceleration(frames=False, observations=False, why='CartPoleEnv is no environment of highway-env')
    """
    if _is_highway(env):
        from rlmech.simulators.highway import fast

        return fast.acceleration(env)
    name = type(env.unwrapped).__name__
    return Acceleration(frames=False, observations=False, why=f"{name} is no environment of highway-env")


def accelerate(env: gym.Env | Any) -> None:
    """Accelerate an environment where the same bits come of it; `acceleration` tells."""
    if _is_highway(env):
        from rlmech.simulators.highway import fast

        fast.accelerate(env)


def remark_stock(env: gym.Env | Any) -> None:
    """Say in one line, once in a process, that an environment that could be accelerated is not, and why."""
    found = acceleration(env)
    if _is_highway(env) and not found and found.why not in _told and multiprocessing.parent_process() is None:
        _told.add(found.why)
        remark(f"highway-env runs in its own code, 15 to 150 times slower: {found.why}.", enabled=True)


def _is_highway(env: Any) -> bool:
    base = sys.modules.get("highway_env.envs.common.abstract")
    return base is not None and isinstance(env.unwrapped, base.AbstractEnv)
