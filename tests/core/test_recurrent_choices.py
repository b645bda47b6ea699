"""Recurrent policies of several choices, and what scenes, conditions and dose-responses make of several choices."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO

import rlmech as rlm
from rlmech.errors import EnvironmentFitError, MetricError

OBS = spaces.Box(-1, 1, (4,), np.float32)
ACTIONS = {"MultiDiscrete": spaces.MultiDiscrete([3, 2]), "MultiBinary": spaces.MultiBinary(3)}
X = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)


class Env(gym.Env):
    def __init__(self, actions):
        self.observation_space, self.action_space = OBS, actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        observation = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return observation, float(np.sum(action)), self.t >= 4, False, {}

    def action_masks(self):
        return np.arange(spaces.flatdim(self.action_space)) != self.t % 2


SMALL = {"n_steps": 8, "batch_size": 8, "device": "cpu", "seed": 0}


@pytest.fixture(params=ACTIONS)
def recurrent(request):
    kwargs = {"lstm_hidden_size": 5, "net_arch": [6]}
    return RecurrentPPO("MlpLstmPolicy", Env(ACTIONS[request.param]), policy_kwargs=kwargs, **SMALL)


def test_a_recurrent_policy_of_several_choices_acts_as_sb3_does_over_time(recurrent, tmp_path):
    recurrent.save(tmp_path / "m.zip")
    policies = [rlm.HookedPolicy.from_sb3(recurrent), rlm.load(tmp_path / "m.zip")]

    for policy in policies:
        own = theirs = None
        for step in range(4):
            start = np.full(6, step == 0)
            expected, theirs = recurrent.predict(X * (step + 1) % 1, theirs, start, deterministic=True)
            actions, own = policy.predict(X * (step + 1) % 1, own, start)
            np.testing.assert_array_equal(actions, expected)
        assert "mlp_extractor.policy_net.0.hook_out" in policy.hook_dict


def test_one_choice_of_a_recurrent_policy_is_its_row_of_the_scores_also_over_time(recurrent):
    policy, sequences = rlm.HookedPolicy.from_sb3(recurrent), np.stack([X, X[::-1], -X], axis=1)
    n_actions = policy.choices.sizes[1]

    one = policy.choice(1)

    assert torch.equal(one(X), policy(X)[:, 1, :n_actions])
    assert torch.equal(one.unrolled(3)(sequences), policy.unrolled(3)(sequences)[:, 1, :n_actions])
    swept = rlm.ablation_sweep(one, sequences, sites=[rlm.Site("lstm_actor.hook_h", step=0)], kind="zero")
    assert swept.sizes["site"] == 1


def test_a_recurrent_policy_of_several_choices_drives_and_is_asked_in_scenes(recurrent):
    policy, env = rlm.HookedPolicy.from_sb3(recurrent), recurrent.get_env().envs[0].unwrapped
    edit = rlm.zero_ablation(rlm.Site("lstm_actor.hook_h", neuron=0))

    recording = rlm.record(policy, env, seeds=[0, 1], progress=False)
    compared = rlm.compare_rollouts(policy, env, conditions={"unit": [edit]}, seeds=[0, 1], progress=False)
    scene = rlm.Scene.replay(env, seed=0, actions=[recording.actions[0], recording.actions[1]])

    decision = scene.decide(policy)
    np.testing.assert_array_equal(decision.action, recording.actions[2])
    assert decision.scores.dims == ("choice", "action")
    assert decision.name == ", ".join(f"{k} {v}" for k, v in enumerate(recording.actions[2]))
    assert len(scene.roll(policy).steps) == 2
    assert compared.sizes["condition"] == 2


@pytest.fixture
def several():
    return rlm.HookedPolicy.from_sb3(PPO("MlpPolicy", Env(ACTIONS["MultiDiscrete"]), **SMALL))


def test_hook_points_of_several_choices_are_named_as_those_of_one(several):
    one = rlm.HookedPolicy.from_sb3(PPO("MlpPolicy", Env(spaces.Discrete(3)), **SMALL))

    assert list(several.hook_dict) == list(one.hook_dict)
    assert list(several.choice(0).hook_dict) == list(one.hook_dict)


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: rlm.attribution.saliency(p, X),
        lambda p: rlm.attribution.local_affine(p, X),
        lambda p: rlm.patching.interchange_intervention(p, base=X, source=X[::-1].copy(), site="action_net.hook_out"),
        lambda p: rlm.circuits.path_expansion(p, X),
    ],
    ids=["saliency", "affine", "interchange", "paths"],
)
def test_what_is_about_one_choice_says_how_to_name_it(several, ask):
    with pytest.raises(MetricError, match="is about one choice, and the policy makes 2 at once") as error:
        ask(several)

    assert "policy.choice(0)" in error.value.fix


def test_a_dose_is_measured_on_a_choice_that_is_named(several):
    dose = {"site": "mlp_extractor.policy_net.3.hook_out", "vector": torch.ones(64), "coefficients": [1.0]}

    with pytest.raises(MetricError, match="action_gap is of one choice") as error:
        rlm.patching.steering_sweep(several, X, **dose)
    assert error.value.expected == "a number from 0 to 1"
    metric = rlm.metrics.action_gap(choice=1)
    found = rlm.patching.steering_sweep(several, X, **dose, metric=metric)
    alone = rlm.patching.steering_sweep(several.choice(1), X, **dose, metric=rlm.metrics.action_gap())
    np.testing.assert_allclose(found["effect"], alone["effect"], rtol=1e-6)


def test_a_condition_on_the_gap_holds_where_any_choice_is_close(several):
    env = Env(ACTIONS["MultiDiscrete"])
    edit = rlm.zero_ablation("action_net.hook_out")

    for gap, edited in ((1e9, True), (0.0, False)):
        when = rlm.episodes.when.gap_below(gap)
        steps = rlm.record(several, env, seeds=[0], edits=[edit], when=when, progress=False).steps
        assert steps["edited"].all() == edited


def test_one_choice_alone_drives_nothing(several):
    with pytest.raises(EnvironmentFitError, match="actions do not fit") as error:
        rlm.record(several.choice(0), Env(ACTIONS["MultiDiscrete"]), seeds=[0], progress=False)

    assert error.value.fix == "what drives makes all choices: give the policy itself, not policy.choice(...)"


def test_a_masked_policy_is_asked_in_scenes_and_dosed_on_open_actions():
    model = MaskablePPO("MlpPolicy", Env(spaces.Discrete(3)), **SMALL)
    policy, env = rlm.HookedPolicy.from_sb3(model), Env(spaces.Discrete(3))
    recording = rlm.record(policy, env, seeds=[0], progress=False)

    scene = rlm.Scene.replay(env, seed=0, actions=[int(recording.actions[0])])

    assert scene.decide(policy).action == recording.actions[1]
    masked = np.isneginf(scene.decide(policy).scores) | (scene.decide(policy).scores < -1e7)
    assert masked.values.tolist() == [True, True, False] or masked.values.tolist() == [False, True, False]
    dose = {"site": "mlp_extractor.policy_net.3.hook_out", "vector": torch.ones(64), "coefficients": [1.0]}
    assert rlm.patching.steering_sweep(policy, recording.observations, **dose).sizes["site"] == 1


def test_captums_attributions_of_a_memory_are_of_the_observation_and_of_its_state():
    kwargs = {"lstm_hidden_size": 5, "net_arch": [6]}
    model = RecurrentPPO("MlpLstmPolicy", Env(spaces.Discrete(3)), policy_kwargs=kwargs, **SMALL)
    policy = rlm.HookedPolicy.from_sb3(model)
    state = {name: torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) for name in policy.state_names}
    met, start = policy.with_state(X, state), policy.with_state(np.zeros_like(X))

    slopes = rlm.attribution.saliency(policy, met)
    found = rlm.attribution.integrated_gradients(policy, met, baseline=start, n_steps=64)

    inputs = {key: value.clone().requires_grad_() for key, value in met.items()}
    policy(inputs)[:, 1].sum().backward()
    np.testing.assert_allclose(slopes["attribution"][:, 1], inputs[""].grad.abs(), atol=1e-6)
    own = slopes["attribution_lstm_actor.hook_h"][:, 1]
    np.testing.assert_allclose(own, inputs["lstm_actor.hook_h"].grad.abs(), atol=1e-6)
    assert float(abs(found["completeness_error"]).max()) < 1e-3 * float(abs(found["total"]).max())
