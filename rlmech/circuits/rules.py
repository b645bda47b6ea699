"""What each operation is on a linear region: affine, a product of factors of which one may vary, or a gate.

A gate is affine as long as none of its boundaries is crossed; a boundary is a number, affine in what the gate reads,
and the gate turns where it changes sign. What is in none of the tables bends. Nothing here runs a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

AFFINE = {
    "add", "add_", "sub", "rsub", "neg", "sum", "mean", "cat", "stack", "concat", "view", "_unsafe_view", "reshape",
    "permute", "transpose", "t", "mT", "numpy_T", "adjoint", "swapaxes", "squeeze", "unsqueeze", "flatten", "unflatten",
    "expand", "expand_as", "contiguous", "clone", "select", "slice", "narrow", "getitem", "split", "split_with_sizes",
    "chunk", "unbind", "index_select", "gather", "index", "movedim", "flip", "roll", "repeat", "where", "masked_fill",
    "select_scatter", "slice_scatter", "constant_pad_nd", "pad", "cumsum",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "to", "_to_copy",
    "head_sum",
}  # fmt: skip
"""Operations affine in all the real numbers that they take, together."""

FIXED = {"fill", "full_like", "zeros_like", "ones_like", "new_zeros", "new_ones", "new_full"}
"""Operations whose result does not depend on the numbers that they take."""

FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("mul", "matmul", "mm", "bmm", "linear"), (0, 1)),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "div": (0,),
    "einsum": (1,),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "batch_norm", "head_result"), (0,)),
    "_native_batch_norm_legit_no_training": (0,),
}
"""Operations affine in each of these arguments as long as no other one of them varies."""

ADDED: dict[str, tuple[int, ...]] = {"linear": (2,), "addmm": (0,), "baddbmm": (0,)}
"""Arguments that such an operation only adds."""

KEYWORDS = {"alpha", "dim", "keepdim", "dtype", "layout", "device", "pin_memory", "non_blocking", "copy",
            "memory_format", "implicit"}  # fmt: skip
"""Keywords under which an operation is still what its table says; under any other (`rounding_mode`) it bends."""

COMPARISONS = {"lt", "gt", "le", "ge", "eq", "ne"}
POOLS = {"max_pool1d": 1, "max_pool2d": 2, "max_pool2d_with_indices": 2, "max_pool3d": 3}
"""Max-pools, by the number of axes that they run over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where one side of a gate ends.

    Attributes:
        distance: Affine in what the gate reads; zero at the boundary.
        inclusive: Whether zero itself belongs to the side of the positive numbers.
        competing: Whether the last axis runs over competitors, zero at the one that wins, rather than over gates.
    """

    distance: Tensor
    inclusive: bool = False
    competing: bool = False

    @property
    def side(self) -> Tensor:
        """Which side each element is on."""
        return self.distance >= 0 if self.inclusive else self.distance > 0


def _between(x: Tensor, low: Any = None, high: Any = None) -> list[Boundary]:
    sides = [] if low is None else [Boundary(distance=x - low, inclusive=True)]
    return sides if high is None else [*sides, Boundary(distance=x - high)]


def _within(x: Tensor, low: Any = -1.0, high: Any = 1.0) -> list[Boundary]:
    return [Boundary(distance=x - low), Boundary(distance=x - high, inclusive=True)]


def _beyond(x: Tensor, size: float = 0.5) -> list[Boundary]:
    return [Boundary(distance=x + size, inclusive=True), Boundary(distance=x - size)]


def _at_zero(x: Tensor, *_: Any) -> list[Boundary]:
    return [Boundary(distance=x)]


def _largest(x: Tensor, dim: Any, keepdim: bool = False) -> list[Boundary]:  # noqa: FBT001, FBT002  # torch's own
    if isinstance(dim, Tensor):
        return _compared(x, dim)  # torch.max(a, b), element by element
    dims = [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    behind = (x.amax(dims, keepdim=True) - x).movedim(dims, list(range(-len(dims), 0)))
    return [Boundary(distance=behind.flatten(-len(dims)), competing=True)]


def _compared(a: Any, b: Any) -> list[Boundary]:
    return [Boundary(distance=a - b, inclusive=True), Boundary(distance=a - b)]


GATES: dict[str, Callable[..., list[Boundary]]] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "rrelu", "abs"), _at_zero),
    "threshold": lambda x, threshold, value: [Boundary(distance=x - threshold)],
    "clamp": _between,
    "clamp_min": lambda x, low: _between(x, low),
    "clamp_max": lambda x, high: _between(x, None, high),
    "hardtanh": _within,
    "relu6": lambda x: _within(x, 0.0, 6.0),
    "hardsigmoid": lambda x: _within(x, -3.0, 3.0),
    **dict.fromkeys(("softshrink", "hardshrink"), _beyond),
    "amax": _largest,
    "amin": lambda x, dim, keepdim=False: _largest(-x, dim, keepdim),
    "max": _largest,
    "min": lambda x, dim, keepdim=False: _largest(-x, -dim if isinstance(dim, Tensor) else dim, keepdim),
    **dict.fromkeys(("maximum", "minimum", *COMPARISONS), _compared),
    **{name: lambda x, *args, n=n: _pooled(x, n, *args) for name, n in POOLS.items()},
}
"""The boundaries of each gate, from its arguments."""

SHIFTING = {"clamp", "clamp_min", "clamp_max", "hardtanh", "relu6", "hardsigmoid", "threshold", "softshrink"}
"""Gates that put in numbers of their own: on some of their sides there is an offset."""


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
