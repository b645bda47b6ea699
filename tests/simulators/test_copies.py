"""Copies: they go on alike and apart, or are refused in words."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import rlmech as rlm
from rlmech.errors import CopyError, SceneError
from rlmech.simulators import simulator_of


class Stepping(gym.Env[np.ndarray, int]):
    """Draws a number each step; ends after eight."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.see(), float(action), self.t == 8, False, {}

    def see(self) -> np.ndarray:
        return self.np_random.random(1, dtype=np.float32)


class Fresh(Stepping, gym.utils.EzPickle):
    """deepcopy makes a fresh one of it."""

    def __init__(self) -> None:
        gym.utils.EzPickle.__init__(self)


class Shared(Stepping):
    """A copy keeps the original's counter."""

    def reset(self, **options: Any) -> Any:
        self.counter = [0]
        return super().reset(**options)

    def __deepcopy__(self, memo: Any) -> Any:
        twin = type(self)()
        vars(twin).update(copy.deepcopy({key: value for key, value in vars(self).items() if key != "counter"}, memo))
        twin.counter = self.counter
        return twin

    def step(self, action: int) -> Any:
        self.counter[0] += 1
        return super().step(action)


class Forgetful(Stepping):
    """A copy begins anew."""

    def __deepcopy__(self, memo: Any) -> Any:
        twin = type(self)()
        twin.reset(seed=0)
        return twin


class Chancy(Stepping):
    """Draws from a generator that belongs to nobody."""

    def see(self) -> np.ndarray:
        return np.random.rand(1).astype(np.float32)


class Closed(Stepping):
    """Cannot be stepped once it is copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        twin = type(self)()
        vars(twin).update(vars(self))
        return twin

    def __init__(self) -> None:
        self.mine = id

    def step(self, action: int) -> Any:
        assert self is ORIGINAL[-1]
        return super().step(action)


ORIGINAL: list[Any] = []


def middle(env: Any) -> Any:
    world = simulator_of(env).world(env)
    world.reset(seed=3)
    ORIGINAL[:] = [env]
    for _ in range(2):
        world.step(1)
    return world


@pytest.mark.parametrize("env", [Stepping(), Fresh(), gym.wrappers.FrameStackObservation(Fresh(), 3)])
def test_a_copy_goes_on_alike_and_apart(env: Any) -> None:
    world = middle(env)
    twin = world.fork()
    ours = [world.step(1)[:4] for _ in range(4)]
    theirs = [twin.step(1)[:4] for _ in range(4)]
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one[0], other[0])
        assert one[1:] == other[1:]


@pytest.mark.parametrize(
    ("env", "what"),
    [
        (Shared(), "a step of the copy changes the original's Shared."),
        (Forgetful(), "the copy differs in Forgetful."),
        (Chancy(), "two copies go on differently"),
        (Closed(), "a step of the copy raises AssertionError"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, gym.Env) else "",
)
def test_a_copy_that_goes_on_differently_is_refused_in_words(env: Any, what: str) -> None:
    world = middle(env)
    with pytest.raises(CopyError, match="does not go on as the environment does") as caught:
        world.fork()
    assert what in caught.value.given


def test_an_environment_of_c_objects_is_refused_and_compared_all_the_same() -> None:
    pytest.importorskip("Box2D")
    env = gym.make("LunarLander-v3", max_episode_steps=12)
    observation, _ = env.reset(seed=0)
    with pytest.raises(SceneError, match="cannot be copied: TypeError"):
        rlm.Scene.capture(env, observation=observation)
    import torch

    policy = rlm.HookedPolicy(torch.nn.Linear(8, 4), torch.rand(2, 8))
    push = rlm.steer("hook_q_values", torch.tensor([9e3, 0.0, 0.0, 0.0]))
    result = rlm.compare_rollouts(policy, env, conditions={"first": [push]}, seeds=[0, 1], progress=False)
    assert "cannot be copied" in result.attrs["shared_simulation"]


def test_an_episode_that_is_over_is_copied_without_a_step() -> None:
    world = middle(Stepping())
    while not world.over:
        world.step(0)
    assert world.fork().over
