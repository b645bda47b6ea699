"""Regions are told apart by their gates, and the margin is how far it is to the next one."""

import numpy as np
import pytest
import torch

from rlmech.attribution.affine import local_affine
from rlmech.attribution.readouts import scores_of
from rlmech.attribution.regions import gate_reads, region_margins
from rlmech.circuits.frozen import freeze
from rlmech.core.policy import HookedPolicy
from tests.circuits.linear_networks import Dictionary, wrapped
from tests.networks import SPEC, mlp

GATED = ["mlp", "leaky", "in_place", "called_twice", "all_gates", "convolutional", "dueling"]


def region(policy, obs):
    return local_affine(policy, obs).region.values


def test_regions_are_equal_exactly_where_all_gates_are():
    torch.manual_seed(0)
    policy = HookedPolicy(mlp(2, 6, 6, 3).double(), torch.rand(2, 2).double())
    obs = torch.randn(400, 2).double()
    _, cache = policy.run_with_cache(obs, ["1.hook_out", "3.hook_out"])
    gates = torch.cat([cache["1.hook_out"] > 0, cache["3.hook_out"] > 0], 1)
    equal = (gates[:, None] == gates[None]).all(-1).numpy()
    ids = region(policy, obs)
    np.testing.assert_array_equal(ids[:, None] == ids[None], equal)
    assert 10 < len(set(ids.tolist())) < 400


@pytest.mark.parametrize("name", GATED)
def test_observations_of_one_region_share_one_map(name):
    policy, obs = wrapped(name)
    obs = obs.repeat(40, *(1,) * (obs.ndim - 1))
    reach = torch.logspace(-4, 0, len(obs), dtype=torch.float64).view(-1, *(1,) * (obs.ndim - 1))
    moved = obs + reach * torch.randn(obs.shape, generator=torch.Generator().manual_seed(2)).double()
    first, second = local_affine(policy, obs), local_affine(policy, moved)
    same = (first.region == second.region).values
    change = np.abs(first.jacobian.values - second.jacobian.values).reshape(len(obs), -1).max(1)
    np.testing.assert_allclose(change[same], 0, atol=1e-12)
    assert same.any()
    assert change[~same].max() > 1e-3


@pytest.mark.parametrize("name", GATED)
def test_no_move_shorter_than_the_margin_leaves_the_region(name):
    policy, obs = wrapped(name)
    margin = torch.as_tensor(region_margins(policy, obs).margin.values)
    here = region(policy, obs)
    shape = (-1, *(1,) * (obs.ndim - 1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        way = torch.randn(obs.shape, generator=generator).double()
        way = way / way.flatten(1).norm(dim=1).view(shape)
        np.testing.assert_array_equal(region(policy, obs + 0.99 * margin.view(shape) * way), here)


@pytest.mark.parametrize("name", GATED)
def test_the_margin_is_reached_straight_towards_the_nearest_gate(name):
    policy, obs = wrapped(name)
    margin = torch.as_tensor(region_margins(policy, obs).margin.values)
    here = region(policy, obs)
    shape = (-1, *(1,) * (obs.ndim - 1))
    left = np.zeros(len(obs), dtype=bool)
    for way in gate_directions(policy, obs):
        way = way / way.flatten(1).norm(dim=1).clamp_min(1e-12).view(shape)
        near, far = obs + 0.99 * margin.view(shape) * way, obs + 1.01 * margin.view(shape) * way
        np.testing.assert_array_equal(region(policy, near), here)
        left |= region(policy, far) != here
    assert left.all()


def gate_directions(policy, obs):
    """Straight towards each gate of the network, both ways: gradients of all that the gates read."""
    frozen = freeze(policy, (scores_of(policy).node,))
    x = obs.clone().requires_grad_()
    values = frozen.run((x,), gate_reads(frozen))
    for gate in frozen.gates:
        for boundary in gate.boundaries(values):
            for column in boundary.distance.flatten(1).T:
                if column.requires_grad:
                    (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True)
                    yield slope
                    yield -slope


def test_the_nearest_gate_is_named_with_its_place():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
    net[0].weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]).double()
    net[0].bias.data = torch.tensor([0.0, 1.0, -0.1]).double()
    policy = HookedPolicy(net, torch.rand(2, 2).double())
    obs = torch.tensor([[1.0, 0.5], [0.2, 1.0], [9.0, -0.8]]).double()
    found = region_margins(policy, obs)
    np.testing.assert_allclose(found.margin, [0.9, 0.1, 0.2])  # 0.9/1; 0.1/1; 0.2/1
    assert found.nearest_gate.values.tolist() == ["1.hook_out"] * 3
    assert found.nearest_position.values.tolist() == ["2", "2", "1"]


def test_with_attention_the_margin_is_that_of_the_frozen_policy():
    policy, obs = wrapped("ego")
    margin = torch.as_tensor(region_margins(policy, obs).margin.values)
    x = obs.clone().requires_grad_()
    held = {}

    def keep(value, hook):
        held[hook.name] = value

    def freeze(value, hook):
        return value.detach()

    names = [name for name in policy.hook_dict if ".layers." in name]  # what each ReLU reads
    policy.run_with_hooks(x, fwd_hooks=[("attention_layer.hook_pattern", freeze), *((name, keep) for name in names)])
    least = torch.full((len(obs),), torch.inf).double()
    for value in held.values():
        for column in value.flatten(1).T:
            (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True)
            distance = column.abs() / slope.flatten(1).norm(dim=1)
            least = torch.minimum(least, distance.nan_to_num(torch.inf).detach())
    np.testing.assert_allclose(margin, least, rtol=1e-10)


def test_margins_come_in_chunks_as_in_one(monkeypatch):
    policy, obs = wrapped("convolutional")
    whole = region_margins(policy, obs)
    monkeypatch.setattr("rlmech.attribution.regions._NUMBERS_AT_ONCE", 1)
    parts = region_margins(policy, obs)
    np.testing.assert_allclose(parts.margin, whole.margin, rtol=1e-12)
    assert parts.nearest_position.values.tolist() == whole.nearest_position.values.tolist()
    assert region_margins(policy, obs[:0]).margin.shape == (0,)


def test_without_gates_there_is_one_region_without_a_border():
    policy = HookedPolicy(torch.nn.Linear(4, 3), torch.rand(2, 4), spec=SPEC)
    found = region_margins(policy, torch.rand(3, 4))
    assert np.isinf(found.margin).all()
    assert (found.region == found.region[0]).all()
    assert found.nearest_gate.values.tolist() == [""] * 3


def test_dictionaries_have_margins_over_all_their_arrays():
    torch.manual_seed(0)
    obs = {"track": torch.randn(6, 2, 3).double(), "camera": torch.randn(6, 4).double()}
    policy = HookedPolicy(Dictionary().double(), obs)
    margin = region_margins(policy, obs).margin.values
    here = region(policy, obs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        moves = {key: torch.randn(value.shape, generator=generator).double() for key, value in obs.items()}
        norm = torch.cat([move.flatten(1) for move in moves.values()], 1).norm(dim=1)
        scale = torch.as_tensor(0.99 * margin) / norm
        shifted = {key: value + moves[key] * scale.view(-1, *(1,) * (value.ndim - 1)) for key, value in obs.items()}
        np.testing.assert_array_equal(region(policy, shifted), here)
