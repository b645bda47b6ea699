"""Adaptive integrals of a gradient along lines: pieces are halved until two Gauss-Legendre rules agree.

    error of a piece  =  |rule of 4 points - rule of 3 points|, summed over the observation

The rule of 4 is kept. A piece is good when its error is its share, by length, of the tolerance times the size of the
line's attributions, or what rounding would make it; so kinks and jumps are closed in on. Cost: 7 gradients a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_FINE, _COARSE = (tuple(map(tuple, np.polynomial.legendre.leggauss(n))) for n in (4, 3))
_ROUNDS = 40
"""Halvings at most; then a piece is shorter than rounding."""
_SHORT = 2**-10
"""The length of the line whose share of the error a shorter piece may have: a kink would otherwise never be good."""
_CAUTION = 16
"""By how much stricter a piece is judged: the difference of two rules is no bound before they converge."""
_NOISE = 64
"""Epsilons, relative to a piece's attributions, below which its error is rounding."""

Gradients = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Rows and places on their lines -> the gradient at these, `[readout point ...]` for each array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrals:
    """What lines amount to.

    Attributes:
        attributions: The mean gradient times the change, `[row readout ...]` for each array.
        error: What the rules differ by, `[row readout]`.
        n_pieces: Of each line.
    """

    attributions: list[Tensor]
    error: Tensor
    n_pieces: Tensor


def integrate(
    gradients: Gradients,
    row: Tensor,
    start: Tensor,
    width: Tensor,
    *,
    change: Sequence[Tensor],
    n_readouts: int,
    tolerance: float,
    at_once: int,
) -> Integrals:
    """Integrate a gradient over pieces of lines, and over halves of those where it is not smooth.

    Args:
        gradients: The gradient at points.
        row: The row of each piece.
        start: Where it begins, in [0, 1].
        width: Its length.
        change: The whole way of each row, `[row ...]` for each array.
        n_readouts: How many numbers have gradients.
        tolerance: Error, of the summed sizes of a line's attributions.
        at_once: How many points are computed at once.
    """
    n_rows, like = len(change[0]), change[0]
    totals = [way.new_zeros(n_rows, n_readouts, *way.shape[1:]) for way in change]
    error, size = like.new_zeros(n_rows, n_readouts), like.new_zeros(n_rows, n_readouts)
    counts = torch.zeros(n_rows, dtype=torch.long, device=like.device)
    epsilon = torch.finfo(like.dtype).eps
    per_call = max(1, at_once // (len(_FINE[0]) + len(_COARSE[0])))
    for turn in range(_ROUNDS):
        if not len(row):
            break
        pieces = [
            _rules(gradients, *part, change=change)
            for part in zip(row.split(per_call), start.split(per_call), width.split(per_call), strict=True)
        ]
        fine = [torch.cat(each) for each in zip(*(piece[0] for piece in pieces), strict=True)]
        off, sizes = torch.cat([piece[1] for piece in pieces]), torch.cat([piece[2] for piece in pieces])
        if turn == 0:
            size.index_add_(0, row, sizes)
        allowed = tolerance / _CAUTION * size[row] * width.clamp(min=_SHORT)[:, None].to(like.dtype)
        good = ((off <= allowed) | (off <= _NOISE * epsilon * sizes)).all(1) | (width < epsilon)
        if turn == _ROUNDS - 1:
            good[:] = True
        for total, part in zip(totals, fine, strict=True):
            total.index_add_(0, row[good], part[good])
        error.index_add_(0, row[good], off[good])
        counts += torch.bincount(row[good], minlength=n_rows)
        row, start, width = row[~good].repeat(2), start[~good], width[~good] / 2
        start, width = torch.cat([start, start + width]), width.repeat(2)
    return Integrals(attributions=totals, error=error, n_pieces=counts)


def _rules(
    gradients: Gradients, row: Tensor, start: Tensor, width: Tensor, *, change: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The finer rule's attributions of some pieces, how far the coarser is off, and their sizes, summed over arrays."""
    n, n_fine = len(row), len(_FINE[0])
    nodes = [(node + 1) / 2 for node in (*_FINE[0], *_COARSE[0])]
    found = gradients(row.repeat(len(nodes)), torch.cat([start + node * width for node in nodes]))
    fine: list[Tensor] = []
    off = size = torch.zeros((), dtype=change[0].dtype, device=row.device)
    for slopes, way in zip(found, change, strict=True):
        by_node = slopes.unflatten(1, (len(nodes), n))
        ends = (width.to(slopes.dtype) / 2).reshape(n, 1, *(1,) * (way.ndim - 1)) * way[row][:, None]
        rules = [
            torch.einsum("k,rkn...->nr...", torch.tensor(weights, dtype=slopes.dtype, device=slopes.device), part)
            * ends
            for weights, part in ((_FINE[1], by_node[:, :n_fine]), (_COARSE[1], by_node[:, n_fine:]))
        ]
        fine.append(rules[0])
        off = off + (rules[0] - rules[1]).abs().flatten(2).sum(2)
        size = size + rules[0].abs().flatten(2).sum(2)
    return fine, off, size
