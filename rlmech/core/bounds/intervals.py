"""Intervals: the values of a node over a box, from those of what it reads, one function for each kind of operation.

    affine: op(middle) +- |op|(radius)      product: the same with all factors      curve, gate: by its extremes

Every result is widened by what rounding in the policy's own precision can change, which is kept for the walk backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlmech.core.bounds.calls import Operand, apply, call, filled, has_sizes, rounding_terms, sizes_of_terms
from rlmech.core.bounds.softmaxes import mean_range, weight_range
from rlmech.core.curve_table import SMOOTH, STRAIGHT
from rlmech.core.curves import Curve
from rlmech.core.graph import Node
from rlmech.core.operations.reading import axes_of, behaviour, nodes_in, record_of
from rlmech.errors import EngineError

_FUNCTION_ROUNDINGS = 8
"""How many roundings a function of torch errs by at most, of its result or of the larger numbers that it subtracts."""
_LOGICAL = {"logical_and", "logical_or", "bitwise_and", "bitwise_or", "any", "all", "getitem"}


@dataclass(frozen=True, slots=True)
class Interval:
    """A node's least and greatest values; of a mask, where it is surely and where it is possibly True.

    Attributes:
        low: A tensor, or a list of them for an operation with several results.
        high: Likewise.
    """

    low: Operand
    high: Operand

    @property
    def middle(self) -> Operand:
        """The centre, in rounding."""
        return each(lambda low, high: low + (high - low) / 2, self.low, self.high)

    @property
    def size(self) -> Operand:
        """The largest absolute value."""
        return each(lambda low, high: torch.maximum(low.abs(), high.abs()), self.low, self.high)


@dataclass(slots=True, kw_only=True)
class Known:
    """What is known of the nodes of a graph over a box.

    Attributes:
        n_rows: Rows of the batch.
        epsilon: Of the precision in which the policy computes.
        centre: Every node's value at the observation.
        intervals: Those of the nodes that vary in the box.
        rounding: How far rounding can move each of them, where it can.
    """

    n_rows: int
    epsilon: float
    centre: dict[Node, Operand] = field(default_factory=dict[Node, Operand])
    intervals: dict[Node, Interval] = field(default_factory=dict[Node, Interval])
    rounding: dict[Node, Operand] = field(default_factory=dict[Node, Operand])

    def is_mask(self, node: Node) -> bool:
        """Whether a node varies and is True or False."""
        return node in self.intervals and node.dtype is torch.bool

    def moving(self) -> set[Node]:
        """The nodes that vary and are real numbers."""
        return {node for node in self.intervals if not self.is_mask(node)}

    def ends(self, node: Node) -> Interval:
        """A node's interval, a point for one that does not vary."""
        value = self.centre.get(node)
        return self.intervals.get(node) or Interval(value, value)


def each(function: Callable[..., Operand], *values: Operand) -> Operand:
    """A function of values that are tensors, or lists or dicts of as many."""
    if isinstance(values[0], dict):
        return {key: function(*(value[key] for value in values)) for key in values[0]}
    if isinstance(values[0], list | tuple):
        return [function(*items) for items in zip(*values, strict=True)]
    return function(*values)


def widened(interval: Interval, slack: object) -> Interval:
    """An interval made wider on both sides."""
    return Interval(
        each(lambda low, by: low - by, interval.low, slack), each(lambda high, by: high + by, interval.high, slack)
    )


def add_interval(node: Node, known: Known) -> None:
    """Put a node's interval, and what rounding adds to it, to what is known.

    Args:
        node: A node that reads some that vary; all that it reads is known.
        known: What is known, changed in place.

    Raises:
        EngineError: No bound is known of the operation.
    """
    if any(known.is_mask(read) for read in node.inputs()):
        found = _of_masks(node, known)
    elif is_softmax(node, known):
        found = _softmax(node, known)
    else:
        acts = behaviour(node, known.moving())
        rule = _RULES.get(acts)
        if rule is None or (node.shape is not None and _is_counted(node)):
            raise unbounded(node)
        found = rule(node, known)
    slack = _rounding(node, found, known)
    if slack is not None:
        found = widened(found, slack)
        known.rounding[node] = slack
    known.intervals[node] = found


def curve_of(node: Node, values: Mapping[Node, Operand]) -> Curve | None:
    """The curve that a node applies to each number of its first argument; None for a node of another kind."""
    record = record_of(node)
    table, name = (SMOOTH, record.curve) if record.curve else (STRAIGHT, record.name)
    if name not in table:
        return None
    return table[name](*(filled(arg, values) for arg in node.args[1:]), **filled(node.kwargs, values))


def reads_alone(node: Node, known: Known) -> bool:
    """Whether only the first argument of a node varies."""
    return [read for read in node.inputs() if read in known.intervals] == [node.args[0]]


