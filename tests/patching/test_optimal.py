"""The optimal constant hurts least: never more than the mean, and the known answer where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError, EngineError, MetricError, ObservationError, SiteError
from rlmech.metrics.score_metrics import action_flip, policy_kl
from rlmech.patching.optimal import optimal_constants
from tests.networks import Convolutional, FusedAttention, MultiHead, ScaledQueries, mlp, scenes


def policies():
    torch.manual_seed(0)
    images = torch.rand(12, 2, 8, 8)
    return {
        "mlp": (mlp(5, 7, 7, 3), torch.randn(12, 5)),
        "convolution": (Convolutional(), images),
        "multi-head": (MultiHead(), scenes(12)),
        "fused attention": (FusedAttention(), scenes(12)),
        "scaled queries": (ScaledQueries(), scenes(12)),
    }


def ablated_loss(policy, obs, edit):
    with torch.no_grad():
        scores = policy(obs)
        with policy.edited([edit]):
            return float((policy(obs) - scores).square().mean())


@pytest.mark.parametrize("name", list(policies()))
def test_it_never_hurts_more_than_the_mean_and_the_loss_is_that_of_its_edit(name):
    module, obs = policies()[name]
    obs = obs.double()
    policy = rlm.HookedPolicy(module.double().eval(), obs[:2])
    points = [n for n, p in policy.hook_dict.items() if p.kind != "mask" and p.axes[1:2]]
    sites = [site for n in points for site in (rlm.Site(n), rlm.Site(n, **{policy.hook_dict[n].axes[1]: 0}))]
    found = optimal_constants(policy, obs, sites=sites, n_steps=5)
    _, reference = policy.run_with_cache(obs)
    assert found.sites == tuple(sites)
    assert (found.loss <= found.mean_loss).all()
    assert (found.loss < 0.99 * found.mean_loss).any()
    for i, site in enumerate(sites):
        assert found.values[site].shape == reference[site.name][:1].shape
        np.testing.assert_allclose(ablated_loss(policy, obs, found.edit(site)), found.loss[i], atol=1e-12)
        mean = ablated_loss(policy, obs, rlm.mean_ablation(site, reference=reference))
        np.testing.assert_allclose(mean, found.mean_loss[i], atol=1e-12)


def test_before_a_linear_tail_the_mean_is_optimal():
    policy = rlm.HookedPolicy(mlp(5, 7, 3).double(), torch.rand(2, 5).double())
    obs = torch.randn(20, 5).double()
    found = optimal_constants(policy, obs, sites=["1.hook_out"], n_steps=30)
    np.testing.assert_allclose(found.loss, found.mean_loss, rtol=1e-12)
    torch.testing.assert_close(found.values[found.sites[0]], policy.run_with_cache(obs)[1]["1.hook_out"].mean(0)[None])


def test_before_a_gate_it_finds_the_constant_that_gives_the_gate_s_mean():
    """Q = relu(h): the best constant is the mean of relu(h), far from relu of the mean; the loss is its variance."""
    net = mlp(1, 1, 2)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (1.0, 0.0, [[1.0], [0.0]], 0.0), strict=True):
            parameter.copy_(torch.tensor(value))
    policy = rlm.HookedPolicy(net.double(), torch.rand(2, 1).double())
    obs = torch.linspace(-1, 2, 31, dtype=torch.float64)[:, None]
    found = optimal_constants(policy, obs, sites="0.hook_out", n_steps=400)
    gated = obs.relu()
    torch.testing.assert_close(found.values[found.sites[0]], gated.mean()[None, None], atol=1e-3, rtol=0)
    np.testing.assert_allclose(found.loss[0], float(gated.var(correction=0)) / 2, rtol=1e-5)


def test_each_site_s_constant_is_that_of_the_site_alone_however_many_share_the_passes(monkeypatch):
    module, obs = policies()["fused attention"]
    policy = rlm.HookedPolicy(module.double(), obs[:2].double())
    sites = policy.sites("hook_v", over="entity")
    together = optimal_constants(policy, obs.double(), sites=sites, n_steps=8)
    for site in sites[:3]:
        alone = optimal_constants(policy, obs.double(), sites=[site], n_steps=8)
        torch.testing.assert_close(alone.values[site], together.values[site], atol=1e-10, rtol=0)
    monkeypatch.setattr("rlmech.patching.optimal._ROWS_AT_ONCE", 20)
    stacked = optimal_constants(policy, obs.double(), sites=sites, n_steps=8)
    np.testing.assert_allclose(stacked.loss, together.loss, atol=1e-12)


def test_the_loss_may_be_any_differentiable_metric():
    policy = rlm.HookedPolicy(mlp(5, 7, 3), torch.rand(2, 5))
    obs = torch.randn(30, 5)
    found = optimal_constants(policy, obs, sites="0.hook_out", loss=policy_kl(temperature=0.5), n_steps=30)
    assert (found.loss_name, found.loss_unit) == ("policy_kl(tau=0.5)", "nat")
    assert 0 < found.loss[0] < found.mean_loss[0]
    stochastic = rlm.HookedPolicy(mlp(5, 7, 3), torch.rand(2, 5), output_kind="logits")
    assert optimal_constants(stochastic, obs, sites="0.hook_out", n_steps=1).loss_name == "policy_kl"


def test_it_leaves_no_gradients_and_works_under_no_grad():
    policy = rlm.HookedPolicy(mlp(5, 7, 3), torch.rand(2, 5))
    with torch.no_grad():
        found = optimal_constants(policy, torch.randn(30, 5), sites="0.hook_out", n_steps=20)
    assert found.loss[0] < found.mean_loss[0]
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert not found.values[found.sites[0]].requires_grad


def test_what_does_not_fit_is_refused():
    policy = rlm.HookedPolicy(FusedAttention(), scenes(2))
    with pytest.raises(ConfigError, match="in steps"):
        optimal_constants(policy, scenes(4), n_steps=0)
    with pytest.raises(MetricError, match="action_flip"):
        optimal_constants(policy, scenes(4), loss=action_flip())
    with pytest.raises(SiteError, match="hook_mask"):
        optimal_constants(policy, scenes(4), sites="hook_mask")
    with pytest.raises(ObservationError, match="no run"):
        optimal_constants(policy, scenes(4)[:0])
    images = torch.rand(2, 2, 8, 8)
    training = rlm.HookedPolicy(nn.Sequential(Convolutional(), Scores()).eval(), images)
    training.train()
    with pytest.raises(EngineError, match="traced graph"):
        optimal_constants(training, images)


class Scores(nn.Module):
    """Leaves the value head out."""

    def forward(self, outputs):
        return outputs[0]


class Coupled(nn.Module):
    """Scores that depend on the other rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        return self.head(torch.relu(h - h.mean(0, keepdim=True)))


def test_a_network_that_couples_rows_is_refused():
    x = torch.randn(6, 4)
    policy = rlm.HookedPolicy(Coupled(), x)
    with pytest.raises(EngineError, match="couples the rows"):
        optimal_constants(policy, x)
