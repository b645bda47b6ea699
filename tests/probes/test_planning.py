"""What is ahead: a delay line knows its next actions as long as it delays, and the observation only the last one."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlmech as rlm
from rlmech.errors import ConfigError
from rlmech.probes import fit_probe, planning
from rlmech.probes.states import recorded

DELAY = 3


class Cues(gym.Env):
    """A cue of -1 or 1 at each of some steps; what is done changes nothing."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10 + int(self.np_random.integers(4))
        return self.cue(), {}

    def step(self, action):
        self.left -= 1
        return self.cue(), 0.0, self.left == 0, False, {}

    def cue(self):
        return self.np_random.choice([-1.0, 1.0], size=1)


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.testbed.delay_line(n_delay=DELAY).policy


@pytest.fixture(scope="module")
def recording(policy: rlm.HookedPolicy) -> rlm.Recording:
    return rlm.record(policy, Cues(), seeds=range(40), progress=False)


def late(recording: rlm.Recording) -> np.ndarray:
    """The action, where the delay line has been filled at all."""
    return np.where(recording.steps["step"] >= DELAY, recording.steps["action"], np.nan)


def test_a_delay_line_knows_what_it_will_do_for_as_long_as_it_delays(policy, recording):
    action = {"says": lambda r: np.where(late(r) == 0, "LEFT", "RIGHT").astype(object)}["says"]
    found = planning(
        policy, recording, target=action, horizon=5, sites="hook_h", n_history=1, n_controls=2, n_untrained=0
    )
    score = found["score"].isel(site=0)
    np.testing.assert_allclose(score.sel(control="trained", step=[1, 2, 3]), 1, atol=0.02)
    assert (score.sel(control="trained", step=[4, 5]) < 0.65).all()  # no cue has been shown yet
    assert (score.sel(control="observation", step=[1, 2]) < 0.65).all()
    assert float(score.sel(control="observation", step=3)) > 0.98  # what is seen now is done then
    assert (score.sel(control="decision", step=[1, 2, 3]) < 0.65).all()


def test_what_the_last_observations_tell_as_well_is_not_called_a_plan(policy, recording):
    options = {"horizon": 2, "sites": "hook_h", "n_controls": 2, "n_untrained": 1}
    short = planning(policy, recording, n_history=1, **options)
    long = planning(policy, recording, n_history=DELAY + 1, **options)
    assert str(short["says"].values[0, 0]).startswith("foreseen")
    assert "the last observations" in str(long["says"].values[0, 0])
    assert "the last observations" not in str(short["says"].values[0, 0])


def test_steps_of_a_policy_with_memory_are_those_of_its_episodes(policy, recording):
    (site,) = [rlm.Site("hook_h")]
    rows = recorded(policy, recording, site)
    cues, steps = recording.observations[:, 0], recording.steps
    for number in steps["episode"].unique()[:5]:
        own = np.flatnonzero(steps["episode"] == number)
        wanted = np.stack([np.concatenate([np.zeros(j), cues[own]])[: len(own)] for j in range(DELAY + 1)], axis=1)
        np.testing.assert_allclose(rows[own], wanted)
    earlier = {"cue before": lambda r: r.steps.groupby("episode")["step"].transform("size").to_numpy() * 0.0 + cues}
    found = fit_probe(policy, recording, target=earlier, sites="hook_h", step_offset=-2, n_untrained=1, n_controls=1)
    assert float(found.scores["score"].sel(control="trained").item()) == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_ahead_is_refused_in_words(policy, recording):
    with pytest.raises(ConfigError, match="beyond the episodes"):
        planning(policy, recording, horizon=40, sites="hook_h")
    with pytest.raises(ConfigError, match="at least one step away"):
        planning(policy, recording, horizon=0, sites="hook_h")
    with pytest.raises(ConfigError, match="one value a step"):
        planning(policy, recording, target=lambda r: torch.rand(len(r.steps), 2).numpy(), horizon=1, sites="hook_h")
