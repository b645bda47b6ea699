"""Weights alone: opened in the network that is given, or in the one that their names tell; else asked for in words."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rlmech as rlm
from rlmech.errors import CheckpointError, ConfigError

X = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))


def stack(n_out, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, n_out))


class Agent(nn.Module):
    """CleanRL's ppo.py."""

    def __init__(self, continuous=False):
        super().__init__()
        self.critic = stack(1)
        setattr(self, "actor_mean" if continuous else "actor", stack(2))
        if continuous:
            self.actor_logstd = nn.Parameter(torch.zeros(1, 2))


class QNetwork(nn.Module):
    """CleanRL's dqn.py."""

    def __init__(self):
        super().__init__()
        self.network = stack(3, nn.ReLU)

    def forward(self, x):
        return self.network(x)


def saved(values, path):
    torch.save(values, path)
    return path


def test_a_plain_sequential_opens_with_its_activation_and_asks_for_it(tmp_path):
    net = stack(3, nn.ReLU)
    path = saved(net.state_dict(), tmp_path / "seq.pt")

    with pytest.raises(ConfigError, match="does not tell the activation") as error:
        rlm.load(path)
    assert error.value.given == "no activation, for layers 4-8-8-3"

    for activation in ("ReLU", "relu", "torch.nn.ReLU", nn.ReLU):
        policy = rlm.load(path, activation=activation)
        assert torch.equal(policy(X), net(X))
    assert list(policy.hook_dict) == list(rlm.HookedPolicy(net, X).hook_dict)
    with pytest.raises(ConfigError, match="has no activation 'relux'") as error:
        rlm.load(path, activation="relux")
    assert error.value.fix == "did you mean 'ReLU'?"


@pytest.mark.parametrize("continuous", [False, True])
def test_cleanrls_saved_ppo_opens_with_actor_and_critic(tmp_path, continuous):
    agent = Agent(continuous)
    path = saved(agent.state_dict(), tmp_path / "agent.pt")

    policy = rlm.load(path, activation="Tanh")
    scores, cache = policy.run_with_cache(X)

    assert policy.output_kind == ("mean_action" if continuous else "logits")
    assert torch.equal(scores, (agent.actor_mean if continuous else agent.actor)(X))
    assert torch.equal(cache["hook_value"], agent.critic(X)[:, 0])
    assert set(policy.state_dict()) == set(agent.state_dict())


def test_cleanrls_saved_q_network_opens(tmp_path):
    net = QNetwork()

    policy = rlm.load(saved(net.state_dict(), tmp_path / "dqn.cleanrl_model"), activation="ReLU")

    assert torch.equal(policy(X), net(X))
    assert policy.output_kind == "q_values"


def test_actor_and_critic_saved_apart_open_together(tmp_path):
    actor, critic = stack(2), stack(1)
    values = {
        "actor": actor.state_dict(),
        "critic": critic.state_dict(),
        "actor_optim": {"x": torch.zeros(1)},
        "step": 3,
    }

    policy = rlm.load(saved(values, tmp_path / "ac.pt"), activation="Tanh")

    assert torch.equal(policy(X), actor(X))
    single = {"actor": nn.Linear(4, 2).state_dict(), "critic": nn.Linear(4, 1).state_dict()}
    assert rlm.load(saved(single, tmp_path / "one.pt"))(X).shape == (8, 2)


@pytest.mark.parametrize("container", [lambda sd: sd, lambda sd: {"model_state_dict": sd, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_network_that_is_given_gets_the_weights_of_the_file(tmp_path, container, prefix):
    torch.manual_seed(0)
    trained, blank = QNetwork(), QNetwork()
    weights = {f"{prefix}{key}": value for key, value in trained.state_dict().items()}

    policy = rlm.load(saved(container(weights), tmp_path / "net.pt"), module=blank)

    assert policy.module is blank
    assert torch.equal(policy(X), trained(X))


def test_safetensors_of_others_open_in_a_network_that_is_given(tmp_path):
    net = stack(3)
    save_file(net.state_dict(), tmp_path / "model.safetensors")

    assert torch.equal(rlm.load(tmp_path / "model.safetensors", module=stack(3))(X), net(X))
    assert torch.equal(rlm.load(tmp_path / "model.safetensors", activation="Tanh")(X), net(X))


def test_weights_of_another_network_are_an_error_that_names_them(tmp_path):
    path = saved(stack(3).state_dict(), tmp_path / "net.pt")

    with pytest.raises(CheckpointError, match="do not fit the network") as error:
        rlm.load(path, module=nn.Sequential(nn.Linear(5, 8)))

    assert "0.weight [8, 5]" in error.value.expected


UNTOLD = {
    "convolutions": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
    "norms": nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)),
    "side by side": nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 2)]),
    "two between": nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 2)),
    "other names": nn.ModuleDict({"trunk": nn.Linear(4, 8), "head": nn.Linear(8, 2)}),
    "sizes that do not follow": nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_network_that_its_weights_do_not_tell_is_asked_for(tmp_path, name):
    path = saved(UNTOLD[name].state_dict(), tmp_path / "net.pt")

    with pytest.raises(CheckpointError, match="not told by their names and shapes") as error:
        rlm.load(path, activation="ReLU")

    assert error.value.fix == "build the network and give it: rlmech.load(path, module=net)"


def test_an_argument_of_no_file_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="takes no argument 'modul'") as error:
        rlm.load("zoo:highway-dqn-mlp", modul=nn.Linear(1, 1))
    assert error.value.fix == "did you mean 'module'?"


def test_weights_open_in_an_environment_that_fits(tmp_path):
    path = saved(Agent().state_dict(), tmp_path / "agent.pt")
    env = gym.make("CartPole-v1")

    policy = rlm.load(path, activation="Tanh", env=env)

    assert policy.action_space == env.action_space
    assert len(rlm.record(policy, env, seeds=[0], names=(), progress=False)) == 1


def test_a_pickled_module_opens_where_it_is_trusted(tmp_path):
    net = stack(3)

    assert torch.equal(rlm.load(saved(net, tmp_path / "net.pt"), trust_pickle=True)(X), net(X))
