"""The terms add up to the scores, each is what its name says; the pattern's own effects are recomputed, not guessed."""

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.attribution.action_terms import attribute_actions, centre_actions
from rlmech.attribution.patterns import key_feature_effects, pattern_effects
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, EngineError, MetricError, ShapeError
from tests.circuits.linear_networks import ATTENTIVE, PLAIN, Dictionary, frozen_scores, small_ego, wrapped
from tests.networks import SPEC, Transformer, scenes

EXACT = {"rtol": 0, "atol": 1e-10}
BLOCK = "attention_layer"


def summed(result):
    terms = [values for name, values in result.data_vars.items() if name != "total"]
    return sum(term.sum([dim for dim in term.dims if dim not in ("batch", "action")]) for term in terms)


@pytest.mark.parametrize("name", [*PLAIN, *ATTENTIVE])
def test_the_terms_add_up_to_the_scores(name):
    policy, obs = wrapped(name)
    result = attribute_actions(policy, obs)
    np.testing.assert_allclose(result.total, policy(obs).detach(), **EXACT)
    np.testing.assert_allclose(summed(result), result.total, **EXACT)


@pytest.mark.parametrize("name", ["zoo:intersection-ego-attention", "zoo:highway-dqn-mlp"])
def test_the_terms_of_shipped_policies_add_up_in_single_precision(name):
    policy = rlm.load(name)
    obs = torch.rand(20, *policy.hook_dict["hook_obs"].shape[1:], generator=torch.Generator().manual_seed(0))
    result = attribute_actions(policy, obs)
    bound = 1e-5 * float(np.abs(result.total).max())
    np.testing.assert_allclose(result.total, policy(obs).detach(), rtol=0, atol=bound)
    np.testing.assert_allclose(summed(result), result.total, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["ego", "multi_head", "fused", "scaled_queries"])
def test_a_term_of_a_head_is_what_its_own_output_carries_from_the_feature(name):
    policy, obs = wrapped(name)
    result = attribute_actions(policy, obs)
    (block,) = policy.attention.values()
    heads = result.ov.transpose("batch", "action", "head", "entity", "feature").values
    x = obs.clone().requires_grad_()
    around = with_pattern(policy, x, obs, [(block.names["z"], lambda value, hook: value.detach())])
    for head in range(block.n_heads):

        def only(value, hook, head=head):
            kept = torch.zeros_like(value)
            kept[:, :, head] = 1
            return value * kept + value.detach() * (1 - kept)

        scores = with_pattern(policy, x, obs, [(block.names["z"], only)])
        for action in range(3):
            through, past = (torch.autograd.grad(s[:, action].sum(), x, retain_graph=True)[0] for s in (scores, around))
            np.testing.assert_allclose(heads[:, action, head], (through - past) * obs, **EXACT)


def with_pattern(policy, x, at, hooks):
    with policy.hooks(fwd_hooks=hooks):
        scores = frozen_scores(policy, x, at)
    return scores + 0 * x.sum()  # also where nothing of x is left


def test_each_bias_adds_what_the_scores_lose_without_it_in_the_same_region():
    policy, obs = wrapped("all_gates")
    small = 1e-6
    result = attribute_actions(policy, obs)
    for name, parameter in policy.module.named_parameters():
        if name not in list(result.source.values):
            continue
        with torch.no_grad():
            before = policy(obs)
            parameter.mul_(1 - small)
            after = policy(obs)
            parameter.div_(1 - small)
        lost = (before - after).detach() / small
        np.testing.assert_allclose(result.bias.sel(source=name), lost, rtol=0, atol=1e-7)


def test_layers_that_follow_each_other_have_terms_of_their_own():
    policy, obs = wrapped("two_layers")
    result = attribute_actions(policy, obs)
    assert {"ov_first", "ov_second", "skip", "bias", "total"} == set(result.data_vars)
    assert result.skip.dims == ("batch", "action", "entity", "feature")
    assert all(float(np.abs(result[name]).max()) > 1e-3 for name in result.data_vars)


