"""The package's own format: whole or not at all, equal when opened again, and nothing in it can run."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import load_file
from sb3_contrib import ARS, QRDQN, TQC, CrossQ, MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3

from rlmech.adapters.load import load
from rlmech.adapters.native import save_policy
from rlmech.adapters.sb3 import from_sb3
from rlmech.adapters.spaces import draw_observations
from rlmech.core.policy import HookedPolicy
from rlmech.errors import CheckpointError
from rlmech.files import write_sealed
from rlmech.nets import EgoAttentionExtractor, EgoAttentionNetwork, MultiLayerPerceptron

THREE = spaces.Discrete(3)
ENV = {
    "id": "intersection-v2",
    "observation": {
        "type": "Kinematics",
        "vehicles_count": 4,
        "features": ["presence", "x", "y", "vx", "vy", "cos_h", "sin_h"],
    },
    "action": {"type": "DiscreteMetaAction", "lateral": False},
}
EGO = {"features_extractor_class": EgoAttentionExtractor, "net_arch": [8]}
EGO["features_extractor_kwargs"] = {"d_model": 16, "n_heads": 4, "embedding": [16]}


def _metadata(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["rlmech"])


def _with_metadata(path, **changes):
    content = {key: value for key, value in (_metadata(path) | changes).items() if value is not ...}
    write_sealed(path, load_file(path), metadata={"rlmech": json.dumps(content)})
    return path


@pytest.fixture
def saved(dqn_zip, tmp_path):
    return save_policy(load(dqn_zip), tmp_path / "policy.safetensors")


@pytest.mark.parametrize(
    ("algorithm", "policy_name", "obs", "actions", "kwargs"),
    [
        (DQN, "MlpPolicy", spaces.Box(-1, 1, (4, 7)), THREE, {"net_arch": [16, 8], "activation_fn": torch.nn.SiLU}),
        (DQN, "CnnPolicy", spaces.Box(0, 255, (3, 40, 40), np.uint8), THREE, {}),
        (DQN, "MlpPolicy", spaces.Box(-1, 1, (4, 7)), THREE, EGO),
        (PPO, "MlpPolicy", spaces.Box(-1, 1, (4, 7)), THREE, EGO),
        (PPO, "MlpPolicy", spaces.Box(-1, 1, (4, 7)), THREE, EGO | {"share_features_extractor": False}),
        (PPO, "MlpPolicy", spaces.MultiDiscrete([2, 3]), spaces.Box(-2, 1, (2,)), {}),
        (PPO, "MultiInputPolicy", spaces.Dict({"a": spaces.Box(0, 255, (3, 40, 40), np.uint8), "b": THREE}), THREE, {}),
    ],
    ids=["sizes", "image", "ego dqn", "ego ppo", "two extractors", "continuous", "dict"],
)
def test_an_sb3_policy_opens_equal(make_model, tmp_path, algorithm, policy_name, obs, actions, kwargs):
    policy = from_sb3(make_model(algorithm, policy_name, obs=obs, actions=actions, policy_kwargs=dict(kwargs)))

    opened = load(save_policy(policy, tmp_path / "policy.safetensors"))

    samples = draw_observations(obs, 20)
    assert torch.equal(opened(samples), policy(samples))
    assert list(opened.hook_dict) == list(policy.hook_dict)
    assert opened.fingerprint == policy.fingerprint
    assert (opened.observation_space, opened.action_space) == (obs, actions)
    assert opened.output_kind == policy.output_kind


STEER = spaces.Box(np.float32([-2, -0.1]), np.float32([1.5, 0.1]))


@pytest.mark.parametrize(
    ("algorithm", "actions", "kwargs"),
    [
        (SAC, STEER, {"net_arch": {"pi": [8], "qf": [16, 4]}, "n_critics": 3}),
        (SAC, STEER, {"net_arch": [8], "use_sde": True, "clip_mean": 1.5}),
        (TD3, STEER, {"net_arch": [8], "activation_fn": torch.nn.Tanh}),
        (TQC, STEER, {"net_arch": [8], "n_quantiles": 7, "n_critics": 3}),
        (CrossQ, STEER, {"net_arch": [8], "batch_norm_eps": 0.1}),
        (QRDQN, THREE, {"net_arch": [8], "n_quantiles": 7}),
        (ARS, THREE, {"net_arch": [8], "with_bias": False}),
        (ARS, STEER, {"net_arch": [8], "squash_output": False}),
        (MaskablePPO, THREE, {"net_arch": {"pi": [8], "vf": [4]}}),
    ],
    ids=["sac", "sac gSDE", "td3", "tqc", "crossq", "qrdqn", "ars", "ars unsquashed", "maskable"],
)
def test_every_algorithm_opens_equal_live_zipped_and_saved(make_model, tmp_path, algorithm, actions, kwargs):
    space = spaces.Dict([("b", spaces.Box(-1, 1, (3,))), ("a", spaces.Box(-1, 1, (2,)))])
    has_dict = algorithm not in (ARS, CrossQ)  # these two take no dicts
    obs = space if has_dict else space["b"]
    model = make_model(
        algorithm, "MultiInputPolicy" if has_dict else "MlpPolicy", obs=obs, actions=actions, policy_kwargs=dict(kwargs)
    )
    model.save(tmp_path / "model.zip")

    live = from_sb3(model)
    zipped = load(tmp_path / "model.zip")
    saved = load(save_policy(zipped, tmp_path / "policy.safetensors"))

    samples = draw_observations(live.observation_space, 50)
    for policy in (zipped, saved):
        assert policy.engine == "graph"
        assert torch.equal(policy(samples), live(samples))
        assert list(policy.hook_dict) == list(live.hook_dict)
        assert (policy.observation_space, policy.action_space) == (live.observation_space, actions)
        assert policy.fingerprint == live.fingerprint


def test_gsde_and_its_squashing_open_equal(make_model, tmp_path):
    steer = spaces.Box(np.float32([-2, -1]), np.float32([1.5, 1]))
    obs = spaces.Box(-1, 1, (4, 7))
    kwargs = {"squash_output": True, "full_std": False}
    model = make_model(PPO, obs=obs, actions=steer, use_sde=True, policy_kwargs=kwargs)
    samples = draw_observations(obs, 20)

    opened = load(save_policy(from_sb3(model), tmp_path / "policy.safetensors"))

    np.testing.assert_allclose(
        opened.predict(samples)[0], model.predict(samples.numpy(), deterministic=True)[0], rtol=1e-6
    )


def test_an_rl_agents_policy_opens_equal(ego_checkpoint, tmp_path):
    policy = load(ego_checkpoint, config={"model": {"attention_layer": {"heads": 4}}}, env_config=ENV)

    opened = load(save_policy(policy, tmp_path / "policy.safetensors"))

    obs = torch.rand(5, 4, 7)
    assert torch.equal(opened(obs), policy(obs))
    assert opened.spec == policy.spec
    assert opened.attention["attention_layer"].n_heads == 4


@pytest.mark.parametrize(
    "network",
    [
        EgoAttentionNetwork(7, 3, d_model=12, n_heads=3, embedding=(5, 12), presence_index=1, self_attention_heads=2),
        MultiLayerPerceptron(28, (8,), d_out=3, activation="tanh", flatten=True),
    ],
    ids=["ego attention", "perceptron"],
)
def test_a_network_of_this_package_opens_equal(network, tmp_path):
    policy = HookedPolicy(network, torch.rand(2, 4, 7))

    opened = load(save_policy(policy, tmp_path / "policy.safetensors"))

    obs = torch.rand(5, 4, 7)
    assert torch.equal(opened(obs), network(obs))


def test_a_spec_is_kept_and_one_given_comes_first(dqn_zip, tmp_path):
    five = {"action": {"type": "DiscreteMetaAction"}}
    path = save_policy(load(dqn_zip, env_config=five), tmp_path / "policy.safetensors")

    assert load(path).spec.actions[0] == "LANE_LEFT"
    assert load(path, env_config=five | {"id": "highway-v0"}).spec.env_id == "highway-v0"


def test_tensors_with_several_names_are_written_once(make_model, tmp_path):
    model = make_model(PPO, obs=spaces.Box(-1, 1, (4, 7)), actions=THREE, policy_kwargs=EGO)

    path = save_policy(from_sb3(model), tmp_path / "policy.safetensors")

    names = list(load_file(path))
    assert sum("ego_embedding.layers.0.weight" in name for name in names) == 1


def test_the_file_says_what_it_is(saved):
    content = _metadata(saved)

    assert (content["format"], content["adapter"]) == (1, "sb3")
    assert content["plan"]["policy_class"] == "DQNPolicy"
    assert set(content) == {"format", "adapter", "plan", "spec", "graph"}


# ---- refusals


def test_an_arbitrary_module_is_refused_with_the_reason(tmp_path):
    policy = HookedPolicy(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.rand(2, 4))

    with pytest.raises(
        CheckpointError, match="Sequential is a class of its own, which no file of plain values can rebuild"
    ) as error:
        save_policy(policy, tmp_path / "policy.safetensors")

    assert "torch.save(module.state_dict(), path)" in error.value.fix
    assert not list(tmp_path.iterdir())


def test_float64_is_refused(dqn_zip, tmp_path):
    with pytest.raises(CheckpointError, match="Only float32 policies are saved") as error:
        save_policy(load(dqn_zip).double(), tmp_path / "policy.safetensors")

    assert "torch.float64" in error.value.given


# ---- damage


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_cut_file_is_an_error(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, "was written in another format"),
        ({"format": ...}, "was written in another format"),
        ({"adapter": "jax"}, "is not what save_policy writes"),
        ({"plan": 3}, "is not what save_policy writes"),
        ({"spec": ...}, "is not what save_policy writes"),
        ({"spec": {"entities": []}}, "is not what save_policy writes"),
        ({"plan": {}}, "other entries than this version knows"),
        ({"adapter": "rl_agents"}, "plan of the rl-agents policy is not one"),
    ],
)
def test_metadata_of_another_kind_is_an_error(saved, changes, problem):
    with pytest.raises(CheckpointError, match=problem):
        load(_with_metadata(saved, **changes))


def test_tensors_that_do_not_fit_the_plan_are_named(saved):
    tensors = load_file(saved)
    del tensors["q_net.4.bias"]
    write_sealed(saved, tensors, metadata={"rlmech": json.dumps(_metadata(saved))})

    with pytest.raises(CheckpointError, match="do not fit") as error:
        load(saved)
    assert error.value.expected == "missing: q_net.4.bias [5]"


# ---- writing


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, dqn_zip, monkeypatch):
    before = saved.read_bytes()
    policy = load(dqn_zip)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device") as error:
        save_policy(policy, saved)

    assert "untouched" in error.value.fix
    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["dqn_highway.zip", "policy.safetensors"]


def test_an_interrupt_while_writing_leaves_the_old_file_and_nothing_else(saved, dqn_zip, monkeypatch):
    before = saved.read_bytes()
    policy = load(dqn_zip)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_policy(policy, saved)

    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["dqn_highway.zip", "policy.safetensors"]


def test_a_folder_that_is_not_there_is_made(dqn_zip, tmp_path):
    path = save_policy(load(dqn_zip), tmp_path / "a/b/policy.safetensors")

    assert path.is_file()


def test_a_place_that_cannot_be_written_is_an_error(dqn_zip, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match="cannot be written"):
        save_policy(load(dqn_zip), tmp_path / "file/policy.safetensors")
