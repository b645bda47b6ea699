"""A graph over a box around each observation: intervals of all its values, and linear bounds on any of them.

    value(x)  <=  value(x0) + A (x - x0) + gap          for every x of the box

Forwards, each node's interval follows from those that it reads; before an operation that bends, what it reads is
bounded anew by lines walked back to the inputs, which is far tighter. Backwards, a weight on a node is pulled through
affine operations exactly, and through those that bend by the line on the side of its sign. All in double precision.
Where the elements of a node depend on one group of inputs each, such as one vehicle, one walk serves all groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.bounds.balls import Ball
from rlmech.core.bounds.bends import Lines, Remainder, Slopes, bends, bound_bend
from rlmech.core.bounds.calls import Operand, call, double, leaf
from rlmech.core.bounds.groups import Groups
from rlmech.core.bounds.intervals import Interval, Known, add_interval
from rlmech.core.bounds.packing import Packed, Pairs, accumulate, by_sign, each_weight, whole
from rlmech.core.conditions import conditions
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import behaviour, record_of

LARGEST_REFINED = 2**23
"""Numbers of the weights on one node up to which what bends is bounded by lines, beyond by its interval alone."""
_STILL = 2**12
"""Epsilons of a number's size up to which a move of it counts as rounding."""
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
        refined: Whether what bends is bounded by lines first; else all follows from intervals.
        ball: A ball around the observation that holds all that is asked about, where it is narrower than the box.
        groups: Which inputs belong together; None where they are not told apart.

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
        refined: bool = True,
        ball: Ball | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.graph, self.replaced = graph, frozenset(given) | fused(graph)
        self.arrays, self.box, self.ball = tuple(array.double() for array in arrays), tuple(box), ball
        self._conditions = conditions(graph)
        self.refined, self.groups = refined, groups
        self.known = Known(n_rows=len(arrays[0]), epsilon=float(torch.finfo(precision).eps))
        self.known.centre.update({node: double(value.detach()) for node, value in given.items()})
        self.order = graph.computed_order(ends, replaced=self.replaced, cut=frozenset(given))
        self._bends: dict[tuple[Node, Slopes], Lines | Remainder] = {}
        self._bent: set[Node] = set()
        self._behind_bends: set[Node] = set()
        self._n_readers = Counter(read for node in self.order for read in dict.fromkeys(node.inputs()))
        self._moving_groups = None if groups is None else groups.moving([end.high > end.low for end in self.box])
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
        found, gap, rounding = self._walk(end, weights, slopes, None)
        at = self.known.centre[end]
        value = _row_sums(end, torch.where(weights == 0, 0.0, weights * at))  # a hidden score is -inf
        return Linear(value=value, slopes=found, gap=gap[..., 0] + rounding[..., 0], rounding=rounding[..., 0])

    def largest(self, bound: Linear, *, less: Sequence[Tensor] | None = None) -> Float[Tensor, "bound batch"]:
        """The greatest value that linear bounds allow in the box, above that at the observation.

        Args:
            bound: The bounds.
            less: Slopes that are subtracted from the bounds' own first, of the same shapes.
        """
        rest = bound.slopes if less is None else [a - b for a, b in zip(bound.slopes, less, strict=True)]
        total = bound.gap + self._farthest(rest, None)[..., 0]
        return total + _SLACK * (bound.value.abs() + total.abs())

    def _farthest(self, slopes: Sequence[Tensor], groups: Groups | None) -> Float[Tensor, "bound batch group"]:
        """How much linear functions rise at most from the observation on, in each group's part of the box."""
        ends = self.graph.inputs
        total = self.arrays[0].new_zeros(())
        for node, slope, array, box in zip(ends, slopes, self.arrays, self.box, strict=True):
            middle, radius = (box.high + box.low) / 2 - array, (box.high - box.low) / 2
            total = total + self._dots(node, slope, middle, groups) + self._dots(node, slope.abs(), radius, groups)
        if self.ball is not None:
            total = torch.minimum(total, self.ball.reach(slopes))
        return total + _SLACK * total.abs()

    def _walk(
        self, end: Node, weights: Float[Tensor, "bound ..."], slopes: Slopes, groups: Groups | None
    ) -> tuple[tuple[Tensor, ...], Float[Tensor, "bound batch group"], Float[Tensor, "bound batch group"]]:
        """Pull weights back to the inputs: slopes there, and what the bends and rounding add for each group."""
        known = self.known
        pulled: dict[Node, Operand] = {end: weights}
        counted: set[Node] = set()
        gap = rounding = weights.new_zeros(len(weights), known.n_rows, 1 if groups is None else groups.count)
        for node in reversed(self.order):
            if node not in pulled or node not in known.intervals:
                continue
            weight = pulled.pop(node)
            if node in self.graph.inputs:
                pulled[node] = whole(weight)
                continue
            weight = self._packed(node, weight) if self._is_by_entity(node) else whole(weight)
            definition = self.graph.definition_of(node, replaced=self.replaced)
            if definition is not None:
                accumulate(pulled, definition, weight)
                continue
            bound = self._bound(node, slopes) if node in self._bent else None
            if isinstance(bound, Lines):
                # w+ high + w- low, of which each half is a product with w and one with |w|
                size, (middle, radius) = each_weight(torch.abs, weight), bound.middle_and_radius
                gap = gap + self._dots(node, weight, middle, groups) + self._dots(node, size, radius, groups)
                slack = self._rounding_of(node, bound, counted)
                rounding = rounding if slack is None else rounding + self._dots(node, size, slack, groups)
                accumulate(pulled, node.args[0], by_sign(weight, size, bound))
                continue
            if node in known.rounding and node not in counted:
                rounding = rounding + self._dots(node, each_weight(torch.abs, weight), known.rounding[node], groups)
            if bound is not None:
                middle, radius = bound.middle_and_radius
                gap = gap + self._dots(node, weight, middle, groups)
                gap = gap + self._dots(node, each_weight(torch.abs, weight), radius, groups)
                if bound.level is not None:
                    weight = weight.masked_fill(bound.level, 0.0)
            self._pull(node, weight, pulled)
        zeros = [weights.new_zeros(len(weights), *array.shape) for array in self.arrays]
        found = tuple(pulled.get(node, zero) for node, zero in zip(self.graph.inputs, zeros, strict=True))
        return found, gap, rounding

    def _rounding_of(self, node: Node, bound: Lines, counted: set[Node]) -> Tensor | None:
        """The rounding of a node that bends, and through its steepest line that of what it alone reads."""
        known, source = self.known, node.args[0]
        slack = known.rounding.get(node)
        if source in known.rounding and self._n_readers.get(source) == 1:
            steepest = torch.maximum(bound.low_slope.abs(), bound.high_slope.abs())
            through = steepest * known.rounding[source]
            slack = through if slack is None else slack + through
            counted.add(source)
        return slack

    def _is_by_entity(self, node: Node) -> bool:
        """Whether a node `[row entity number]` makes each entity of the same entity alone, by lines or a matrix."""
        if len(node.shape or ()) != 3 or not Layout.of(node).is_identity or not self._reads_first_alone(node):
            return False
        return node.op == "linear" or (node in self._bent and isinstance(self._bound(node, "adapted"), Lines))

    def _reads_first_alone(self, node: Node) -> bool:
        return [read for read in node.inputs() if read in self.known.intervals] == list(node.args[:1])

    def _packed(self, node: Node, weight: Operand) -> Operand:
        """Weights on the entities that have some, where entities belong to one group each and many have none."""
        if isinstance(weight, Packed) or (self.groups is not None and self._entity_owners(node) is None):
            return weight
        pairs = Pairs.with_weight(weight)
        return weight if pairs is None else pairs.pack(weight)

    def _entity_owners(self, node: Node) -> Tensor | None:
        """The group of each entity of a node; None where they have none, or several."""
        if self.groups is None or not self.groups.apart(node):
            return None
        owners = self.groups.owners[node].view(node.sizes[1:])
        return owners[:, 0] if bool((owners == owners[:, :1]).all()) else None

    def _add(self, node: Node) -> None:
        known = self.known
        if node.op == "input":
            place = self.graph.inputs.index(node)
            if node in self._conditions:  # a mask is held
                known.centre[node] = self.arrays[place].bool()
                return
            known.centre[node], known.intervals[node] = self.arrays[place], self.box[place]
            return
        if node.op in ("parameter", "constant"):
            known.centre[node] = leaf(self.graph, node)
            return
        definition = self.graph.definition_of(node, replaced=self.replaced)
        if definition is not None:
            known.centre[node] = known.centre[definition]
            if definition in known.intervals:
                known.intervals[node] = known.intervals[definition]
                self._behind_bends |= {node} if definition in self._behind_bends else set()
            return
        known.centre[node] = call(node, known.centre, n_rows=known.n_rows)
        if not any(read in known.intervals for read in node.inputs()):
            return
        if behaviour(node, known.intervals) != "fixed":  # where it is, it reads the sizes alone of what varies
            self._add_varying(node)

    def _add_varying(self, node: Node) -> None:
        known = self.known
        if bends(node, known):
            for read in dict.fromkeys(node.inputs()):
                if self._matters(read, node):
                    self._refine(read)
            self._bent.add(node)
        if node in self._bent or any(read in self._behind_bends for read in node.inputs()):
            self._behind_bends.add(node)
        add_interval(node, known)
        ends = known.intervals[node]
        if known.is_mask(node) and isinstance(ends.low, Tensor) and bool((ends.low == ends.high).all()):
            del known.intervals[node]  # a mask that cannot turn in the box

    def _matters(self, node: Node, reader: Node) -> bool:
        """Whether how far a node moves changes what a reader leaves over by more than rounding does."""
        if behaviour(reader, self.known.moving()) != "product":
            return True
        others = [read for read in reader.inputs() if read is not node and read in self.known.intervals]
        return not others or any(self._moves(read) for read in others)

    def _moves(self, node: Node) -> bool:
        ends = self.known.intervals[node]
        return bool((ends.high - ends.low > _STILL * self.known.epsilon * (1 + ends.size)).any())

    def _refine(self, node: Node) -> None:
        """Bound a node by lines, and keep what is nearer."""
        known, ends = self.known, self.known.intervals.get(node)
        if ends is None or node in self.graph.inputs or known.is_mask(node) or not isinstance(ends.low, Tensor):
            return
        if not self.refined or (node not in self._behind_bends and self.ball is None):
            return  # where nothing bends, the interval is exact
        layout = Layout.of(node)
        shown = [layout.show(value).flatten(1) for value in (ends.low, ends.high)]
        moving = (shown[1] > shown[0]).any(0)
        groups = self.groups if self.groups is not None and self.groups.apart(node) else None
        owners = torch.zeros_like(moving, dtype=torch.long) if groups is None else groups.owners[node]
        place, count = _places(owners, moving)
        if not count or count * self._width * known.n_rows > LARGEST_REFINED:
            return
        each_row = layout.show(known.centre[node])[0]
        single = torch.zeros(count, each_row.numel(), dtype=torch.float64, device=each_row.device)
        single[place[moving], moving.nonzero()[:, 0]] = 1
        asked = moving.expand(known.n_rows, -1)
        if groups is not None and self._moving_groups is not None:
            asked = asked & self._moving_groups[:, owners]  # what else moves does so by rounding
        single = (single[:, None] * asked).reshape(count, known.n_rows, *each_row.shape)
        weights = torch.stack([layout.restore(w) for w in single])
        found, gap, rounding = self._walk(node, torch.cat([weights, -weights]), "adapted", groups)
        total = gap + rounding + self._farthest(found, groups)
        total = total + _SLACK * total.abs()
        up, down = (part[place, :, owners].T for part in total.split(count))
        high, low = (layout.restore(part.reshape(known.n_rows, *each_row.shape)) for part in (up, -down))
        at = known.centre[node]
        slack = _SLACK * torch.where(at.isfinite(), at.abs(), 0.0)
        still = layout.restore((~asked).reshape(known.n_rows, *each_row.shape))
        # the bounds cross by rounding only
        low = torch.where(still, ends.low, torch.maximum(at + low - slack, ends.low))
        high = torch.where(still, ends.high, torch.minimum(at + high + slack, ends.high))
        known.intervals[node] = Interval(torch.minimum(low, high), torch.maximum(low, high))

    def _dots(self, node: Node, weight: Operand, value: Operand, groups: Groups | None) -> Tensor:
        """The sums over a node's numbers of weights times a value, each group's apart: `[bound batch group]`."""
        if isinstance(weight, Packed):
            rows = weight.pairs.rows_of(value)[..., None]
            each_pair = torch.bmm(weight.values.transpose(0, 1), rows)[..., 0].T
            if groups is None:
                return weight.pairs.collected(each_pair, None, 1)
            return weight.pairs.collected(each_pair, self._entity_owners(node), groups.count)
        if isinstance(weight, dict):  # of an operation with several results, the parts that have weights
            parts = [
                _dot(part.reshape(*part.shape[:2], -1), value[key].reshape(len(value[key]), -1), None, node)
                for key, part in weight.items()
            ]
            return torch.stack(parts).sum(0)
        layout = Layout.of(node)
        rows = weight if layout.is_identity else torch.stack([layout.show(one) for one in weight])
        flat = layout.show(value).reshape(self.known.n_rows, -1)
        return _dot(rows.reshape(*rows.shape[:2], flat.shape[1]), flat, groups, node)

    def _factors_pair_up(self, node: Node) -> bool:
        """Whether a product of matrices has as many of one factor as of the other."""
        first, second = (self.known.centre[read].shape for read in node.args[:2])
        return len(first) > 2 and first[:-2] == second[:-2]

    def _bound(self, node: Node, slopes: Slopes) -> Lines | Remainder:
        key = (node, slopes)
        if key not in self._bends:
            self._bends[key] = bound_bend(node, self.known, slopes)
        return self._bends[key]

    def _pull(self, node: Node, weight: Operand, pulled: dict[Node, Operand]) -> None:
        """Pull weights through the tangent of a node at the observation, to what it reads."""
        if node.op == "getitem":
            by_place = pulled.setdefault(node.args[0], {})
            by_place[node.args[1]] = by_place.get(node.args[1], 0) + weight
            return
        known = self.known
        if node.op == "linear" and self._reads_first_alone(node):
            matrix = known.centre[node.args[1]]
            accumulate(pulled, node.args[0], each_weight(lambda values: values @ matrix, weight))
            return
        if node.op in ("matmul", "bmm") and self._factors_pair_up(node):  # autograd would copy a factor for each bound
            first, second = (known.centre[read] for read in node.args[:2])
            if node.args[0] in known.intervals:
                accumulate(pulled, node.args[0], torch.einsum("w...ij,...kj->w...ik", weight, second))
            if node.args[1] in known.intervals:
                accumulate(pulled, node.args[1], torch.einsum("w...ij,...ik->w...kj", weight, first))
            return
        leaves = {
            read: known.centre[read].detach().clone().requires_grad_()
            for read in dict.fromkeys(node.inputs())
            if read in known.intervals and not known.is_mask(read)
        }
        with torch.enable_grad():
            value = call(node, known.centre | leaves, n_rows=known.n_rows)
        weighted = [(value[key], own) for key, own in weight.items()] if isinstance(weight, dict) else [(value, weight)]
        weighted = [(end, own) for end, own in weighted if end.requires_grad]
        if not leaves or not weighted:
            return
        ends, weights = [end for end, _ in weighted], [own for _, own in weighted]
        # not `materialize_grads`: its zeros have no axis for the bounds
        found = torch.autograd.grad(ends, list(leaves.values()), weights, is_grads_batched=True, allow_unused=True)
        for read, slope in zip(leaves, cast("tuple[Tensor | None, ...]", found), strict=True):
            if slope is not None:  # else it is overwritten as a whole
                accumulate(pulled, read, slope)


