"""How an operation that bends is bounded by linear ones over a box: lines above and below, or its tangent and a range.

    f(z)  <=  f(z0) + s (z - z0) + gap         for every z between the bounds that are known of it

All is written from the value at the observation, `z0`; so what a chain of them adds up to needs no biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlmech.core.bounds.calls import Operand, call, sizes_of_terms
from rlmech.core.bounds.intervals import (
    Interval,
    Known,
    choices,
    corners,
    curve_of,
    each,
    is_softmax,
    pattern_of,
    reads_alone,
    scores_last,
    unbounded,
    weights_back,
)
from rlmech.core.bounds.softmaxes import tangent_remainder, weight_range
from rlmech.core.curve_table import STRAIGHT
from rlmech.core.curves import Curve
from rlmech.core.graph import Node
from rlmech.core.operations.reading import behaviour, nodes_in, record_of

Slopes = Literal["tangent", "adapted"]
"""Lines with the slope of the tangent at the observation, or each with that which keeps it nearest in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines below and above an elementwise function.

    Attributes:
        low_slope: Slope of the one below.
        low_gap: How far it lies above the tangent's value at the observation; not above 0.
        high_slope: Slope of the one above.
        high_gap: Likewise, not below 0.
    """

    low_slope: Tensor
    low_gap: Tensor
    high_slope: Tensor
    high_gap: Tensor

    @property
    def middle_and_radius(self) -> tuple[Tensor, Tensor]:
        """The centre of the two gaps, and how far they lie from it."""
        return (self.high_gap + self.low_gap) / 2, (self.high_gap - self.low_gap) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Remainder:
    """The range of what an operation's tangent at the observation leaves over.

    Attributes:
        low: Its least value.
        high: Its greatest.
        level: Where it is the range of the operation itself, less its value at the observation, without the tangent;
            None for nowhere.
    """

    low: Operand
    high: Operand
    level: Tensor | None = None

    @property
    def middle_and_radius(self) -> tuple[object, object]:
        """The centre of the range, and how far its ends lie from it."""
        return (
            each(lambda low, high: (high + low) / 2, self.low, self.high),
            each(lambda low, high: (high - low) / 2, self.low, self.high),
        )


def bends(node: Node, known: Known) -> bool:
    """Whether a node that varies is no affine function of what it reads."""
    if any(known.is_mask(read) for read in node.inputs()):
        return True
    return behaviour(node, known.moving()) in ("gate", "curve", "product") or is_softmax(node, known)


def bound_bend(node: Node, known: Known, slopes: Slopes) -> Lines | Remainder:
    """Lines or a remainder that bound a node over the intervals of what it reads.

    Args:
        node: A node that bends.
        known: What is known, the node's own interval included.
        slopes: Which lines.
    """
    record = record_of(node)
    if is_softmax(node, known):
        return _of_softmax(node, known)
    if any(known.is_mask(read) for read in node.inputs()):
        return _chosen(node, known) if node.op in ("where", "masked_fill") else _by_ends(node, known)
    if (record.curve or record.name in STRAIGHT) and reads_alone(node, known):
        curve = curve_of(node, known.centre)
        assert curve is not None  # noqa: S101  # its interval was found by it
        source = known.intervals[node.args[0]]
        return _lines(curve, known.centre[node.args[0]], source, slopes)
    if behaviour(node, known.moving()) == "product":
        return _of_product(node, known)
    if record.gating is not None and node.op in _COMPARED:
        return _of_two(node, known)
    if record.gating is not None and not record.gating.each:
        return _of_competitors(node, known)
    return _by_ends(node, known)


def _lines(curve: Curve, at: Tensor, source: Interval, slopes: Slopes) -> Lines:
    low, high = source.low, source.high
    if slopes == "tangent":
        slope = curve.slope(at)
        off = curve.off_line(at, slope, low, high)
        return Lines(low_slope=slope, low_gap=off.low, high_slope=slope, high_gap=off.high)
    middle, width = low + (high - low) / 2, high - low
    chord = torch.where(width > 0, (curve.value(high) - curve.value(low)) / torch.where(width > 0, width, 1.0), 0.0)
    candidates = [chord, curve.slope(low), curve.slope(high), curve.slope(middle)]
    offs = [curve.off_line(at, slope, low, high) for slope in candidates]
    slope = torch.stack(candidates)
    low_gap, high_gap = torch.stack([off.low for off in offs]), torch.stack([off.high for off in offs])
    onward = slope * (middle - at)
    above, below = (high_gap + onward).argmin(0, keepdim=True), (low_gap + onward).argmax(0, keepdim=True)
    return Lines(
        low_slope=slope.gather(0, below)[0],
        low_gap=low_gap.gather(0, below)[0],
        high_slope=slope.gather(0, above)[0],
        high_gap=high_gap.gather(0, above)[0],
    )


def _of_softmax(node: Node, known: Known) -> Remainder:
    """What the tangent leaves over, or the weights' own range where that is narrower than this alone."""
    at, ends = known.centre[node.args[0]], known.intervals[node.args[0]]
    at, low, high = (scores_last(node, value) for value in (at, ends.low, ends.high))
    weight, (least, most) = scores_last(node, known.centre[node]), weight_range(low, high)
    under, over = tangent_remainder(at, low, high)
    level = (over - under) > (most - least)
    found = (torch.where(level, own - weight, off) for own, off in ((least, under), (most, over)))
    under, over, level = (weights_back(node, value) for value in (*found, level))
    return Remainder(low=under, high=over, level=level)


