"""Direct contributions and the rest add up to the scores, at every hook point that has a way there."""

import numpy as np
import pytest
import torch

from rlmech.attribution.affine import local_affine
from rlmech.attribution.direct import direct_action_attribution
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import EngineError, SiteError
from tests.circuits.linear_networks import ATTENTIVE, PLAIN, wrapped
from tests.networks import Transformer, mlp, scenes

EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.mark.parametrize("name", [*PLAIN, *ATTENTIVE])
def test_contributions_and_offset_add_up_everywhere(name):
    policy, obs = wrapped(name)
    scores, cache = policy.run_with_cache(obs)
    reached = 0
    for hook in policy.hook_dict:
        try:
            found = direct_action_attribution(policy, obs, hook)
        except SiteError:
            continue
        reached += 1
        summed = found.contribution.sum(found.contribution.dims[2:]) + found.offset
        np.testing.assert_allclose(summed, scores.detach(), **EXACT)
        assert found.contribution.shape == (len(obs), 3, *cache[hook].shape[1:])
    assert reached >= 3


@pytest.mark.parametrize("name", ["mlp", "all_gates", "convolutional"])
def test_a_small_change_of_a_unit_changes_the_scores_by_its_share(name):
    policy, obs = wrapped(name)
    scores, small = policy(obs), 1e-7
    for hook in [hook for hook, point in policy.hook_dict.items() if point.kind in ("linear", "activation")][:4]:
        try:
            contribution = direct_action_attribution(policy, obs, hook).contribution
        except SiteError:
            continue
        grown = policy.run_with_hooks(obs, fwd_hooks=[(hook, lambda value, hook: value * (1 + small))])
        slope = (grown - scores).detach() / small
        np.testing.assert_allclose(contribution.sum(contribution.dims[2:]), slope, rtol=0, atol=1e-5)


def test_at_the_observation_it_is_the_local_map_where_nothing_attends():
    policy, obs = wrapped("mlp")
    found, local = direct_action_attribution(policy, obs, "hook_obs"), local_affine(policy, obs)
    np.testing.assert_allclose(found.contribution, local.jacobian * obs.numpy()[:, None], **EXACT)
    np.testing.assert_allclose(found.offset, local.offset, **EXACT)


def test_heads_share_out_what_the_attention_adds():
    policy, obs = wrapped("ego")
    by_head = direct_action_attribution(policy, obs, "attention_layer.hook_result").contribution
    whole = direct_action_attribution(policy, obs, "attention_layer.hook_attn_out").contribution
    np.testing.assert_allclose(by_head.sum("head"), whole, **EXACT)
    z = direct_action_attribution(policy, obs, Site("attention_layer.hook_z", head=2)).contribution
    np.testing.assert_allclose(z.sum(("head", "d_head", "query")), by_head[:, :, 0, 2].sum("d_model"), **EXACT)


def test_a_selection_leaves_the_rest_to_the_offset():
    policy, obs = wrapped("mlp")
    whole = direct_action_attribution(policy, obs, "1.hook_out", better=2, worse=0)
    part = direct_action_attribution(policy, obs, Site("1.hook_out", neuron=(1, 3)), better=2, worse=0)
    np.testing.assert_allclose(part.contribution, whole.contribution[..., [1, 3]], **EXACT)
    assert part.neuron.values.tolist() == [1, 3]
    np.testing.assert_allclose(part.contribution.sum("neuron") + part.offset, part.total, **EXACT)


def test_chunks_change_nothing(monkeypatch):
    policy, obs = wrapped("ego")
    whole = direct_action_attribution(policy, obs, "attention_layer.hook_v")
    monkeypatch.setattr("rlmech.attribution.direct.ROWS_AT_ONCE", 2)
    parts = direct_action_attribution(policy, obs, "attention_layer.hook_v")
    np.testing.assert_allclose(parts.contribution, whole.contribution, **EXACT)


@pytest.mark.parametrize("role", ["q", "k", "attn_scores", "mask"])
def test_what_acts_through_the_pattern_alone_is_refused(role):
    policy, obs = wrapped("ego")
    with pytest.raises(SiteError, match="no direct way"):
        direct_action_attribution(policy, obs, f"attention_layer.hook_{role}")


def test_the_scores_themselves_and_bends_behind_are_refused():
    policy, obs = wrapped("mlp")
    with pytest.raises(SiteError, match="scores themselves"):
        direct_action_attribution(policy, obs, "hook_q_values")
    tanh = HookedPolicy(mlp(4, 6, 3, activation=torch.nn.Tanh), torch.rand(2, 4))
    with pytest.raises(EngineError, match="tanh"):
        direct_action_attribution(tanh, torch.rand(2, 4), "0.hook_out")
    behind = direct_action_attribution(tanh, torch.rand(2, 4), "1.hook_out")  # nothing bends behind it
    assert behind.contribution.shape == (2, 3, 6)
    transformer = HookedPolicy(Transformer().eval(), scenes(3))
    with pytest.raises(EngineError, match="layer_norm"):
        direct_action_attribution(transformer, scenes(3), "embed.hook_out")
