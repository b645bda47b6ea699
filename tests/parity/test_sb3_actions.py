"""The wrapped policy acts as SB3's own `predict` does, on 2,000 observations, from a live model and from a zip."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from rlmech.adapters.load import load
from rlmech.adapters.sb3 import from_sb3
from rlmech.errors import ObservationError

N = 2000
VEHICLES = spaces.Box(-np.inf, np.inf, (5, 7), np.float32)
FAR = spaces.Box(np.float32([-4.8, -3.4e38]), np.float32([4.8, 3.4e38]))
IMAGE, IMAGE_LAST = spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Box(0, 255, (40, 40, 3), np.uint8)
SCALED_IMAGE = spaces.Box(0, 1, (3, 40, 40), np.float32)
MIXED = spaces.Dict({"vehicles": VEHICLES, "lane": spaces.Discrete(3), "view": IMAGE_LAST})
THREE, STEER = spaces.Discrete(3), spaces.Box(np.float32([-2, -0.1]), np.float32([1.5, 0.1]))
SPLIT = {"net_arch": {"pi": [8], "vf": [16, 4]}, "activation_fn": torch.nn.ReLU, "share_features_extractor": False}
CASES = {
    "dqn": (DQN, "MlpPolicy", VEHICLES, THREE, {}),
    "dqn, sizes and activation": (
        DQN,
        "MlpPolicy",
        VEHICLES,
        THREE,
        {"net_arch": [16, 8], "activation_fn": torch.nn.Tanh},
    ),
    "dqn, no hidden layer": (DQN, "MlpPolicy", VEHICLES, THREE, {"net_arch": []}),
    "dqn, huge bounds": (DQN, "MlpPolicy", FAR, THREE, {}),
    "dqn, image": (DQN, "CnnPolicy", IMAGE, THREE, {"features_extractor_kwargs": {"features_dim": 32}}),
    "dqn, channels last": (DQN, "CnnPolicy", IMAGE_LAST, THREE, {"net_arch": [8]}),
    "dqn, scaled image": (DQN, "CnnPolicy", SCALED_IMAGE, THREE, {"normalize_images": False}),
    "dqn, image flattened": (DQN, "MlpPolicy", spaces.Box(0, 255, (3, 9, 9), np.uint8), THREE, {}),
    "dqn, one-hot": (DQN, "MlpPolicy", spaces.Discrete(6), THREE, {}),
    "ppo": (PPO, "MlpPolicy", VEHICLES, THREE, {}),
    "ppo, separate networks": (PPO, "MlpPolicy", VEHICLES, THREE, SPLIT),
    "ppo, separate images": (PPO, "CnnPolicy", IMAGE, THREE, {"share_features_extractor": False}),
    "ppo, image": (PPO, "CnnPolicy", IMAGE_LAST, THREE, {}),
    "ppo, continuous": (PPO, "MlpPolicy", VEHICLES, STEER, {"ortho_init": False}),
    "ppo, several one-hots": (PPO, "MlpPolicy", spaces.MultiDiscrete([2, 3]), THREE, {}),
    "ppo, bits": (PPO, "MlpPolicy", spaces.MultiBinary(4), THREE, {}),
    "ppo, dict": (PPO, "MultiInputPolicy", MIXED, THREE, {}),
    "a2c": (A2C, "MlpPolicy", VEHICLES, THREE, {"activation_fn": torch.nn.ELU}),
    "a2c, image": (A2C, "CnnPolicy", IMAGE, THREE, {}),
    "sac": (SAC, "MlpPolicy", VEHICLES, STEER, {"net_arch": [16, 8]}),
    "sac, separate sizes": (SAC, "MlpPolicy", VEHICLES, STEER, {"net_arch": {"pi": [8], "qf": [16]}, "n_critics": 3}),
    "td3": (TD3, "MlpPolicy", VEHICLES, STEER, {"net_arch": [16, 8]}),
    "ddpg": (DDPG, "MlpPolicy", VEHICLES, STEER, {"net_arch": [16, 8]}),
    "trpo": (TRPO, "MlpPolicy", VEHICLES, THREE, {}),
    "trpo, continuous": (TRPO, "MlpPolicy", VEHICLES, STEER, {}),
    "tqc": (TQC, "MlpPolicy", VEHICLES, STEER, {"net_arch": [16, 8], "n_quantiles": 5}),
    "crossq": (CrossQ, "MlpPolicy", VEHICLES, STEER, {"net_arch": [16, 8]}),
    "qr-dqn": (QRDQN, "MlpPolicy", VEHICLES, THREE, {"net_arch": [16], "n_quantiles": 5}),
    "qr-dqn, image": (QRDQN, "CnnPolicy", IMAGE, THREE, {"n_quantiles": 5}),
    "ars": (ARS, "MlpPolicy", VEHICLES, THREE, {"net_arch": [16]}),
    "ars, linear": (ARS, "LinearPolicy", VEHICLES, STEER, {}),
    "ars, squashed": (ARS, "MlpPolicy", VEHICLES, STEER, {"activation_fn": torch.nn.Tanh}),
    "dqn, dict": (DQN, "MultiInputPolicy", MIXED, THREE, {"net_arch": [8]}),
    "a2c, dict and steering": (A2C, "MultiInputPolicy", MIXED, STEER, {"net_arch": [8]}),
    "a2c, several choices": (A2C, "MlpPolicy", VEHICLES, spaces.MultiDiscrete([3, 2]), {}),
    "ppo, bits to set": (PPO, "MlpPolicy", VEHICLES, spaces.MultiBinary(3), {}),
    "sac, image": (SAC, "CnnPolicy", IMAGE, STEER, {"net_arch": [8]}),
    "td3, dict": (TD3, "MultiInputPolicy", MIXED, STEER, {"net_arch": [8]}),
    "ddpg, image": (DDPG, "CnnPolicy", IMAGE_LAST, STEER, {"net_arch": [8]}),
    "trpo, image": (TRPO, "CnnPolicy", IMAGE, THREE, {}),
    "trpo, several choices": (TRPO, "MlpPolicy", VEHICLES, spaces.MultiDiscrete([3, 2]), {}),
    "tqc, dict": (TQC, "MultiInputPolicy", MIXED, STEER, {"net_arch": [8], "n_quantiles": 5}),
    "qr-dqn, dict": (QRDQN, "MultiInputPolicy", MIXED, THREE, {"net_arch": [8], "n_quantiles": 5}),
}
SMALL = {DQN: {"buffer_size": 10}, SAC: {"buffer_size": 10}, TD3: {"buffer_size": 10}, A2C: {"n_steps": 8}}
SMALL |= {algorithm: {"buffer_size": 10} for algorithm in (DDPG, TQC, CrossQ, QRDQN)}
SMALL |= {algorithm: {"n_steps": 8, "batch_size": 8} for algorithm in (PPO, TRPO, MaskablePPO)} | {ARS: {}}


class SpacesOnly(gym.Env):
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


class Masking(SpacesOnly):
    def action_masks(self):
        return np.ones(3, bool)


@pytest.fixture(params=CASES, ids=list(CASES))
def model(request):
    algorithm, policy, obs, actions, kwargs = CASES[request.param]
    torch.manual_seed(1)
    return algorithm(policy, SpacesOnly(obs, actions), device="cpu", policy_kwargs=dict(kwargs), **SMALL[algorithm])


def _observations(space, n=N):
    space.seed(3)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def test_a_live_model_and_its_zip_act_as_sb3_does(model, tmp_path):
    obs = _observations(model.observation_space)
    expected, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")

    live = from_sb3(model)
    opened = load(tmp_path / "model.zip")

    for policy in (live, opened):
        assert policy.engine == "graph"
        actions, state = policy.predict(obs)
        np.testing.assert_array_equal(actions, expected)
        assert state is None
        bits = isinstance(model.action_space, spaces.MultiBinary)  # SB3 gives them as floats, we in the space's dtype
        assert actions.dtype == (model.action_space.dtype if bits else expected.dtype)
    assert list(live.hook_dict) == list(opened.hook_dict)
    assert torch.equal(live(obs), opened(obs))


def test_a_single_observation_gets_a_single_action_as_from_sb3(model):
    obs = _observations(model.observation_space, 1)
    single = {key: value[0] for key, value in obs.items()} if isinstance(obs, dict) else obs[0]
    expected, _ = model.predict(single, deterministic=True)

    actions, _ = from_sb3(model).predict(single)

    np.testing.assert_array_equal(actions, expected)
    assert np.shape(actions) == np.shape(expected)


def test_the_value_is_sb3s_own_value():
    model = PPO("MlpPolicy", SpacesOnly(VEHICLES, THREE), device="cpu", policy_kwargs=SPLIT, **SMALL[PPO])
    obs = _observations(VEHICLES, 20)

    _, cache = from_sb3(model).run_with_cache(obs, names="hook_value")

    torch.testing.assert_close(
        cache["hook_value"], model.policy.predict_values(torch.as_tensor(obs))[:, 0], rtol=0, atol=0
    )


def test_the_value_of_sac_is_the_least_critic_at_its_own_action():
    model = SAC("MlpPolicy", SpacesOnly(VEHICLES, STEER), device="cpu", policy_kwargs={"net_arch": [8]}, **SMALL[SAC])
    obs = torch.as_tensor(_observations(VEHICLES, 20))

    _, cache = from_sb3(model).run_with_cache(obs, names="hook_value")

    expected = torch.cat(model.critic(obs, model.actor(obs, deterministic=True)), dim=1).min(dim=1).values
    torch.testing.assert_close(cache["hook_value"], expected, rtol=0, atol=0)


def test_an_image_stays_uint8_until_sb3s_own_scaling():
    model = DQN("CnnPolicy", SpacesOnly(IMAGE, THREE), device="cpu", **SMALL[DQN])
    obs = _observations(IMAGE, 3)

    scores, cache = from_sb3(model).run_with_cache(obs)

    assert cache["hook_obs"].dtype == torch.uint8
    torch.testing.assert_close(scores, model.q_net(torch.as_tensor(obs)), rtol=0, atol=0)


def test_a_maskable_policy_decides_among_what_its_mask_allows(tmp_path):
    model = MaskablePPO("MlpPolicy", Masking(VEHICLES, THREE), device="cpu", seed=0, **SMALL[MaskablePPO])
    model.save(tmp_path / "model")
    obs, rng = _observations(VEHICLES), np.random.default_rng(0)
    masks = rng.random((N, 3)) < 0.5
    masks[np.arange(N), rng.integers(0, 3, N)] = True
    expected, _ = model.predict(obs, deterministic=True, action_masks=masks)

    for policy in (from_sb3(model), load(tmp_path / "model.zip")):
        actions, _ = policy.predict({"observation": obs, "action_mask": masks})
        np.testing.assert_array_equal(actions, expected)
        with pytest.raises(ObservationError, match="not what the policy takes"):
            policy.predict(obs)


def test_opening_a_crossq_changes_none_of_its_statistics(tmp_path):
    model = CrossQ("MlpPolicy", SpacesOnly(VEHICLES, STEER), device="cpu", **SMALL[CrossQ])
    model.save(tmp_path / "model")
    reloaded = CrossQ.load(tmp_path / "model")
    before = {name: value.clone() for name, value in reloaded.policy.state_dict().items()}

    policy = from_sb3(reloaded)
    policy.run_with_cache(_observations(VEHICLES, 20))

    assert all(torch.equal(value, before[name]) for name, value in reloaded.policy.state_dict().items())
    assert not policy.couples_rows
