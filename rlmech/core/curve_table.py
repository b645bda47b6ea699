"""The curves of torch's elementwise operations, by their names, from the arguments behind the first.

Where the slope and the curvature turn is written as constants, found to 20 digits with mpmath from the derivatives'
zeros; a test looks that each function is monotone between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlmech.core.curves import Curve

_SQRT_2, _DENSITY = math.sqrt(2), 1 / math.sqrt(2 * math.pi)
_GELU_SCALE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _tanh_slope(x: Tensor) -> Tensor:
    return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)  # 1 - tanh^2 would lose all digits far out


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _density(x: Tensor) -> Tensor:
    return _DENSITY * torch.exp(-x * x / 2)


def _normal(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / _SQRT_2)


def _tanh() -> Curve:
    return Curve(
        name="tanh",
        value=torch.tanh,
        slope=_tanh_slope,
        curvature=lambda x: -2 * torch.tanh(x) * _tanh_slope(x),
        knots=(0.0,),
        bends=(-0.65847894846240835431, 0.65847894846240835431),
    )


def _sigmoid() -> Curve:
    return Curve(
        name="sigmoid",
        value=torch.sigmoid,
        slope=_sigmoid_slope,
        curvature=lambda x: -torch.tanh(x / 2) * _sigmoid_slope(x),
        knots=(0.0,),
        bends=(-1.3169578969248167086, 1.3169578969248167086),
    )


def _gelu(approximate: str = "none") -> Curve:
    if approximate == "tanh":
        return _gelu_by_tanh()
    return Curve(
        name="gelu",
        cancels=True,
        value=F.gelu,
        slope=lambda x: _normal(x) + x * _density(x),
        curvature=lambda x: _density(x) * (2 - x * x),
        turns=(-0.75179152469356445746,),
        knots=(-_SQRT_2, _SQRT_2),
        bends=(-2.0, 0.0, 2.0),
    )


def _gelu_by_tanh() -> Curve:
    def inner(x: Tensor) -> Tensor:
        return _GELU_SCALE * (x + _GELU_CUBE * x**3)

    def inner_slope(x: Tensor) -> Tensor:
        return _GELU_SCALE * (1 + 3 * _GELU_CUBE * x * x)

    def curvature(x: Tensor) -> Tensor:
        u, slope = inner(x), inner_slope(x)
        return _tanh_slope(u) * (slope + 3 * _GELU_SCALE * _GELU_CUBE * x * x - x * torch.tanh(u) * slope**2)

    return Curve(
        name="gelu (tanh)",
        cancels=True,
        value=lambda x: F.gelu(x, approximate="tanh"),
        slope=lambda x: torch.sigmoid(2 * inner(x)) + x / 2 * _tanh_slope(inner(x)) * inner_slope(x),
        curvature=curvature,
        turns=(-0.75246142207101625849,),
        knots=(-1.4185040087908283555, 1.4185040087908283555),
        bends=(-2.0134807246242579281, 0.0, 2.0134807246242579281),
    )


def _silu() -> Curve:
    return Curve(
        name="silu",
        value=F.silu,
        slope=lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x)),
        curvature=lambda x: _sigmoid_slope(x) * (2 - x * torch.tanh(x / 2)),
        turns=(-1.2784645427610737951,),
        knots=(-2.3993572805154676678, 2.3993572805154676678),
        bends=(-3.435840993535110689, 0.0, 3.435840993535110689),
    )


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    straight_from = threshold / beta  # torch's own: beyond it the function is x, a jump of exp(-threshold) / beta
    return Curve(
        name="softplus",
        value=lambda x: F.softplus(x, beta, threshold),
        slope=lambda x: torch.where(beta * x > threshold, 1.0, torch.sigmoid(beta * x)),
        curvature=lambda x: torch.where(beta * x > threshold, 0.0, beta * _sigmoid_slope(beta * x)),
        knots=(straight_from,),
        kinks=(straight_from,),
        bends=(0.0,),
    )


def _log_sigmoid() -> Curve:
    return Curve(
        name="log_sigmoid",
        value=F.logsigmoid,
        slope=lambda x: torch.sigmoid(-x),
        curvature=lambda x: -_sigmoid_slope(x),
        bends=(0.0,),
    )


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0, *, name: str = "elu") -> Curve:
    return Curve(
        name=name,
        cancels=True,
        value=lambda x: torch.where(x > 0, scale * x, scale * alpha * torch.expm1(input_scale * x.clamp(max=0))),
        slope=lambda x: torch.where(
            x > 0, scale, scale * alpha * input_scale * torch.exp(input_scale * x.clamp(max=0))
        ),
        curvature=lambda x: torch.where(
            x > 0, 0.0, scale * alpha * input_scale**2 * torch.exp(input_scale * x.clamp(max=0))
        ),
        knots=(0.0,),
        kinks=(0.0,),
    )


def _mish() -> Curve:
    def slope(x: Tensor) -> Tensor:
        w = F.softplus(x)
        return torch.tanh(w) + x * _tanh_slope(w) * torch.sigmoid(x)

    def curvature(x: Tensor) -> Tensor:
        w, share = F.softplus(x), torch.sigmoid(x)
        return _tanh_slope(w) * share * (2 + x * (torch.sigmoid(-x) - 2 * torch.tanh(w) * share))

    return Curve(
        name="mish",
        value=F.mish,
        slope=slope,
        curvature=curvature,
        turns=(-1.1924312145154952121,),
        knots=(-2.25637639636079312, 1.4905711794854284593),
        bends=(-3.2673378465204045761, -0.087934431314914211327, 2.1148425630208771086),
    )


def _hardswish() -> Curve:
    return Curve(
        name="hardswish",
        cancels=True,
        value=F.hardswish,
        slope=lambda x: torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6)),
        curvature=lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 3,
        turns=(-1.5,),
        knots=(-3.0, 3.0),
        kinks=(-3.0, 3.0),
    )


def _erf() -> Curve:
    return Curve(
        name="erf",
        value=torch.erf,
        slope=lambda x: 2 * _SQRT_2 * _density(_SQRT_2 * x),
        curvature=lambda x: -4 * _SQRT_2 * x * _density(_SQRT_2 * x),
        knots=(0.0,),
        bends=(-1 / _SQRT_2, 1 / _SQRT_2),
    )


def _atan() -> Curve:
    return Curve(
        name="atan",
        value=torch.atan,
        slope=lambda x: 1 / (1 + x * x),
        curvature=lambda x: -2 * x / (1 + x * x) ** 2,
        knots=(0.0,),
        bends=(-1 / math.sqrt(3), 1 / math.sqrt(3)),
    )


def _exp() -> Curve:
    return Curve(name="exp", value=torch.exp, slope=torch.exp, curvature=torch.exp)


def _expm1() -> Curve:
    return Curve(name="expm1", value=torch.expm1, slope=torch.exp, curvature=torch.exp)


def _between(low: Any = None, high: Any = None, *, name: str = "clamp") -> Curve:
    bounds = [bound for bound in (low, high) if bound is not None]

    def slope(x: Tensor) -> Tensor:
        inside = torch.ones_like(x)
        inside = inside if low is None else torch.where(x < low, 0.0, inside)
        return inside if high is None else torch.where(x > high, 0.0, inside)

    return Curve(name=name, value=lambda x: torch.clamp(x, low, high), slope=slope, knots=tuple(bounds), straight=True)


def _leaky(slope: Any = 0.01, *, name: str = "leaky_relu") -> Curve:
    """One slope to the right of 0 and another, for some curves one for each channel, to its left."""

    def left(x: Tensor) -> Any:
        several = isinstance(slope, Tensor) and slope.numel() > 1 and x.ndim > 1
        return slope.reshape(-1, *(1,) * (x.ndim - 2)) if several else slope

    return Curve(
        name=name,
        value=lambda x: torch.where(x > 0, x, left(x) * x),
        slope=lambda x: torch.where(x > 0, 1.0, left(x) * torch.ones_like(x)),
        knots=(0.0,),
        straight=True,
    )


def _threshold(threshold: float, value: float) -> Curve:
    return Curve(
        name="threshold",
        value=lambda x: F.threshold(x, threshold, value),
        slope=lambda x: (x > threshold).to(x.dtype),
        knots=(threshold,),
        straight=True,
    )


def _shrink(size: float = 0.5, *, jumps: bool) -> Curve:
    return Curve(
        name="hardshrink" if jumps else "softshrink",
        value=lambda x: F.hardshrink(x, size) if jumps else F.softshrink(x, size),
        slope=lambda x: (x.abs() > size).to(x.dtype),
        knots=(-size, size),
        straight=True,
    )


def _hardsigmoid() -> Curve:
    return Curve(
        name="hardsigmoid",
        cancels=True,
        value=F.hardsigmoid,
        slope=lambda x: (x.abs() < 3).to(x.dtype) / 6,
        knots=(-3.0, 3.0),
        straight=True,
    )


SMOOTH: dict[str, Callable[..., Curve]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "gelu": _gelu,
    "silu": _silu,
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "elu": _elu,
    "selu": lambda: _elu(_SELU_ALPHA, _SELU_SCALE, name="selu"),
    "celu": lambda alpha=1.0: _elu(alpha, 1.0, 1 / alpha, name="celu"),
    "mish": _mish,
    "hardswish": _hardswish,
    "erf": _erf,
    "atan": _atan,
    "exp": _exp,
    "expm1": _expm1,
}
"""Curves that bend between their knots, each from the arguments that stand behind its first."""

STRAIGHT: dict[str, Callable[..., Curve]] = {
    "relu": lambda: _leaky(0.0, name="relu"),
    "leaky_relu": _leaky,
    "prelu": lambda weight: _leaky(weight, name="prelu"),
    "rrelu": lambda lower=1 / 8, upper=1 / 3: _leaky((lower + upper) / 2, name="rrelu"),
    "abs": lambda: _leaky(-1.0, name="abs"),
    "relu6": lambda: _between(0.0, 6.0, name="relu6"),
    "hardtanh": lambda low=-1.0, high=1.0: _between(low, high, name="hardtanh"),
    "clamp": _between,
    "clamp_min": lambda low: _between(low),
    "clamp_max": lambda high: _between(None, high),
    "threshold": _threshold,
    "softshrink": lambda size=0.5: _shrink(size, jumps=False),
    "hardshrink": lambda size=0.5: _shrink(size, jumps=True),
    "hardsigmoid": _hardsigmoid,
}
"""Curves that are linear between their knots, likewise."""
