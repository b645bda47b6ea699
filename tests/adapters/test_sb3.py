"""SB3 zips and live models: what is read in clear, what is asked for, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy

from rlmech.adapters.clear_text import space_from_clear_text
from rlmech.adapters.load import load
from rlmech.adapters.native import save_policy
from rlmech.adapters.sb3 import from_sb3
from rlmech.adapters.sb3.plan import SB3Plan
from rlmech.adapters.sb3.zip_file import read_zip
from rlmech.adapters.spaces import draw_observations, space_from_json, space_to_json
from rlmech.errors import CheckpointError, ConfigError, EnvironmentFitError, ParityError
from rlmech.nets import EgoAttentionExtractor

THREE = spaces.Discrete(3)
STEER = spaces.Box(np.float32([-2, -1]), np.float32([1.5, 1]))


class Doubling(BaseFeaturesExtractor):
    """A features extractor of a user's own."""

    def __init__(self, observation_space, width=4):
        super().__init__(observation_space, features_dim=width)
        self.layer = torch.nn.Linear(int(np.prod(observation_space.shape)), width)

    def forward(self, observations):
        return 2 * self.layer(observations.flatten(1))


class Contrary(DQNPolicy):
    """A policy that takes the worst action."""

    def _predict(self, obs, deterministic=True):
        return self.q_net(obs).argmin(dim=1)


