"""Slopes of boundaries found in shared passes are autograd's, whichever way the numbers of an observation meet."""

import pytest
import torch
from torch import nn

from rlmech import HookedPolicy
from rlmech.attribution.boundary_slopes import boundaries, plan_of, steepness
from rlmech.attribution.readouts import scores_of
from rlmech.attribution.regions import gate_reads
from rlmech.circuits.frozen import freeze
from rlmech.nets import EgoAttentionNetwork


class Vehicles(nn.Module):
    """Every vehicle by itself, then all together in one of several ways."""

    def __init__(self, join):
        super().__init__()
        self.join, self.each, self.head = join, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.each(x))
        return self.head(torch.relu(self.join(x)))


JOINS = {
    "mean": lambda x: x.mean(1),
    "difference": lambda x: x[:, 0] - x[:, 3],
    "maximum": lambda x: torch.maximum(x[:, 1], x[:, 4]),
    "largest": lambda x: x.amax(1),
    "first": lambda x: x[:, 0],
    "joined, then one": lambda x: torch.cat([x.sum(1, keepdim=True), x], 1)[:, 2],
}


def network(name):
    torch.manual_seed(0)
    if name == "perceptron":
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 5)
    if name == "attention":
        net = EgoAttentionNetwork(3, 2, d_model=8, n_heads=2, embedding=(6, 8), output=(6,))
        return net, torch.rand(4, 5, 3).round(decimals=1)
    return Vehicles(JOINS[name]), torch.randn(4, 5, 3)


@pytest.mark.parametrize("name", ["perceptron", "attention", *JOINS])
def test_the_slope_of_each_boundary_is_autograds(name):
    net, obs = network(name)
    net, obs = net.double(), obs.double()
    policy = HookedPolicy(net, obs)
    frozen = freeze(policy, (scores_of(policy).node,))
    plan = plan_of(frozen, [obs[0].numel()])
    x = obs.clone().requires_grad_()
    values = frozen.run((x,), (*gate_reads(frozen), *frozen.patterns, *frozen.ends))
    heights = boundaries(frozen.gates, values, obs, len(obs))
    want = [torch.autograd.grad(h.sum(), x, retain_graph=True)[0].flatten(1).norm(dim=1) for h in heights.T]
    widths = [sum(b.distance[0].numel() for b in gate.boundaries(values)) for gate in frozen.gates]
    patterns = [values[pattern].detach() for pattern in frozen.patterns]
    found = steepness(frozen, plan, (obs,), patterns, widths=widths)
    torch.testing.assert_close(found, torch.stack(want, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "passes"), [("perceptron", 5), ("attention", 3), ("mean", 3), ("maximum", 6)])
def test_features_of_different_vehicles_share_a_pass_until_they_meet(name, passes):
    net, obs = network(name)
    policy = HookedPolicy(net, obs)
    frozen = freeze(policy, (scores_of(policy).node,))
    plan = plan_of(frozen, [obs[0].numel()])
    assert plan.n_colours == passes
    assert all(plan.early) == (name in ("perceptron", "maximum"))
