"""VecNormalize's statistics are the policy's first layer, wherever they come from, and never left out in silence."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlmech.adapters.load import load
from rlmech.adapters.native import save_policy
from rlmech.adapters.sb3 import from_sb3
from rlmech.core.interventions import zero_ablation
from rlmech.core.site import Site
from rlmech.errors import CheckpointError, ConfigError, EnvironmentFitError

BOX = spaces.Box(-np.inf, np.inf, (4,), np.float32)
DICT = spaces.Dict(
    [("speed", spaces.Box(-9, 9, (3,))), ("goal", spaces.Box(-9, 9, (2,))), ("lane", spaces.Discrete(3))]
)
ZOO_CONFIG = """!!python/object/apply:collections.OrderedDict
- - - n_timesteps
    - 100000.0
  - - normalize
    - {}
  - - policy
    - MlpPolicy
"""


def _trained(make_env, algorithm=PPO, obs=BOX, actions=None, **kwargs):
    """A model behind statistics that matter: means far from 0, small and large deviations, a narrow clip."""
    actions = actions or spaces.Discrete(3)
    inner = DummyVecEnv([lambda: make_env(obs, actions)])
    venv = VecNormalize(inner, clip_obs=1.5, epsilon=1e-3, **kwargs)
    rng = np.random.default_rng(0)
    for rms in venv.obs_rms.values() if isinstance(venv.obs_rms, dict) else (venv.obs_rms,):
        rms.mean, rms.var = rng.normal(5, 3, rms.mean.shape), rng.uniform(0.01, 30, rms.var.shape)
    size = {"buffer_size": 10} if algorithm is SAC else {"n_steps": 8, "batch_size": 8}
    policy = "MultiInputPolicy" if isinstance(obs, spaces.Dict) else "MlpPolicy"
    return algorithm(policy, venv, seed=0, device="cpu", **size), venv


def _raw(space, n=200):
    rng = np.random.default_rng(1)
    if isinstance(space, spaces.Dict):
        return {key: _raw(sub, n) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, n)
    return rng.normal(5, 4, (n, *space.shape)).astype(space.dtype)


def _as_trained(model, venv, obs):
    return model.predict(venv.normalize_obs(obs), deterministic=True)[0]


CASES = {
    "box": (PPO, BOX, None, {}),
    "float64": (PPO, spaces.Box(-np.inf, np.inf, (4,), np.float64), None, {}),
    "entities": (PPO, spaces.Box(-9, 9, (2, 3), np.float32), None, {}),
    "dict": (PPO, DICT, None, {"norm_obs_keys": ["goal"]}),
    "continuous": (SAC, BOX, spaces.Box(-2, 1, (2,)), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_live_zipped_and_saved_take_raw_observations_and_decide_as_trained(make_env, tmp_path, case):
    algorithm, obs, actions, kwargs = CASES[case]
    model, venv = _trained(make_env, algorithm, obs, actions, **kwargs)
    model.save(tmp_path / "model.zip")
    venv.save(tmp_path / "vecnormalize.pkl")
    raw = _raw(obs)
    expected = _as_trained(model, venv, raw)

    live, zipped = from_sb3(model), load(tmp_path / "model.zip")
    saved = load(save_policy(zipped, tmp_path / "policy.safetensors"))

    for policy in (live, zipped, saved, copy.deepcopy(live), pickle.loads(pickle.dumps(live))):
        actions_, _ = policy.predict(raw)
        np.testing.assert_allclose(actions_, expected, rtol=1e-6)
        assert list(policy.hook_dict) == list(live.hook_dict)
        assert policy.engine == "graph"


def test_the_observation_has_a_point_before_the_statistics_and_one_after(make_env):
    model, venv = _trained(make_env)
    policy, raw = from_sb3(model), _raw(BOX)

    scores, cache = policy.run_with_cache(raw)

    assert list(policy.hook_dict)[:2] == ["hook_obs_raw", "hook_obs"]
    assert policy.hook_dict["hook_obs"].axes == policy.hook_dict["hook_obs_raw"].axes == ("batch", "feature")
    np.testing.assert_array_equal(cache["hook_obs_raw"], raw)
    np.testing.assert_array_equal(cache["hook_obs"], venv.normalize_obs(raw))  # bit for bit
    assert torch.equal(scores, from_sb3(model, vecnormalize=False)(venv.normalize_obs(raw)))
    with policy.edited([zero_ablation(Site("hook_obs"))]):
        zeroed = policy(raw)
    assert torch.equal(zeroed, from_sb3(model, vecnormalize=False)(np.zeros_like(raw)))


def test_only_the_named_keys_of_a_dict_are_normalised(make_env):
    model, _ = _trained(make_env, obs=DICT, norm_obs_keys=["goal"])

    names = [name for name in from_sb3(model).hook_dict if name.startswith("hook_obs")]

    assert sorted(names) == ["hook_obs.goal", "hook_obs.lane", "hook_obs.speed", "hook_obs_raw.goal"]


def test_a_maskable_policy_is_normalised_beside_its_mask(make_env):
    model, venv = _trained(make_env, MaskablePPO)
    raw, masks = _raw(BOX), np.random.default_rng(0).random((200, 3)) < 0.5
    masks[:, 1] = True

    actions, _ = from_sb3(model).predict({"observation": raw, "action_mask": masks})

    expected, _ = model.predict(venv.normalize_obs(raw), action_masks=masks, deterministic=True)
    np.testing.assert_array_equal(actions, expected)


@pytest.mark.parametrize("place", ["vecnormalize.pkl", "vec_normalize.pkl", "model/vecnormalize.pkl"])
def test_statistics_beside_a_zip_are_taken(make_env, tmp_path, place):
    model, venv = _trained(make_env)
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model.zip")
    venv.save(tmp_path / place)

    assert "hook_obs_raw" in load(tmp_path / "model.zip").hook_dict
    assert "hook_obs_raw" not in load(tmp_path / "model.zip", vecnormalize=False).hook_dict


def test_statistics_come_from_an_npz_or_a_live_object_too(make_env, tmp_path):
    model, venv = _trained(make_env)
    model.save(tmp_path / "model.zip")
    numbers = {"mean": venv.obs_rms.mean, "var": venv.obs_rms.var, "clip": 1.5, "epsilon": 1e-3}
    np.savez(tmp_path / "statistics.npz", **numbers)
    raw = _raw(BOX)

    for given in (tmp_path / "statistics.npz", str(tmp_path / "statistics.npz"), venv):
        actions, _ = load(tmp_path / "model.zip", vecnormalize=given).predict(raw)
        np.testing.assert_array_equal(actions, _as_trained(model, venv, raw))


def test_rewards_alone_normalised_leave_observations_as_they_are(make_env, tmp_path):
    model = PPO("MlpPolicy", make_env(BOX, spaces.Discrete(3)), n_steps=8, batch_size=8, device="cpu")
    venv = VecNormalize(model.get_env(), norm_obs=False)
    model.save(tmp_path / "model.zip")
    venv.save(tmp_path / "vecnormalize.pkl")

    assert "hook_obs_raw" not in load(tmp_path / "model.zip").hook_dict


@pytest.mark.parametrize("normalize", ["true", "dict(norm_obs=True, norm_reward=False)", "'{''norm_reward'': True}'"])
def test_a_run_that_says_normalize_is_not_opened_without_its_statistics(make_env, tmp_path, normalize):
    model, _ = _trained(make_env)
    model.save(tmp_path / "model.zip")
    (tmp_path / "config.yml").write_text(ZOO_CONFIG.format(normalize))

    with pytest.raises(ConfigError, match="trained on normalised observations") as error:
        load(tmp_path / "model.zip")

    assert "vecnormalize=False" in error.value.fix


@pytest.mark.parametrize("normalize", ["false", "dict(norm_obs=False, norm_reward=True)"])
def test_a_run_that_did_not_normalise_opens(make_env, tmp_path, normalize):
    model, _ = _trained(make_env)
    model.save(tmp_path / "model.zip")
    (tmp_path / "config.yml").write_text(ZOO_CONFIG.format(normalize))

    assert "hook_obs_raw" not in load(tmp_path / "model.zip").hook_dict


def test_statistics_of_another_policy_are_an_error(make_env, tmp_path):
    model, _ = _trained(make_env)
    model.save(tmp_path / "model.zip")
    np.savez(tmp_path / "other.npz", mean=np.zeros(5), var=np.ones(5))

    with pytest.raises(EnvironmentFitError, match="not those of this policy's observations") as error:
        load(tmp_path / "model.zip", vecnormalize=tmp_path / "other.npz")

    assert "shape [5]" in error.value.given
    assert "shape [4]" in error.value.expected


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_of_something_else_is_an_error_and_nothing_of_it_runs(make_env, tmp_path):
    model, _ = _trained(make_env)
    model.save(tmp_path / "model.zip")
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "crater")))

    with pytest.raises(CheckpointError, match="not a file of VecNormalize"):
        load(tmp_path / "model.zip")

    assert not (tmp_path / "crater").exists()


@pytest.mark.parametrize("given", ["nowhere.pkl", 3])
def test_what_holds_no_statistics_is_an_error(make_env, tmp_path, given):
    model, _ = _trained(make_env)
    model.save(tmp_path / "model.zip")

    with pytest.raises(ConfigError, match="no statistics of VecNormalize there"):
        load(tmp_path / "model.zip", vecnormalize=given)
