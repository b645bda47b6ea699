"""Claims decided by branch and bound: proved, refuted by a state, or undecided with what is left of the volume.

A box in which the bound on the margin is positive is closed; the middle of any other, and the corner that its bound
points at, are put through the policy; then it is cut in two where the bound loses most. Many regions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rlmech.certify.claims import Claim, Takes
from rlmech.certify.score_regions import ScoreRegions
from rlmech.core.bounds.intervals import Interval

PROVED, REFUTED, UNDECIDED = 1, -1, 0
_AT_ONCE = 8
"""Boxes of one region that are bounded together."""


@dataclass(slots=True)
class Decided:
    """What became of a claim in each region.

    Attributes:
        verdict: `PROVED`, `REFUTED` or `UNDECIDED`.
        remaining: The share of the region's volume in which it is open; 0 where it is decided.
        arrays: A state that refutes it; the region's middle where none does.
        spent: How many boxes were bounded.
    """

    verdict: Int64[Tensor, " region"]
    remaining: Float[Tensor, " region"]
    arrays: tuple[Tensor, ...]
    spent: Int64[Tensor, " region"]


def decide(
    regions: ScoreRegions,
    claim: Claim,
    *,
    states: Sequence[Tensor],
    box: Sequence[Interval],
    n_boxes: int,
) -> Decided:
    """Decide a claim in each of several boxes.

    Args:
        regions: The policy's bounds.
        claim: The claim; its bounds and margins are asked of rows.
        states: A state in each box, for shapes and dtypes.
        box: The boxes, a row each.
        n_boxes: Boxes to bound for each.
    """
    shapes = [tuple(state.shape[1:]) for state in states]
    low, high = (
        torch.cat([end.flatten(1) for end in ends], dim=1) for ends in zip(*((b.low, b.high) for b in box), strict=True)
    )
    width = (high - low).clamp(min=0)
    n = len(low)
    found = Decided(
        torch.zeros(n, dtype=torch.long),
        torch.ones(n).double(),
        tuple(s.clone() for s in states),
        torch.zeros(n).long(),
    )
    rows, share = torch.arange(n), torch.ones(n).double()
    while len(rows):
        first = torch.searchsorted(rows, rows)
        chosen = (torch.arange(len(rows)) - first < _AT_ONCE) & (found.spent[rows] < n_boxes)
        if not bool(chosen.any()):
            break
        own, a, b, part = rows[chosen], low[chosen], high[chosen], share[chosen]
        found.spent += torch.bincount(own, minlength=n)
        middle = a + (b - a) / 2
        boxes = [Interval(x, y) for x, y in zip(_shaped(a, shapes), _shaped(b, shapes), strict=True)]
        bound = _for_rows(claim, own).bound(regions, _shaped(middle, shapes), boxes)
        still = bound.low <= 0
        slope = torch.cat([each.flatten(1) for each in bound.slope], dim=1)
        for tried in (middle, torch.where(slope > 0, a, b)):
            _try(regions, claim, found, own[still], _shaped(tried[still], shapes))
        relative = (b - a) / torch.where(width[own] > 0, width[own], 1.0)
        axis = _axis((b - a) * slope.abs(), relative)[still]
        cut = (a + (b - a) / 2)[still].gather(1, axis)
        halves_low = torch.cat([a[still], a[still].scatter(1, axis, cut)])
        halves_high = torch.cat([b[still].scatter(1, axis, cut), b[still]])
        rows = torch.cat([rows[~chosen], own[still], own[still]])
        low, high = torch.cat([low[~chosen], halves_low]), torch.cat([high[~chosen], halves_high])
        share = torch.cat([share[~chosen], part[still] / 2, part[still] / 2])
        keep = found.verdict[rows] != REFUTED
        rows, low, high, share = rows[keep], low[keep], high[keep], share[keep]
        order = (-share).argsort(stable=True)
        order = order[rows[order].argsort(stable=True)]
        rows, low, high, share = rows[order], low[order], high[order], share[order]
    found.remaining = torch.zeros(n).double().index_add(0, rows, share)
    open_ = torch.bincount(rows, minlength=n) > 0
    found.verdict = torch.where((found.verdict == UNDECIDED) & ~open_, PROVED, found.verdict)
    return found


def _try(regions: ScoreRegions, claim: Claim, found: Decided, rows: Tensor, states: Sequence[Tensor]) -> None:
    """Keep states that refute the claim."""
    own = tuple(state.to(kept.dtype) for state, kept in zip(states, found.arrays, strict=True))
    if not len(rows):
        return
    fails = (_for_rows(claim, rows).margin(regions, own) <= 0) & (found.verdict[rows] != REFUTED)
    found.verdict[rows[fails]] = REFUTED
    for kept, state in zip(found.arrays, own, strict=True):
        kept[rows[fails]] = state[fails]


def _for_rows(claim: Claim, rows: Tensor) -> Claim:
    """The claim about some of the regions: one about each state's own action keeps the actions of these states."""
    if isinstance(claim, Takes) and isinstance(claim.action, tuple):
        return Takes(tuple(claim.action[row] for row in rows.tolist()))
    return claim


def _axis(matter: Tensor, relative: Tensor) -> Tensor:
    """Where to cut: along the number that matters most to the bound, unless it is much narrower than others."""
    share = matter / matter.amax(1, keepdim=True).clamp(min=1e-300)
    return (share + 0.1 * relative / relative.amax(1, keepdim=True).clamp(min=1e-300)).argmax(1, keepdim=True)


def _shaped(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    sizes = [int(torch.Size(shape).numel()) for shape in shapes]
    return tuple(p.reshape(-1, *shape) for p, shape in zip(flat.split(sizes, dim=1), shapes, strict=True))
