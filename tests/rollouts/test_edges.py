"""Environments, conditions and callers that are a little unlike the usual ones: recordings stay right, or say why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.rollouts.shards import table_of

STILL = [rlm.zero_ablation("hook_obs")]


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(nn.Linear(4, 2), torch.rand(2, 4))


def cartpole(**options: Any) -> gym.Env:
    return gym.make("CartPole-v1", **options)


def recorded(policy: rlm.HookedPolicy, env: gym.Env | None = None, **options: Any) -> rlm.Recording:
    given: dict[str, Any] = {"seeds": range(3), "progress": False}
    return rlm.record(policy, env or cartpole(), **(given | options))


class Rewriting(gym.Env[np.ndarray, int]):
    """Counts to four in one array, which it gives out as every observation."""

    observation_space = gym.spaces.Box(-9, 9, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.zeros(4, np.float32)
        return self.state, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state += 1
        return self.state, 1.0, bool(self.state[0] == 4), False, {}


class Unforked(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot be copied, for a reason of its own."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise LookupError("one of a kind")


def test_observations_that_an_environment_overwrites_are_kept(policy: rlm.HookedPolicy) -> None:
    recording = recorded(policy, Rewriting(), seeds=[0])
    assert recording.observations[:, 0].tolist() == [0, 1, 2, 3]
    assert recording.final_observations[0, 0] == 4


def test_a_value_that_only_later_steps_have_is_not_lost() -> None:
    assert table_of([{"a": 1}, {"a": 2, "b": True}]).to_pydict() == {"a": [1, 2], "b": [None, True]}


def test_an_environment_that_cannot_be_copied_for_whatever_reason_is_run_apart(policy: rlm.HookedPolicy) -> None:
    found = rlm.compare_rollouts(
        policy, Unforked(cartpole()), conditions={"still": STILL}, seeds=range(2), progress=False
    )
    assert "one of a kind" in found.attrs["shared_simulation"]
    assert float(found["delta_length"].sel(condition="still")) != 0
