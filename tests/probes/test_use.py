"""A variable that the decision reads is used, one that it carries along is decodable only."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch

import rlmech as rlm
from rlmech.errors import ConfigError, EditError
from rlmech.probes import concept_direction, concept_sensitivity, fit_probe, is_used
from tests.probes.test_fit import Balancing


@pytest.fixture(scope="module")
def balancing() -> tuple[rlm.HookedPolicy, object, rlm.probes.Probes]:
    policy = rlm.HookedPolicy(Balancing(), torch.rand(2, 4))
    env = gym.make("CartPole-v1", max_episode_steps=60)
    recording = rlm.record(policy, env, seeds=range(24), progress=False)
    targets = {"position": lambda r: r.observations[:, 0], "lean": lambda r: r.observations @ [0.0, 0, 10, 3]}
    return policy, env, fit_probe(policy, recording, target=targets, sites="hidden.hook_out")


def test_what_the_decision_reads_is_decodable_and_used(balancing):
    policy, env, probes = balancing
    result = is_used(policy, env, probes.probe("lean"), seeds=range(100, 108), n_controls=3, progress=False)
    assert result.attrs["verdict"] == "both"
    assert float(result["delta_return"].sel(condition="erased")) < -5
    assert set(result["control_of"].values.tolist()) == {"", "erased", "pushed up"}


def test_what_no_decision_reads_is_decodable_only(balancing):
    policy, env, probes = balancing
    result = is_used(policy, env, probes.probe("position"), seeds=range(100, 108), n_controls=3, progress=False)
    assert result.attrs["verdict"] == "decodable"
    assert abs(float(result["delta_return"].sel(condition="erased"))) < 1


def test_nothing_is_left_to_read_where_a_readout_was_erased(balancing):
    policy, _, probes = balancing
    probe = probes.probe("lean")
    obs = torch.randn(50, 4) * 0.1
    edit = rlm.erase(
        probe.site, torch.as_tensor(probe.normal()), mean=torch.as_tensor(probe.mean), along=probe.pattern()
    )
    with policy.edited([edit]):
        _, cache = policy.run_with_cache(obs, ["hidden.hook_out"])
    read = cache["hidden.hook_out"].detach().double() @ torch.as_tensor(probe.normal())
    torch.testing.assert_close(read, torch.full_like(read, float(probe.mean @ probe.normal())), atol=1e-5, rtol=0)


def test_an_erasure_that_cannot_be_made_is_refused():
    ones = torch.ones(4)
    with pytest.raises(EditError, match="nothing to erase"):
        rlm.erase("hook_obs", ones, mean=ones, along=torch.tensor([1.0, -1, 0, 0]))
    with pytest.raises(EditError, match="nothing to erase"):
        rlm.erase("hook_obs", ones, mean=ones[:3])
    policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
    with pytest.raises(EditError, match="does not fit"), policy.edited([rlm.erase("hook_q_values", ones, mean=ones)]):
        pass


def test_a_verdict_is_about_an_outcome_that_is_there(balancing):
    policy, env, probes = balancing
    with pytest.raises(ConfigError, match="no outcome 'crashed'"):
        is_used(policy, env, probes.probe("lean"), seeds=range(4), outcome="crashed", n_controls=1, progress=False)
    with pytest.raises(ConfigError, match="random directions"):
        is_used(policy, env, probes.probe("lean"), seeds=range(4), n_controls=0)


def test_a_concept_is_the_difference_of_its_examples(balancing):
    policy, _, _ = balancing
    obs = torch.randn(400, 4)
    moved = obs + torch.tensor([0.0, 0, 0.5, 0])
    concept = concept_direction(policy, positive=moved, negative=obs, site="hidden.hook_out")
    torch.testing.assert_close(concept.direction(), policy.module.hidden.weight[:, 2].detach(), atol=1e-4, rtol=0)
    assert concept.edit(2.0).kind == "steer"


def test_lda_takes_out_what_varies_in_both():
    generator = torch.Generator().manual_seed(0)
    loud = torch.randn(4000, 2, generator=generator) @ torch.tensor([[1.0, 0], [3, 1]])
    policy = rlm.HookedPolicy(torch.nn.Linear(2, 2), torch.rand(2, 2))
    moved = loud + torch.tensor([1.0, 1.0])
    found = concept_direction(policy, positive=moved, negative=loud, site="hook_obs", method="lda").direction()
    wanted = torch.linalg.solve(torch.cov(loud.T), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(found, wanted / wanted.norm(), atol=0.02, rtol=0)


def test_sensitivity_is_the_sign_of_the_slope_along_the_concept(balancing):
    policy, _, _ = balancing
    obs = torch.randn(200, 4)
    concept = concept_direction(
        policy, positive=obs + torch.tensor([0, 0, 1.0, 0]), negative=obs, site="hidden.hook_out"
    )
    gap = rlm.metrics.action_gap(better=1, worse=0)
    found = concept_sensitivity(policy, obs, concept, reference=obs, metric=gap)
    assert float(found["score"].item()) == 1
    torch.testing.assert_close(
        torch.as_tensor(found["derivative"].values), torch.full((1, 200), 20.0).double(), atol=1e-4, rtol=0
    )
    sideways = concept_direction(
        policy, positive=obs + torch.tensor([1.0, 0, 0, 0]), negative=obs, site="hidden.hook_out"
    )
    assert float(concept_sensitivity(policy, obs, sideways, reference=obs, metric=gap)["p"].item()) > 0.01


def test_concepts_without_a_difference_are_refused(balancing):
    policy, _, _ = balancing
    obs = torch.randn(20, 4)
    with pytest.raises(ConfigError, match="no difference"):
        concept_direction(policy, positive=obs, negative=obs, site="hidden.hook_out")
    with pytest.raises(ConfigError, match="with it and without"):
        concept_direction(policy, positive=obs[:1], negative=obs, site="hidden.hook_out")
    with pytest.raises(ConfigError, match="no method"):
        concept_direction(policy, positive=obs + 1, negative=obs, site="hidden.hook_out", method="svm")