def is_softmax(node: Node, known: Known) -> bool:
    """Whether a node is a softmax, over one axis, of what varies."""
    return record_of(node).role == "softmax" and reads_alone(node, known) and len(axes_of(node) or ()) == 1


def scores_last(node: Node, value: Tensor) -> Tensor:
    """What a softmax reads or gives, with the axis that it runs along as the last one."""
    return value.movedim((axes_of(node) or (-1,))[0], -1)


def weights_back(node: Node, value: Tensor) -> Tensor:
    """The inverse of `scores_last`."""
    return value.movedim(-1, (axes_of(node) or (-1,))[0])


def unbounded(node: Node) -> EngineError:
    """The error that says of which operation no bound is known."""
    place = f" in {node.scope!r}" if node.scope else ""
    return EngineError(
        f"No bound is known of {node.op!r}{place}, so none of the scores over a box.",
        given=f"the operation {node.op!r}",
        expected="linear layers, convolutions, products, max-pools, softmax, ReLU-like and smooth activations",
        fix="local_affine without box= needs no bound; rlm.activation_patching asks for none either",
    )


def _is_counted(node: Node) -> bool:
    """Whether a node's value is a whole number, which is no affine function of what it reads."""
    return node.dtype is not None and not node.dtype.is_floating_point and node.dtype is not torch.bool


def _affine(node: Node, known: Known) -> Interval:
    if not has_sizes(node):
        raise unbounded(node)
    middles = {
        read: known.ends(read).middle if read in known.intervals else known.centre[read] for read in _reads(node)
    }
    middle = call(node, middles, n_rows=known.n_rows)
    radii = {read: _radius(known.intervals[read], middles[read]) for read in _reads(node) if read in known.intervals}
    radius = sizes_of_terms(node, _sizes(node, known) | radii, n_rows=known.n_rows, moved=radii)
    return Interval(each(torch.sub, middle, radius), each(torch.add, middle, radius))


def _product(node: Node, known: Known) -> Interval:
    if node.op == "mul":
        first, second = (known.intervals[read] for read in node.args[:2])
        return corners(first, second)
    varying = [read for read in _reads(node) if read in known.intervals]
    middles = {read: known.ends(read).middle if read in varying else known.centre[read] for read in _reads(node)}
    middle = call(node, middles, n_rows=known.n_rows)
    sizes = _sizes(node, known)
    mean = pattern_of(node, known)
    small = sizes | {read: middles[read].abs() for read in varying}
    large = sizes | {read: middles[read].abs() + _radius(known.intervals[read], middles[read]) for read in varying}
    outer, inner = (sizes_of_terms(node, s, n_rows=known.n_rows, moved=varying) for s in (large, small))
    low, high = middle - (outer - inner), middle + (outer - inner)
    if mean is not None:
        pattern, values = (known.intervals[read] for read in node.args[:2])
        slack = known.rounding[mean].sum(-1)
        least, most = mean_range((pattern.low, pattern.high), (values.low, values.high), slack)
        low, high = torch.maximum(low, least), torch.minimum(high, most)
    return Interval(low, high)


def pattern_of(node: Node, known: Known) -> Node | None:
    """The softmax by whose weights a matrix product takes means, where both factors vary; else None."""
    if node.op not in ("matmul", "bmm") or not all(read in known.intervals for read in node.args[:2]):
        return None
    source = node.args[0]
    while record_of(source).keeps_elements and source.sizes == source.args[0].sizes:  # dropout in eval mode, clone
        source = source.args[0]
    along_last = is_softmax(source, known) and axes_of(source) == (len(source.sizes) - 1,)
    same = len(node.args[0].sizes) == len(node.args[1].sizes) == len(node.sizes)
    return source if along_last and same else None


def corners(first: Interval, second: Interval) -> Interval:
    """The product of two intervals."""
    products = torch.stack([a * b for a in (first.low, first.high) for b in (second.low, second.high)])
    return Interval(products.amin(0), products.amax(0))


def _curve(node: Node, known: Known) -> Interval:
    curve = curve_of(node, known.centre)
    if curve is None:
        raise unbounded(node)
    source = known.intervals[node.args[0]]
    return Interval(*curve.range(source.low, source.high))


def _softmax(node: Node, known: Known) -> Interval:
    source = known.intervals[node.args[0]]
    low, high = weight_range(scores_last(node, source.low), scores_last(node, source.high))
    return Interval(weights_back(node, low), weights_back(node, high))


def _gate(node: Node, known: Known) -> Interval:
    record = record_of(node)
    if record.role == "comparison":
        return _comparison(node, known)
    if record.name in STRAIGHT and reads_alone(node, known):
        return _curve(node, known)
    return _at_ends(node, known)  # all others, max and min and their like, rise with all that they read


