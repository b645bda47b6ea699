"""Which elements of a graph's values depend on which others: boolean masks pushed through the operations.

    depends(out) = OR over the operation's inputs of depends(in), contracted as the operation contracts

Elementwise operations keep positions, layouts move them, linear maps, softmax and convolutions contract. Weights are
not looked at: a zero weight is still a dependence. An operation without a rule makes everything of a row depend on
everything of it, so that no edge is ever missed. Cost: one boolean pass over the graph, a row for each question asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import axes_of, nodes_in, numbers_read, record_of
from rlmech.core.operations.record import Movement
from rlmech.core.operations.table import known as known_operation

Pushed = Any
"""What is known to depend, as the operation itself gives it: a tensor of yes and no, a tuple of them, or None."""

Block = Callable[[Node, Tensor | None], Tensor | None]
"""(node, which of its elements depend on the sources, in the node's own shape) -> what goes on to its readers."""


def push_dependence(
    graph: Graph,
    ends: Sequence[Node],
    *,
    n_rows: int,
    replaced: Sequence[Node],
    block: Block,
    head_layouts: Mapping[Node, Layout],
) -> None:
    """Push boolean masks from sources to ends, one question per row.

    Args:
        graph: The graph.
        ends: Where to stop.
        n_rows: Questions asked at once; row i of every mask belongs to question i.
        replaced: Nodes that an intervention will give; they decide which second definitions are followed.
        block: Called for every tensor node in order; returns what its readers see of the dependence, so it reads off
            answers, starts sources and stops what must not go on.
        head_layouts: For each node of per-head results, the layout of the heads' outputs that it is computed from.
    """
    known: dict[Node, Pushed] = {}
    for node in graph.computed_order(ends, replaced=replaced):
        if known_operation(node.op).role == "leaf" and node.op != "input":
            continue
        definition = graph.definition_of(node, replaced=replaced)
        if definition is not None:
            value = known.get(definition)
        elif node.op == "input" or not any(source in known for source in numbers_read(node)):
            value = None
        else:
            value = _Pusher(known, n_rows, head_layouts).push(node)
        if node.shape is not None:
            value = block(node, value)
        if value is not None:
            known[node] = value


_BY_FIRST_ARGUMENT: tuple[Movement, ...] = ("channelwise", "convolution", "norm")
"""Movements that hold as long as what the first argument is worked on with depends on nothing."""


class _Pusher:
    """The rules: what an operation makes of the masks of its inputs."""

    def __init__(self, known: Mapping[Node, Pushed], n_rows: int, head_layouts: Mapping[Node, Layout]) -> None:
        self.known, self.n_rows, self.head_layouts = known, n_rows, head_layouts

    def push(self, node: Node) -> Pushed:
        rule = self._rule(node)
        return self._whole_rows(node) if rule is None else rule(node)

    def _rule(self, node: Node) -> Callable[[Node], Pushed] | None:
        """The rule of an operation, by name; None where there is none, or its arguments are unusual."""
        moves = record_of(node).moves
        if moves == "product" and not self._has_matrices(node):
            return None
        if moves in _BY_FIRST_ARGUMENT and any(source in self.known for source in nodes_in(node.args[1:])):
            return None
        if node.shape is None and moves not in ("layout", "pool"):
            return None
        rules: dict[Movement, Callable[[Node], Pushed]] = {
            "reshape": self._reshaped,
            "layout": self._moved,
            "join": self._joined,
            "elementwise": self._elementwise,
            "channelwise": self._elementwise,
            "along": lambda n: self._along(self._mask(n.args[0]), axes_of(n) or ()),
            "product": self._product,
            "attention": self._attention,
            "reduction": self._reduced,
            "convolution": self._convolved,
            "pool": self._pooled,
            "norm": self._normalised,
            "heads": self._per_head,
        }
        return rules.get(moves)

    def _elementwise(self, node: Node) -> Tensor:
        return self._any([self._mask(source).broadcast_to(self._sizes(node)) for source in self._tensors(node)])

    def _convolved(self, node: Node) -> Tensor:
        weight = torch.ones(self._sizes(node.args[1]))
        return self._call(node, self._mask(node.args[0]).float(), weight, None, *node.args[3:]) > 0

    def _pooled(self, node: Node) -> Pushed:
        pooled = self._call(node, self._mask(node.args[0]).float(), *node.args[1:])
        return tuple(part > 0 for part in (pooled[0], pooled[0])) if isinstance(pooled, tuple | list) else pooled > 0

    def _reshaped(self, node: Node) -> Tensor:
        mask, sizes = self._mask(node.args[0]), self._sizes(node)
        return mask.expand(sizes) if node.op == "expand" else mask.reshape(sizes)

    def _joined(self, node: Node) -> Tensor:
        if node.op in ("cat", "stack"):
            return self._call(node, *node.args)
        sizes, *rest = node.args[1:]  # numbers that a pad puts in depend on nothing
        constant = node.op == "constant_pad_nd" or rest[:1] in ([], ["constant"])
        mask = self._mask(node.args[0]).float()
        return (torch.constant_pad_nd(mask, sizes, 0) if constant else self._call(node, mask, sizes, *rest)) > 0

    def _normalised(self, node: Node) -> Tensor:
        rank = len(node.sizes)
        return self._along(self._mask(node.args[0]), range(rank - len(node.args[1]), rank))

    def _per_head(self, node: Node) -> Tensor:
        heads = self.head_layouts[node].show(self._mask(node.args[0])).any(-1, keepdim=True)
        return heads.broadcast_to(self._sizes(node))

    def _sizes(self, node: Node) -> list[int]:
        return [-size * self.n_rows if size < 0 else size for size in node.sizes]

    def _mask(self, node: Any) -> Tensor:
        mask = self.known.get(node)
        return torch.zeros(self._sizes(node), dtype=torch.bool) if mask is None else mask

    def _tensors(self, node: Node) -> list[Node]:
        return [source for source in node.inputs() if source.shape is not None and source in self.known]

    def _any(self, masks: Sequence[Tensor]) -> Tensor:
        total = masks[0]
        for mask in masks[1:]:
            total = total | mask
        return total

    def _call(self, node: Node, *args: Any) -> Pushed:
        assert node.call is not None  # noqa: S101  # only leaves have no call
        return node.call(*self._filled(args), **self._filled(node.kwargs))

    def _filled(self, value: Any) -> Pushed:
        if isinstance(value, Node):
            if value.op == "sym_size":
                return self.n_rows
            return self.known[value] if value in self.known else self._mask(value)
        if isinstance(value, tuple | list):
            return [self._filled(item) for item in value]
        return {key: self._filled(item) for key, item in value.items()} if isinstance(value, dict) else value

    def _moved(self, node: Node) -> Pushed:
        if node.op == "getitem":
            source = self.known[node.args[0]]
            return source[node.args[1]] if isinstance(source, tuple | list) else self._spread(source, node)
        moved = self._call(node, *node.args)
        return moved if isinstance(moved, tuple | list) else moved.bool()

    def _along(self, mask: Tensor, axes: Iterable[int]) -> Tensor:
        for axis in axes:
            mask = mask.any(axis, keepdim=True).expand_as(mask)
        return mask

    @staticmethod
    def _has_matrices(node: Node) -> bool:
        """Whether both factors are matrices or stacks of them: a vector has one axis less to contract."""
        return all(len(node.args[place].sizes) >= 2 for place in record_of(node).factors)

    def _product(self, node: Node) -> Tensor:
        sizes = self._sizes(node)
        masks: list[Tensor] = []
        record = record_of(node)
        left, right = (node.args[place] for place in record.factors)
        added = [node.args[place] for place in record.added if len(node.args) > place]
        masks += [self.known[bias].broadcast_to(sizes) for bias in added if bias in self.known]
        if left in self.known:
            masks.append(self.known[left].any(-1, keepdim=True).broadcast_to(sizes))
        if right in self.known:
            mask = self.known[right]
            columns = mask.any(-1) if record.name == "linear" else mask.any(-2, keepdim=True)
            masks.append(columns.broadcast_to(sizes))
        return self._any(masks)

    def _attention(self, node: Node) -> Tensor:
        sizes = self._sizes(node)
        q, k, v, *rest = node.args
        bias = rest[0] if rest else node.kwargs.get("attn_mask")
        masks: list[Tensor] = []
        if q in self.known:
            masks.append(self.known[q].any(-1, keepdim=True).broadcast_to(sizes))
        if k in self.known:
            masks.append(self.known[k].any(-1, keepdim=True).any(-2, keepdim=True).broadcast_to(sizes))
        if v in self.known:
            masks.append(self.known[v].any(-2, keepdim=True).broadcast_to(sizes))
        if bias is not None and bias in self.known:
            masks.append(self.known[bias].any(-1, keepdim=True).broadcast_to(sizes))
        return self._any(masks)

    def _reduced(self, node: Node) -> Tensor:
        mask = self._mask(node.args[0])
        for axis in axes_of(node) or ():
            mask = mask.any(axis, keepdim=True)
        return mask.reshape(self._sizes(node))

    def _whole_rows(self, node: Node) -> Pushed:
        """What is not known depends on everything in its row."""
        rows = torch.zeros(self.n_rows, dtype=torch.bool)
        for source in node.inputs():
            if source not in self.known:
                continue
            rows |= self._rows(source)
        return rows if node.shape is None else self._spread(rows, node)

    def _rows(self, source: Node) -> Tensor:
        """For which questions something of a value depends."""
        mask = self.known[source]
        if source.shape is None:
            return mask if isinstance(mask, Tensor) else torch.ones(self.n_rows, dtype=torch.bool)
        if not source.has_batch:
            return mask.any().expand(self.n_rows)  # weights, which no question is asked of
        return Layout.of(source).show(mask).reshape(self.n_rows, -1).any(1)

    def _spread(self, rows: Tensor, node: Node) -> Tensor:
        if not node.has_batch:
            return rows.any().expand(self._sizes(node))
        layout = Layout.of(node)
        inner = layout.canonical_shape[1:]
        return layout.restore(rows.reshape(-1, *[1] * len(inner)).expand(self.n_rows, *inner))