def _rewritten(path, **changes):
    """The zip with other entries in its data."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["data"] = json.dumps(json.loads(contents["data"]) | changes).encode()
    changed = path.with_name("changed.zip")
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return changed


# ---- names and sharing


def test_hook_names_are_those_of_the_q_network(dqn_zip):
    policy = load(dqn_zip)

    assert list(policy.hook_dict) == [
        "hook_obs", "q_net.0.hook_out", "q_net.1.hook_out", "q_net.2.hook_out", "q_net.3.hook_out", "q_net.4.hook_out",
        "hook_q_values",
    ]  # fmt: skip
    assert policy.output_kind == "q_values"


@pytest.mark.parametrize(
    ("actions", "kind", "head"), [(THREE, "logits", "hook_logits"), (STEER, "mean_action", "hook_mean_action")]
)
def test_hook_names_of_an_actor_critic_are_those_of_the_policy(make_model, kinematics, actions, kind, head):
    policy = from_sb3(make_model(PPO, obs=kinematics, actions=actions))

    assert policy.output_kind == kind
    for name in (
        "mlp_extractor.policy_net.0.hook_out",
        "action_net.hook_out",
        "value_net.hook_out",
        head,
        "hook_value",
    ):
        assert name in policy.hook_dict


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_hook_names_of_sac_and_td3_tell_actor_and_critics(make_model, kinematics, algorithm):
    policy = from_sb3(make_model(algorithm, obs=kinematics, actions=STEER, policy_kwargs={"net_arch": [8]}))

    assert any(name.startswith("actor.") for name in policy.hook_dict)
    for name in ("critic.qf0.0.hook_out", "critic.qf1.0.hook_out", "hook_mean_action", "hook_value"):
        assert name in policy.hook_dict


@pytest.mark.parametrize(("algorithm", "actions"), [(DQN, THREE), (PPO, THREE), (SAC, STEER)])
def test_a_live_model_trains_on_underneath(make_model, kinematics, algorithm, actions):
    model = make_model(algorithm, obs=kinematics, actions=actions)
    policy = from_sb3(model)
    own = {id(parameter) for parameter in model.policy.parameters()}

    assert {id(parameter) for parameter in policy.module.parameters()} <= own

    obs = draw_observations(kinematics, 4).numpy()
    before = policy(obs).detach().clone()
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter += 0.1
    assert not torch.equal(policy(obs), before)
    np.testing.assert_array_equal(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("kwargs", [{}, {"use_sde": True}], ids=["gaussian", "gSDE"])
def test_an_opened_policy_deep_copies_and_pickles(make_model, kinematics, tmp_path, kwargs):
    make_model(PPO, obs=kinematics, actions=STEER, **kwargs).save(tmp_path / "ppo.zip")
    policy = load(tmp_path / "ppo.zip")
    obs = draw_observations(kinematics, 4)

    for copied in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(copied(obs), policy(obs))


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (5, 7)), spaces.Discrete(1000)], ids=str)
def test_wrapping_leaves_training_mode_and_the_spaces_generator_alone(make_model, space):
    model = make_model(PPO, obs=space, actions=THREE)
    model.policy.set_training_mode(True)
    model.observation_space.seed(5)
    expected = copy.deepcopy(model.observation_space).sample()
    state = torch.get_rng_state()

    from_sb3(model)

    assert all(module.training for module in model.policy.modules())
    np.testing.assert_array_equal(model.observation_space.sample(), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_opening_a_zip_leaves_the_random_numbers_alone(dqn_zip):
    state = torch.get_rng_state()

    load(dqn_zip)

    assert torch.equal(torch.get_rng_state(), state)


def test_the_policy_of_a_model_opens_as_the_model_does(make_model, kinematics):
    model = make_model(A2C, obs=kinematics, actions=THREE)

    assert from_sb3(model.policy).fingerprint == from_sb3(model).fingerprint


def test_the_names_come_from_the_models_own_environment_or_from_one_given(make_model, kinematics, make_env):
    model = make_model(DQN, obs=kinematics, actions=THREE)
    own = model.get_env().envs[0].unwrapped
    own.config = {"action": {"type": "DiscreteMetaAction", "lateral": False}}
    assert from_sb3(model).spec.actions == ("SLOWER", "IDLE", "FASTER")

    given = make_env(kinematics, THREE)
    given.config = {"action": {"type": "DiscreteMetaAction", "longitudinal": False}}
    assert from_sb3(model, env=given).spec.actions == ("LANE_LEFT", "IDLE", "LANE_RIGHT")

    with pytest.raises(EnvironmentFitError, match="The environment's actions are not those of the policy"):
        from_sb3(model, env=make_env(kinematics, STEER))


# ---- what a zip does not have in clear


def test_a_features_extractor_of_its_own_is_asked_for_by_name(make_model, kinematics, tmp_path):
    kwargs = {"features_extractor_class": Doubling, "features_extractor_kwargs": {"width": 6}}
    model = make_model(PPO, obs=kinematics, actions=THREE, policy_kwargs=kwargs)
    model.save(tmp_path / "own.zip")

    with pytest.raises(CheckpointError, match=r"features extractor '.*Doubling' is a class of its own") as error:
        load(tmp_path / "own.zip")
    assert error.value.fix == "import it: load(..., features_extractor_class=Doubling)"

    policy = load(tmp_path / "own.zip", features_extractor_class=Doubling)
    obs = draw_observations(kinematics, 50).numpy()
    np.testing.assert_array_equal(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0])


def test_another_class_than_the_zips_is_an_error_that_names_the_tensors(make_model, kinematics, tmp_path):
    make_model(DQN, obs=kinematics, actions=THREE, policy_kwargs={"features_extractor_class": Doubling}).save(
        tmp_path / "own"
    )

    with pytest.raises(CheckpointError, match=r"own\.zip do not fit") as error:
        load(tmp_path / "own.zip", features_extractor_class=EgoAttentionExtractor)
    assert "q_net.features_extractor.layer.weight" in error.value.given
    assert "q_net.features_extractor.ego_embedding.layers.0.weight" in error.value.expected


def test_an_extractor_that_cannot_be_built_is_an_error_with_its_reason(make_model, kinematics, tmp_path):
    make_model(DQN, obs=kinematics, actions=THREE, policy_kwargs={"features_extractor_class": Doubling}).save(
        tmp_path / "own"
    )

    with pytest.raises(CheckpointError, match="cannot be built: TypeError") as error:
        load(
            tmp_path / "own.zip",
            features_extractor_class=Doubling,
            config={"features_extractor_kwargs": {"depth": 3}},
        )
    assert "config={'features_extractor_kwargs': {...}}" in error.value.fix


def test_keyword_arguments_that_are_only_pickled_are_asked_for(make_model, kinematics, tmp_path):
    kwargs = {"features_extractor_class": EgoAttentionExtractor}
    kwargs["features_extractor_kwargs"] = {"d_model": 16, "embedding": np.array([16]), "n_heads": 2}
    model = make_model(DQN, obs=kinematics, actions=THREE, policy_kwargs=kwargs)
    model.save(tmp_path / "pickled.zip")

    with pytest.raises(CheckpointError, match="only as a pickle") as error:
        load(tmp_path / "pickled.zip")
    assert "'n_heads': 2" in error.value.given

    given = {"features_extractor_kwargs": {"d_model": 16, "embedding": [16], "n_heads": 2}}
    policy = load(tmp_path / "pickled.zip", config=given)
    obs = draw_observations(kinematics, 50).numpy()
    np.testing.assert_array_equal(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_this_packages_own_extractor_is_known_by_name(make_model, kinematics, tmp_path, algorithm):
    kwargs = {"features_extractor_class": EgoAttentionExtractor, "net_arch": [8]}
    kwargs["features_extractor_kwargs"] = {"d_model": 16, "n_heads": 2, "embedding": (8, 16), "presence_index": 1}
    model = make_model(algorithm, obs=kinematics, actions=THREE, policy_kwargs=kwargs)
    model.save(tmp_path / "ego.zip")

    policy = load(tmp_path / "ego.zip")

    obs = draw_observations(kinematics, 50).numpy()
    np.testing.assert_array_equal(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0])
    assert policy.attention["features_extractor.attention_layer"].n_heads == 2


ORDERED = [("speed", spaces.Box(-1, 1, (3,))), ("goal", spaces.Box(-1, 1, (2,))), ("lane", spaces.Discrete(3))]


@pytest.mark.parametrize("algorithm", [DQN, PPO, SAC])
def test_a_dict_space_is_read_in_the_order_of_training(make_model, tmp_path, make_env, algorithm):
    space = spaces.Dict(ORDERED)
    model = make_model(algorithm, "MultiInputPolicy", obs=space, actions=STEER if algorithm is SAC else THREE)
    model.save(tmp_path / "dict.zip")
    obs = draw_observations(space, 50)
    expected = from_sb3(model)(obs)

    for how in ({}, {"observation_space": space}, {"env": make_env(space, model.action_space)}):
        policy = load(tmp_path / "dict.zip", **how)
        assert torch.equal(policy(obs), expected)
        assert list(policy.observation_space.spaces) == ["speed", "goal", "lane"]
    saved = load(save_policy(policy, tmp_path / "policy.safetensors"))
    assert torch.equal(saved(obs), expected)


@pytest.mark.parametrize(
    "text",
    [
        "OrderedDict([('b', Box(-1.0, 1.0, (3,), float32)), ('a', Discrete(4)), ('m', MultiBinary(3))])",
        "{'b': Box(-1.0, 1.0, (3,), float32), 'a': Discrete(4), 'm': MultiBinary(3)}",
    ],
)
def test_the_printed_text_of_a_dict_space_is_read_in_its_order(text):
    space = space_from_clear_text({":type:": "<class 'gym.spaces.dict.Dict'>", "spaces": text}, argument="x")

    assert list(space.spaces.items()) == [
        ("b", spaces.Box(-1, 1, (3,))), ("a", spaces.Discrete(4)), ("m", spaces.MultiBinary(3)),
    ]  # fmt: skip


def test_every_printed_part_of_a_dict_space_is_understood():
    from stable_baselines3.common.save_util import data_to_json

    parts = [
        ("it's", spaces.Box(np.float32([[-1, 0.5], [0, -np.inf]]), np.float32([[1, 0.75], [2, np.inf]]))),
        ("image", spaces.Box(0, 255, (40, 44, 3), np.uint8)),
        ("start", spaces.Discrete(5, start=-2)),
        ("counts", spaces.MultiDiscrete([2, 3, 4])),
        ("bits", spaces.MultiBinary([2, 3])),
        ("wide", spaces.Box(-1, 1, (2000,), np.float64)),
    ]
    clear = json.loads(data_to_json({"s": spaces.Dict(parts)}))["s"]
    del clear[":serialized:"]

    assert list(space_from_clear_text(clear, argument="observation_space").spaces.items()) == parts


@pytest.mark.parametrize("text", ["{'a': Box(-1, 1, (3,), float32), 'b': Dict('c': Discrete(2))}", "{}", "nonsense"])
def test_a_dict_space_that_is_not_understood_is_asked_for(text):
    with pytest.raises(CheckpointError, match="does not say its observation_space in clear") as error:
        space_from_clear_text({":type:": "gym.Dict'>", "spaces": text}, argument="observation_space")

    assert error.value.fix == "give it: load(..., observation_space=env.observation_space), or load(..., env=env)"


def test_zips_of_before_gym_022_say_shape_without_an_underscore(dqn_zip):
    with zipfile.ZipFile(dqn_zip) as archive:
        entry = json.loads(archive.read("data"))["observation_space"]
    entry["shape"] = entry.pop("_shape")

    assert load(_rewritten(dqn_zip, observation_space=entry)).fingerprint == load(dqn_zip).fingerprint


@pytest.mark.parametrize("precision", [1, 2, 8])
def test_bounds_that_were_printed_rounded_are_the_trainers_own(make_model, kinematics, tmp_path, precision):
    steer = spaces.Box(np.float32([-0.1234, -1]), np.float32([0.1234, 1]))
    model = make_model(SAC, obs=kinematics, actions=steer, policy_kwargs={"net_arch": [4]})
    with np.printoptions(precision=precision):
        model.save(tmp_path / "sac.zip")

    policy = load(tmp_path / "sac.zip")

    assert policy.action_space == steer
    obs = draw_observations(kinematics, 20).numpy()
    np.testing.assert_allclose(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0], rtol=1e-6)


def test_bounds_that_stand_only_as_rounded_text_are_doubted(make_model, kinematics, tmp_path):
    make_model(SAC, obs=kinematics, actions=STEER, policy_kwargs={"net_arch": [4]}).save(tmp_path / "sac.zip")
    with zipfile.ZipFile(tmp_path / "sac.zip") as archive:
        entry = json.loads(archive.read("data"))["action_space"]
    changed = _rewritten(tmp_path / "sac.zip", action_space=entry | {":serialized:": "AAAA"})

    with pytest.warns(UserWarning, match=r"load\(..., action_space=env.action_space\)"):
        load(changed)
    assert load(changed, action_space=STEER).action_space == STEER


def _before_18(model, path):
    """A zip as SB3 before 1.8 wrote it, with a first layer that actor and critic share."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    tensors = torch.load(io.BytesIO(contents["policy.pth"]), weights_only=True)
    old = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"mlp_extractor\.(policy|value)_net\.(\d+)\.(\w+)", key)
        if match is None:
            old[key] = value
        elif match[2] == "0":
            old[f"mlp_extractor.shared_net.0.{match[3]}"] = value
        else:
            old[f"mlp_extractor.{match[1]}_net.{int(match[2]) - 2}.{match[3]}"] = value
    buffer = io.BytesIO()
    torch.save(old, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (contents | {"policy.pth": buffer.getvalue()}).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("own", [[], [6]], ids=["all shared", "one layer each"])
def test_layers_that_actor_and_critic_shared_are_shared_and_computed_once(make_model, kinematics, tmp_path, own):
    arch = {"pi": [8, *own], "vf": [8, *own]}
    model = make_model(PPO, obs=kinematics, actions=THREE, policy_kwargs={"net_arch": arch})
    extractor = model.policy.mlp_extractor
    extractor.value_net[0].load_state_dict(extractor.policy_net[0].state_dict())
    expected = from_sb3(model)
    _before_18(model, tmp_path / "old.zip")

    policy = load(tmp_path / "old.zip")
    saved = load(save_policy(policy, tmp_path / "policy.safetensors"))

    obs = draw_observations(kinematics, 50)
    for opened in (policy, saved):
        scores, cache = opened.run_with_cache(obs)
        assert torch.equal(scores, expected(obs))
        assert torch.equal(cache["hook_value"], expected.run_with_cache(obs)[1]["hook_value"])
        assert [name for name in opened.hook_dict if "shared_net" in name] == [
            "mlp_extractor.shared_net.0.hook_out", "mlp_extractor.shared_net.1.hook_out",
        ]  # fmt: skip


def _compile(model, part):
    compiled = torch.compile(getattr(model.policy, part) if part else model.policy, backend="eager")
    setattr(*((model.policy, part) if part else (model, "policy")), compiled)


@pytest.mark.parametrize(
    ("algorithm", "part"), [(PPO, ""), (DQN, ""), (DQN, "q_net"), (QRDQN, "quantile_net"), (SAC, "actor")]
)
def test_a_compiled_model_opens_live_and_from_its_zip(make_model, kinematics, tmp_path, algorithm, part):
    model = make_model(algorithm, obs=kinematics, actions=STEER if algorithm is SAC else THREE)
    obs = draw_observations(kinematics, 5)
    plain = from_sb3(model)(obs)
    _compile(model, part)
    model.save(tmp_path / "compiled.zip")

    assert torch.equal(from_sb3(model)(obs), plain)
    assert torch.equal(load(tmp_path / "compiled.zip")(obs), plain)


def test_a_policy_class_of_its_own_is_refused_with_the_ways_that_are_left(make_model, kinematics, tmp_path):
    make_model(DQN, Contrary, obs=kinematics, actions=THREE).save(tmp_path / "own.zip")

    with pytest.raises(CheckpointError, match="not one of Stable-Baselines3's or sb3-contrib's own") as error:
        load(tmp_path / "own.zip")

    assert "HookedPolicy.from_sb3(model)" in error.value.fix
    assert "trust_pickle=True" in error.value.fix


def test_a_zip_of_sb3_contrib_says_when_that_is_not_installed(make_model, kinematics, tmp_path, monkeypatch):
    make_model(QRDQN, obs=kinematics, actions=THREE).save(tmp_path / "qrdqn.zip")
    monkeypatch.setitem(sys.modules, "sb3_contrib.qrdqn.policies", None)

    with pytest.raises(ConfigError, match="sb3-contrib's, which is not installed") as error:
        load(tmp_path / "qrdqn.zip")

    assert error.value.fix == "pip install sb3-contrib"


def test_an_activation_of_its_own_is_an_error(dqn_zip):
    changed = _rewritten(dqn_zip, policy_kwargs={"activation_fn": "<class 'mine.Snake'>"})

    with pytest.raises(CheckpointError, match=r"does not know the activation 'mine\.Snake'"):
        load(changed)

    assert load(changed, config={"activation_fn": torch.nn.ReLU}).fingerprint == load(dqn_zip).fingerprint
    assert load(changed, config={"policy_kwargs": {"activation_fn": "ReLU"}}).fingerprint == load(dqn_zip).fingerprint


def test_weights_without_their_target_network_are_an_error_that_names_them(dqn_zip, tmp_path):
    with zipfile.ZipFile(dqn_zip) as archive:
        data = archive.read("data")
        with archive.open("policy.pth") as file:
            tensors = torch.load(file, weights_only=True)
    del tensors["q_net.q_net.2.bias"]
    torch.save(tensors, tmp_path / "policy.pth")
    with zipfile.ZipFile(tmp_path / "less.zip", "w") as archive:
        archive.writestr("data", data)
        archive.write(tmp_path / "policy.pth", "policy.pth")

    with pytest.raises(CheckpointError, match=r"less\.zip do not fit") as error:
        load(tmp_path / "less.zip")
    assert error.value.expected == "missing: q_net.q_net.2.bias [64]"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_data_that_is_no_json_object_is_an_error(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        archive.writestr("data", content)

    with pytest.raises(CheckpointError, match=r"odd\.zip is not a whole SB3 zip"):
        load(tmp_path / "odd.zip")


@pytest.mark.parametrize("entry", [None, 3, {}, {":type:": "<class 'abc.ABCMeta'>"}])
def test_data_with_odd_entries_is_an_error_of_this_package(dqn_zip, entry):
    for key in ("policy_class", "observation_space", "action_space"):
        with pytest.raises(CheckpointError):
            load(_rewritten(dqn_zip, **{key: entry}))


# ---- what is refused


def test_a_policy_that_acts_otherwise_than_its_scores_is_refused(make_model, kinematics):
    with pytest.raises(ParityError, match="Contrary does not decide by the scores"):
        from_sb3(make_model(DQN, Contrary, obs=kinematics, actions=THREE))


def test_a_policy_with_a_memory_of_its_own_is_refused(make_model, kinematics):
    class WithMemory(ActorCriticPolicy):
        lstm_actor = None

    with pytest.raises(CheckpointError, match="not a kind of policy that rlmech knows"):
        from_sb3(make_model(PPO, WithMemory, obs=kinematics, actions=THREE))


def test_what_is_no_model_is_an_error():
    with pytest.raises(ConfigError, match="Linear is not a Stable-Baselines3 model") as error:
        from_sb3(torch.nn.Linear(2, 2))

    assert "HookedPolicy(module, example_obs)" in error.value.fix


def test_trust_pickle_opens_what_only_sb3_can(make_model, kinematics, tmp_path):
    of_choices, of_vectors = (DQN, PPO, A2C, QRDQN, TRPO, ARS), (SAC, TD3, TQC, CrossQ)
    for algorithm in (*of_choices, *of_vectors):
        actions = THREE if algorithm in of_choices else STEER
        model = make_model(algorithm, obs=kinematics, actions=actions)
        model.save(tmp_path / "trusted.zip")

        policy = load(tmp_path / "trusted.zip", trust_pickle=True)

        obs = draw_observations(kinematics, 20).numpy()
        np.testing.assert_array_equal(policy.predict(obs)[0], model.predict(obs, deterministic=True)[0])


def test_trust_pickle_does_not_guess_at_foreign_algorithms(dqn_zip):
    with zipfile.ZipFile(dqn_zip) as archive:
        data = json.loads(archive.read("data"))
    foreign = dqn_zip.with_name("foreign.zip")
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("data", json.dumps({"gamma": data["gamma"]}))
        archive.writestr("policy.pth", b"")

    with pytest.raises(CheckpointError, match="of an algorithm that is not Stable-Baselines3's own"):
        load(foreign, trust_pickle=True)


# ---- plans and spaces


def test_a_plan_read_from_a_zip_is_the_plan_of_the_live_network(make_model, tmp_path):
    image = spaces.Box(0, 255, (3, 40, 40), np.uint8)
    kwargs = {"features_extractor_kwargs": {"features_dim": 32}, "net_arch": [8], "activation_fn": torch.nn.Tanh}
    model = make_model(DQN, "CnnPolicy", obs=image, actions=THREE, policy_kwargs=kwargs)
    model.save(tmp_path / "dqn.zip")

    plan, _ = read_zip(tmp_path / "dqn.zip", overrides={})

    assert plan == SB3Plan.of(model.q_net)


def test_a_plan_comes_back_equal_from_json(dqn_zip):
    plan, _ = read_zip(dqn_zip, overrides={})

    assert SB3Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_with_other_entries_is_an_error(dqn_zip):
    plan, _ = read_zip(dqn_zip, overrides={})

    with pytest.raises(CheckpointError, match="other entries than this version knows"):
        SB3Plan.from_json(plan.to_json() | {"n_quantiles": 5})
    with pytest.raises(CheckpointError, match="does not know the policy class 'DQNPolcy'") as error:
        SB3Plan.from_json(plan.to_json() | {"policy_class": "DQNPolcy"})
    assert error.value.fix == "did you mean 'DQNPolicy'?"


def test_building_a_plan_does_not_change_it(kinematics):
    class Greedy(Doubling):
        def __init__(self, observation_space, sizes):
            super().__init__(observation_space, width=sizes.pop())

    plan = SB3Plan(
        policy_class="ActorCriticPolicy",
        observation_space=space_to_json(kinematics),
        action_space=space_to_json(THREE),
        net_arch=[8],
        activation_fn="Tanh",
        features_extractor="mine.Greedy",
        features_extractor_kwargs={"sizes": [3, 4, 5]},
    )

    plan.build(features_extractor_class=Greedy)

    assert plan.features_extractor_kwargs == {"sizes": [3, 4, 5]}


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (5, 7), np.float32),
        spaces.Box(np.float32([-1, 0.1, -3.4e38]), np.float32([1, 3.1415927, np.inf])),
        spaces.Box(0, 255, (3, 64, 64), np.uint8),
        spaces.Box(-1, 1, (40, 50), np.float64),
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([2, 3, 4]),
        spaces.MultiBinary(4),
        spaces.MultiBinary([2, 3]),
    ],
    ids=str,
)
def test_a_space_comes_back_equal_from_json_and_from_the_clear_text_of_a_zip(space):
    from stable_baselines3.common.save_util import data_to_json

    clear = json.loads(data_to_json({"observation_space": space}))["observation_space"]
    del clear[":serialized:"]

    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space
    assert space_from_clear_text(clear, argument="observation_space") == space


