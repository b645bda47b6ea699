"""Off-manifold distance: what occurs is usual, and what cannot occur is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError, ObservationError, SiteError
from rlmech.patching.manifold import ledoit_wolf, off_manifold_distance
from tests.networks import FusedAttention, mlp, scenes


def policy_of(*sizes: int) -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(mlp(*sizes).double(), torch.rand(2, sizes[0], dtype=torch.float64))


def test_the_shrinkage_is_ledoit_and_wolf_s_by_its_definition():
    rows = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.arange(1.0, 8, dtype=torch.float64)
    )
    for x in (rows, rows[:5]):
        centred = x - x.mean(0)
        covariance = centred.T @ centred / len(x)
        scale = covariance.trace() / 7
        distance = ((covariance - scale * torch.eye(7).double()) ** 2).sum() / 7
        noise = sum(((row[:, None] * row - covariance) ** 2).sum() / 7 for row in centred) / len(x) ** 2
        expected = float(min(noise, distance) / distance)
        np.testing.assert_allclose(ledoit_wolf(x), (expected, float(scale)), rtol=1e-12)


def test_distances_are_those_of_the_definition():
    policy = policy_of(5, 6, 3)
    reference, base, source = torch.randn(40, 5).double(), torch.randn(7, 5).double(), torch.randn(7, 5).double()
    site = rlm.Site("0.hook_out", neuron=(1, 4))
    found = off_manifold_distance(policy, base=base, source=source, reference=reference, sites=site, seed=3)
    values = [policy.run_with_cache(x)[1]["0.hook_out"].detach() for x in (reference, base, source)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    fitted, held_out = values[0][order[::2]], values[0][order[1::2]]
    patched = values[1].clone()
    patched[:, [1, 4]] = values[2][:, [1, 4]]
    shrinkage, scale = ledoit_wolf(fitted)
    sigma = (1 - shrinkage) * torch.cov(fitted.T, correction=0) + shrinkage * scale * torch.eye(6).double()

    def mahalanobis(x):
        gap = x - fitted.mean(0)
        return (gap @ torch.linalg.inv(sigma) * gap).sum(1).sqrt()

    np.testing.assert_allclose(found["distance"][0], mahalanobis(patched), rtol=1e-9)
    nearest = (patched[:, None] - fitted).norm(dim=2).amin(1)
    np.testing.assert_allclose(found["nearest"][0], nearest, rtol=1e-9)
    nearer = (mahalanobis(held_out) < mahalanobis(patched)[:, None]).double().mean(1)
    np.testing.assert_allclose(found["percentile"][0], 100 * nearer, rtol=1e-9)


def test_more_units_than_reference_rows_are_no_obstacle():
    policy = policy_of(5, 64, 3)
    reference, base, source = torch.randn(20, 5).double(), torch.randn(3, 5).double(), torch.randn(3, 5).double()
    found = off_manifold_distance(policy, base=base, source=source, reference=reference, sites="1.hook_out")
    values = [policy.run_with_cache(x)[1]["1.hook_out"].detach() for x in (reference, source)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    fitted = values[0][order[::2]]
    shrinkage, scale = ledoit_wolf(fitted)
    sigma = (1 - shrinkage) * torch.cov(fitted.T, correction=0) + shrinkage * scale * torch.eye(64).double()
    gap = values[1] - fitted.mean(0)
    np.testing.assert_allclose(found["distance"][0], (gap @ torch.linalg.inv(sigma) * gap).sum(1).sqrt(), rtol=1e-7)


def test_whole_rows_that_occur_are_usual_and_mixed_rows_are_not():
    """Two units that always agree: patching one of them alone makes what never occurs, though each value does."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        net[0].bias.zero_()
    policy = rlm.HookedPolicy(net, torch.rand(2, 1))
    reference, base = torch.randn(400, 1), torch.randn(200, 1)
    source = base.sign() * -1.5
    sites = [rlm.Site("0.hook_out"), rlm.Site("0.hook_out", neuron=0)]
    found = off_manifold_distance(policy, base=base, source=torch.randn(200, 1), reference=reference, sites=sites)
    assert abs(found["percentile"][0].mean().item() - 50) < 10
    found = off_manifold_distance(policy, base=base, source=source, reference=reference, sites=sites)
    assert found["percentile"][1].min() == 100
    assert found["percentile"][0].max() < 100
    assert (found["nearest_percentile"][1].median() > 95).item()


def test_edits_of_any_kind_are_judged_like_patches():
    policy = policy_of(5, 6, 3)
    reference, base, source = torch.randn(3, 30, 5).double()
    _, cache = policy.run_with_cache(source)
    site = rlm.Site("1.hook_out", neuron=2)
    patched = off_manifold_distance(policy, base=base, source=source, reference=reference, sites=[site])
    edits = [rlm.patch(site, source=cache), rlm.zero_ablation("1.hook_out")]
    edited = off_manifold_distance(policy, base=base, reference=policy.run_with_cache(reference)[1], edits=edits)
    np.testing.assert_array_equal(patched["distance"][0], edited["distance"][0])
    assert edited["hook"].to_numpy().tolist() == ["1.hook_out", "1.hook_out"]
    assert dict(edited.sizes) == {"site": 2, "pair": 30}


def test_units_that_never_vary_are_usual_as_they_are_and_infinitely_far_when_moved():
    net = mlp(3, 2, 2)
    with torch.no_grad():
        net[0].weight.zero_()
    policy = rlm.HookedPolicy(net, torch.rand(2, 3))
    edits = [rlm.zero_ablation("hook_q_values"), rlm.steer("0.hook_out", torch.zeros(2))]
    found = off_manifold_distance(policy, base=torch.rand(3, 3), reference=torch.rand(20, 3), edits=edits)
    assert found["distance"].to_numpy().tolist() == [[np.inf] * 3, [0.0] * 3]
    assert found["percentile"].to_numpy().tolist() == [[100.0] * 3, [50.0] * 3]


def test_masked_scores_do_not_make_nan():
    policy = rlm.HookedPolicy(FusedAttention(), scenes(2))
    found = off_manifold_distance(
        policy, base=scenes(4), source=scenes(4, seed=1), reference=scenes(40, seed=2), sites="hook_attn_scores"
    )
    assert not found["distance"].isnull().any()


def test_what_does_not_fit_is_refused():
    policy = policy_of(5, 6, 3)
    x = torch.randn(8, 5).double()
    with pytest.raises(ConfigError, match="either patches"):
        off_manifold_distance(policy, base=x, reference=x)
    with pytest.raises(ConfigError, match="either patches"):
        off_manifold_distance(policy, base=x, reference=x, source=x, edits=[rlm.zero_ablation("hook_obs")])
    with pytest.raises(ObservationError, match="pair up"):
        off_manifold_distance(policy, base=x, reference=x, source=x[:3])
    with pytest.raises(ObservationError, match="too small"):
        off_manifold_distance(policy, base=x, reference=x[:3], source=x)
    masked = rlm.HookedPolicy(FusedAttention(), scenes(2))
    with pytest.raises(SiteError, match="no distances at 'hook_mask'"):
        off_manifold_distance(masked, base=scenes(4), reference=scenes(9), source=scenes(4), sites="hook_mask")
