"""Students of a policy: faithful where the policy is a rule itself, judged by how they drive, refused in words."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.distil import Distilled, distil
from rlmech.errors import ConfigError, ObservationError


def env() -> gym.Env:
    return gym.make("CartPole-v1", max_episode_steps=60)


class Balances(nn.Module):
    """Pushes to the right where the pole falls to the right: a rule of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.rule = nn.Linear(4, 2)
        with torch.no_grad():
            self.rule.weight.copy_(torch.tensor([[0.0, 0.0, -1.0, -0.5], [0.0, 0.0, 1.0, 0.5]]))
            self.rule.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rule(x)


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(Balances(), torch.rand(2, 4), spec=rlm.PolicySpec(actions=("LEFT", "RIGHT")))


@pytest.fixture(scope="module")
def trees(policy: rlm.HookedPolicy) -> Distilled:
    return distil(policy, env(), seeds=range(6), test_seeds=range(50, 56), sizes=[1, 8], n_rounds=2)


def test_a_linear_policy_is_found_by_a_linear_rule_of_as_many_numbers(policy: rlm.HookedPolicy) -> None:
    found = distil(policy, env(), seeds=range(6), test_seeds=range(50, 56), kind="linear", sizes=[2], n_rounds=2)
    student = found.result.sel(condition="2 numbers")
    assert float(student["fidelity"]) > 0.97
    assert abs(float(student["delta_return"])) < 3
    assert "number 2" in found.rules[2]
    assert "number 3" in found.rules[2]
    assert "number 0" not in found.rules[2]


def test_a_larger_tree_is_more_faithful_and_drives_longer(trees: Distilled) -> None:
    fidelity, returns = trees.result["fidelity"].values, trees.result["return"].mean("seed").values
    assert fidelity[0] == 1
    assert fidelity[1] < 0.7 < fidelity[2]
    assert returns[0] == 60
    assert returns[1] < 15 < returns[2]
    assert (trees.result["fidelity_low"].values[1:] < fidelity[1:]).all()
    assert trees.result["size"].values.tolist() == [0, 1, 8]


def test_fidelity_is_agreement_in_the_policys_own_states_on_seeds_that_taught_nothing(
    policy: rlm.HookedPolicy, trees: Distilled
) -> None:
    own = rlm.record(policy, env(), seeds=range(50, 56), progress=False)
    same = trees.students[8].predict(own.observations)[0] == own.actions
    assert float(trees.result["fidelity"].sel(condition="8 leaves")) == pytest.approx(same.mean())


def test_what_is_measured_is_how_the_student_drives(trees: Distilled) -> None:
    driven = rlm.record(trees.students[8], env(), seeds=range(50, 56), progress=False)
    measured = trees.result["return"].sel(condition="8 leaves").values
    assert measured.tolist() == driven.episodes["return"].tolist()


def test_the_student_learns_from_the_states_that_it_comes_to_itself(policy: rlm.HookedPolicy, trees: Distilled) -> None:
    once = distil(policy, env(), seeds=range(6), test_seeds=range(50, 56), sizes=[8], n_rounds=1)
    assert once.rules[8] != trees.rules[8]


def test_its_rules_name_actions_and_the_figure_has_a_panel_for_each_measure(trees: Distilled) -> None:
    assert trees.rules[1] in ("LEFT", "RIGHT")
    assert trees.rules[8].startswith("if number ")
    figure = rlm.plot.students(trees.result)
    assert [trace.x.tolist() for trace in figure.data] == [[1, 8], [1, 8]]
    np.testing.assert_allclose(figure.data[0].y, trees.result["fidelity"].values[1:])
    with pytest.raises(ConfigError, match="no students"):
        rlm.plot.students(trees.result.drop_vars("fidelity"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test_seeds": range(5, 9)}, "1 of them in both"),
        ({"test_seeds": []}, "0 test_seeds"),
        ({"sizes": [0]}, "A student has a size"),
        ({"sizes": []}, "A student has a size"),
        ({"n_rounds": 0}, "n_rounds=0"),
        ({"kind": "forest"}, "no student of kind 'forest'"),
    ],
)
def test_what_cannot_be_taught_is_said_before_anything_is_driven(
    policy: rlm.HookedPolicy, changed: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"seeds": range(6), "test_seeds": range(50, 56), "sizes": [2], **changed}
    with pytest.raises(ConfigError, match=said):
        distil(policy, gym.make("Acrobot-v1"), **given)


def test_continuous_actions_memory_and_dicts_are_refused_in_words() -> None:
    given: dict[str, Any] = {"seeds": [0], "test_seeds": [1]}
    steering = rlm.HookedPolicy(nn.Linear(3, 1), torch.rand(2, 3), output_kind="mean_action")
    with pytest.raises(ConfigError, match="continuous actions"):
        distil(steering, gym.make("Pendulum-v1"), **given)
    with pytest.raises(ConfigError, match="do not remember"):
        distil(rlm.load("zoo:cue-recall-lstm"), env(), **given)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.layer(torch.cat([x["a"], x["b"]], 1))

    parts = rlm.HookedPolicy(Reads(), {"a": torch.rand(2, 1), "b": torch.rand(2, 2)})
    with pytest.raises(ObservationError, match="one array of numbers"):
        distil(parts, env(), **given)
