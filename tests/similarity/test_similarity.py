"""Two policies: one is like itself in everything, rotations and scalings change nothing, and chance is told apart."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError, RecordingError
from rlmech.nets.untrained import untrained
from rlmech.similarity import compare_policies, stitch
from tests.probes.test_fit import Balancing

EPISODES = np.arange(240) // 20


def states(n: int = 240) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def network(seed: int, width: int = 12, n_actions: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, n_actions))


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(network(0), torch.rand(2, 4))


@pytest.fixture(scope="module")
def other() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(network(1), torch.rand(2, 4))


def test_a_policy_is_like_its_copy_in_everything(policy: rlm.HookedPolicy) -> None:
    found = compare_policies(policy, copy.deepcopy(policy), states(), clusters=EPISODES).sel(compared="other")
    for name in ("cka", "cca", "neighbours", "agreement", "kappa"):
        np.testing.assert_allclose(found[name], 1, atol=1e-9)
    assert (found["cka_advantage"] > 0).all()
    assert float(found["chance"]) < 0.9


def test_rotations_and_isotropic_scalings_change_nothing(policy: rlm.HookedPolicy) -> None:
    turned = copy.deepcopy(policy.module)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    with torch.no_grad():
        turned[3].weight.copy_(turned[3].weight @ rotation.T / 3)
        turned[2].weight.copy_(3 * rotation @ turned[2].weight)
        turned[2].bias.copy_(3 * rotation @ turned[2].bias + 5)
    second = rlm.HookedPolicy(turned, torch.rand(2, 4))
    found = compare_policies(policy, second, states(), sites=["2.hook_out"], clusters=EPISODES).sel(compared="other")
    for name in ("cka", "cca", "neighbours"):
        assert float(found[name].item()) == pytest.approx(1, abs=1e-4)


def test_it_does_not_matter_who_is_first(policy: rlm.HookedPolicy, other: rlm.HookedPolicy) -> None:
    given: dict[str, Any] = {"clusters": EPISODES, "n_untrained": 1}
    one, two = compare_policies(policy, other, states(), **given), compare_policies(other, policy, states(), **given)
    for name in ("cka", "cca", "neighbours", "agreement", "chance"):
        np.testing.assert_allclose(one[name].sel(compared="other"), two[name].sel(compared="other"), atol=1e-9)
    for name in ("cka", "neighbours", "agreement"):
        chosen = one.sel(compared="other")
        assert bool((chosen[f"{name}_low"] <= chosen[name]).all())
        assert bool((chosen[name] <= chosen[f"{name}_high"]).all())


def test_an_untrained_network_is_its_own_floor(policy: rlm.HookedPolicy) -> None:
    found = compare_policies(policy, untrained(policy, 99), states(), clusters=EPISODES, sites=["1.hook_out"])
    assert float(found["cka"].sel(compared="other").item()) < float(found["cka_highest_untrained"].item()) + 0.05
    assert abs(float(found["cka_advantage"].item())) < 0.1
    assert abs(float(found["kappa"].sel(compared="untrained"))) < 0.6


def test_linear_cka_is_the_alignment_of_the_gram_matrices(policy: rlm.HookedPolicy, other: rlm.HookedPolicy) -> None:
    found = compare_policies(policy, other, states(), sites=["1.hook_out"], clusters=EPISODES)
    grams = []
    for one in (policy, other):
        value = one.run_with_cache(states(), "1.hook_out")[1]["1.hook_out"].double().detach()
        value = value - value.mean(0)
        grams.append(value @ value.T)
    wanted = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert float(found["cka"].sel(compared="other").item()) == pytest.approx(float(wanted), abs=1e-6)


def test_layers_of_other_names_and_widths_are_compared_and_stitched(policy: rlm.HookedPolicy) -> None:
    wide = rlm.HookedPolicy(network(2, width=20), torch.rand(2, 4))
    found = compare_policies(policy, wide, states(), sites={"1.hook_out": "2.hook_out"}, clusters=EPISODES)
    assert found["hook_b"].values.tolist() == ["2.hook_out"]
    stitched = stitch(policy, wide, states(), site="1.hook_out", into="2.hook_out", clusters=EPISODES)
    assert 0 < float(stitched["explained"].sel(front="a")) <= 1


def test_a_policy_stitched_into_itself_is_itself_and_drives_as_itself() -> None:
    policy = rlm.HookedPolicy(Balancing(), torch.rand(2, 4))
    env = gym.make("CartPole-v1", max_episode_steps=30)
    recording = rlm.record(policy, env, seeds=range(8), progress=False)
    found = stitch(policy, policy, recording, site="hidden.hook_out", env=env, seeds=range(50, 54))
    assert float(found["agreement"].sel(front="a")) == 1
    assert float(found["explained"].sel(front="a")) == pytest.approx(1, abs=1e-3)
    assert float(found["delta_return"].sel(condition="front a")) == 0
    assert float(found["delta_return"].sel(condition="front mean")) < -5
    assert abs(float(found["explained"].sel(front="mean"))) < 0.2
    stranger = rlm.HookedPolicy(network(5, n_actions=2), torch.rand(2, 4))
    with pytest.raises(RecordingError, match="another policy"):
        compare_policies(stranger, copy.deepcopy(stranger), recording)


def test_what_cannot_be_compared_is_refused_in_words(policy: rlm.HookedPolicy, other: rlm.HookedPolicy) -> None:
    with pytest.raises(ConfigError, match="different observations"):
        compare_policies(policy, rlm.HookedPolicy(nn.Linear(5, 3), torch.rand(2, 5)), states())
    with pytest.raises(ConfigError, match="different actions"):
        compare_policies(policy, rlm.HookedPolicy(network(0, n_actions=2), torch.rand(2, 4)), states())
    steering = rlm.HookedPolicy(nn.Linear(4, 3), torch.rand(2, 4), output_kind="mean_action")
    with pytest.raises(ConfigError, match="one action of several"):
        compare_policies(policy, steering, states())
    with pytest.raises(ConfigError, match="other episodes"):
        compare_policies(policy, other, states(), clusters=np.zeros(240))
    with pytest.raises(ConfigError, match="says nothing"):
        compare_policies(policy, other, torch.ones(240, 4), clusters=EPISODES)
    with pytest.raises(ConfigError, match="no hook point of the same name"):
        compare_policies(policy, rlm.HookedPolicy(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 4)),
                         states(), sites=[])  # fmt: skip
    with pytest.raises(ConfigError, match="not fitted on"):
        stitch(policy, other, states(), site="1.hook_out", clusters=np.zeros(240))
    with pytest.raises(ConfigError, match="an environment and seeds"):
        stitch(policy, other, states(), site="1.hook_out", seeds=[1])