def _row_sums(node: Node, values: Float[Tensor, "bound ..."]) -> Float[Tensor, "bound batch"]:
    layout = Layout.of(node)
    if layout.is_identity:
        return values.flatten(2).sum(2) if values.ndim > 2 else values
    return torch.stack([layout.show(value).flatten(1).sum(1) for value in values])


def _dot(rows: Tensor, flat: Tensor, groups: Groups | None, node: Node) -> Tensor:
    """Sums of weights `[bound batch element]` times values `[batch element]`, by group: `[bound batch group]`."""
    each_group = flat[..., None] if groups is None else flat[..., None] * groups.members(node)
    return torch.bmm(rows.transpose(0, 1), each_group).transpose(0, 1)


def _places(owners: Tensor, moving: Tensor) -> tuple[Tensor, int]:
    """A number for each element, such that those of one owner that move have different ones; how many numbers."""
    place = torch.zeros_like(owners)
    for owner in owners[moving].unique():
        own = moving & (owners == owner)
        place[own] = torch.arange(int(own.sum()), device=owners.device)
    return place, int(place[moving].max()) + 1 if bool(moving.any()) else 0


def fused(graph: Graph) -> frozenset[Node]:
    """The nodes whose replacement makes a graph take fused attention apart, into what bounds are known of."""
    return frozenset(
        trigger
        for node, alternative in graph.alternatives.items()
        if record_of(node).role == "attention"
        for trigger in alternative.triggers
    )
