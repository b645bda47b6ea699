"""The policies that certificates are tried on, with states and a region around each."""

from __future__ import annotations

import functools

import gymnasium as gym
import torch
from stable_baselines3 import PPO

import rlmech as rlm
from tests.circuits.linear_networks import wrapped
from tests.networks import scenes


@functools.cache
def ego_attention():
    policy = rlm.load("zoo:intersection-ego-attention")
    states = scenes(6, n_entities=15, seed=3)
    states[:, 9:] = 0  # of the vehicles that are not there
    states[:, 1, 0] = 1
    return policy, states


@functools.cache
def highway():
    policy = rlm.load("zoo:highway-dqn-mlp")
    states = torch.rand(6, *policy.hook_dict["hook_obs"].shape[1:], generator=torch.Generator().manual_seed(0))
    states[..., 0] = 1
    return policy, states


@functools.cache
def tanh_ppo():
    model = PPO("MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cpu", n_steps=256)
    model.learn(512)
    return rlm.HookedPolicy.from_sb3(model), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 0.2


def small(name: str):
    policy, obs = wrapped(name)
    return policy, obs[:4]


SUBJECTS = {
    "zoo ego attention": ego_attention,
    "zoo perceptron": highway,
    "tanh PPO": tanh_ppo,
    "small CNN": lambda: small("convolutional"),
    "small ego attention": lambda: small("ego"),
    "fused attention": lambda: small("fused"),
    "gates": lambda: small("all_gates"),
}


def box_ends(name: str, states: torch.Tensor, radius: float):
    """The least and the greatest values within a radius of what may move, stopped at the ends of ranges."""
    by = radius * movable(states).to(states)
    low, high = states - by, states + by
    if name.startswith("zoo"):
        low = torch.maximum(low, states.clamp(max=-1))
        high = torch.minimum(high, states.clamp(min=1))
    return low, high


def movable(states: torch.Tensor) -> torch.Tensor:
    """What may move: all but presence, and all of absent vehicles."""
    if states.ndim != 3:
        return torch.ones_like(states, dtype=torch.bool)
    there = (states[..., :1] >= 0.5).expand_as(states).clone()
    there[..., 0] = False
    return there


def samples(low: torch.Tensor, high: torch.Tensor, n: int, *, seed: int = 0) -> torch.Tensor:
    """States within, corners among them: `[sample batch ...]`."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.rand(n, *low.shape, generator=generator).to(low)
    at[: n // 3] = (at[: n // 3] > 0.5).to(low)
    return torch.minimum(torch.maximum(low + at * (high - low), low), high)