def _at_ends(node: Node, known: Known) -> Interval:
    lows = {read: known.ends(read).low for read in _reads(node)}
    highs = {read: known.ends(read).high for read in _reads(node)}
    return Interval(call(node, lows, n_rows=known.n_rows), call(node, highs, n_rows=known.n_rows))


def _comparison(node: Node, known: Known) -> Interval:
    first, second = (known.ends(arg) if isinstance(arg, Node) else Interval(arg, arg) for arg in node.args[:2])

    def compare(a: object, b: object) -> Operand:
        return apply(node, [a, b], {}, n_rows=known.n_rows)

    if node.op in ("lt", "le"):
        return Interval(compare(first.high, second.low), compare(first.low, second.high))
    if node.op in ("gt", "ge"):
        return Interval(compare(first.low, second.high), compare(first.high, second.low))
    apart = (torch.as_tensor(first.high) < second.low) | (torch.as_tensor(first.low) > second.high)
    single = torch.as_tensor(first.low == first.high) & torch.as_tensor(second.low == second.high) & ~apart
    return Interval(single, ~apart) if node.op == "eq" else Interval(apart, ~single)


def _of_masks(node: Node, known: Known) -> Interval:
    record = record_of(node)
    if node.op in ("where", "masked_fill"):
        return _chosen(node, known)
    if node.op in ("logical_not", "bitwise_not"):
        mask = known.intervals[node.args[0]]
        return Interval(~mask.high, ~mask.low)
    if (
        node.op in _LOGICAL
        or record.keeps_elements
        or record.moves == "join"
        or node.op in ("to", "_to_copy", "type_as")
    ):
        return _at_ends(node, known)
    raise unbounded(node)


def choices(node: Node) -> tuple[Operand, Operand, Operand]:
    """The mask of a node that chooses, what it takes where that is True, and what elsewhere."""
    if node.op == "where":
        return node.args[0], node.args[1], node.args[2]
    return node.args[1], node.args[2], node.args[0]


def _chosen(node: Node, known: Known) -> Interval:
    mask, *others = choices(node)
    sure, possible = known.ends(mask).low, known.ends(mask).high
    yes, no = (known.ends(other) if isinstance(other, Node) else Interval(other, other) for other in others)
    both_low = torch.minimum(torch.as_tensor(yes.low).double(), torch.as_tensor(no.low).double())
    both_high = torch.maximum(torch.as_tensor(yes.high).double(), torch.as_tensor(no.high).double())
    return Interval(
        torch.where(sure, yes.low, torch.where(possible, both_low, no.low)),
        torch.where(sure, yes.high, torch.where(possible, both_high, no.high)),
    )


def _reads(node: Node) -> list[Node]:
    return list(dict.fromkeys(nodes_in((node.args, tuple(node.kwargs.values())))))


def _radius(interval: Interval, middle: object) -> Operand:
    return each(lambda low, high, at: torch.maximum(high - at, at - low), interval.low, interval.high, middle)


def _sizes(node: Node, known: Known) -> dict[Node, Operand]:
    """The sizes of what a node reads; of masks and whole numbers the values."""
    found: dict[Node, Operand] = {}
    for read in _reads(node):
        value = known.centre[read]
        real = isinstance(value, Tensor) and value.is_floating_point()
        if read in known.intervals and not known.is_mask(read):
            found[read] = known.intervals[read].size
        else:
            found[read] = value.abs() if real else value
    return found


def _rounding(node: Node, found: Interval, known: Known) -> Operand:
    """How far rounding can move a node's value from what exact arithmetic makes of the same arguments; None for 0."""
    unit, record = (known.epsilon + torch.finfo(torch.float64).eps) / 2, record_of(node)
    if (record.name in STRAIGHT or record.curve) and reads_alone(node, known):
        curve = curve_of(node, known.centre)
        terms = found.size
        if curve is not None and curve.cancels:
            terms = terms + known.intervals[node.args[0]].size + 1
        return _FUNCTION_ROUNDINGS * unit * terms
    if is_softmax(node, known):  # the sum, the quotient, and the score's difference, which counts e^-d d times
        n_keys = scores_last(node, known.centre[node]).shape[-1]
        return unit * ((n_keys + 2 * _FUNCTION_ROUNDINGS) * found.high + 4)
    roundings = rounding_terms(node)
    if not roundings or any(known.is_mask(read) for read in node.inputs()):
        return None
    terms = sizes_of_terms(node, _sizes(node, known), n_rows=known.n_rows)
    return each(lambda size: (roundings * unit * size).nan_to_num(posinf=0.0), terms)  # -inf, of a hidden score, stays


_RULES: dict[str, Callable[[Node, Known], Interval]] = {
    "affine": _affine,
    "product": _product,
    "gate": _gate,
    "curve": _curve,
}
