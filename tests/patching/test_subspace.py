"""A subspace patch exchanges the component along the subspace and nothing else; interchange accuracy counts actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.interventions import subspace_patch
from rlmech.errors import ConfigError, EditError, EngineError, MetricError, ObservationError, SiteError
from rlmech.patching.subspace import interchange_intervention
from tests.networks import SPEC, Convolutional, FusedAttention, mlp, scenes


def case():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(FusedAttention().double(), scenes(2).double(), spec=SPEC)
    return policy, scenes(9, seed=1).double(), scenes(9, seed=2).double()


SITES = [rlm.Site("hook_z", head=1), rlm.Site("hook_v", head=(0, 1), entity=(2, 5)), rlm.Site("q.hook_out", entity=0)]


def value_under(policy, edit, obs):
    with policy.edited([edit]):
        return policy.run_with_cache(obs, edit.site.name)[1][edit.site.name]


def directions(policy, site, n):
    shape = site.block_shape(policy.point(site.name))
    return torch.randn(n, *shape, dtype=torch.float64)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_full_basis_is_a_patch_and_an_empty_one_nothing(site):
    policy, base, source = case()
    _, cache = policy.run_with_cache(source)
    size = directions(policy, site, 1).numel()
    full = value_under(policy, subspace_patch(site, directions(policy, site, size), source=cache), base)
    torch.testing.assert_close(full, value_under(policy, rlm.patch(site, source=cache), base), atol=1e-10, rtol=0)
    nothing = value_under(policy, subspace_patch(site, directions(policy, site, 0), source=cache), base)
    assert torch.equal(nothing, policy.run_with_cache(base)[1][site.name])


@pytest.mark.parametrize("site", SITES, ids=str)
def test_the_component_becomes_the_source_s_and_the_complement_stays(site):
    policy, base, source = case()
    _, cache = policy.run_with_cache(source)
    mask = site.mask(policy.point(site.name))
    basis = directions(policy, site, 3)
    before = policy.run_with_cache(base)[1][site.name]
    after = value_under(policy, subspace_patch(site, basis, source=cache), base)
    rows = basis.reshape(3, -1)
    picked = {"after": after[:, mask], "source": cache[site.name][:, mask], "before": before[:, mask]}
    torch.testing.assert_close(picked["after"] @ rows.T, picked["source"] @ rows.T, atol=1e-10, rtol=0)
    null = torch.linalg.svd(rows, full_matrices=True)[2][3:]
    torch.testing.assert_close(picked["after"] @ null.T, picked["before"] @ null.T, atol=1e-10, rtol=0)
    assert torch.equal(after[:, ~mask], before[:, ~mask])


def test_a_subspace_and_its_complement_one_after_the_other_are_a_patch():
    policy, base, source = case()
    _, cache = policy.run_with_cache(source)
    site = SITES[0]
    turned = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0].reshape(
        60, *directions(policy, site, 1)[0].shape
    )
    edits = [subspace_patch(site, part, source=cache) for part in (turned[:20], turned[20:])]
    with torch.no_grad(), policy.edited(edits):
        found = policy(base)
    with torch.no_grad(), policy.edited([rlm.patch(site, source=cache)]):
        torch.testing.assert_close(found, policy(base), atol=1e-10, rtol=0)


def test_dependent_directions_and_their_lengths_do_not_matter():
    policy, base, source = case()
    _, cache = policy.run_with_cache(source)
    site = SITES[0]
    one = directions(policy, site, 2)
    same = torch.stack([5 * one[0], 1e-20 * one[1], -one[0]])
    found = [value_under(policy, subspace_patch(site, basis, source=cache), base) for basis in (one, same)]
    torch.testing.assert_close(*found, atol=1e-9, rtol=0)
    single = [value_under(policy, subspace_patch(site, basis, source=cache), base) for basis in (one[0], one[:1])]
    assert torch.equal(*single)


@pytest.mark.parametrize("spoil", ["shape", "zero", "nan", "whole"])
def test_directions_that_span_nothing_are_refused(spoil):
    policy, _, source = case()
    _, cache = policy.run_with_cache(source)
    basis = directions(policy, SITES[0], 2)
    bad = {"shape": basis[:, :3], "zero": basis * torch.tensor([[[1.0]], [[0.0]]]), "nan": basis * np.nan,
           "whole": basis.long()}[spoil]  # fmt: skip
    with (
        pytest.raises(EditError, match=r"do not span a subspace of Site\('hook_z', head=1\)"),
        policy.edited([subspace_patch(SITES[0], bad, source=cache)]),
    ):
        pass


def test_interchanging_the_variable_s_own_direction_is_right_and_another_is_not():
    """Q = (x0 + x1, 0) through a rotated hidden layer: the decision's variable is one direction of it."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(turn)
        net[1].weight.copy_(torch.stack([turn @ torch.tensor([1.0, 1, 0, 0, 0, 0]), torch.zeros(6)]))
    policy = rlm.HookedPolicy(net.double(), torch.rand(2, 6, dtype=torch.float64))
    base, source = torch.randn(2, 200, 6, dtype=torch.float64)
    expected = (source[:, 0] + source[:, 1] <= 0).long().numpy()
    variable = (turn @ torch.tensor([1.0, 1, 0, 0, 0, 0])).double()
    other = (turn @ torch.tensor([1.0, -1, 0, 0, 0, 0])).double()
    run = {"base": base, "source": source, "site": "0.hook_out", "expected": expected}
    found = interchange_intervention(policy, **run, basis=variable)
    assert found["accuracy"].item() == 1
    assert found["placebo"].item() < 0.75
    assert found["placebo_low"].item() < found["placebo"].item() < found["placebo_high"].item()
    missed = interchange_intervention(policy, **run, basis=other)
    assert missed["accuracy"].item() == missed["unchanged"].item() < 0.65
    assert (missed["action"].isel(site=0) == missed["base_action"]).all()
    assert dict(found.sizes) == {"site": 1, "pair": 200}


