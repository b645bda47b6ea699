"""Whether an environment runs in compiled code, and why not."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

from rlmech.progress import remark

_told: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """What is accelerated of an environment as it is now; true where something is.

    Attributes:
        frames: Whether its traffic moves in compiled code, where the same bits come of it as in the environment's own.
        observations: Whether its observations are made in a faster way, to the same bits.
        why: Why not, in a line; empty where both are.

    Example:
        >>> import rlmech as rlm
        >>> bool(rlm.simulators.acceleration(rlm.make_env("CartPole-v1")))
        False
    """

    frames: bool
    observations: bool
    why: str = ""

    def __bool__(self) -> bool:
        return self.frames or self.observations


def remark_once(text: str) -> None:
    """Say something once in a process, and not in its workers."""
    if text not in _told and multiprocessing.parent_process() is None:
        _told.add(text)
        remark(text, enabled=True)
