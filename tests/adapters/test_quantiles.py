"""QR-DQN: its scores are the mean over quantiles, and the quantiles are a hook point."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from sb3_contrib import QRDQN

import rlmech as rlm

OBS, ACTIONS = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(make_model):
    return make_model(QRDQN, obs=OBS, actions=ACTIONS, policy_kwargs={"n_quantiles": 7, "net_arch": [8]})


@pytest.mark.parametrize("source", ["live", "zip", "own file"])
def test_the_quantiles_are_a_point_whose_mean_is_the_scores(model, tmp_path, source):
    policy = rlm.HookedPolicy.from_sb3(model)
    if source == "zip":
        model.save(tmp_path / "x.zip")
        policy = rlm.load(tmp_path / "x.zip")
    if source == "own file":
        policy = rlm.load(rlm.save_policy(policy, tmp_path / "x.safetensors"))

    scores, cache = policy.run_with_cache(X)

    assert policy.hook_dict["hook_quantiles"].axes == ("batch", "axis_1", "action")
    assert torch.equal(cache["hook_quantiles"], model.policy.quantile_net(X))
    torch.testing.assert_close(cache["hook_quantiles"].mean(1), scores)


def test_a_quantile_that_is_taken_out_takes_its_share_of_the_score(model):
    policy = rlm.HookedPolicy.from_sb3(model)
    scores, cache = policy.run_with_cache(X)

    with policy.edited([rlm.zero_ablation(rlm.Site("hook_quantiles", axis_1=3))]):
        edited = policy(X)

    torch.testing.assert_close(scores - edited, cache["hook_quantiles"][:, 3] / 7)