def test_examples_drawn_between_huge_bounds_do_not_overflow_a_network():
    far = spaces.Box(np.float32([-4.8, -3.4e38]), np.float32([4.8, 3.4e38]))

    drawn = draw_observations(spaces.Dict({"a": far}), 100)["a"]

    assert float(drawn[:, 1].abs().max()) < 100
    assert float(drawn[:, 0].abs().max()) <= 4.8


def test_a_dict_space_comes_back_in_its_order_from_json():
    space = spaces.Dict(ORDERED)

    back = space_from_json(json.loads(json.dumps(space_to_json(space))))

    assert list(back.spaces.items()) == ORDERED


def test_a_space_that_sb3_does_not_support_is_an_error():
    with pytest.raises(ConfigError, match="A space of type Tuple cannot be written down"):
        space_to_json(spaces.Tuple([THREE]))


def test_bounds_of_actions_that_are_not_all_printed_are_asked_for(kinematics):
    from stable_baselines3.common.save_util import data_to_json

    space = spaces.Box(-1, np.linspace(1, 2, 2000, dtype=np.float32), (2000,), np.float32)
    clear = json.loads(data_to_json({"space": space}))["space"]

    assert space_from_clear_text(clear, argument="action_space") == space  # from the pickle's data
    del clear[":serialized:"]
    with pytest.raises(CheckpointError, match="does not say its action_space in clear"):
        space_from_clear_text(clear, argument="action_space")
    assert space_from_clear_text(clear, argument="observation_space").shape == (2000,)
