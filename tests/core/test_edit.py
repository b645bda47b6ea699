"""Sites and edits: each sets what it names, and nothing else; what does not fit is refused before anything runs."""

from __future__ import annotations

import pytest
import torch

import rlmech as rlm
from rlmech.errors import EditError, HookError, SiteError
from rlmech.nets import EgoAttentionNetwork
from tests import networks as nets


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3), nets.scenes(3), spec=nets.SPEC)


Z, EMBEDDED, OBS = "attention_layer.hook_z", "others_embedding.relu_1.hook_out", "hook_obs"


def after(policy, edits, obs, name):
    with torch.no_grad(), policy.edited(edits):
        return policy.run_with_cache(obs, name)[1][name]


def test_zero_ablation_zeroes_one_head(policy):
    obs = nets.scenes(4)
    before = policy.run_with_cache(obs, Z)[1][Z]
    edited = after(policy, [rlm.zero_ablation(rlm.Site(Z, head=2))], obs, Z)
    assert not edited[:, :, 2].any()
    keep = [0, 1, 3]
    assert torch.equal(edited[:, :, keep], before[:, :, keep])


def test_a_named_vehicle_is_the_row_it_stands_in(policy):
    assert policy.hook_dict[EMBEDDED].labels["entity"] == nets.SPEC.entities[1:]
    assert policy.hook_dict["ego_embedding.relu_1.hook_out"].labels["entity"] == ("ego",)
    assert policy.hook_dict["attention_layer.hook_pattern"].labels["key"] == nets.SPEC.entities
    edited = after(policy, [rlm.zero_ablation(rlm.Site(EMBEDDED, entity="vehicle_3"))], nets.scenes(4), EMBEDDED)
    assert not edited[:, 2].any()
    assert edited[:, 1].any()


def test_selections_along_two_axes_are_their_outer_product(policy):
    obs = nets.scenes(4)
    site = rlm.Site("attention_layer.hook_k", head=[0, 3], entity=["ego", "vehicle_2"])
    edited = after(policy, [rlm.zero_ablation(site)], obs, "attention_layer.hook_k")
    before = policy.run_with_cache(obs)[1]["attention_layer.hook_k"]
    expected = before.clone()
    for entity in (0, 2):
        for head in (0, 3):
            expected[:, entity, head] = 0
    assert torch.equal(edited, expected)


def test_the_mask_of_a_site_is_what_zero_ablation_reaches(policy):
    obs = nets.scenes(4)
    for site in (
        rlm.Site(Z, head=2),
        rlm.Site(EMBEDDED, entity=("vehicle_1", 3)),
        rlm.Site(OBS, entity=2, feature=(0, 3)),
    ):
        ones = {site.name: torch.ones(4, *policy.hook_dict[site.name].shape[1:])}
        edits = [rlm.patch(site.name, source=ones), rlm.zero_ablation(site)]
        after_both = after(policy, edits, obs, site.name)
        assert torch.equal(after_both[0] == 0, site.mask(policy.hook_dict[site.name]))


def test_mean_ablation_puts_in_the_references_mean(policy):
    reference = policy.run_with_cache(nets.scenes(9, seed=1), Z)[1]
    edited = after(policy, [rlm.mean_ablation(rlm.Site(Z, head=1), reference=reference)], nets.scenes(4), Z)
    assert torch.allclose(edited[:, :, 1], reference[Z].mean(0)[:, 1].expand(4, 1, 16))


def test_resample_ablation_draws_reference_rows_that_go_on_from_call_to_call(policy):
    reference = policy.run_with_cache(nets.scenes(9, seed=1), Z)[1]
    edit = rlm.resample_ablation(Z, reference=reference, seed=3)
    obs = nets.scenes(4)
    with torch.no_grad(), policy.edited([edit]):
        first, second = (policy.run_with_cache(obs, Z)[1][Z] for _ in range(2))
    rows = {tuple(row.flatten().tolist()) for row in reference[Z]}
    assert all(tuple(row.flatten().tolist()) in rows for row in (*first, *second))
    assert not torch.equal(first, second)
    assert torch.equal(after(policy, [edit], obs, Z), first)


def test_patch_puts_in_the_sources_rows(policy):
    source = policy.run_with_cache(nets.scenes(4, seed=2), Z)[1]
    edited = after(policy, [rlm.patch(rlm.Site(Z, head=0), source=source)], nets.scenes(4), Z)
    assert torch.equal(edited[:, :, 0], source[Z][:, :, 0])


def test_steer_adds_a_direction(policy):
    obs, direction = nets.scenes(4), torch.arange(16.0)
    before = policy.run_with_cache(obs, Z)[1][Z]
    site = rlm.Site(Z, head=0, query=0)
    edited = after(policy, [rlm.steer(site, direction, coefficient=-2)], obs, Z)
    assert torch.allclose(edited[:, 0, 0], before[:, 0, 0] - 2 * direction)
    assert torch.equal(edited[:, :, 1:], before[:, :, 1:])