def test_interchanging_the_whole_input_gives_the_source_s_actions():
    policy, base, source = case()
    result = interchange_intervention(policy, base=base, source=source, site="hook_obs", n_controls=2)
    assert result["accuracy"].item() == 1
    named = [SPEC.actions[i] for i in result["expected"].to_numpy()]
    again = interchange_intervention(policy, base=base, source=source, site="hook_obs", expected=named, n_controls=2)
    assert again["accuracy"].item() == 1


def test_the_placebo_moves_the_site_as_far_as_the_intervention(monkeypatch):
    policy, base, source = case()
    before = policy.run_with_cache(base)[1]["hook_z"]
    moved = []
    original = rlm.HookedPolicy.edited

    def spy(self, edits):
        edits = list(edits)
        moved.append((edits[0].value - before).reshape(len(before), -1).norm(dim=1))
        return original(self, edits)

    monkeypatch.setattr(rlm.HookedPolicy, "edited", spy)
    interchange_intervention(policy, base=base, source=source, site="hook_z", n_controls=3)
    for placebo in moved[1:]:
        torch.testing.assert_close(placebo, moved[0], atol=1e-9, rtol=0)
    assert len(moved) == 4


def test_what_does_not_fit_is_refused():
    policy, base, source = case()
    run = {"base": base, "source": source, "site": "hook_z"}
    with pytest.raises(ObservationError, match="pair up"):
        interchange_intervention(policy, base=base, source=source[:3], site="hook_z")
    with pytest.raises(ObservationError, match="2 expected actions for 9 pairs"):
        interchange_intervention(policy, **run, expected=[0, 1])
    with pytest.raises(MetricError, match="no action 7"):
        interchange_intervention(policy, **run, expected=[7] * 9)
    with pytest.raises(SiteError, match="no directions at 'hook_mask'"):
        interchange_intervention(policy, base=base, source=source, site="hook_mask")
    with pytest.raises(ConfigError, match="placebo"):
        interchange_intervention(policy, **run, n_controls=0)
    continuous = rlm.HookedPolicy(mlp(4, 4, 2), torch.rand(2, 4), output_kind="mean_action")
    with pytest.raises(MetricError, match="continuous"):
        interchange_intervention(continuous, base=torch.rand(2, 4), source=torch.rand(2, 4), site="0.hook_out")
    images = torch.rand(2, 2, 8, 8)
    training = rlm.HookedPolicy(Convolutional().eval(), images)
    training.train()
    with pytest.raises(EngineError, match="train mode"):
        interchange_intervention(training, base=images, source=images, site="hook_obs")