def test_the_skip_of_the_ego_network_is_the_egos():
    policy, obs = wrapped("ego")
    result = attribute_actions(policy, obs)
    assert result.skip.dims == ("batch", "action", "feature")
    assert result.skip.feature.values.tolist() == list(SPEC.names("feature"))
    absent = obs[:, :, 0] < 0.5
    assert np.abs(result.ov.values[absent.numpy()[:, None].repeat(3, 1)]).max() == 0


def test_entities_permuted_permute_the_terms():
    policy, obs = wrapped("ego")
    order = torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(14)))
    result, moved = attribute_actions(policy, obs), attribute_actions(policy, obs[:, order])
    np.testing.assert_allclose(moved.ov, result.ov.values[:, :, order], **EXACT)
    np.testing.assert_allclose(moved.bias, result.bias, **EXACT)


def test_heads_permuted_with_their_weights_permute_the_terms_of_heads_and_nothing_else():
    obs = scenes(4).double()
    network, other = small_ego().double(), small_ego().double()
    order = torch.tensor([2, 0, 3, 1])
    columns = (order[:, None] * 4 + torch.arange(4)).flatten()
    with torch.no_grad():
        for name in ("query_ego", "key_all", "value_all"):
            getattr(other.attention_layer, name).weight.copy_(getattr(network.attention_layer, name).weight[columns])
        other.attention_layer.attention_combine.weight.copy_(
            network.attention_layer.attention_combine.weight[:, columns]
        )
    first, second = (attribute_actions(HookedPolicy(net, obs, spec=SPEC), obs) for net in (network, other))
    np.testing.assert_allclose(second.ov, first.ov.values[:, :, :, order], **EXACT)
    for name in ("total", "bias", "skip"):
        np.testing.assert_allclose(second[name], first[name], **EXACT)


def test_a_gap_is_the_difference_of_its_actions():
    policy, obs = wrapped("ego")
    both = attribute_actions(policy, obs)
    gap = attribute_actions(policy, obs, better="FASTER", worse=0)
    assert gap.action.values.tolist() == ["FASTER - 0"]
    for name, values in gap.data_vars.items():
        expected = both[name].sel(action="FASTER") - both[name].sel(action="SLOWER")
        np.testing.assert_allclose(values.isel(action=0), expected, **EXACT)
    alone = attribute_actions(policy, obs, better="IDLE")
    np.testing.assert_allclose(alone.ov.isel(action=0), both.ov.sel(action="IDLE"), **EXACT)


def test_centred_terms_add_up_to_the_centred_scores():
    policy, obs = wrapped("ego")
    result = centre_actions(attribute_actions(policy, obs))
    scores = policy(obs).detach().numpy()
    np.testing.assert_allclose(result.total, scores - scores.mean(1, keepdims=True), **EXACT)
    np.testing.assert_allclose(summed(result), result.total, **EXACT)
    assert result.ov.attrs["units"] == "return"
    with pytest.raises(ShapeError, match="several actions"):
        centre_actions(attribute_actions(policy, obs, better=1))


