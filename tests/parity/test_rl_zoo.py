"""The RL Zoo's published agents act as SB3's own `predict`: 22 zips, where they are at hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces

from rlmech.adapters.load import load

ZOO = Path(__file__).parents[3] / "shared" / "data" / "rl_zoo"
ALGORITHMS = {
    "a2c": stable_baselines3.A2C,
    "ars": sb3_contrib.ARS,
    "dqn": stable_baselines3.DQN,
    "her": stable_baselines3.SAC,
    "ppo": stable_baselines3.PPO,
    "qrdqn": sb3_contrib.QRDQN,
    "sac": stable_baselines3.SAC,
    "tqc": sb3_contrib.TQC,
    "trpo": sb3_contrib.TRPO,
}
ZIPS = sorted(ZOO.glob("*/*/*.zip"))


def _observations(space, n=2000):
    """Around zero, the scale at which a network decides; of the space's own dtype."""
    if isinstance(space, spaces.Dict):
        return {key: _observations(sub, n) for key, sub in space.spaces.items()}
    return np.random.default_rng(0).normal(size=(n, *space.shape)).astype(space.dtype)


@pytest.mark.skipif(not ZIPS, reason="the published agents are not at hand")
@pytest.mark.parametrize("path", ZIPS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_a_published_agent_acts_as_sb3_does(path):
    policy = load(path, vecnormalize=False)
    custom = {
        "observation_space": policy.observation_space,
        "action_space": policy.action_space,
        "lr_schedule": lambda _: 0.0,
        "clip_range": lambda _: 0.2,
        "exploration_schedule": lambda _: 0.0,
        "replay_buffer_class": None,
        "replay_buffer_kwargs": {},
    }
    algorithm = ALGORITHMS[path.parents[1].name]
    obs = _observations(policy.observation_space)
    if path.parents[1].name == "ars" and "action_net.weight" in _tensors(path):  # its network was one layer then
        expected = (obs @ _tensors(path)["action_net.weight"].numpy().T).argmax(1)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of a gym that is not installed
            model = algorithm.load(path, custom_objects=custom, device="cpu")
        expected, _ = model.predict(obs, deterministic=True)

    actions, _ = policy.predict(obs)

    assert policy.engine == "graph"
    if isinstance(policy.action_space, spaces.Discrete):
        np.testing.assert_array_equal(actions, expected)
    else:
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=2e-6)


def _tensors(path):
    import io
    import zipfile

    return torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), map_location="cpu", weights_only=True)
