"""Copies of an environment in the middle of an episode, and the proof that they go on alike and apart.

`copy.deepcopy` alone makes a fresh environment of one that inherits Gymnasium's `EzPickle`, and cannot see what a game
console keeps outside of Python. Here the attributes of such an environment are copied themselves, a console's state is
handed over, and before a copy is used for the first time two more of them are stepped. Cost of the proof: two steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from rlmech.core.choices import Choices
from rlmech.errors import CopyError
from rlmech.simulators.identity import Episodes, attributes_of, differences, listed
from rlmech.simulators.values import told


class CopiedEpisodes(Episodes, Protocol):
    """An environment that is copied in the middle of an episode; a `World` is one."""

    over: bool

    def copied(self) -> Self:
        """A copy as it is now."""
        ...


def copied(env: gym.Env, *beside: Any, shared: Mapping[int, Any] | None = None) -> tuple[Any, ...]:
    """Copy an environment as it is now, and objects that belong to it.

    Args:
        env: The environment with its wrappers.
        beside: Objects whose own copies should belong to the copy.
        shared: By `id`, what a copy may share because it never changes.

    Returns:
        The copies, the environment's first.

    Raises:
        CopyError: It cannot be copied; the message gives the reason.
    """
    memo, base = dict(shared or {}), env.unwrapped
    try:
        if _is_console(base):
            memo[id(base)] = _console(base, memo)
        elif isinstance(base, EzPickle):  # whose pickling, and with it deepcopy, makes a fresh one
            twin: Any = object.__new__(type(base))
            memo[id(base)] = twin
            vars(twin).update(copy.deepcopy(vars(base), memo))
        return copy.deepcopy((env, *beside), memo)
    except Exception as error:  # whatever an environment raises
        raise CopyError(
            f"The environment cannot be copied: {type(error).__name__}: {error}",
            given=_named(env),
            expected="an environment that copy.deepcopy takes: no windows, files, sockets or processes",
            fix="make it without human rendering and without wrappers that hold such things",
        ) from error


def prove(world: CopiedEpisodes, twin: CopiedEpisodes) -> None:
    """Check that a copy holds what the original holds, goes on as another copy does, and leaves the original alone.

    Raises:
        CopyError: It does not; the message names what differs.
    """
    before = attributes_of(world.env, every=True)
    if different := differences(before, attributes_of(twin.env, every=True)):
        raise _unlike(world, f"the copy differs in {listed(different)}")
    if world.over:
        return
    action = _some_action(world.env)
    found: list[str] = []
    for probe in (world.copied(), world.copied()):
        try:
            found.append(told([probe.step(action)]))
        except Exception as error:
            raise _unlike(world, f"a step of the copy raises {type(error).__name__}: {error}") from error
    if found[0] != found[1]:
        raise _unlike(world, "two copies go on differently after the same action")
    if different := differences(before, attributes_of(world.env, every=True)):
        raise _unlike(world, f"a step of the copy changes the original's {listed(different)}")


def _unlike(world: CopiedEpisodes, what: str) -> CopyError:
    return CopyError(
        "A copy of the environment does not go on as the environment does.",
        given=f"{_named(world.env)}: {what}",
        expected="a copy that is equal in everything and shares nothing that changes",
        fix="keep all of the environment's state in attributes that copy.deepcopy copies, and draw from self.np_random",
    )


def _is_console(base: Any) -> bool:
    """Whether it is a game of ale-py, whose state is handed out and taken back by its own methods."""
    return hasattr(base, "ale") and hasattr(base, "clone_state") and hasattr(base, "restore_state")


def _console(base: Any, memo: dict[int, Any]) -> Any:
    twin = copy.deepcopy(base)  # a fresh game
    twin.restore_state(base.clone_state(include_rng=True))
    for name, value in vars(base).items():
        if name != "ale":
            setattr(twin, name, copy.deepcopy(value, memo))
    return twin


def _some_action(env: gym.Env) -> Any:
    """An action that may be taken now, the same whenever it is asked for."""
    base: Any = env.unwrapped
    if callable(getattr(base, "action_masks", None)):  # as sb3-contrib names it
        return _first_open(env.action_space, base.action_masks())
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    return space.sample()


def _named(env: gym.Env) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


def _first_open(space: spaces.Space[Any], masks: Any) -> Any:
    """The first action that masks leave open, of each choice where there are several."""
    flat = np.concatenate([np.ravel(part) for part in masks]) if isinstance(masks, tuple) else np.ravel(masks)
    choices = Choices.of_space(space)
    if choices is None:
        return int(np.flatnonzero(flat)[0])
    rows = np.split(flat, np.cumsum(choices.sizes)[:-1]) if flat.size == sum(choices.sizes) else None
    if rows is None:  # as many as there are bits: each may be set or not
        return np.zeros(space.shape or (), dtype=space.dtype)
    return np.array([np.flatnonzero(row)[0] for row in rows], dtype=space.dtype).reshape(space.shape or ())
