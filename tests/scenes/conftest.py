"""Small environments, and a policy that any of them can be decided with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import rlmech as rlm

KINEMATICS = {
    "type": "Kinematics",
    "vehicles_count": 15,
    "features": ["presence", "x", "y", "vx", "vy", "cos_h", "sin_h"],
    "features_range": {"x": [-100, 100], "y": [-100, 100], "vx": [-20, 20], "vy": [-20, 20]},
    "absolute": True,
}


def intersection(**observation: Any) -> gym.Env[Any, Any]:
    """An intersection, simulated coarsely."""
    return rlm.make_env("intersection-v2", config={"simulation_frequency": 5, "observation": KINEMATICS | observation})


@pytest.fixture(scope="session")
def ego_attention() -> rlm.HookedPolicy:
    return rlm.load("zoo:intersection-ego-attention")


@pytest.fixture(scope="session")
def highway_mlp() -> rlm.HookedPolicy:
    return rlm.load("zoo:highway-dqn-mlp")
