"""Episodes on Box2D follow from their seeds, whatever the environment did before."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.simulators.choice import simulator_of

pytest.importorskip("Box2D")


def walker() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    env = gym.make("BipedalWalker-v3")
    network = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4), nn.Tanh())
    return rlm.HookedPolicy(network, torch.rand(2, 24), output_kind="mean_action", action_space=env.action_space)


def drive(env: gym.Env, seed: int, n_steps: int = 100) -> np.ndarray:
    world = simulator_of(env).world(env)
    seen, draws = [world.reset(seed=seed)[0]], np.random.default_rng(seed)
    while not world.over and len(seen) <= n_steps:
        seen.append(world.step(draws.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0])
    return np.stack(seen)


@pytest.mark.parametrize("env_id", ["BipedalWalker-v3", "LunarLanderContinuous-v3"])
def test_an_environment_that_was_driven_before_does_what_a_new_one_does(env_id):
    used = gym.make(env_id)
    for seed in range(4):
        assert np.array_equal(drive(used, seed), drive(gym.make(env_id), seed)), f"seed {seed}, after those before it"


def test_a_recordings_actions_do_in_new_environments_what_was_recorded():
    limit = {"max_episode_steps": 150}
    recording = rlm.record(walker(), gym.make("BipedalWalker-v3", **limit), seeds=range(3), progress=False)
    for seed in range(3):
        episode, env = recording.episode(seed), gym.make("BipedalWalker-v3", **limit)
        seen = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in episode.actions)]
        assert np.array_equal(seen[:-1], episode.observations)
        assert np.array_equal(seen[-1:], episode.final_observations)
