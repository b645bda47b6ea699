"""The task that needs a memory: paid at the last step alone, by what the first one showed."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rlmech as rlm
from rlmech.errors import ConfigError
from rlmech.testbed.cue_env import CueRecall


def test_it_keeps_gymnasiums_rules():
    check_env(CueRecall(), skip_render_check=True)
    assert isinstance(rlm.make_env("CueRecall-v0").unwrapped, CueRecall)
    assert isinstance(gym.make("rlmech.testbed.cue_env:CueRecall-v0").unwrapped, CueRecall)


@pytest.mark.parametrize("seed", range(6))
def test_the_cue_decides_and_is_shown_once(seed):
    env = CueRecall(min_delay=2, max_delay=4)
    observation, info = env.reset(seed=seed)
    assert observation[0] == info["cue"]
    length, done = 0, False
    while not done:
        assert length == 0 or observation[0] == 0
        observation, reward, done, _, _ = env.step(int(info["cue"] > 0))
        length += 1
        assert reward == float(done)
    assert 3 <= length <= 5


def test_half_of_the_cues_are_each():
    cues = [CueRecall().reset(seed=seed)[1]["cue"] for seed in range(200)]
    assert 70 < np.sum(np.array(cues) > 0) < 130


def test_delays_that_are_no_range_are_refused():
    with pytest.raises(ConfigError, match="no range"):
        CueRecall(min_delay=5, max_delay=3)
