"""Bounds hold for every sample and for what an attack finds, are exact where nothing bends, and refuse by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rlmech as rlm
from rlmech.core.bounds.boxes import box_around
from rlmech.core.bounds.intervals import Interval
from rlmech.core.bounds.region import Region
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError, ObservationError
from tests.circuits.linear_networks import PLAIN, wrapped
from tests.networks import mlp


class Everything(nn.Module):
    """Products of what varies, masks that flip, pools, joins and indices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(17, 3)
        self.register_buffer("order", torch.tensor([3, 0, 5]))

    def forward(self, x):
        a, b = torch.tanh(self.a(x)), torch.sigmoid(self.b(x))
        gated = a * b - b / 3
        masked = torch.where(gated > 0.1, a, -b).masked_fill(a < -0.5, 0.25)
        crossed = torch.bmm(a.view(-1, 2, 3), b.view(-1, 3, 2)).flatten(1)
        pooled = F.max_pool1d(gated[:, None], 3, 1).squeeze(1)
        low, high = torch.minimum(a, b).split([2, 4], 1)
        chosen = masked.index_select(1, self.order)
        return self.head(torch.cat([crossed, pooled, low, high.amax(1, keepdim=True), chosen, x[:, 1:4]], 1))


CURVED = {
    "tanh": lambda: mlp(4, 12, 12, 3, activation=nn.Tanh),
    "gelu": lambda: mlp(4, 12, 12, 3, activation=nn.GELU),
    "silu": lambda: mlp(4, 12, 12, 3, activation=nn.SiLU),
    "mish": lambda: mlp(4, 12, 12, 3, activation=nn.Mish),
    "elu": lambda: mlp(4, 12, 12, 3, activation=nn.ELU),
    "softplus": lambda: mlp(4, 12, 12, 3, activation=nn.Softplus),
    "hardswish": lambda: mlp(4, 12, 12, 3, activation=nn.Hardswish),
    "everything": Everything,
}


def scores_at(policy):
    return next(point.address for point in policy.graph_engine.points.values() if point.kind == "output")


def region_of(policy, obs, radius):
    address = scores_at(policy)
    boxes = [Interval(obs - radius, obs + radius)]
    graph = policy.graph_engine.graph
    return Region(graph, (address.node,), arrays=[obs], box=boxes, given={}, precision=obs.dtype), address.node


def both_ways(n, rows):
    single = torch.eye(n).double()[:, None].expand(-1, rows, -1)
    return torch.cat([single, -single])