def _off_centre(node: Node, known: Known) -> Interval:
    """How far a node lies from its value at the observation."""
    found, at = known.ends(node), known.centre[node]
    return Interval(each(torch.sub, found.low, at), each(torch.sub, found.high, at))


def _of_product(node: Node, known: Known) -> Remainder:
    """What is left of a product is the product of what its factors move by."""
    varying = [read for read in dict.fromkeys(node.inputs()) if read in known.intervals]
    moves = {read: _off_centre(read, known) for read in varying}
    if node.op == "mul":
        first, second = (moves[read] for read in node.args[:2])
        found = corners(first, second)
        if node.args[0] is node.args[1]:
            found = Interval(found.low.clamp(min=0), found.high)
        return Remainder(low=found.low, high=found.high)
    factors = [read for place in record_of(node).factors for read in nodes_in(node.args[place]) if read in moves]
    if len(factors) > 2:
        raise unbounded(node)  # what is left of a product of three is more than the product of its moves
    sizes = {read: _size(known.centre[read]) for read in node.inputs()} | {read: m.size for read, m in moves.items()}
    most = sizes_of_terms(node, sizes, n_rows=known.n_rows, moved=())  # what is only added moves the tangent alone
    if pattern_of(node, known) is None:
        return Remainder(low=-most, high=most)
    own = _off_centre(node, known)
    level = 2 * most > own.high - own.low
    return Remainder(low=torch.where(level, own.low, -most), high=torch.where(level, own.high, most), level=level)


def _size(value: object) -> object:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


_COMPARED = {"maximum": 1, "fmax": 1, "minimum": -1, "fmin": -1}


def _of_two(node: Node, known: Known) -> Remainder:
    """The larger of two exceeds that which is the larger at the observation by as much as the other leads it."""
    sign = _COMPARED[node.op]
    first, second = (known.ends(read) for read in node.args[:2])
    lead = sign * (known.centre[node.args[0]] - known.centre[node.args[1]])
    share = (lead > 0).double() + (lead == 0).double() / 2  # torch's gradient at a tie
    leads = Interval(first.low - second.high, first.high - second.low)
    leads = leads if sign > 0 else Interval(-leads.high, -leads.low)
    most = torch.maximum((1 - share) * leads.high.clamp(min=0), share * (-leads.low).clamp(min=0))
    zero = torch.zeros_like(most)
    return Remainder(low=zero, high=most) if sign > 0 else Remainder(low=-most, high=zero)


def _of_competitors(node: Node, known: Known) -> Remainder:
    """The largest of several exceeds that which is the largest at the observation by what another can lead it."""
    source, sign = node.args[0], -1 if node.op in ("amin", "min") else 1
    ends = known.intervals[source]
    low, high = (ends.low, ends.high) if sign > 0 else (-ends.high, -ends.low)
    at, lows, highs = (_competitors(node, value, sign) for value in (sign * known.centre[source], low, high))
    first = at >= at.amax(-1, keepdim=True)
    least = torch.where(first, lows, torch.inf).amin(-1)
    several = first.sum(-1, keepdim=True) > 1
    most = torch.where(first & ~several, -torch.inf, highs).amax(-1)
    lead = (most - least).clamp(min=0)
    shape = known.centre[node][0].shape if isinstance(known.centre[node], list) else known.centre[node].shape
    lead = lead.reshape(shape)
    zero = torch.zeros_like(lead)
    found = (zero, lead) if sign > 0 else (-lead, zero)
    if isinstance(known.centre[node], list):  # with the places of the largest, which nothing reads
        return Remainder(low=[found[0], zero], high=[found[1], zero])
    return Remainder(low=found[0], high=found[1])


def _competitors(node: Node, value: Tensor, sign: int) -> Tensor:
    """What competes for each result, along a last axis, of the largest of a value."""
    gating = record_of(node).gating
    assert gating is not None  # noqa: S101  # only gates compete
    behind = gating.boundaries(sign * value, *node.args[1:], **node.kwargs)[0].distance
    whole = call(node, {node.args[0]: sign * value}, n_rows=0)
    whole = sign * (whole[0] if isinstance(whole, list) else whole)
    return whole.reshape(behind.shape[:-1])[..., None] - behind


def _chosen(node: Node, known: Known) -> Remainder:
    """Where a mask can change, the other choice less the one that is taken at the observation."""
    mask, *others = choices(node)
    now = known.centre[mask]
    sure, possible = known.ends(mask).low, known.ends(mask).high
    yes, no = (known.ends(other) if isinstance(other, Node) else Interval(other, other) for other in others)
    change_low = torch.where(now, torch.as_tensor(no.low - yes.high), torch.as_tensor(yes.low - no.high)).double()
    change_high = torch.where(now, torch.as_tensor(no.high - yes.low), torch.as_tensor(yes.high - no.low)).double()
    open_ = possible & ~sure
    return Remainder(
        low=torch.where(open_, change_low.clamp(max=0), 0.0), high=torch.where(open_, change_high.clamp(min=0), 0.0)
    )


def _by_ends(node: Node, known: Known) -> Remainder:
    """The node's own range less that of its tangent: true of every operation."""
    leaves = {
        read: known.centre[read].detach().requires_grad_()
        for read in dict.fromkeys(node.inputs())
        if read in known.intervals and not known.is_mask(read)
    }
    with torch.enable_grad():
        value = call(node, known.centre | leaves, n_rows=known.n_rows)
    own = _off_centre(node, known)
    low, high = own.low, own.high
    for read, leaf in leaves.items():
        (slope,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)  # each number by itself
        move = _off_centre(read, known)
        tangent = corners(Interval(slope, slope), move)
        low, high = low - tangent.high, high - tangent.low
    return Remainder(low=low, high=high)
