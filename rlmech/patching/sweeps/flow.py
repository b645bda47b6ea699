"""How far a patch spreads: which elements of every later value each job can change, and which of them are ready-made.

A job replaces part of one value by a source. Run the base once and once more with the *whole* value replaced: after
every operation that keeps elements apart, a job's value is then `where(mask, source, base)`, and nothing is left to
compute. Masks are pushed through the operations themselves, so no layout is assumed. Where an operation mixes replaced
with kept elements, its value must be computed, and so must all that follow. Cost: once per set of jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.operations.reading import axes_of, record_of
from rlmech.core.operations.table import known as known_operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What depends on a replaced value.

    Attributes:
        start: The replaced node.
        order: The nodes that depend on it and reach an end, in an order in which they can be computed.
        masks: For those whose value is `where(mask, source, base)`: the mask `[job ...]`, laid out like the node.
        graph: The graph.
        replaced: The nodes that call for second definitions: the start, and the scores of fused attention.
    """

    graph: Graph
    start: Node
    order: tuple[Node, ...]
    masks: dict[Node, Tensor]

    replaced: frozenset[Node]

    def sources(self, node: Node) -> list[Node]:
        """What a node is computed from when the start is replaced; fused attention is always taken apart."""
        return [] if node is self.start else self.graph.sources_of(node, replaced=self.replaced)

    def definition_of(self, node: Node) -> Node | None:
        """The second definition that stands in for a node."""
        return None if node is self.start else self.graph.definition_of(node, replaced=self.replaced)


def spread(graph: Graph, start: Node, masks: Bool[Tensor, job * shape], ends: Sequence[Node]) -> Flow:
    """Follow replaced elements through the graph.

    Args:
        graph: The graph.
        start: The replaced node.
        masks: Per job, the replaced elements, laid out like the node, jobs in place of the batch.
        ends: Where to stop: the outputs.
    """
    fused = (a.triggers for node, a in graph.alternatives.items() if known_operation(node.op).role == "attention")
    replaced = frozenset({start}.union(*fused))
    order = (start, *graph.behind({start}, ends, replaced=replaced))
    flow = Flow(graph=graph, start=start, order=order, masks={start: masks}, replaced=replaced)
    spreading = _Spreading(flow, len(masks) if start.sizes[0] == -1 else _jobs(start, masks))
    known: dict[Node, Any] = {start: masks}
    for node in order[1:]:
        found = spreading.through(node, known)
        if found is not None:
            known[node] = found
        if isinstance(found, Tensor):
            flow.masks[node] = found
    return flow


def sizes_for(node: Node, n: int) -> list[int]:
    """A node's sizes at a batch of n."""
    return [-size * n if size < 0 else size for size in node.sizes]


def _jobs(start: Node, masks: Tensor) -> int:
    axis = next(i for i, size in enumerate(start.sizes) if size < 0)
    return masks.shape[axis] // -start.sizes[axis]


class _Spreading:
    """The rules, operation by operation; what has no rule mixes everything."""

    def __init__(self, flow: Flow, n_jobs: int) -> None:
        self.flow, self.n, self.changed = flow, n_jobs, set(flow.order)

    def through(self, node: Node, known: dict[Node, Any]) -> Any:
        """The mask of a node's value, a tuple of masks for several values, or None where it must be computed."""
        before = [source for source in self.flow.sources(node) if source in self.changed]
        if any(source not in known for source in before):
            return None
        definition = self.flow.definition_of(node)
        if definition is not None:
            return known[definition].reshape(sizes_for(node, self.n))
        record = record_of(node)
        if record.keeps_elements:
            return self._moved(node, known)
        given = [known[source] for source in dict.fromkeys(before)]
        if record.moves == "elementwise" or (record.moves == "channelwise" and before == [node.args[0]]):
            return self._elementwise(node, given)
        if node.op == "cat":
            return self._joined(node, known)
        if record.moves == "along" and before == [node.args[0]]:
            return self._along(given[0], axes_of(node) or ())
        if record.moves == "product" and len(given) == 1:
            return self._contracted(node, before[0], given[0])
        return self._whole(node, given)

    def _moved(self, node: Node, known: dict[Node, Any]) -> Any:
        mask = known[node.args[0]]
        if record_of(node).moves == "reshape":
            sizes = sizes_for(node, self.n)
            return mask.expand(sizes) if node.op == "expand" else mask.reshape(sizes)
        if node.op == "getitem":
            return mask[node.args[1]]
        assert node.call is not None  # noqa: S101  # only leaves have none
        rest = [self._number(value) for value in node.args[1:]]
        return node.call(mask, *rest, **node.kwargs)

    def _number(self, value: object) -> object:
        if isinstance(value, list | tuple):
            return [self._number(item) for item in value]
        return self.n if isinstance(value, Node) and value.op == "sym_size" else value

    def _elementwise(self, node: Node, given: list[Tensor]) -> Tensor | None:
        """Replaced where an input is; ready-made only where all inputs that depend on the patch are replaced."""
        shape = sizes_for(node, self.n)
        if any(mask.ndim != len(shape) for mask in given):
            return None
        spread_out = [mask.expand(shape) for mask in given]
        if any(not torch.equal(spread_out[0], other) for other in spread_out[1:]):
            return None
        return spread_out[0]

    def _joined(self, node: Node, known: dict[Node, Any]) -> Tensor:
        some = next(known[part] for part in node.args[0] if part in known)
        parts = [known[part] if part in known else some.new_zeros(sizes_for(part, self.n)) for part in node.args[0]]
        return torch.cat(parts, *node.args[1:])

    @staticmethod
    def _along(mask: Tensor, axes: Sequence[int]) -> Tensor | None:
        """Ready-made where all elements along the axes are replaced, or none."""
        touched = filled = mask
        for axis in axes:
            touched, filled = touched.any(axis, keepdim=True), filled.all(axis, keepdim=True)
        return touched.expand_as(mask) if torch.equal(touched, filled) else None

    def _contracted(self, node: Node, source: Node, mask: Tensor) -> Tensor | None:
        """Ready-made where each row (each column of a second factor) is replaced as a whole, or not at all."""
        factors = record_of(node).factors
        first, second = (node.args[place] for place in factors)
        if first is second or source not in (first, second) or mask.ndim != len(node.sizes) or mask.ndim < 2:
            return None  # it is added, or its place is not that of the result's rows
        if source is second and node.op == "linear":
            return None  # a layer whose weight is the value
        axis = -1 if source is first else -2
        touched = mask.any(axis, keepdim=True)
        if not torch.equal(touched, mask.all(axis, keepdim=True)):
            return None
        return touched.expand(sizes_for(node, self.n))

    def _whole(self, node: Node, given: list[Tensor]) -> Tensor | None:
        """An operation of no known rule: ready-made where a job replaces all that it reads, or nothing of it."""
        if node.shape is None or node.sizes[0] != -1 or any(len(mask) != self.n for mask in given):
            return None
        flat = [mask.reshape(self.n, -1) for mask in given]
        touched = torch.stack([mask.any(1) for mask in flat]).any(0)
        filled = torch.stack([mask.all(1) for mask in flat]).all(0)
        if not torch.equal(touched, filled):
            return None
        return touched.reshape(-1, *[1] * (len(node.sizes) - 1)).expand(sizes_for(node, self.n))