def samples(obs, radius, n, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moves = torch.rand(n, *obs.shape, generator=generator).double() * 2 - 1
    moves[: n // 3] = moves[: n // 3].sign()  # corners
    moves[n // 3 : n // 2] *= torch.rand(n // 2 - n // 3, *(1,) * obs.ndim, generator=generator).double()
    return obs + radius * moves


def attacked(policy, obs, radius, excess, n_bounds):
    """The largest excess over a bound that signed gradient steps from many starts find, `[bound batch]`."""
    x = samples(obs, radius, 6, seed=1)
    worst = torch.full((n_bounds, len(obs)), -torch.inf).double()
    for bound in range(n_bounds):
        y = x.clone()
        for step in (0.5, 0.3, 0.2, 0.1, 0.05, 0.02):
            y = y.detach().requires_grad_()
            value = excess(y)[:, bound]
            worst[bound] = torch.maximum(worst[bound], value.detach().amax(0))
            (slope,) = torch.autograd.grad(value.sum(), y)
            y = torch.maximum(torch.minimum(y + step * radius * slope.sign(), obs + radius), obs - radius)
        worst[bound] = torch.maximum(worst[bound], excess(y)[:, bound].detach().amax(0))
    return worst


@pytest.mark.parametrize("radius", [1e-3, 0.05, 0.5, 3.0])
@pytest.mark.parametrize("name", [*CURVED, *PLAIN])
def test_no_sample_and_no_attack_leaves_a_linear_bound(name, radius):
    if name in CURVED:
        torch.manual_seed(0)
        network = CURVED[name]().double()
        obs = torch.randn(3, 5 if name == "everything" else 4).double()
        policy = HookedPolicy(network, obs)
    else:
        policy, obs = wrapped(name)
        obs = obs[:3]
    region, node = region_of(policy, obs, radius)
    for slopes in ("tangent", "adapted"):
        bound = region.upper(node, both_ways(3, len(obs)), slopes)
        weights = torch.cat([torch.eye(3), -torch.eye(3)]).double()

        def excess(y, bound=bound, weights=weights):
            flat = y.flatten(0, 1)
            scores = policy(flat) @ weights.T
            line = torch.einsum("bri,sri->sbr", bound.slopes[0].flatten(2), (y - obs).flatten(2))
            return scores.unflatten(0, (len(y), len(obs))).transpose(1, 2) - bound.value - line

        with torch.no_grad():
            most = excess(samples(obs, radius, 600)).amax(0)
        most = torch.maximum(most, attacked(policy, obs, radius, excess, 6))
        assert bool((most <= bound.gap).all())
    interval = region.interval(node)
    with torch.no_grad():
        scores = policy(samples(obs, radius, 600).flatten(0, 1)).unflatten(0, (600, len(obs)))
    assert bool((scores <= interval.high).all())
    assert bool((scores >= interval.low).all())


@pytest.mark.parametrize("radius", [0.1, 2.0])
def test_every_node_lies_in_its_interval(radius):
    torch.manual_seed(0)
    obs = torch.randn(2, 5).double()
    policy = HookedPolicy(Everything().double(), obs)
    region, _ = region_of(policy, obs, radius)
    nodes = [
        n for n in region.order if n in region.known.intervals and isinstance(region.interval(n).low, torch.Tensor)
    ]
    program = policy.graph_engine.program(returned=nodes)
    for x in samples(obs, radius, 200):
        for node, value in zip(nodes, program((x,), (), ()), strict=True):
            ends = region.interval(node)
            assert bool((ends.low <= value).all() and (value <= ends.high).all()), node


def test_affine_networks_have_no_gap_and_exact_extremes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().eval()
    obs = torch.randn(5, 4).double()
    policy = HookedPolicy(network, obs)
    region, node = region_of(policy, obs, 0.7)
    bound = region.upper(node, both_ways(3, 5), "tangent")
    assert float(bound.gap.max()) < 1e-13
    jacobian = torch.func.jacrev(lambda x: network(x[None])[0])(obs[0])
    torch.testing.assert_close(bound.slopes[0][:3, 0], jacobian, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        region.largest(bound)[:3].T, (0.7 * jacobian.abs().sum(1)).expand(5, -1).detach(), rtol=1e-11, atol=1e-12
    )


def test_one_gate_and_one_curve_are_bounded_exactly():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    nn.init.ones_(network[0].weight)
    nn.init.ones_(network[2].weight)
    obs = torch.tensor([[0.5], [-0.5]]).double()
    policy = HookedPolicy(network, obs)
    region, node = region_of(policy, obs, 1.5)
    gap = region.upper(node, both_ways(1, 2), "tangent").gap
    torch.testing.assert_close(gap, torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double(), rtol=0, atol=1e-11)
    chord = region.largest(region.upper(node, both_ways(1, 2), "adapted"))
    torch.testing.assert_close(
        chord[0] + policy(obs)[:, 0].detach(), torch.tensor([2.0, 1.0]).double(), rtol=0, atol=1e-10
    )


def test_bounds_cover_the_rounding_of_single_precision():
    torch.manual_seed(0)
    single = mlp(6, 64, 64, 3, activation=nn.Tanh)
    obs = torch.randn(4, 6) * 3
    policy = HookedPolicy(single, obs)
    address = scores_at(policy)
    box = [Interval(obs.double(), obs.double())]
    region = Region(policy.graph_engine.graph, (address.node,), arrays=[obs], box=box, given={}, precision=obs.dtype)
    interval = region.interval(address.node)
    scores = policy(obs).detach().double()
    exact = mlp(6, 64, 64, 3, activation=nn.Tanh).double()
    exact.load_state_dict(single.state_dict())
    assert bool(((scores >= interval.low) & (scores <= interval.high)).all())
    assert bool(((exact(obs.double()) >= interval.low) & (exact(obs.double()) <= interval.high)).all())
    assert float((interval.high - interval.low).max()) < 1e-3


@pytest.mark.parametrize("op", ["layer_norm", "log_softmax", "sin", "lerp", "pow"])
def test_what_has_no_bound_is_refused_by_name(op):
    class Unbounded(nn.Module):
        def forward(self, x):
            made = {
                "layer_norm": lambda: F.layer_norm(x, (4,)),
                "log_softmax": lambda: x.log_softmax(1),
                "sin": lambda: x.sin(),
                "lerp": lambda: torch.lerp(x, x * 2, 0.3),
                "pow": lambda: x**3,
            }
            return made[op]() + x

    obs = torch.rand(2, 4).double()
    with pytest.raises(EngineError, match=f"No bound is known of '{op}'"):
        region_of(HookedPolicy(Unbounded(), obs), obs, 0.1)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (-0.1, "negative"),
        (float("nan"), "not finite"),
        ([0.1, 0.1], "does not fit"),
        ((0.0, 0.1, 0.2), "low and high"),
        ((2.0, 3.0), "leaves out"),
        ({"speed": 1.0}, "names no features"),
        ("wide", "does not fit"),
    ],
)
def test_boxes_that_do_not_fit_are_refused_in_words(box, said):
    obs = torch.rand(2, 4)
    policy = HookedPolicy(mlp(4, 6, 3), obs)
    with pytest.raises(ObservationError, match=said):
        box_around(policy, policy.coerce(obs), box)


def test_boxes_come_as_radius_radii_ends_or_names():
    policy, obs = wrapped("ego")
    arrays = policy.coerce(obs)
    names = list(policy.spec.names("feature"))
    radii = torch.zeros(len(names)).double()
    radii[names.index("vx")] = 0.3
    (by_name,), (by_radii,) = box_around(policy, arrays, {"vx": 0.3}), box_around(policy, arrays, radii)
    torch.testing.assert_close(by_name.low, by_radii.low)
    torch.testing.assert_close(by_name.high - by_name.low, 2 * radii.expand_as(obs), atol=1e-12, rtol=0)
    (ends,) = box_around(policy, arrays, (obs - 1, obs + 2))
    torch.testing.assert_close(ends.high - ends.low, torch.full_like(obs, 3.0))


def test_values_that_are_overwritten_in_part_or_as_a_whole_are_bounded():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            v = torch.tanh(self.first(x))
            v[:, 3:6] += v[:, :3]
            v[:, 0].mul_(2)
            v[:, 1] = v[:, 2]
            return self.last(v)

    torch.manual_seed(0)
    net, obs = InPlace().double(), torch.rand(3, 4, dtype=torch.float64)
    found = rlm.certify.score_bounds(HookedPolicy(net, obs), obs, box=0.3)
    moved = obs + 0.3 * (2 * torch.rand(500, 3, 4, dtype=torch.float64) - 1)
    scores = net(moved.flatten(0, 1)).unflatten(0, (500, 3)).detach().numpy()
    assert (scores >= found.low.values).all()
    assert (scores <= found.high.values).all()


@pytest.mark.parametrize(
    "step",
    [
        lambda v: (v > 0).to(v.dtype) + v,
        lambda v: (v > 0).float() * v,
        lambda v: v - (v > 0.1).double(),
    ],
)
def test_truth_values_that_become_numbers_are_bounded(step):
    torch.manual_seed(0)
    first, last = nn.Linear(4, 6), nn.Linear(6, 3)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            return self.last(step(self.first(x)).to(self.last.weight.dtype))

    net, obs = Steps(), torch.rand(3, 4) - 0.5
    policy = HookedPolicy(net, obs)
    moved = obs + 0.2 * (2 * torch.rand(500, 3, 4) - 1)
    scores = net(moved.flatten(0, 1)).unflatten(0, (500, 3)).detach().numpy()
    for method in ("linear", "interval"):
        found = rlm.certify.score_bounds(policy, obs, box=0.2, method=method)
        assert (scores >= found.low.values).all()
        assert (scores <= found.high.values).all()
