"""RecurrentPPO: live, from its zip and from this package's own file, it acts as sb3-contrib's `predict` does."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import rlmech as rlm
from rlmech.errors import CheckpointError

sb3_contrib = pytest.importorskip("sb3_contrib")

CASES = {
    "separate critic": ("CartPole-v1", {"net_arch": [6]}),
    "shared": ("CartPole-v1", {"net_arch": [], "shared_lstm": True, "enable_critic_lstm": False}),
    "critic without": ("Pendulum-v1", {"net_arch": {"pi": [6], "vf": []}, "enable_critic_lstm": False}),
    "two layers": ("CartPole-v1", {"net_arch": [6], "n_lstm_layers": 2, "lstm_kwargs": {"bias": False}}),
}


@pytest.fixture(params=list(CASES), scope="module")
def model(request):
    env_id, kwargs = CASES[request.param]
    return sb3_contrib.RecurrentPPO(
        "MlpLstmPolicy", env_id, n_steps=8, seed=0, policy_kwargs={"lstm_hidden_size": 5, **kwargs}
    )


def same_actions(model, policy, *, n_steps=40):
    """Drive by sb3-contrib's own predict, and ask the policy beside it."""
    env = gym.make(model.get_env().envs[0].spec.id)
    observation, _ = env.reset(seed=0)
    own = given = None
    start = np.array([True])
    for _ in range(n_steps):
        action, own = model.predict(observation, own, start, deterministic=True)
        chosen, given = policy.predict(observation, given, start)
        np.testing.assert_allclose(chosen, action, atol=1e-5)
        np.testing.assert_allclose(given[0], own[0][0], atol=1e-5)  # hidden state of the actor's first layer
        observation, _, terminated, truncated, _ = env.step(action)
        start = np.array([terminated or truncated])
        if start[0]:
            observation, _ = env.reset()


def test_live_saved_and_loaded_it_acts_as_sb3_contrib_does(model, tmp_path):
    live = rlm.HookedPolicy.from_sb3(model)
    model.save(tmp_path / "model.zip")
    opened = rlm.load(tmp_path / "model.zip")
    again = rlm.load(rlm.save_policy(opened, tmp_path / "own.safetensors"))
    for policy in (live, opened, again):
        assert policy.is_recurrent
        same_actions(model, policy)
    assert live.state_names == opened.state_names == again.state_names


def test_its_value_is_sb3_contribs_own(model):
    policy, own = rlm.HookedPolicy.from_sb3(model), model.policy
    obs = torch.rand(3, *own.observation_space.shape)
    state = policy.initial_state(3)
    _, cache = policy.run_with_cache(policy.with_state(obs, state), "hook_value")
    lstm = own.lstm_actor
    zeros = torch.zeros(lstm.num_layers, 3, lstm.hidden_size)
    with torch.no_grad():
        expected = own.predict_values(obs, (zeros, zeros), torch.zeros(3))
    torch.testing.assert_close(cache["hook_value"], expected.reshape(-1))


def test_points_are_named_by_the_policys_own_paths():
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, policy_kwargs={"lstm_hidden_size": 5})
    policy = rlm.HookedPolicy.from_sb3(model)
    assert policy.state_names == tuple(f"lstm_{who}.hook_{part}" for who in ("actor", "critic") for part in "hc")
    assert policy.point("lstm_actor.hook_gates").labels["gate"] == ("i", "f", "g", "o")


def test_statistics_of_vecnormalize_stand_before_it():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", env, n_steps=8, seed=0, policy_kwargs={"lstm_hidden_size": 5})
    model.learn(16)
    policy = rlm.HookedPolicy.from_sb3(model)
    raw = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    own, _ = model.predict(env.normalize_obs(raw), deterministic=True)
    np.testing.assert_array_equal(policy.predict(raw)[0], own)
    _, cache = policy.run_sequence(raw[None])
    np.testing.assert_allclose(cache["hook_obs"][0], env.normalize_obs(raw), atol=1e-6)


def test_an_lstm_that_reads_both_ways_is_refused_in_words():
    kwargs = {"lstm_hidden_size": 5, "lstm_kwargs": {"batch_first": True}}
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, policy_kwargs=kwargs)
    with pytest.raises(CheckpointError, match="more than its past"):
        rlm.HookedPolicy.from_sb3(model)
