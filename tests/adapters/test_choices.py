"""SB3 policies of several choices at once: the same actions as `predict`, and every analysis of one choice by name."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO

import rlmech as rlm
from rlmech.errors import ConfigError, MetricError, SiteError

OBS = spaces.Box(-1, 1, (6,), np.float32)
ACTIONS = {
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "equal": spaces.MultiDiscrete([3, 3, 3]),
    "one": spaces.MultiDiscrete([4]),
    "MultiBinary": spaces.MultiBinary(3),
}


class Env(gym.Env):
    def __init__(self, actions):
        self.observation_space, self.action_space = OBS, actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def _see(self):
        return self.np_random.uniform(-1, 1, 6).astype(np.float32)

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self._see(), float(np.sum(action)), self.t >= 5, False, {}

    def action_masks(self):
        bits = isinstance(self.action_space, spaces.MultiBinary)  # sb3-contrib's masks have two booleans for each
        return np.arange(spaces.flatdim(self.action_space) * (1 + bits)) % 3 != self.t % 2


def observations(n=500):
    return np.random.default_rng(0).uniform(-1, 1, (n, 6)).astype(np.float32)


@pytest.fixture(params=ACTIONS)
def model(request):
    torch.manual_seed(0)
    return (PPO if request.param != "equal" else A2C)("MlpPolicy", Env(ACTIONS[request.param]), device="cpu", seed=0)


def test_live_and_opened_policies_act_as_sb3_does(model, tmp_path):
    model.save(tmp_path / "m")
    obs = observations()
    expected, _ = model.predict(obs, deterministic=True)

    live = rlm.HookedPolicy.from_sb3(model)
    for policy in (live, rlm.load(tmp_path / "m.zip"), rlm.load(rlm.save_policy(live, tmp_path / "n"))):
        np.testing.assert_array_equal(policy.predict(obs)[0], expected)
        assert policy.predict(obs[0])[0].shape == expected[0].shape
        assert policy.engine == "graph"
        assert policy(obs).ndim == 3


def test_an_episode_is_driven_by_all_choices(model):
    policy = rlm.HookedPolicy.from_sb3(model)

    recording = rlm.record(policy, Env(model.action_space), seeds=[0, 1], names=(), progress=False)

    np.testing.assert_array_equal(recording.actions, policy.predict(recording.observations)[0])
    assert recording.scores.shape[1:] == policy(recording.observations).shape[1:]


def choices():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    spec = rlm.PolicySpec(choices=("steer", "speed"))
    return rlm.HookedPolicy(
        net, torch.rand(2, 6), spec=spec, output_kind="logits", action_space=ACTIONS["MultiDiscrete"]
    )


def test_a_metric_of_one_choice_asks_which():
    policy, x = choices(), torch.as_tensor(observations(16))

    with pytest.raises(MetricError, match="makes 2 at once") as error:
        rlm.activation_patching(policy, clean=x[:8], corrupt=x[8:], sites=["1.hook_out"])
    assert "choice='steer'" in error.value.fix

    alone = policy.choice("steer")
    named = rlm.metrics.action_gap(choice="steer")
    one = rlm.activation_patching(policy, clean=x[:8], corrupt=x[8:], sites=["1.hook_out"], metric=named)
    other = rlm.activation_patching(alone, clean=x[:8], corrupt=x[8:], sites=["1.hook_out"])
    np.testing.assert_allclose(one.effect, other.effect, rtol=1e-5)


def test_a_choice_alone_is_a_policy_for_every_analysis():
    policy, x = choices(), torch.as_tensor(observations(16))

    speed = policy.choice("speed")

    assert torch.equal(speed(x), policy(x)[:, 1, :2])
    assert speed.action_space == spaces.Discrete(2)
    assert speed.module is policy.module
    assert rlm.attribution.local_affine(speed, x).jacobian.sizes["action"] == 2
    total = rlm.attribution.local_affine(speed, x)
    product = np.einsum("baf,bf->ba", total.jacobian.values, x.numpy()) + total.offset.values
    np.testing.assert_allclose(product, speed(x).detach(), atol=1e-5)
    gap = rlm.ablation_sweep(speed, x, sites=["1.hook_out"], metric=rlm.metrics.action_gap(0, 1))
    same = rlm.ablation_sweep(policy, x, sites=["1.hook_out"], metric=rlm.metrics.action_gap(0, 1, choice=1))
    np.testing.assert_allclose(gap.effect, same.effect, rtol=1e-5)


def test_a_choice_that_is_not_there_is_an_error():
    policy = choices()
    with pytest.raises(SiteError, match="no choice 'brake'"):
        policy.choice("brake")
    with pytest.raises(ConfigError, match="makes one choice only"):
        policy.choice("speed").choice(0)


def test_a_flip_is_of_any_choice_and_divergences_add_up():
    policy, x = choices(), torch.as_tensor(observations(16))

    def measured(metric):
        sites = ["1.hook_out"]
        return rlm.activation_patching(policy, clean=x[:8], corrupt=x[8:], sites=sites, metric=metric).patched.values

    flips = [measured(rlm.metrics.action_flip(choice=choice)) for choice in (None, 0, 1)]
    np.testing.assert_array_equal(flips[0], np.maximum(flips[1], flips[2]))
    kls = [measured(rlm.metrics.policy_kl(choice=choice)) for choice in (None, "steer", "speed")]
    np.testing.assert_allclose(kls[0], kls[1] + kls[2], atol=1e-6)


@pytest.mark.parametrize(
    "actions", [spaces.Discrete(4), ACTIONS["MultiDiscrete"], ACTIONS["MultiBinary"]], ids=["one", "several", "bits"]
)
def test_a_maskable_policy_drives_with_its_environments_masks(actions):
    model = MaskablePPO("MlpPolicy", Env(actions), device="cpu", seed=0, n_steps=8, batch_size=8)
    policy = rlm.HookedPolicy.from_sb3(model)

    recording = rlm.record(policy, Env(actions), seeds=[0, 1, 2], names=(), progress=False)

    env, taken = Env(actions), []
    for seed in (0, 1, 2):
        obs, _ = env.reset(seed=seed)
        done = False
        while not done:
            action, _ = model.predict(obs, deterministic=True, action_masks=env.action_masks())
            taken.append(action)
            obs, _, done, _, _ = env.step(action)
    np.testing.assert_array_equal(recording.actions, np.array(taken))
    assert set(recording.observations) == {"observation", "action_mask"}


def test_an_environment_without_masks_is_an_error_that_says_what_it_lacks():
    class Maskless(Env):
        action_masks = property()

    model = MaskablePPO("MlpPolicy", Env(spaces.Discrete(4)), device="cpu", n_steps=8, batch_size=8)

    with pytest.raises(rlm.RlmechError, match="the environment gives none"):
        rlm.record(rlm.HookedPolicy.from_sb3(model), Maskless(spaces.Discrete(4)), seeds=[0], progress=False)
