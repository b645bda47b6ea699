"""`load` recognises files by their content, finds what was meant, and says what it cannot open and why."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from rlmech.adapters import load as load_module
from rlmech.adapters.load import load
from rlmech.adapters.native import save_policy
from rlmech.errors import CheckpointError, ConfigError, EnvironmentFitError

HEADS = {"model": {"attention_layer": {"heads": 4}}}
SCENES = spaces.Box(-1, 1, (4, 7))


def test_files_are_recognised_by_content_whatever_their_name(dqn_zip, ego_checkpoint, tmp_path):
    native = save_policy(load(dqn_zip), tmp_path / "native")
    for source, suffix, kind in (
        (dqn_zip, ".tar", "QNetwork"),
        (ego_checkpoint, ".zip", "EgoAttentionNetwork"),
        (native, ".pt", "QNetwork"),
    ):
        renamed = tmp_path / f"renamed{suffix}"
        shutil.copy(source, renamed)
        attention = source is ego_checkpoint

        policy = load(renamed, config=HEADS if attention else None, observation_space=SCENES if attention else None)

        assert type(policy.module).__name__ == kind


def test_the_suffix_zip_may_be_left_out_as_in_sb3(dqn_zip):
    assert load(dqn_zip.with_suffix("")).fingerprint == load(str(dqn_zip)).fingerprint


def test_a_directory_stands_for_the_policy_in_it(dqn_zip, tmp_path):
    (tmp_path / "run").mkdir()
    save_policy(load(dqn_zip), tmp_path / "run")

    assert load(tmp_path / "run").fingerprint == load(dqn_zip).fingerprint


def test_a_missing_file_is_an_error_with_the_nearest_one(dqn_zip):
    with pytest.raises(CheckpointError, match="There is no policy at") as error:
        load(dqn_zip.with_name("dqn_higway.zip"))

    assert error.value.fix == f"did you mean '{dqn_zip}'?"


def test_a_directory_without_a_policy_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no policy") as error:
        load(tmp_path)

    assert error.value.expected == "a directory with policy.safetensors, or with one policy in it"


def test_a_folder_as_it_is_published_stands_for_the_one_policy_in_it(dqn_zip, tmp_path):
    folder = tmp_path / "dqn-highway"
    folder.mkdir()
    np.savez(folder / "train_eval_metrics.zip.npz", a=np.zeros(2))
    (folder / "train_eval_metrics.zip.npz").rename(folder / "train_eval_metrics.zip")
    shutil.copy(dqn_zip, folder / "dqn-highway-fast-v0.zip")
    (folder / "README.md").write_text("---\nlibrary_name: stable-baselines3\n---")

    assert load(folder).fingerprint == load(dqn_zip).fingerprint

    shutil.copy(dqn_zip, folder / "another.zip")
    with pytest.raises(CheckpointError, match="holds several policies") as error:
        load(folder)
    assert error.value.given == "another.zip, dqn-highway-fast-v0.zip"


@pytest.mark.parametrize("content", [b"", b"not a policy at all", b"\x00" * 600])
def test_a_file_of_another_kind_is_an_error_that_shows_its_beginning(tmp_path, content):
    (tmp_path / "thing.zip").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"thing\.zip is not a policy that rlmech knows") as error:
        load(tmp_path / "thing.zip")

    assert f"{len(content)} bytes" in error.value.given
    assert "HookedPolicy(module, example_obs)" in error.value.fix


def test_a_zip_of_something_else_is_an_error(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))

    with pytest.raises(CheckpointError, match="is not a whole SB3 zip"):
        load(tmp_path / "arrays.npz")


def test_safetensors_without_an_architecture_is_an_error(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")

    with pytest.raises(CheckpointError, match="holds weights, but not the network") as error:
        load(tmp_path / "weights.safetensors")

    assert error.value.expected == "a file that save_policy wrote"


def test_a_policy_opens_with_the_spaces_of_the_environment(dqn_zip, make_env, kinematics):
    policy = load(dqn_zip, env=make_env(kinematics, spaces.Discrete(5)))

    assert policy.observation_space == kinematics
    assert policy.action_space == spaces.Discrete(5)


@pytest.mark.parametrize("native", [False, True], ids=["zip", "native"])
def test_an_environment_with_other_spaces_is_an_error(dqn_zip, make_env, kinematics, tmp_path, native):
    path = save_policy(load(dqn_zip), tmp_path / "policy.safetensors") if native else dqn_zip
    with pytest.raises(EnvironmentFitError, match="The environment's actions are not those of the policy") as error:
        load(path, env=make_env(kinematics, spaces.Discrete(3)))
    assert error.value.given == "Discrete(3) in the environment"
    assert error.value.expected == "Discrete(5)"

    with pytest.raises(EnvironmentFitError, match="The environment's observations are not those of the policy"):
        load(path, env=make_env(spaces.Box(-1, 1, (5, 6)), spaces.Discrete(5)))


def test_an_environment_configuration_with_other_observations_or_actions_is_an_error(dqn_zip):
    with pytest.raises(EnvironmentFitError, match="observations are not those of the policy") as error:
        load(dqn_zip, env_config={"observation": {"type": "Kinematics", "vehicles_count": 9}})
    assert error.value.given == "9 entities x 5 features in the environment"
    assert error.value.expected == "observations of shape [5, 7]"

    with pytest.raises(EnvironmentFitError, match="actions are not those of the policy") as error:
        load(dqn_zip, env_config={"action": {"type": "DiscreteMetaAction", "lateral": False}})
    assert error.value.given == "3 actions in the environment: SLOWER, IDLE, FASTER"


def test_a_configuration_may_be_a_path_or_values(dqn_zip, tmp_path):
    config = {"action": {"type": "DiscreteMetaAction"}}
    (tmp_path / "env.json").write_text('{"action": {"type": "DiscreteMetaAction"}}')

    specs = [
        load(dqn_zip, env_config=given).spec for given in (config, tmp_path / "env.json", str(tmp_path / "env.json"))
    ]

    assert specs[0] == specs[1] == specs[2]
    assert specs[0].actions == ("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER")


def test_a_configuration_that_is_no_json_is_an_error_with_its_place(dqn_zip, tmp_path):
    (tmp_path / "env.json").write_text('{"action": }')

    with pytest.raises(ConfigError, match=r"env\.json is not a JSON file: Expecting value: line 1 column 12") as error:
        load(dqn_zip, env_config=tmp_path / "env.json")

    assert error.value.given.startswith("env_config=")


def test_an_argument_that_would_be_ignored_is_an_error(dqn_zip, ego_checkpoint, tmp_path):
    native = save_policy(load(dqn_zip), tmp_path / "native")

    with pytest.raises(ConfigError, match="native is a file of save_policy, for which config means nothing") as error:
        load(native, config=HEADS)
    assert error.value.fix == "leave out config"
    with pytest.raises(ConfigError, match="a file of rl-agents, for which features_extractor_class means nothing"):
        load(ego_checkpoint, config=HEADS, observation_space=SCENES, features_extractor_class=torch.nn.Linear)
    with pytest.raises(ConfigError, match="a file of Stable-Baselines3, for which config means nothing") as error:
        load(dqn_zip, config={}, trust_pickle=True)
    assert error.value.expected == "vecnormalize"


def test_an_argument_that_sb3_does_not_take_is_an_error_with_the_nearest(dqn_zip):
    with pytest.raises(ConfigError, match="take no argument 'activation'") as error:
        load(dqn_zip, config={"activation": "ReLU"})

    assert error.value.fix == "did you mean 'activation_fn'?"


# ---- the zoo


@pytest.fixture
def zoo(dqn_zip, tmp_path, monkeypatch):
    folder = tmp_path / "package/zoo/highway_dqn_mlp"
    (folder / "ladder").mkdir(parents=True)
    policy = load(dqn_zip)
    save_policy(policy, folder)
    with torch.no_grad():
        next(policy.module.parameters()).zero_()
    save_policy(policy, folder / "ladder/step_0010000.safetensors")
    monkeypatch.setattr(load_module.resources, "files", lambda package: tmp_path / "package")
    return policy


def test_a_policy_of_the_zoo_opens_by_its_name(zoo, dqn_zip):
    for name in ("zoo:highway-dqn-mlp", "zoo:highway_dqn_mlp"):
        assert load(name).fingerprint == load(dqn_zip).fingerprint


def test_a_checkpoint_of_the_ladder_opens_by_its_name(zoo):
    assert load("zoo:highway-dqn-mlp@step_0010000").fingerprint == zoo.fingerprint


def test_an_unknown_policy_of_the_zoo_is_an_error_with_the_nearest(zoo):
    with pytest.raises(CheckpointError, match="The zoo has no policy 'highway-dqn'") as error:
        load("zoo:highway-dqn")

    assert error.value.expected == "one of highway-dqn-mlp"
    assert error.value.fix == "did you mean 'zoo:highway-dqn-mlp'?"


def test_an_unknown_checkpoint_of_the_zoo_is_an_error_with_the_nearest(zoo):
    with pytest.raises(CheckpointError, match="has no checkpoint 'step_001000'") as error:
        load("zoo:highway-dqn-mlp@step_001000")

    assert error.value.fix == "did you mean 'zoo:highway-dqn-mlp@step_0010000'?"


def test_a_name_cannot_leave_the_zoo(zoo):
    for name in ("zoo:../zoo/highway_dqn_mlp", "zoo:highway-dqn-mlp@../policy"):
        with pytest.raises(CheckpointError):
            load(name)


def test_a_git_lfs_pointer_and_torchscript_are_called_what_they_are(tmp_path):
    (tmp_path / "pointer.zip").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), tmp_path / "script.pt")

    with pytest.raises(CheckpointError, match="is a pointer of Git LFS"):
        load(tmp_path / "pointer.zip")
    with pytest.raises(CheckpointError, match="is TorchScript") as error:
        load(tmp_path / "script.pt")
    assert "HookedPolicy(module, example_obs)" in error.value.fix