def test_chunks_change_nothing(monkeypatch):
    policy, obs = wrapped("ego")
    whole = attribute_actions(policy, obs)
    monkeypatch.setattr("rlmech.attribution.action_terms.ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(attribute_actions(policy, obs).ov, whole.ov, **EXACT)
    assert attribute_actions(policy, obs[:0]).ov.shape == (0, *whole.ov.shape[1:])


def test_dictionaries_have_terms_for_each_array():
    torch.manual_seed(0)
    obs = {"track": torch.randn(6, 2, 3).double(), "camera": torch.randn(6, 4).double()}
    result = attribute_actions(HookedPolicy(Dictionary().double(), obs), obs)
    assert {"input_track", "input_camera", "bias", "total"} == set(result.data_vars)
    np.testing.assert_allclose(summed(result), result.total, **EXACT)


def test_terms_past_scrambled_self_attention_are_refused_with_the_reason():
    network = small_ego(self_attention_heads=2).double()
    policy = HookedPolicy(network, scenes(3).double(), spec=SPEC)
    with pytest.raises(AttentionError, match="mixes heads and entities"):
        attribute_actions(policy, scenes(3).double())


def test_what_bends_and_what_there_is_not_are_refused():
    policy, obs = wrapped("ego")
    with pytest.raises(MetricError, match="no action 'FLY'"):
        attribute_actions(policy, obs, better="FLY")
    with pytest.raises(MetricError, match="between two actions"):
        attribute_actions(policy, obs, worse="IDLE")
    with pytest.raises(EngineError, match="layer_norm"):
        attribute_actions(HookedPolicy(Transformer().eval(), scenes(3)), scenes(3))


@pytest.mark.parametrize("name", ["ego", "fused", "multi_head", "two_layers"])
def test_the_effect_of_a_removed_key_is_that_of_running_without_it(name):
    policy, obs = wrapped(name)
    path, block = next(iter(policy.attention.items()))
    found = pattern_effects(policy, obs, block=path)
    scores = policy(obs)
    for key in (0, 3):
        for head in (None, 1):

            def remove(value, hook, key=key, head=head, to=-torch.inf):
                value[:, slice(None) if head is None else head, ..., key] = to
                return value

            without = policy.run_with_hooks(obs, fwd_hooks=[(block.names["attn_scores"], remove)])
            expected = (without - scores).detach().numpy()
            got = found.removed.isel(key=key) if head is None else found.removed_by_head.isel(key=key, head=head)
            known = ~np.isnan(got.values)
            np.testing.assert_allclose(got.values[known], expected[known], **EXACT)
            assert known.any()


def test_a_zeroed_score_is_that_of_running_with_a_zero_and_hidden_keys_stay_hidden():
    policy, obs = wrapped("ego")
    found = pattern_effects(policy, obs, better="FASTER", worse="IDLE").zeroed_by_head
    hidden = obs[:, :, 0] < 0.5

    def zero(value, hook):
        value[:, 2, :, 4] = torch.where(hidden[:, 4, None], value[:, 2, :, 4], 0.0)
        return value

    change = policy.run_with_hooks(obs, fwd_hooks=[(f"{BLOCK}.hook_attn_scores", zero)]) - policy(obs)
    np.testing.assert_allclose(found[:, 0, 2, 4], (change[:, 2] - change[:, 1]).detach(), **EXACT)
    np.testing.assert_allclose(found.transpose("batch", "key", "action", "head").values[hidden.numpy()], 0, atol=1e-14)


def test_the_last_visible_key_cannot_be_removed():
    policy, obs = wrapped("ego")
    alone = obs[:1].clone()
    alone[:, 1:] = 0
    found = pattern_effects(policy, alone)
    assert np.isnan(found.removed.isel(key=0)).all()
    np.testing.assert_allclose(found.removed.isel(key=slice(1, None)), 0, atol=1e-14)


@pytest.mark.parametrize("name", ["ego", "fused"])
def test_a_feature_taken_from_the_keys_is_taken_from_the_gated_map(name):
    policy, obs = wrapped(name)
    (block,) = policy.attention.values()
    found = key_feature_effects(policy, obs)
    entity, feature = 2, 1
    x = obs.clone().requires_grad_()
    held = {}
    policy.run_with_hooks(x, fwd_hooks=[(block.names["k"], lambda value, hook: held.update(k=value))])
    key = held["k"][:, entity].flatten(1)
    slopes = [torch.autograd.grad(key[:, i].sum(), x, retain_graph=True)[0] for i in range(key.shape[1])]
    taken = torch.stack([slope[:, entity, feature] for slope in slopes], 1) * obs[:, entity, feature, None]

    def take(value, hook):
        value[:, entity] -= taken.view(len(obs), *value.shape[2:])
        return value

    change = policy.run_with_hooks(obs, fwd_hooks=[(block.names["k"], take)]) - policy(obs)
    np.testing.assert_allclose(found.effect[:, :, entity, feature], change.detach(), **EXACT)
    assert found.effect.entity[entity] == "vehicle_2"
