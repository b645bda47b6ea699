"""Masked scores: the -inf, -1e8 or lowest float that a network puts at what must not be chosen or looked at.

Two runs are compared with them left apart: their size says nothing about how exactly the other scores must agree, and
two equal infinities do not differ. Cost: a comparison per element.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOWEST_SCORE = -1e7
"""A score below this is a mask's; people write -1e8, -1e9, -1e30, the lowest float or -inf. No network learns such."""


def is_masked(scores: Tensor) -> Bool[Tensor, ...]:
    """Where scores are a mask's; nowhere in those of an integer type.

    Example:
        >>> import torch
        >>> is_masked(torch.tensor([1.0, -1e8, -torch.inf]))
        tensor([False,  True,  True])
    """
    if not scores.is_floating_point():
        return torch.zeros_like(scores, dtype=torch.bool)
    lowest = torch.finfo(scores.dtype).min / 2  # in 16 bits -1e7 does not exist, and masks are the lowest float
    return scores <= max(LOWEST_SCORE, lowest)


def open_actions(scores: Tensor) -> Bool[Tensor, ...]:
    """Which actions may be chosen, `[... action]`; where all are masked, as if none were.

    Example:
        >>> import torch
        >>> open_actions(torch.tensor([[1.0, -1e8], [-1e8, -1e8]]))
        tensor([[ True, False],
                [ True,  True]])
    """
    shown = ~is_masked(scores)
    return shown | ~shown.any(-1, keepdim=True)


def weighed(
    scores: Float[Tensor, "... action"], weights: Float[Tensor, "readout action"]
) -> Float[Tensor, "... readout"]:
    """Sums of scores by some weights; a score of weight 0 is left out, also where it is infinite.

    Example:
        >>> import torch
        >>> weighed(torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        tensor([[1., -inf]])
    """
    if bool(scores.isfinite().all()):
        return scores @ weights.T
    return (scores[..., None, :] * weights).masked_fill(weights == 0, 0).sum(-1)


def less(given: Tensor, start: Tensor) -> Tensor:
    """Differences; 0 where both are the same infinity: a score that is masked in both runs does not change.

    Example:
        >>> import torch
        >>> less(torch.tensor([3.0, -torch.inf]), torch.tensor([1.0, -torch.inf]))
        tensor([2., 0.])
    """
    return torch.where(given == start, torch.zeros_like(given), given - start)


def agree(given: Tensor, expected: Tensor, *, tolerance: float, smallest_scale: float) -> bool:
    """Whether two results are equal up to rounding, masked and huge elements each by their own size.

    Args:
        given: One result.
        expected: The other one, of the same shape.
        tolerance: Largest difference, relative to the largest ordinary element of `expected`.
        smallest_scale: What that scale is at least.
    """
    return given.shape == expected.shape and bool((excess(given, expected, smallest_scale) <= tolerance).all())


def excess(given: Tensor, expected: Tensor, smallest_scale: float) -> Tensor:
    """Differences relative to the scale that `agree` takes; 0 for equal infinities and NaN, infinite for unequal ones.

    NaN counts as equal to NaN: a network may mend it itself.
    """
    given, expected = given.detach(), expected.detach()
    if not expected.is_floating_point():
        return (given != expected).double()
    size = expected.abs()
    huge = ~(size < -LOWEST_SCORE)
    ordinary = size.masked_fill(huge, 0)
    scale = max(float(ordinary.max()) if ordinary.numel() else 0.0, smallest_scale)
    relative = (given - expected).abs() / torch.where(huge & size.isfinite(), size, scale)
    same = (given == expected) | (given.isnan() & expected.isnan())
    return relative.nan_to_num(nan=torch.inf).masked_fill(same, 0)
