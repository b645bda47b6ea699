"""Live SB3 models, untrained, of any spaces, and checkpoints as rl-agents writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

SMALL: dict[type[BaseAlgorithm], dict[str, Any]] = {
    DQN: {"buffer_size": 10},
    SAC: {"buffer_size": 10},
    TD3: {"buffer_size": 10},
    PPO: {"n_steps": 8, "batch_size": 8},
    A2C: {"n_steps": 8},
    TQC: {"buffer_size": 10},
    CrossQ: {"buffer_size": 10},
    QRDQN: {"buffer_size": 10},
    TRPO: {"n_steps": 8, "batch_size": 8},
    MaskablePPO: {"n_steps": 8, "batch_size": 8},
    ARS: {},
}


class SpacesOnly(gym.Env):
    """An environment that has spaces and nothing else."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}

    def action_masks(self):
        return np.ones(self.action_space.n, bool)


@pytest.fixture
def kinematics() -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (5, 7), np.float32)


@pytest.fixture
def make_env() -> Callable[..., gym.Env]:
    return SpacesOnly


@pytest.fixture
def make_model() -> Callable[..., BaseAlgorithm]:
    def make(algorithm, policy="MlpPolicy", *, obs, actions, **kwargs):
        torch.manual_seed(0)
        return algorithm(policy, SpacesOnly(obs, actions), device="cpu", **SMALL[algorithm], **kwargs)

    return make


@pytest.fixture
def dqn_zip(make_model, kinematics, tmp_path) -> Path:
    path = tmp_path / "dqn_highway.zip"
    make_model(DQN, obs=kinematics, actions=spaces.Discrete(5)).save(path)
    return path


@pytest.fixture
def ego_checkpoint(tmp_path) -> Path:
    """A checkpoint of an ego-attention network with 4 heads over 7 features, 3 actions."""
    from rlmech.nets import EgoAttentionNetwork

    torch.manual_seed(0)
    network = EgoAttentionNetwork(7, 3, d_model=16, n_heads=4, embedding=(8, 16), output=(8,))
    optimizer = torch.optim.Adam(network.parameters())
    path = tmp_path / "latest.tar"
    torch.save({"state_dict": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return path
