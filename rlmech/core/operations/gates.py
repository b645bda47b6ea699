"""The boundaries of the operations that are piecewise affine.

A boundary is a number, affine in what the gate reads; the gate turns where it changes sign. To which side zero belongs
follows torch's gradient there, so that the gradient is the slope on the side that the value counts to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlmech.core.operations.record import Boundary, Gating

Number = float | Tensor


def _between(x: Tensor, low: Number | None = None, high: Number | None = None) -> list[Boundary]:
    sides = [] if low is None else [Boundary(distance=x - low, inclusive=True)]
    if isinstance(low, Tensor) and isinstance(high, Tensor):  # where they cross, the upper one holds
        sides.append(Boundary(distance=(low - high).expand_as(x)))
    return sides if high is None else [*sides, Boundary(distance=x - high)]


def _within(x: Tensor, low: float = -1.0, high: float = 1.0) -> list[Boundary]:
    return [Boundary(distance=x - low), Boundary(distance=x - high, inclusive=True)]


def _beyond(x: Tensor, size: float = 0.5) -> list[Boundary]:
    return [Boundary(distance=x + size, inclusive=True), Boundary(distance=x - size)]


def _at_zero(x: Tensor, *_: object) -> list[Boundary]:
    return [Boundary(distance=x)]


def _about_zero(x: Tensor) -> list[Boundary]:
    """Zero itself is a side of its own: the slope there is neither of its neighbours'."""
    return [Boundary(distance=x, inclusive=True), Boundary(distance=x)]


def _largest(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> list[Boundary]:  # noqa: FBT001, FBT002  # torch's own
    dims = [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    behind = (x.amax(dims, keepdim=True) - x).movedim(dims, list(range(-len(dims), 0)))
    return [Boundary(distance=behind.flatten(-len(dims)), competing=True)]


def _smallest(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> list[Boundary]:  # noqa: FBT001, FBT002  # torch's own
    return _largest(-x, dim, keepdim)


def _compared(a: Tensor, b: Number) -> list[Boundary]:
    return [Boundary(distance=a - b, inclusive=True), Boundary(distance=a - b)]


def _pooled(x: Tensor, n_axes: int, *args: Any) -> list[Boundary]:
    """The largest element of each window less each of its elements; zero at the largest itself."""
    kernel, *rest = args
    stride, padding, dilation, ceil = (*rest, *(None,) * 4)[:4]
    size = _per_axis(kernel, n_axes)
    step = _per_axis(stride, n_axes) if stride else size
    around, apart = _per_axis(padding or 0, n_axes), _per_axis(dilation or 1, n_axes)
    sides = [0, 0] * n_axes
    for axis in range(n_axes):
        length, reach = x.shape[axis - n_axes], apart[axis] * (size[axis] - 1) + 1
        room = length + 2 * around[axis] - reach
        windows = (math.ceil(room / step[axis]) if ceil else room // step[axis]) + 1
        if ceil and (windows - 1) * step[axis] >= length + around[axis]:
            windows -= 1  # the last window must start inside
        after = max(0, (windows - 1) * step[axis] + reach - length - around[axis])
        sides[2 * (n_axes - 1 - axis)], sides[2 * (n_axes - 1 - axis) + 1] = around[axis], after
    lowest = torch.finfo(x.dtype).min / 4  # padding, which never wins; infinities would make NaN of differences
    padded = F.pad(x, sides, value=lowest) if any(sides) else x
    for axis in range(n_axes):
        place = x.ndim - n_axes + axis
        if apart[axis] == 1:
            padded = padded.unfold(place, size[axis], step[axis])
        else:
            wide = padded.unfold(place, apart[axis] * (size[axis] - 1) + 1, step[axis])
            padded = wide[..., :: apart[axis]]
    windows = padded.flatten(-n_axes)
    return [Boundary(distance=windows.amax(-1, keepdim=True) - windows, competing=True)]


def _per_axis(value: int | Sequence[int], n_axes: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * n_axes if len(sizes) == 1 else sizes


def pool_gating(n_axes: int) -> Gating:
    """That of a max-pool over some axes."""
    return Gating(boundaries=lambda x, *args: _pooled(x, n_axes, *args), each=False)


GATINGS: dict[str, Gating] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "rrelu"), Gating(boundaries=_at_zero, opens=True)),
    "abs": Gating(boundaries=_about_zero),
    "threshold": Gating(
        boundaries=lambda x, threshold, value: [Boundary(distance=x - threshold)],
        shifts=True,
        continuous=False,
        opens=True,
    ),
    "clamp": Gating(boundaries=_between, reads=(0, 1, 2), shifts=True, opens=True),
    "clamp_min": Gating(boundaries=lambda x, low: _between(x, low), reads=(0, 1), shifts=True, opens=True),
    "clamp_max": Gating(boundaries=lambda x, high: _between(x, None, high), reads=(0, 1), shifts=True, opens=True),
    "hardtanh": Gating(boundaries=_within, shifts=True, opens=True),
    "relu6": Gating(boundaries=lambda x: _within(x, 0.0, 6.0), shifts=True, opens=True),
    "hardsigmoid": Gating(boundaries=lambda x: _within(x, -3.0, 3.0), shifts=True),
    "softshrink": Gating(boundaries=_beyond, shifts=True, opens=True),
    "hardshrink": Gating(boundaries=_beyond, continuous=False, opens=True),
    "sign": Gating(boundaries=_about_zero, shifts=True, continuous=False),
    "amax": Gating(boundaries=_largest, each=False),
    "amin": Gating(boundaries=_smallest, each=False),
    "max": Gating(boundaries=_largest, each=False),
    "min": Gating(boundaries=_smallest, each=False),
    **dict.fromkeys(
        ("maximum", "minimum", "fmax", "fmin"), Gating(boundaries=_compared, reads=(0, 1), shifts=True, each=False)
    ),
    **dict.fromkeys(
        ("lt", "gt", "le", "ge", "eq", "ne"), Gating(boundaries=_compared, reads=(0, 1), continuous=False, each=False)
    ),
    "max_pool1d": pool_gating(1),
    "max_pool2d": pool_gating(2),
    "max_pool3d": pool_gating(3),
    "max_pool1d_with_indices": pool_gating(1),
    "max_pool2d_with_indices": pool_gating(2),
    "max_pool3d_with_indices": pool_gating(3),
}
"""How each gate bends."""
