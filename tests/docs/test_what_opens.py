"""The table of what opens: every row of it is opened here, and the table is written from these rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from torch import nn

import rlmech as rlm
from rlmech import nets

TABLE = Path(__file__).parents[2] / "docs" / "opens.md"
OBS, THREE, STEER = spaces.Box(-1, 1, (4, 7), np.float32), spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)
SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 8}
SMALL_BUFFER: dict[str, Any] = {"buffer_size": 10}


class Env(gym.Env):
    def __init__(self, actions):
        self.observation_space, self.action_space = OBS, actions

    def action_masks(self):
        return np.ones(spaces.flatdim(self.action_space), bool)


def sb3(algorithm, actions, *, policy="MlpPolicy", **more):
    """Open a model of Stable-Baselines3, live and from its zip."""

    def opens(folder: Path) -> list[rlm.HookedPolicy]:
        model = algorithm(policy, Env(actions), device="cpu", **more)
        model.save(folder / "x.zip")
        return [rlm.load(folder / "x.zip"), rlm.HookedPolicy.from_sb3(model)]

    return opens


def rl_agents(network, config, **more):
    def opens(folder: Path) -> list[rlm.HookedPolicy]:
        torch.save({"state_dict": network.state_dict(), "optimizer": {}}, folder / "x.tar")
        return [rlm.load(folder / "x.tar", config={"model": config}, **more)]

    return opens


def weights(values, **more):
    def opens(folder: Path) -> list[rlm.HookedPolicy]:
        torch.save(values, folder / "x.pt")
        return [rlm.load(folder / "x.pt", **more)]

    return opens


def live(make: Callable[[], Any], obs=None, **more):
    return lambda _: [rlm.HookedPolicy(make(), torch.rand(2, 4) if obs is None else obs, **more)]


def stack(n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, n_out))


class CleanRL(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = stack(3), stack(1)

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, x, action=None):
        probs = torch.distributions.Categorical(logits=self.actor(x))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(x)


class Returns(nn.Module):
    """A network that returns what a library's networks return."""

    def __init__(self, form):
        super().__init__()
        self.body, self.form = stack(3), form

    def forward(self, obs, state=None):
        return self.form(self.body(obs), state)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 1)

    def forward(self, obs, action):
        return self.q(torch.cat([obs, action], 1))


