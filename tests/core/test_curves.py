"""Ranges of curves hold for every point of an interval, and are reached, to a few parts in a hundred thousand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmech.core.curve_table import SMOOTH, STRAIGHT
from rlmech.core.curves import Curve

CURVES: dict[str, Curve] = {
    **{name: make() for name, make in SMOOTH.items()},
    "gelu_tanh": SMOOTH["gelu"](approximate="tanh"),
    "softplus_beta": SMOOTH["softplus"](2.0, 5.0),
    "elu_alpha": SMOOTH["elu"](0.3, 1.2, 0.7),
    "celu_alpha": SMOOTH["celu"](0.4),
    **{name: STRAIGHT[name]() for name in STRAIGHT if name.partition("_")[0] not in {"prelu", "clamp", "threshold"}},
    "clamp": STRAIGHT["clamp"](-0.5, 2.0),
    "clamp_min": STRAIGHT["clamp_min"](0.3),
    "clamp_max": STRAIGHT["clamp_max"](0.7),
    "threshold": STRAIGHT["threshold"](0.2, -1.0),
    "prelu": STRAIGHT["prelu"](torch.tensor(0.3, dtype=torch.float64)),
}  # fmt: skip
OFFICIAL = {
    "tanh": torch.nn.Tanh(), "sigmoid": torch.nn.Sigmoid(), "gelu": torch.nn.GELU(), "silu": torch.nn.SiLU(),
    "gelu_tanh": torch.nn.GELU("tanh"), "softplus": torch.nn.Softplus(), "softplus_beta": torch.nn.Softplus(2.0, 5.0),
    "log_sigmoid": torch.nn.LogSigmoid(), "elu": torch.nn.ELU(), "selu": torch.nn.SELU(), "celu": torch.nn.CELU(),
    "celu_alpha": torch.nn.CELU(0.4), "mish": torch.nn.Mish(), "hardswish": torch.nn.Hardswish(),
    "relu": torch.nn.ReLU(), "leaky_relu": torch.nn.LeakyReLU(), "relu6": torch.nn.ReLU6(),
    "hardtanh": torch.nn.Hardtanh(), "softshrink": torch.nn.Softshrink(), "hardshrink": torch.nn.Hardshrink(),
    "hardsigmoid": torch.nn.Hardsigmoid(), "threshold": torch.nn.Threshold(0.2, -1.0), "rrelu": torch.nn.RReLU().eval(),
}  # fmt: skip
each_curve = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
number = st.floats(-30, 30)
width = st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0, 5.0, 40.0])


def real(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def boxes(n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres, and intervals around them from one side or both, of widths from 1e-4 to 20."""
    rng = np.random.default_rng(seed)
    at = rng.normal(0, 3, n)
    widths = 10 ** rng.uniform(-4, 1.3, (2, n)) * (rng.random((2, n)) < 0.9)
    return tuple(torch.from_numpy(v) for v in (at, at - widths[0], at + widths[1]))


