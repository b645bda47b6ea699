"""A graph over a box around each observation: intervals of all its values, and linear bounds on any of them.

    value(x)  <=  value(x0) + A (x - x0) + gap          for every x of the box

Forwards, each node's interval follows from those that it reads; before an operation that bends, what it reads is
bounded anew by lines walked back to the inputs, which is far tighter. Backwards, a weight on a node is pulled through
affine operations exactly, and through those that bend by the line on the side of its sign. All in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.bounds.bends import Lines, Remainder, Slopes, bends, bound_bend
from rlmech.core.bounds.calls import call, double, leaf
from rlmech.core.bounds.intervals import Interval, Known, add_interval
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import behaviour

LARGEST_REFINED = 2**23
"""Numbers of the weights on one node up to which what bends is bounded by lines, beyond by its interval alone."""
_SLACK = 1e-12
"""Of the terms of a linear bound, for the rounding of the bound itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Linear upper bounds on weighted sums of a node's values.

    Attributes:
        value: The sums at the observation, `[bound batch]`.
        slopes: Their slopes on each input, `[bound, *input]`.
        gap: How far each bound lies above the sum at the observation, `[bound batch]`.
        rounding: How much of that is rounding in the policy's precision.
    """

    value: Float[Tensor, "bound batch"]
    slopes: tuple[Tensor, ...]
    gap: Float[Tensor, "bound batch"]
    rounding: Float[Tensor, "bound batch"]


class Region:
    """What is known of a graph over a box.

    Args:
        graph: The graph.
        ends: The nodes that bounds are asked of.
        arrays: The observation, an array for each input of the graph, real numbers.
        box: For each array the least and the greatest values; the observation lies between.
        given: Nodes whose values are fixed, with these.
        precision: The number format in which the policy computes.

    Raises:
        EngineError: No bound is known of an operation on the way.
    """

    def __init__(
        self,
        graph: Graph,
        ends: Sequence[Node],
        *,
        arrays: Sequence[Tensor],
        box: Sequence[Interval],
        given: Mapping[Node, Tensor],
        precision: torch.dtype,
    ) -> None:
        self.graph, self.given = graph, frozenset(given)
        self.arrays, self.box = tuple(double(array) for array in arrays), tuple(box)
        self.known = Known(n_rows=len(arrays[0]), epsilon=float(torch.finfo(precision).eps))
        self.known.centre.update({node: double(value.detach()) for node, value in given.items()})
        self.order = graph.computed_order(ends, replaced=self.given, cut=self.given)
        self._bends: dict[tuple[Node, Slopes], Lines | Remainder] = {}
        self._bent: set[Node] = set()
        with torch.no_grad():
            for node in self.order:
                self._add(node)

    @property
    def _width(self) -> int:
        """How many numbers a row of the widest node so far has."""
        ends = (interval.low for interval in self.known.intervals.values())
        return max(low.numel() for low in ends if isinstance(low, Tensor)) // self.known.n_rows

    def interval(self, node: Node) -> Interval:
        """A node's least and greatest values in the box, laid out like the node."""
        return self.known.ends(node)

    def upper(self, end: Node, weights: Float[Tensor, "bound ..."], slopes: Slopes) -> Linear:
        """Linear upper bounds on weighted sums of a node's values; a lower bound is one on the negative weights.

        Args:
            end: The node.
            weights: One row for each bound, laid out like the node.
            slopes: `tangent` for the slopes at the observation, `adapted` for those that fit the box.
        """
        known, n = self.known, self.known.n_rows
        pulled: dict[Node, Any] = {end: weights}
        gap = rounding = weights.new_zeros(len(weights), n)
        value = _row_sums(end, weights * known.centre[end])
        for node in reversed(self.order):
            if node not in pulled or node not in known.intervals:
                continue
            weight = pulled.pop(node) if node not in self.graph.inputs else pulled[node]
            if node in known.rounding:
                rounding = rounding + _over(node, weight, lambda w, by: w.abs() * by, known.rounding[node])
            if node in self.graph.inputs:
                continue
            definition = self.graph.definition_of(node, replaced=self.given)
            if definition is not None:
                _accumulate(pulled, definition, weight)
                continue
            if node in self._bent:
                bound = self._bound(node, slopes)
                if isinstance(bound, Lines):
                    up, down = weight.clamp(min=0), weight.clamp(max=0)
                    gap = gap + _row_sums(node, up * bound.high_gap + down * bound.low_gap)
                    _accumulate(pulled, node.args[0], up * bound.high_slope + down * bound.low_slope)
                    continue
                gap = gap + _over(node, weight, _worst, bound.high, bound.low)
            self._pull(node, weight, pulled)
        zeros = [weights.new_zeros(len(weights), *array.shape) for array in self.arrays]
        found = tuple(pulled.get(node, zero) for node, zero in zip(self.graph.inputs, zeros, strict=True))
        return Linear(value=value, slopes=found, gap=gap + rounding, rounding=rounding)

    def largest(self, bound: Linear, *, less: Sequence[Tensor] | None = None) -> Float[Tensor, "bound batch"]:
        """The greatest value that linear bounds allow in the box, above that at the observation.

        Args:
            bound: The bounds.
            less: Slopes that are taken off theirs first, of the same shapes.
        """
        total = bound.gap
        for place, (slope, array, box) in enumerate(zip(bound.slopes, self.arrays, self.box, strict=True)):
            rest = slope if less is None else slope - less[place]
            farthest = rest.clamp(min=0) * (box.high - array) + rest.clamp(max=0) * (box.low - array)
            total = total + farthest.flatten(2).sum(2) * (1 + _SLACK)
        return total + _SLACK * (bound.value.abs() + total.abs())

    def _add(self, node: Node) -> None:
        known = self.known
        if node.op == "input":
            place = self.graph.inputs.index(node)
            known.centre[node], known.intervals[node] = self.arrays[place], self.box[place]
            return
        if node.op in ("parameter", "constant"):
            known.centre[node] = leaf(self.graph, node)
            return
        definition = self.graph.definition_of(node, replaced=self.given)
        if definition is not None:
            known.centre[node] = known.centre[definition]
            if definition in known.intervals:
                known.intervals[node] = known.intervals[definition]
            return
        known.centre[node] = call(node, known.centre, n_rows=known.n_rows)
        if not any(read in known.intervals for read in node.inputs()):
            return
        if behaviour(node, known.intervals) == "fixed":  # of what varies it reads the sizes alone
            return
        if bends(node, known):
            for read in dict.fromkeys(node.inputs()):
                self._refine(read)
            self._bent.add(node)
        add_interval(node, known)

    def _refine(self, node: Node) -> None:
        """Bound a node by lines, and keep what is nearer."""
        known, ends = self.known, self.known.intervals.get(node)
        if ends is None or node in self.graph.inputs or known.is_mask(node) or not isinstance(ends.low, Tensor):
            return
        layout = Layout.of(node)
        each_row = layout.show(known.centre[node])[0]
        count = each_row.numel()
        if count * self._width * known.n_rows > LARGEST_REFINED:
            return
        single = torch.eye(count, dtype=torch.float64, device=each_row.device).reshape(count, 1, *each_row.shape)
        weights = torch.stack([layout.restore(w) for w in single.expand(-1, known.n_rows, *each_row.shape)])
        bound = self.upper(node, torch.cat([weights, -weights]), "adapted")
        up, down = self.largest(bound).split(count)
        at = known.centre[node]
        high, low = (layout.restore(part.T.reshape(known.n_rows, *each_row.shape)) for part in (up, -down))
        # the bounds cross by rounding only
        low, high = torch.maximum(at + low, ends.low), torch.minimum(at + high, ends.high)
        known.intervals[node] = Interval(torch.minimum(low, high), torch.maximum(low, high))

    def _bound(self, node: Node, slopes: Slopes) -> Lines | Remainder:
        key = (node, slopes)
        if key not in self._bends:
            self._bends[key] = bound_bend(node, self.known, slopes)
        return self._bends[key]

    def _pull(self, node: Node, weight: Any, pulled: dict[Node, Any]) -> None:
        """Pull weights through the tangent of a node at the observation, to what it reads."""
        if node.op == "getitem":
            by_place = pulled.setdefault(node.args[0], {})
            by_place[node.args[1]] = by_place.get(node.args[1], 0) + weight
            return
        known = self.known
        leaves = {
            read: known.centre[read].detach().clone().requires_grad_()
            for read in dict.fromkeys(node.inputs())
            if read in known.intervals and not known.is_mask(read)
        }
        with torch.enable_grad():
            value = call(node, known.centre | leaves, n_rows=known.n_rows)
        if not leaves:
            return
        parts = isinstance(weight, dict)
        ends = [value[key] for key in weight] if parts else [value]
        weights = list(weight.values()) if parts else [weight]
        found = torch.autograd.grad(ends, list(leaves.values()), weights, is_grads_batched=True, materialize_grads=True)
        for read, slope in zip(leaves, found, strict=True):
            _accumulate(pulled, read, slope)


def _accumulate(pulled: dict[Node, Any], node: Node, weight: Tensor) -> None:
    pulled[node] = pulled[node] + weight if node in pulled else weight


def _worst(weight: Tensor, high: Tensor, low: Tensor) -> Tensor:
    return weight.clamp(min=0) * high + weight.clamp(max=0) * low


def _over(node: Node, weight: Any, function: Any, *values: Any) -> Tensor:
    """The sums over a node's numbers of a function of weights and values; of the parts that have weights."""
    if not isinstance(weight, dict):
        return _row_sums(node, function(weight, *values))
    parts = [function(part, *(value[key] for value in values)) for key, part in weight.items()]
    return torch.stack([part.flatten(2).sum(2) if part.ndim > 2 else part for part in parts]).sum(0)


def _row_sums(node: Node, values: Float[Tensor, "bound ..."]) -> Float[Tensor, "bound batch"]:
    layout = Layout.of(node)
    if layout.is_identity:
        return values.flatten(2).sum(2) if values.ndim > 2 else values
    return torch.stack([layout.show(value).flatten(1).sum(1) for value in values])