def test_edits_apply_in_order_and_gradients_flow_around_them(policy):
    obs = nets.scenes(4)
    with policy.edited([rlm.zero_ablation(Z), rlm.steer(rlm.Site(Z, head=0, query=0), torch.ones(16))]):
        _, cache = policy.run_with_cache(obs)
        cache["hook_q_values"].sum().backward()
    assert cache[Z][:, :, 0].eq(1).all()
    assert not cache[Z][:, :, 1:].any()
    assert policy.module.output_layer.predict.weight.grad.any()
    assert not policy.module.attention_layer.key_all.weight.grad.any()


def test_an_edit_of_one_name_reads_as_a_site(policy):
    assert rlm.zero_ablation(Z).site == rlm.Site(Z)
    assert rlm.Site(Z, head=2) == rlm.Site(Z, head=2) != rlm.Site(Z, head=1)
    assert hash(rlm.Site(Z, head=[1, 2])) == hash(rlm.Site(Z, head=(1, 2)))
    assert repr(rlm.Site(Z, head=2)) == "Site('attention_layer.hook_z', head=2)"


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (lambda: rlm.Site(Z, head=4), r"has no head 4(.|\n)*expected: 0 to 3"),
        (lambda: rlm.Site(Z, head=-5), "has no head -5"),
        (lambda: rlm.Site(Z, entity=0), r"has no axis 'entity'(.|\n)*query, head, d_head"),
        (lambda: rlm.Site(EMBEDDED, entity="vehicle_33"), r"did you mean 'vehicle_\d+'\?"),
        (lambda: rlm.Site(EMBEDDED, entity="ego"), "has no entity named 'ego'"),
        (lambda: rlm.Site("attention_layer.hook_zz", head=0), r"did you mean 'attention_layer.hook_z'\?"),
        (lambda: rlm.Site(Z, heads=0), r"did you mean head=…\?"),
        (lambda: rlm.Site(Z, batch=0), "cannot be selected by 'batch'"),
        (lambda: rlm.Site(Z, head=[]), "Nothing is selected"),
        (lambda: rlm.Site(Z, head=slice(2)), "not by a slice"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_with_what_would(policy, site, message):
    with pytest.raises(SiteError, match=message), policy.edited([rlm.zero_ablation(Z), rlm.zero_ablation(site())]):
        pass
    assert policy._registry.is_idle


def test_an_edit_of_another_policy_is_refused(policy):
    other = rlm.HookedPolicy(EgoAttentionNetwork(7, 3, n_heads=2), nets.scenes(2))
    source = other.run_with_cache(nets.scenes(4))[1]
    with pytest.raises(EditError, match="another policy"), policy.edited([rlm.patch(Z, source=source)]):
        pass
    small = rlm.HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    with pytest.raises(SiteError, match="Sequential has no hook point"), small.edited([rlm.zero_ablation(Z)]):
        pass
    assert policy._registry.is_idle
    assert small._registry.is_idle


def test_values_that_do_not_fit_are_refused(policy):
    obs = nets.scenes(4)
    source = policy.run_with_cache(nets.scenes(3))[1]
    with pytest.raises(EditError, match="3 source rows for a batch of 4"), policy.edited([rlm.patch(Z, source=source)]):
        policy(obs)
    with (
        pytest.raises(EditError, match=r"expected: shape \[16\]"),
        policy.edited([rlm.steer(rlm.Site(Z, head=0, query=0), torch.ones(4))]),
    ):
        pass
    with pytest.raises(EditError, match="There is no mean of"):
        rlm.mean_ablation("attention_layer.hook_mask", reference=source)
    with pytest.raises(EditError, match="is empty"):
        rlm.mean_ablation(Z, reference=source.select([]))
    with pytest.raises(SiteError, match="holds no"):
        rlm.mean_ablation(Z, reference=source.select([0]).__class__({}, axes={}))


def test_an_edit_that_is_never_reached_is_an_error(policy):
    with pytest.raises(HookError, match="never fired"), policy.edited([rlm.zero_ablation(Z)]):
        pass


def test_sites_expand_names_over_axes(policy):
    assert policy.sites("*.hook_z", over=("head",)) == [rlm.Site(Z, head=i) for i in range(4)]
    over = policy.sites(EMBEDDED, over=("entity",))
    assert over[0] == rlm.Site(EMBEDDED, entity="vehicle_1")
    assert len(policy.sites("attention_layer.hook_v", over=("head", "entity"))) == 60
    assert policy.sites("hook_q_values") == [rlm.Site("hook_q_values")]
    with pytest.raises(SiteError, match="has no axis 'head'"):
        policy.sites("hook_obs", over=("head",))