def above_tangent(curve: Curve, at: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return curve.value(x) - curve.value(at) - curve.slope(at) * (x - at)


@pytest.mark.parametrize("name", OFFICIAL)
def test_values_are_those_of_torch(name):
    x = torch.linspace(-25, 25, 4001, dtype=torch.float64)
    torch.testing.assert_close(CURVES[name].value(x), OFFICIAL[name](x), rtol=1e-14, atol=1e-15)


@each_curve
def test_slope_and_curvature_are_the_derivatives(curve):
    x = torch.linspace(-8.0137, 8.0137, 3001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(curve.value(x).sum(), x, create_graph=True)
    torch.testing.assert_close(
        curve.slope(x.detach()), slope.detach(), rtol=1e-7, atol=1e-12
    )  # torch's own 1/6 is single
    y = x.detach().requires_grad_()
    own = curve.slope(y)
    (again,) = torch.autograd.grad(own.sum(), y) if own.requires_grad else (torch.zeros_like(x),)
    torch.testing.assert_close(curve.curvature(x.detach()), again, rtol=1e-9, atol=1e-12)


@each_curve
def test_between_knots_slopes_are_monotone_and_knots_are_where_they_turn(curve):
    for function, places in ((curve.value, curve.turns), (curve.slope, ()), (curve.curvature, curve.bends)):
        cuts = sorted({-30.0, *map(float, (*places, *curve.knots)), 30.0})
        for low, high in itertools.pairwise(cuts):
            inside = torch.linspace(low, high, 5001, dtype=torch.float64)[1:-1]
            steps = function(inside).diff()
            tolerance = 1e-14 * (1 + inside.abs().max())
            assert bool((steps >= -tolerance).all()) or bool((steps <= tolerance).all())


@each_curve
def test_no_sample_leaves_a_range(curve):
    at, low, high = boxes(1000, seed=1)
    share = torch.from_numpy(np.random.default_rng(2).random((100, 1)))
    x = (low + share * (high - low)).clamp(low, high)
    for function, found in (
        (curve.value, curve.range(low, high)),
        (curve.slope, curve.slope_range(low, high)),
        (curve.curvature, curve.curvature_range(low, high)),
        (lambda x: above_tangent(curve, at, x), curve.tangent_remainder(at, low, high)),
    ):  # fmt: skip
        y = function(x)
        assert bool((y >= found.low).all())
        assert bool((y <= found.high).all())


@each_curve
def test_ranges_are_reached_to_within_a_hundred_thousandth(curve):
    at, low, high = boxes(150, seed=3)
    grid = low + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * (high - low)
    edges = [torch.full_like(low, float(k)) for k in curve.knots]
    edges = [torch.nextafter(k, torch.full_like(k, s)) for k in edges for s in (-math.inf, math.inf)] + edges
    grid = torch.cat([grid, torch.stack([e.clamp(low, high) for e in edges])]) if edges else grid
    for function, found in (
        (curve.value, curve.range(low, high)),
        (curve.slope, curve.slope_range(low, high)),
        (lambda x: above_tangent(curve, at, x), curve.tangent_remainder(at, low, high)),
    ):  # fmt: skip
        y = function(grid)
        extent = 1e-5 * (y.amax(0) - y.amin(0)) + 1e-13 * (1 + at.abs() + y.abs().amax(0))
        assert bool((y.amin(0) - found.low <= extent).all())
        assert bool((found.high - y.amax(0) <= extent).all())


@each_curve
@settings(max_examples=60, deadline=None)
@given(at=number, below=width, above=width, slope=st.floats(-2, 2))
def test_an_adversary_finds_nothing_beyond_any_line(curve, at, below, above, slope):
    low, high, at, slope = real(at - below), real(at + above), real(at), real(slope)
    found = curve.off_line(at, slope, low, high)
    x = torch.cat([low + (high - low) * torch.linspace(0, 1, 201, dtype=torch.float64), at]).clamp(
        low, high
    )  # rounding
    for sign in (1.0, -1.0):
        best, step = x.clone(), (high - low) / 100
        for _ in range(25):  # pattern search from every start at once
            tries = torch.stack([best, (best - step).clamp(low, high), (best + step).clamp(low, high)])
            gaps = sign * (curve.value(tries) - curve.value(at) - slope * (tries - at))
            best = tries.gather(0, gaps.argmax(0, keepdim=True))[0]
            step = step * 0.6
        worst = curve.value(best) - curve.value(at) - slope * (best - at)
        assert bool((worst >= found.low).all())
        assert bool((worst <= found.high).all())


def test_known_remainders():
    square_like = CURVES["softplus"].tangent_remainder(real(0.0), real(-1.0), real(1.0))
    assert square_like.high.item() == pytest.approx(math.log(1 + math.e) - math.log(2) - 0.5, rel=1e-12)
    assert abs(square_like.low.item()) < 1e-11
    tanh = CURVES["tanh"].tangent_remainder(real(1.0), real(-3.0), real(3.0))
    slope = 1 - math.tanh(1) ** 2
    assert tanh.low.item() == pytest.approx(-2 * math.tanh(1) + 2 * slope, rel=1e-9)  # at -1, where the slope is equal
    assert tanh.high.item() == pytest.approx(0.0, abs=1e-11)
    relu = CURVES["relu"].tangent_remainder(real(1.0), real(-2.0), real(3.0))
    assert relu.high.item() == pytest.approx(2.0)
    assert relu.low.item() == pytest.approx(0.0, abs=1e-13)