def exported():
    return torch.export.export(stack(3), (torch.rand(2, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


@dataclass(frozen=True)
class Row:
    """A line of the table, and how each thing that it names is opened."""

    policy: str
    how: str
    notes: str
    opens: dict[str, Callable[[Path], list[rlm.HookedPolicy]]]


EGO = nets.EgoAttentionNetwork(7, 3, d_model=16, n_heads=4, embedding=(8, 16), output=(8,))
ROWS = [
    Row(
        "Stable-Baselines3 DQN, PPO, A2C, SAC, TD3, DDPG; sb3-contrib's TRPO, ARS, QR-DQN, TQC, CrossQ, MaskablePPO, "
        "RecurrentPPO",
        '`rlm.load("x.zip")`, `HookedPolicy.from_sb3(model)`',
        "Mlp, Cnn, MultiInput and Lstm policies; VecNormalize's statistics as the first layer (`vecnormalize=`, or "
        "beside the zip); what RL Zoo's `config.yml` says of the environment goes into the spec; the class of a "
        'custom extractor is asked for by name (`features_extractor_class="module:Class"`)',
        {
            "DQN": sb3(DQN, THREE, **SMALL_BUFFER),
            "PPO": sb3(PPO, THREE, **SMALL),
            "A2C": sb3(A2C, THREE),
            "SAC": sb3(SAC, STEER, **SMALL_BUFFER),
            "TD3": sb3(TD3, STEER, **SMALL_BUFFER),
            "DDPG": sb3(DDPG, STEER, **SMALL_BUFFER),
            "TRPO": sb3(TRPO, THREE, **SMALL),
            "ARS": sb3(ARS, THREE),
            "QR-DQN": sb3(QRDQN, THREE, **SMALL_BUFFER),
            "TQC": sb3(TQC, STEER, **SMALL_BUFFER),
            "CrossQ": sb3(CrossQ, STEER, **SMALL_BUFFER),
            "MaskablePPO": sb3(MaskablePPO, THREE, **SMALL),
            "RecurrentPPO": sb3(RecurrentPPO, THREE, policy="MlpLstmPolicy", **SMALL),
        },
    ),
    Row(
        "several choices: MultiDiscrete, MultiBinary, lists of heads",
        'the same; `HookedPolicy(module, obs, scores=["steer", "speed"])`',
        "scores `[batch choice action]`; metrics take `choice=`, `policy.choice(name)` is one of them alone",
        {
            "MultiDiscrete": sb3(PPO, spaces.MultiDiscrete([3, 2]), **SMALL),
            "MultiBinary": sb3(A2C, spaces.MultiBinary(3)),
            "lists": live(lambda: Returns(lambda q, _: [q, q[:, :2]]), scores=[0, 1]),
        },
    ),
    Row(
        "rl-agents DQN",
        '`rlm.load("x.tar", config="x.json")`, `HookedPolicy.from_rl_agents(agent)`',
        "ego attention (any number of vehicles at each call), perceptron, dueling and convolutional networks; the "
        "run's `metadata*.json` is found beside it",
        {
            "any number of vehicles": rl_agents(EGO, {"attention_layer": {"heads": 4}}),
            "ego attention": rl_agents(EGO, {"attention_layer": {"heads": 4}}, observation_space=OBS),
            "perceptron": rl_agents(
                nets.MultiLayerPerceptron(28, (8,), d_out=3, flatten=True),
                {"activation": "RELU"},
                observation_space=OBS,
            ),
            "dueling": rl_agents(
                nets.DuelingNetwork(
                    nets.MultiLayerPerceptron(28, (8,), flatten=True),
                    nets.MultiLayerPerceptron(8, (), d_out=1),
                    nets.MultiLayerPerceptron(8, (), d_out=3),
                ),
                {"base_module": {"activation": "RELU"}},
                observation_space=OBS,
            ),
            "convolutional": rl_agents(
                nets.ConvolutionalNetwork((2, 11, 11), 3, hidden=(8,)),
                {"activation": "RELU"},
                observation_space=spaces.Box(-1, 1, (2, 11, 11)),
            ),
        },
    ),
    Row(
        "CleanRL's agents, live and saved",
        '`HookedPolicy(agent, obs)`, `rlm.load("x.pt", activation="Tanh")`',
        "without a `forward`: the actor as `get_action_and_value` calls it, and `get_value`",
        {
            "live": live(CleanRL),
            "saved": weights(CleanRL().state_dict(), activation="Tanh"),
        },
    ),
    Row(
        "weights alone, of torch or safetensors",
        '`rlm.load("x.pt", module=net)`, `rlm.load("x.pt", activation="ReLU")`',
        "in your network, or linear layers one after the other; several state dicts by name; a folder with one policy",
        {
            "in a network": weights(stack(3).state_dict(), module=stack(3)),
            "of plain layers": weights(stack(3).state_dict(), activation="Tanh"),
            "apart": weights({"actor": stack(3).state_dict(), "critic": stack(1).state_dict()}, activation="Tanh"),
        },
    ),
    Row(
        "networks of RLlib, TorchRL, skrl, tianshou (their published shapes)",
        "`HookedPolicy(module, obs)`",
        "outputs known by name: `action_dist_inputs`, `vf_preds`, `action_value`, `logits`, `loc`, `(logits, state)`",
        {
            "RLlib": live(lambda: Returns(lambda q, _: {"action_dist_inputs": q, "vf_preds": q[:, 0]})),
            "TorchRL": live(lambda: Returns(lambda q, _: {"action": q.argmax(-1), "action_value": q})),
            "skrl": live(lambda: Returns(lambda q, _: {"loc": q})),
            "tianshou": live(lambda: Returns(lambda q, state: (q, state))),
        },
    ),
    Row(
        "any `nn.Module`, exported program, parallel or compiled module",
        "`HookedPolicy(module, obs, scores=..., value=...)`",
        "which output is the scores is told, known or asked for, never guessed; several inputs are a dict by their "
        "names; without a graph (control flow that depends on data) the eager engine offers the same names",
        {
            "module": live(lambda: stack(3)),
            "exported program": live(exported),
            "parallel": live(lambda: nn.DataParallel(stack(3))),
            "compiled": live(lambda: torch.compile(stack(3), backend="eager")),
            "critic": live(Critic, obs={"obs": torch.rand(2, 4), "action": torch.rand(2, 2)}),
        },
    ),
    Row(
        "shipped",
        '`rlm.load("zoo:intersection-ego-attention")`, `"zoo:highway-dqn-mlp"`, `"zoo:minigrid-doorkey-mlp"`, '
        '`"zoo:cue-recall-lstm"`',
        "`rlm.zoo.list()` shows their cards",
        {
            "ego attention": lambda _: [rlm.load("zoo:intersection-ego-attention")],
            "perceptron": lambda _: [rlm.load("zoo:highway-dqn-mlp")],
            "grid": lambda _: [rlm.load("zoo:minigrid-doorkey-mlp")],
            "memory": lambda _: [rlm.load("zoo:cue-recall-lstm")],
        },
    ),
]
THINGS = [(row, name) for row in ROWS for name in row.opens]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(("row", "name"), THINGS, ids=[f"{row.policy.split(',')[0]}: {name}" for row, name in THINGS])
def test_what_the_table_says_opens_opens(row, name, tmp_path):
    for policy in row.opens[name](tmp_path):
        assert policy.engine == "graph"
        assert len(policy.hook_dict) > 2


def test_the_table_is_these_rows():
    written = "\n".join(
        ["| policy | how | notes |", "|---|---|---|"] + [f"| {r.policy} | {r.how} | {r.notes} |" for r in ROWS]
    )
    found = re.search(r"\| policy \| how \| notes \|\n(\|.*\n)+", TABLE.read_text(encoding="utf-8"))

    assert found is not None
    assert found[0].strip() == written
