"""rl-agents' configurations and agents: inheritance, defaults, what tensors tell, and every way not to fit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlmech.adapters.load import load
from rlmech.adapters.native import save_policy
from rlmech.adapters.rl_agents import from_rl_agents
from rlmech.adapters.rl_agents.config import completed, read_config
from rlmech.errors import CheckpointError, ConfigError, EnvironmentFitError
from rlmech.nets import ConvolutionalNetwork, DuelingNetwork, EgoAttentionNetwork, MultiLayerPerceptron

SCENES = spaces.Box(-1, 1, (4, 7))
HEADS = {"model": {"attention_layer": {"heads": 4}}}
FULL = {
    "model": {
        "type": "EgoAttentionNetwork",
        "embedding_layer": {"layers": [8, 16], "in": 7},
        "others_embedding_layer": {"layers": [8, 16], "in": None},
        "self_attention_layer": None,
        "attention_layer": {"feature_size": 16, "heads": 4},
        "output_layer": {"layers": [8]},
    }
}


def _write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


# ---- configurations


def test_a_base_configuration_is_found_beside_the_file_and_above_it(tmp_path):
    _write(tmp_path / "config/agents/base.json", {"gamma": 0.9, "model": {"type": "A", "layers": [1, 2], "in": 7}})
    _write(tmp_path / "config/agents/beside.json", {"base_config": "base.json", "model": {"layers": [3]}})
    _write(tmp_path / "config/agents/deep/above.json", {"base_config": "agents/beside.json", "gamma": 0.5})

    config = read_config(tmp_path / "config/agents/deep/above.json")

    assert config == {"gamma": 0.5, "model": {"type": "A", "layers": [3], "in": 7}}


def test_an_object_may_override_null_and_null_an_object(tmp_path):
    _write(tmp_path / "base.json", {"a": None, "b": {"c": 1}})
    _write(tmp_path / "child.json", {"base_config": "base.json", "a": {"c": 2}, "b": None})

    assert read_config(tmp_path / "child.json") == {"a": {"c": 2}, "b": None}


def test_a_missing_base_configuration_is_an_error_that_says_where_it_was_looked_for(tmp_path):
    path = _write(tmp_path / "child.json", {"base_config": "agents/base.json"})

    with pytest.raises(ConfigError, match="inherits from a file that is not there") as error:
        read_config(path)

    assert error.value.given == "base_config 'agents/base.json'"
    assert str(tmp_path) in error.value.expected


def test_a_circle_of_base_configurations_is_an_error(tmp_path):
    _write(tmp_path / "a.json", {"base_config": "b.json"})
    _write(tmp_path / "b.json", {"base_config": "a.json"})

    with pytest.raises(ConfigError, match="inherits from itself") as error:
        read_config(tmp_path / "a.json")

    assert error.value.given == "a.json -> b.json -> a.json"


def test_a_missing_configuration_is_an_error_with_the_nearest(tmp_path):
    path = _write(tmp_path / "ego_attention.json", {})

    with pytest.raises(ConfigError, match="There is no configuration file at") as error:
        read_config(tmp_path / "ego_atention.json")

    assert error.value.fix == f"did you mean '{path}'?"


def test_values_given_are_not_changed():
    given = {"type": "EgoAttentionNetwork", "attention_layer": {"heads": 2}}
    before = json.dumps(given)

    completed(given)

    assert json.dumps(given) == before


def test_the_defaults_of_the_ego_attention_network_are_upstreams():
    config = completed({"type": "EgoAttentionNetwork"})

    for part in ("embedding_layer", "others_embedding_layer", "output_layer"):
        assert config[part]["layers"] == [128, 128, 128]
        assert config[part]["activation"] == "RELU"
    for part in ("self_attention_layer", "attention_layer"):
        assert (config[part]["feature_size"], config[part]["heads"]) == (128, 4)
    assert config["presence_feature_idx"] == 0


def test_the_defaults_of_the_other_networks_are_upstreams():
    assert completed({})["type"] == "DuelingNetwork"
    assert completed({})["base_module"]["layers"] == [64, 64]
    assert completed({})["advantage"]["layers"] == []
    assert completed({"type": "MultiLayerPerceptron"})["layers"] == [64, 64]
    assert completed({"type": "ConvolutionalNetwork"})["head_mlp"]["layers"] == []


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"type": "EgoAtentionNetwork"}, "no network of type 'EgoAtentionNetwork'"),
        ({"type": "MultiLayerPerceptron", "activation": "GELU"}, "no activation 'GELU'"),
        ({"type": "EgoAttentionNetwork", "attention_layer": {"heads": 5}}, "does not divide its features"),
        ({"type": "EgoAttentionNetwork", "attention_layer": {"heads": 0}}, "does not divide its features"),
    ],
)
def test_a_value_that_upstream_would_not_take_is_an_error(model, problem):
    with pytest.raises(ConfigError, match=problem):
        completed(model)


@pytest.mark.parametrize("part", ["attention_layer", "self_attention_layer"])
def test_dropout_is_refused_with_the_reason(part):
    with pytest.raises(ConfigError, match="never leaves training mode") as error:
        completed({"type": "EgoAttentionNetwork", part: {"dropout_factor": 0.1}})

    assert "same weights" in error.value.fix


# ---- checkpoints


def test_a_full_configuration_and_a_partial_one_give_the_same_policy(ego_checkpoint):
    full = load(ego_checkpoint, config=FULL, observation_space=SCENES)
    partial = load(ego_checkpoint, config=HEADS, observation_space=SCENES)
    top_level = load(ego_checkpoint, config=FULL["model"], observation_space=SCENES)

    obs = np.random.default_rng(0).random((5, 4, 7), dtype=np.float32)
    assert torch.equal(full(obs), partial(obs))
    assert torch.equal(full(obs), top_level(obs))


def test_heads_cannot_be_told_from_tensors_and_are_asked_for(ego_checkpoint):
    with pytest.raises(ConfigError, match="does not tell how many heads its attention_layer has") as error:
        load(ego_checkpoint, observation_space=SCENES)

    assert error.value.expected == "heads, one of [1, 2, 4, 8, 16]"
    assert "config={'model': {'attention_layer': {'heads': 4}}}" in error.value.fix


def test_a_checkpoint_without_its_environment_takes_any_number_of_entities(ego_checkpoint):
    policy = load(ego_checkpoint, config=HEADS)
    known = load(ego_checkpoint, config=HEADS, observation_space=SCENES)

    obs = np.random.default_rng(0).random((5, 4, 7), dtype=np.float32)
    assert policy.hook_dict["hook_obs"].shape == (None, 5, 7)
    assert torch.equal(policy(obs), known(obs))
    assert policy(np.repeat(obs, 3, axis=1)).shape == (5, 3)


@pytest.mark.parametrize("n", [3, 9])
def test_a_policy_opens_for_an_environment_that_shows_other_numbers_of_vehicles(ego_checkpoint, n):
    columns = ["presence", "x", "y", "vx", "vy", "cos_h", "sin_h"]
    observation = {"type": "Kinematics", "vehicles_count": n, "features": columns}
    env = {"id": "intersection-v2", "observation": observation}

    policy = load(ego_checkpoint, config=HEADS, observation_space=SCENES, env_config=env)
    path = save_policy(policy, ego_checkpoint.with_suffix(".safetensors"))

    assert policy.hook_dict["hook_obs"].labels["entity"] == ("ego", *(f"vehicle_{i}" for i in range(1, n)))
    assert load(path).spec.entities == policy.spec.entities


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MultiLayerPerceptron(35, (8,), d_out=3, flatten=True), (35,)),
        (
            DuelingNetwork(
                MultiLayerPerceptron(6, (8,), flatten=True),
                MultiLayerPerceptron(8, (), d_out=1),
                MultiLayerPerceptron(8, (4,), d_out=3),
            ),
            (6,),
        ),
    ],
    ids=["perceptron", "dueling"],
)
def test_without_a_configuration_the_tensors_tell_the_rest(tmp_path, network, shape):
    torch.save({"state_dict": network.state_dict(), "optimizer": {}}, tmp_path / "latest.tar")

    with pytest.warns(UserWarning, match="ReLU is assumed"):
        policy = load(tmp_path / "latest.tar")

    obs = torch.rand(4, *shape)
    assert torch.equal(policy(obs), network(obs))


def test_the_dueling_heads_of_before_are_single_layers(tmp_path):
    network = DuelingNetwork(MultiLayerPerceptron(6, (8,), flatten=True), torch.nn.Linear(8, 1), torch.nn.Linear(8, 3))
    torch.save({"state_dict": network.state_dict(), "optimizer": {}}, tmp_path / "latest.tar")
    config = {"model": {"type": "DuelingNetwork", "base_module": {"layers": [8]}, "value": {"layers": []}}}

    for given in (config, {"model": {"base_module": {"activation": "RELU"}}}):
        policy = load(tmp_path / "latest.tar", config=given)
        obs = torch.rand(4, 6)
        assert torch.equal(policy(obs), network(obs))
        assert torch.equal(load(save_policy(policy, tmp_path / "saved"))(obs), network(obs))


def test_a_bare_state_dict_is_a_checkpoint_too(tmp_path):
    network = MultiLayerPerceptron(6, (8,), d_out=3)
    torch.save(network.state_dict(), tmp_path / "net.pt")

    with pytest.warns(UserWarning, match="ReLU is assumed"):
        policy = load(tmp_path / "net.pt")
    assert torch.equal(policy(torch.ones(1, 6)), network(torch.ones(1, 6)))


def test_a_configuration_that_does_not_fit_names_the_tensors(ego_checkpoint):
    with pytest.raises(CheckpointError, match=r"weights of latest\.tar do not fit the network") as error:
        load(ego_checkpoint, config={"model": {"type": "EgoAttentionNetwork"}}, observation_space=SCENES)

    assert "of other shape: ego_embedding.layers.0.weight [8, 7]" in error.value.given
    assert "missing: ego_embedding.layers.2.weight [128, 128]" in error.value.expected
    assert "of shape: ego_embedding.layers.0.weight [128, 7]" in error.value.expected

    with pytest.raises(CheckpointError, match="do not fit") as error:
        load(
            ego_checkpoint, config={"model": FULL["model"] | {"output_layer": {"layers": []}}}, observation_space=SCENES
        )
    assert "unexpected: output_layer.layers.0.weight [8, 16], output_layer.layers.0.bias [8]" in error.value.given

    with pytest.raises(CheckpointError, match="do not fit"):
        load(ego_checkpoint, config={"model": {"type": "MultiLayerPerceptron"}})


def test_an_environment_with_other_features_is_an_error(ego_checkpoint):
    with pytest.raises(EnvironmentFitError, match="observations are not those of the EgoAttentionNetwork") as error:
        load(ego_checkpoint, config=HEADS, observation_space=spaces.Box(-1, 1, (4, 5)))

    assert error.value.given == "observations of shape [4, 5]"
    assert error.value.expected == "[entities, 7 features]"


def test_an_embedding_that_flattens_its_entities_is_an_error(ego_checkpoint):
    model = FULL["model"] | {"embedding_layer": {"layers": [8, 16], "reshape": "False"}}

    with pytest.raises(ConfigError, match="must be a perceptron that keeps them apart") as error:
        load(ego_checkpoint, config={"model": model}, observation_space=SCENES)

    assert error.value.fix == 'write "reshape": false, without quotes around false'


def test_tensors_of_no_known_network_are_an_error(tmp_path):
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "latest.tar")

    with pytest.raises(CheckpointError, match="not told by their names and shapes") as error:
        load(tmp_path / "latest.tar")

    assert "weight, bias" in error.value.given


@pytest.mark.parametrize("values", [{}, [1, 2], {"state_dict": {"a": 1}}, 3])
def test_a_file_without_a_state_dict_is_an_error(tmp_path, values):
    torch.save(values, tmp_path / "latest.tar")

    with pytest.raises(CheckpointError, match=r"latest\.tar is not a state dict"):
        load(tmp_path / "latest.tar")


def test_an_observation_of_an_occupancy_grid_has_the_shape_of_the_grid(tmp_path):
    network = ConvolutionalNetwork((4, 11, 11), 3)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "latest.tar")

    given = {"model": {"activation": "RELU"}}
    policy = load(tmp_path / "latest.tar", config=given, env_config={"observation": {"type": "OccupancyGrid"}})

    assert policy.observation_space.shape == (4, 11, 11)
    with pytest.raises(ConfigError, match="how many rows and columns"):
        load(tmp_path / "latest.tar", config=given)


# ---- live agents, by duck type


class Agent(SimpleNamespace):
    pass


@pytest.fixture
def agent(make_env):
    network = EgoAttentionNetwork(7, 3, d_model=16, n_heads=4, embedding=(8, 16), output=(8,))
    env = make_env(SCENES, spaces.Discrete(3))
    env.config = {"observation": {"type": "Kinematics", "vehicles_count": 4, "features": list("pxyabcd")}}
    return Agent(value_net=network, env=env)


def test_a_live_agent_opens_with_its_own_network_and_its_environments_names(agent):
    policy = from_rl_agents(agent)

    assert policy.module is agent.value_net
    assert policy.spec.entities == ("ego", "vehicle_1", "vehicle_2", "vehicle_3")
    assert policy.action_space == spaces.Discrete(3)


def test_a_live_agent_trains_on_underneath(agent):
    policy = from_rl_agents(agent)
    obs = torch.rand(3, 4, 7)

    with torch.no_grad():
        agent.value_net.output_layer.predict.bias += 1

    assert torch.equal(policy(obs), agent.value_net(obs))


def test_a_multi_agent_environment_gives_the_first_agents_spaces(agent, make_env):
    agent.env = make_env(spaces.Tuple([SCENES, SCENES]), spaces.Tuple([spaces.Discrete(3)] * 2))

    policy = from_rl_agents(agent)

    assert policy.observation_space == SCENES
    assert policy.action_space == spaces.Discrete(3)


def test_a_live_agent_with_dropout_is_refused(agent):
    agent.value_net.attention_layer.config = {"dropout_factor": 0.2}

    with pytest.raises(ConfigError, match="never leaves training mode") as error:
        from_rl_agents(agent)

    assert error.value.given == "dropout_factor 0.2 of EgoAttention"


def test_what_is_no_agent_is_an_error(agent):
    with pytest.raises(ConfigError, match="int is not a DQN agent of rl-agents") as error:
        from_rl_agents(3)
    assert error.value.given == "env NoneType, value_net NoneType"

    agent.env = SimpleNamespace(observation_space=spaces.Discrete(3), action_space=spaces.Discrete(3))
    with pytest.raises(EnvironmentFitError, match="observations are not one array"):
        from_rl_agents(agent)


TANH = {"type": "MultiLayerPerceptron", "in": 28, "layers": [8], "out": 3, "activation": "TANH"}


@pytest.fixture
def tanh_run(tmp_path):
    """A run's folder: its metadata, and a checkpoint of a perceptron with tanh."""
    network = MultiLayerPerceptron(28, (8,), d_out=3, activation="tanh", flatten=True)
    torch.save({"state_dict": network.state_dict(), "optimizer": {}}, tmp_path / "latest.tar")
    run = {"agent": {"__class__": "<class 'DQNAgent'>", "model": TANH}, "env": {"id": "intersection-v0"}}
    (tmp_path / "metadata.1.json").write_text(json.dumps(run))
    return tmp_path, network, run


@pytest.mark.parametrize("how", ["beside", "named", "values", "agent"])
def test_a_runs_metadata_gives_the_agent_and_the_environment(tanh_run, how):
    folder, network, run = tanh_run
    config = {"beside": None, "named": folder / "metadata.1.json", "values": run, "agent": run["agent"]}[how]

    policy = load(folder / "latest.tar", config=config)

    obs = torch.randn(5, 28)
    assert torch.equal(policy(obs), network(obs))
    assert policy.spec.env_id == (None if how == "agent" else "intersection-v0")


def test_metadata_of_runs_that_differ_are_not_chosen_among(tanh_run):
    folder, _, run = tanh_run
    other = {**run, "agent": {"model": TANH | {"activation": "RELU"}}}
    (folder / "metadata.2.json").write_text(json.dumps(other))

    with pytest.raises(ConfigError, match="the metadata of several runs"):
        load(folder / "latest.tar")


def test_a_configuration_without_a_model_is_refused(tanh_run):
    folder, *_ = tanh_run

    with pytest.raises(ConfigError, match="says nothing of a model") as error:
        load(folder / "latest.tar", config={"gamma": 0.9, "batch_size": 32})

    assert error.value.given == "entries gamma, batch_size"
