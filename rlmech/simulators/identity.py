"""An environment's identity: all that makes an episode follow from its seed, part by part and by name.

The parts are read after `reset(seed=0)`: what each layer holds, wrappers around the environment included, the constants
of their classes, and what the first steps give. A part that changes by running alone (a counter, a clock) is said to
change, and tells nothing apart. So that an environment that was made elsewhere, unpickled in a worker or recorded last
week is known to be the same, or what differs has a name. Where the same seed is followed by other steps the second
time, or a generator of random numbers goes on over a reset, there is no identity. Cost: two resets and six steps; what
the layers hold is read in full once, and known again by its fingerprint.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from rlmech.core.recent import Recent
from rlmech.errors import EnvironmentFitError
from rlmech.simulators.fingerprint import fingerprint_of
from rlmech.simulators.values import told
from rlmech.untyped import Stepped

N_STEPS = 3
FIRST_STEPS = "first steps"
CHANGES = "changes by running"
_SHOWN = (
    *("render_mode", "screen", "clock", "isopen", "viewer", "window", "window_size", "surf", "mujoco_renderer"),
    *("spec", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "metadata", "enable_auto_render"),
    *("checked_render", "render_history", "disable_render_order_enforcing"),
)
"""Attributes that draw, or say once more how the object was made."""
_TELL_ONLY = (
    ("gymnasium.wrappers", "PassiveEnvChecker"),
    ("gymnasium.wrappers", "OrderEnforcing"),
    ("gymnasium.wrappers", "RecordEpisodeStatistics"),
    ("gymnasium.wrappers", "RecordVideo"),
    ("gymnasium.wrappers", "HumanRendering"),
    ("gymnasium.wrappers", "RenderCollection"),
    ("stable_baselines3.common.monitor", "Monitor"),
)
"""Wrappers that check, count or film, and change nothing of an episode."""
_TOLD: Recent[bytes, dict[str, str]] = Recent(64)
"""What the layers of environments hold, by its fingerprint: of each environment, just after a reset and after steps."""
_BASES = (gym.Env, gym.Wrapper, gym.ObservationWrapper, gym.RewardWrapper, gym.ActionWrapper, object)


class Episodes(Protocol):
    """An environment in which episodes are begun and stepped; a `World` is one."""

    env: gym.Env

    def reset(self, *, seed: int) -> tuple[object, dict[str, object]]:
        """Begin an episode."""
        ...

    def step(self, action: object) -> Stepped:
        """Take an action."""
        ...


def identity_of(world: Episodes, *, constants: Callable[[], Mapping[str, str]] = lambda: {}) -> dict[str, str]:
    """The parts of an environment's identity, by name.

    Args:
        world: The environment; its episode is over afterwards.
        constants: Gives those of further classes that take part in the episode that was begun.

    Raises:
        EnvironmentFitError: It takes no seed: the first observation is another each time. Or more than the seed decides
            how an episode goes on.
    """
    first = _begun(world)
    before = attributes_of(world.env)
    steps = _first_steps(world)
    alike = _begun(world) == first
    after = attributes_of(world.env)
    parts = {name: value if before.get(name) == value else CHANGES for name, value in after.items()}
    changing = [name for name, value in parts.items() if value == CHANGES]
    if not alike:
        raise _goes_on(world, changing) if changing else _seedless(world)
    unseeded = [name for name in changing if name in set(_generators(world.env))]
    if unseeded or _first_steps(world) != steps:
        raise _goes_on(world, unseeded or changing)
    for layer in _layers(world.env):
        parts |= dict(class_constants(type(layer)))
    return parts | dict(constants()) | {FIRST_STEPS: told([first, steps])}


def attributes_of(env: gym.Env, *, every: bool = False) -> dict[str, str]:
    """What the layers of an environment hold now.

    Args:
        env: The environment with its wrappers.
        every: Whether wrappers that only check, count or film are told too.
    """
    layers = list(_layers(env, every=every))
    contents = [
        {
            key: value
            for key, value in vars(layer).items()
            if key not in _SHOWN and not (isinstance(layer, gym.Wrapper) and key == "env")
        }
        for layer in layers
    ]
    fingerprint = fingerprint_of(layers, contents)
    if fingerprint is None:
        return _told_of(layers, contents)
    return dict(_TOLD.get(fingerprint, lambda: _told_of(layers, contents)))


def _generators(env: gym.Env) -> Iterator[str]:
    """The names of the generators of random numbers that the layers of an environment hold."""
    kinds = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
    for layer in _layers(env):
        yield from (
            f"{type(layer).__qualname__}.{key}" for key, value in vars(layer).items() if isinstance(value, kinds)
        )


def _told_of(layers: Sequence[object], contents: Sequence[Mapping[str, object]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for layer, content in zip(layers, contents, strict=True):
        name = type(layer).__qualname__
        while f"{name}." in {key[: len(name) + 1] for key in found}:  # the same wrapper once more
            name += "'"
        found[f"{name}."] = f"{type(layer).__module__}.{type(layer).__qualname__}"
        for key, value in content.items():
            found[f"{name}.{key}"] = told(value, within=layer)
    return found


def class_constants(cls: type) -> Iterator[tuple[str, str]]:
    """The values that stand in a class, and in those that it inherits from, by name."""
    for base in cls.__mro__:
        if base in _BASES or base.__module__ in (
            "typing",
            "abc",
            "builtins",
            "gymnasium.core",
            "gymnasium.utils.ezpickle",
        ):
            continue
        for name, value in vars(base).items():
            if name.startswith("__") or name in _SHOWN or name == "_abc_impl" or callable(value):
                continue
            if not isinstance(value, property | classmethod | staticmethod) and not hasattr(type(value), "__get__"):
                yield f"class {base.__qualname__}.{name}", told(value)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """What differs between two identities, in words: those with a name, or, where none has, the first steps."""
    named = [
        _worded(name, one.get(name), other.get(name))
        for name in dict.fromkeys([*one, *other])
        if name != FIRST_STEPS and one.get(name) != other.get(name) and CHANGES not in (one.get(name), other.get(name))
    ]
    if named or one.get(FIRST_STEPS) == other.get(FIRST_STEPS):
        return named
    return ["the first steps of an episode, for a reason that its attributes do not tell"]


def listed(different: Sequence[str], *, most: int = 4) -> str:
    """Differences in a line."""
    return "; ".join(different[:most]) + (f"; and {len(different) - most} more" if len(different) > most else "")


def _worded(name: str, one: str | None, other: str | None) -> str:
    if name.endswith("."):
        there = other is None
        return (
            f"the layer {name[:-1]} is {'only in the first' if there else 'only in the second' if one is None else one}"
        )
    return f"{name} ({'not set' if one is None else one}, {'not set' if other is None else other})"


def _layers(env: gym.Env, *, every: bool = False) -> Iterator[object]:
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if every or not _tells_only(type(layer)):
            yield layer
        layer = layer.env
    yield layer


def _tells_only(cls: type) -> bool:
    return any(cls.__module__.startswith(module) and cls.__name__ == name for module, name in _TELL_ONLY)


def _begun(world: Episodes) -> str:
    """Begin an episode; its first observation."""
    try:
        return told([world.reset(seed=0)[0]])
    except TypeError as error:
        if "seed" not in str(error):
            raise
        raise _seedless(world) from error


def _seedless(world: Episodes) -> EnvironmentFitError:
    return EnvironmentFitError(
        "The environment does not take a seed.",
        given=f"reset(seed=0) of {type(world.env.unwrapped).__name__}, whose episodes cannot be repeated",
        expected="the same first observation whenever it is reset with the same seed",
        fix="draw everything random in reset and step from self.np_random, after super().reset(seed=seed)",
    )


def _goes_on(world: Episodes, changing: Sequence[str]) -> EnvironmentFitError:
    return EnvironmentFitError(
        "An episode of the environment does not follow from its seed alone.",
        given=f"{type(world.env.unwrapped).__name__}, reset twice with the same seed, goes on otherwise; "
        + (f"what changes from episode to episode: {listed(changing)}" if changing else "no attribute tells why"),
        expected="the same steps after the same seed and actions, whatever ran before",
        fix="draw everything random from self.np_random, after super().reset(seed=seed) (not from numpy's, torch's or "
        "Python's own generators), and freeze running statistics, e.g. wrapper.update_running_mean = False",
    )


def _first_steps(world: Episodes) -> str:
    """What the first steps of an episode give, with actions drawn alike."""
    space = copy.deepcopy(world.env.action_space)
    space.seed(0)
    given: list[Any] = []
    try:
        for _ in range(N_STEPS):
            observation, reward, terminated, truncated, _info = world.step(space.sample())
            given.append((told(observation), float(reward), bool(terminated), bool(truncated)))
            if terminated or truncated:
                break
    except Exception as error:  # not every environment takes every action at any time
        given.append(type(error).__name__)
    return told([given])
