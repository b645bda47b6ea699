"""Episodes of policies that remember: the state is carried, recorded and begun anew; draws are common to conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.episodes import moments, simulation
from rlmech.errors import ConfigError, RecordingError, SceneError
from rlmech.training.evaluate import evaluate

SEEDS = range(12)


class Recaller(nn.Module):
    """Keeps the sign of the first cue in a state of one unit; its second unit counts steps."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))

    def forward(self, x, state):
        state = state + torch.stack([x[:, 0], torch.ones_like(x[:, 0])], dim=1)
        return self.head(state), state


@pytest.fixture(scope="module")
def policy():
    example = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.5, 1.0]])
    return rlm.HookedPolicy(Recaller(), example, state=lambda n: torch.zeros(n, 2), output_kind="logits")


@pytest.fixture
def env():
    return rlm.make_env("CueRecall-v0")


def test_the_state_is_carried_recorded_and_begun_anew(policy, env):
    recording = rlm.record(policy, env, seeds=SEEDS, progress=False)
    assert (recording.episodes["return"] == 1).all()
    counted = recording.activation("hook_state")[:, 1]
    np.testing.assert_array_equal(counted, recording.steps["step"] + 1)
    assert recording.axes("hook_state") == ("step", "neuron")


def test_moments_are_the_decisions_with_the_states_that_they_were_met_in(policy, env):
    recording = rlm.record(policy, env, seeds=SEEDS, progress=False)
    scores = policy(moments(recording, policy)).detach().numpy()
    np.testing.assert_array_equal(scores, recording.scores)
    with pytest.raises(RecordingError, match="not among these steps"):
        moments(recording.where(step=[1, 2]), policy)


@pytest.mark.parametrize("deterministic", [True, False])
def test_one_worker_and_two_record_the_same(policy, env, deterministic):
    given = {"seeds": SEEDS, "deterministic": deterministic, "progress": False}
    assert rlm.record(policy, env, **given).equals(rlm.record(policy, env, workers=2, **given))


def test_a_memory_wiped_before_a_step_is_gone_in_that_episode_from_there_on(policy, env):
    wipe = rlm.zero_ablation(rlm.Site("hook_state_pre", step=2))
    recording = rlm.record(policy, env, seeds=SEEDS, edits=[wipe], progress=False)
    steps = recording.steps
    np.testing.assert_array_equal(steps["edited"], steps["step"] == 2)
    counted = recording.activation("hook_state")[:, 1]
    np.testing.assert_array_equal(counted, np.where(steps["step"] < 2, steps["step"] + 1, steps["step"] - 1))
    assert not recording.activation("hook_state")[steps["step"] >= 2, 0].any()


def test_conditions_share_simulation_while_they_do_the_same_and_not_their_states(policy, env, monkeypatch):
    monkeypatch.setattr(simulation, "CHEAP", 0.0)  # a seed at a time, although these steps are cheap
    wipe = [rlm.zero_ablation(rlm.Site("hook_state_pre", step=2))]
    late = [rlm.zero_ablation(rlm.Site("hook_state_pre", step=3))]
    together = rlm.compare_rollouts(
        policy, env, conditions={"wiped": wipe, "later": late}, seeds=SEEDS, names="hook_state", progress=False
    )
    alone = rlm.record(policy, env, seeds=SEEDS, edits=wipe, progress=False)
    np.testing.assert_array_equal(together["return"].sel(condition="wiped"), alone.episodes["return"])
    assert (together["return"].sel(condition="baseline") == 1).all()
    assert together.attrs["simulated_share"] < 1


def test_one_number_decides_in_every_condition(policy, env):
    nothing = [rlm.steer("hook_logits", torch.zeros(2))]
    less_sure = [rlm.steer("head.hook_out", torch.tensor([0.0, 1e-9]))]
    result = rlm.compare_rollouts(
        policy,
        env,
        conditions={"nothing": nothing, "a little": less_sure},
        seeds=range(40),
        deterministic=False,
        progress=False,
    )
    for condition in ("nothing", "a little"):
        assert (result["delta_return"].sel(condition=condition) == 0).all()


def test_draws_follow_from_the_seed_and_have_the_policys_probabilities(env):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nn.Linear(3, 2), torch.rand(2, 3), output_kind="logits")
    recording = rlm.record(policy, env, seeds=range(150), deterministic=False, progress=False)
    again = rlm.record(policy, env, seeds=[7], deterministic=False, progress=False)
    np.testing.assert_array_equal(again.actions, recording.episode(7).actions)
    p = torch.softmax(torch.as_tensor(recording.scores).double(), 1)[:, 1].numpy()
    error = np.sqrt((p * (1 - p)).sum()) / len(p)
    assert abs(recording.actions.mean() - p.mean()) < 4 * error
    assert not np.array_equal(recording.actions, recording.scores.argmax(1))


def test_only_logits_can_be_drawn_from(env):
    policy = rlm.HookedPolicy(nn.Linear(3, 2), torch.rand(2, 3))
    with pytest.raises(ConfigError, match="Only the actions of logits"):
        rlm.record(policy, env, seeds=[0], deterministic=False, progress=False)


def test_a_scene_remembers_what_was_observed_before(policy, env):
    recording = rlm.record(policy, env, seeds=[3], progress=False)
    scene = rlm.Scene.replay(env, seed=3, actions=recording.actions[:2])
    decision = scene.decide(policy)
    np.testing.assert_array_equal(decision.scores, recording.scores[2])
    roll = scene.roll(policy)
    assert roll.steps["action"].tolist() == recording.actions[2:].tolist()
    assert roll.total_reward == 1
    forgotten = scene.decide(policy, state=policy.initial_state())
    assert float(forgotten.state["hook_state"][0, 1]) == 1


def test_a_captured_scene_asks_for_the_state(policy, env):
    observation, _ = env.reset(seed=0)
    scene = rlm.Scene.capture(env, observation=observation)
    with pytest.raises(SceneError, match="seen before") as error:
        scene.decide(policy)
    assert "policy.initial_state()" in error.value.fix
    assert scene.decide(policy, state=policy.initial_state()).action in (0, 1)


def test_an_evaluation_carries_the_state(policy, env):
    assert (evaluate(policy, env, seeds=SEEDS)["return"] == 1).all()
