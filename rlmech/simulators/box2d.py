"""Box2D's worlds, in which an episode leaves something for the next.

BipedalWalker and CarRacing take their bodies out of their world at a reset and put new ones into the same world, whose
solver has not forgotten (gymnasium 1.4.0, Box2D 2.3.10: with equal seeds and actions a BipedalWalker that was driven
before parts from a new one, sometimes in the first step). LunarLander makes a new world, and so is done here.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

_OPTIONS = ("allowSleeping", "warmStarting", "continuousPhysics", "subStepping")


def renew_world(env: gym.Env) -> None:
    """Give an environment a new Box2D world before its reset, so that the episode follows from its seed alone.

    Nothing happens where it has none, or one that holds bodies which its own `_destroy` leaves there.

    Args:
        env: Any environment.
    """
    base: Any = env.unwrapped
    old: Any = getattr(base, "world", None)
    destroy = getattr(base, "_destroy", None)
    if not type(old).__module__.startswith("Box2D") or not callable(destroy) or not old.bodyCount:
        return
    destroy()
    if old.bodyCount:
        return
    base.world = type(old)(gravity=tuple(old.gravity))
    for name in _OPTIONS:
        setattr(base.world, name, getattr(old, name))
