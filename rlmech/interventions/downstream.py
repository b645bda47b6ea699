"""What runs again when a node's value is replaced: the nodes behind it, what they read from before it, and the run.

Cost: the walk is linear in the graph; a run costs the part of the network behind the node, for the rows given. Nothing
here knows of sites or metrics, and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout

_LEAVES = {"parameter", "constant", "input"}


def nodes_behind(graph: Graph, node: Node, *, ends: Sequence[Node], cut: Node | None = None) -> tuple[Node, ...]:
    """The nodes on a way from a node to one of some ends, in an order of computation, without the node itself.

    Args:
        graph: The graph.
        node: Where the ways begin.
        ends: Where they end.
        cut: A node that no way may pass, as if its value were fixed; a way may not end there either.
    """
    fixed = {node} if cut is None else {node, cut}
    depends = {at: at is node for at in fixed}
    order: list[Node] = []
    stack = [(end, False) for end in ends]
    while stack:
        at, expanded = stack.pop()
        if at in depends:
            continue
        sources = sources_of(graph, at, given=fixed)
        if not expanded:
            stack.append((at, True))
            stack.extend((source, False) for source in sources)
            continue
        depends[at] = any(depends[source] for source in sources)
        if depends[at]:
            order.append(at)
    return tuple(order)


def ancestors(graph: Graph, ends: Sequence[Node], *, cut: Node | None = None) -> set[Node]:
    """The ends and all that they are computed from; with a cut, without it and what they need for it alone."""
    found: set[Node] = set()
    given = set() if cut is None else {cut}
    stack = [end for end in ends if end is not cut]
    while stack:
        at = stack.pop()
        if at not in found:
            found.add(at)
            stack.extend(source for source in sources_of(graph, at, given=given) if source is not cut)
    return found


def sources_of(graph: Graph, node: Node, *, given: set[Node]) -> list[Node]:
    """What a node is computed from while some nodes are given: its second definition where one of them triggers it."""
    alternative = graph.alternatives.get(node)
    return [alternative.definition] if alternative and alternative.triggers & given else list(node.inputs())


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A forward pass that starts at a node, on base runs whose earlier values are kept.

    Attributes:
        engine: The policy's graph engine.
        node: The node whose value is given.
        returned: The nodes that a run gives.
        arrays: The base runs' observation.
        frontier: Nodes from before `node` that the run reads.
        values: Their values in the base runs, the batch first.
    """

    engine: GraphEngine
    node: Node
    returned: tuple[Node, ...]
    arrays: tuple[Tensor, ...]
    frontier: tuple[Node, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def start(
        cls, engine: GraphEngine, node: Node, *, returned: Sequence[Node], arrays: tuple[Tensor, ...]
    ) -> Continuation:
        """Compute, once, what the runs read from before the node."""
        graph = engine.graph
        behind = nodes_behind(graph, node, ends=returned)
        inside = {node, *behind}
        read = [source for at in behind for source in sources_of(graph, at, given={node})]
        read += [end for end in returned if end not in inside]
        frontier = tuple(dict.fromkeys(at for at in read if at not in inside and at.op not in _LEAVES and _batched(at)))
        with torch.no_grad():
            values = engine.program(returned=frontier)(arrays, (), ()) if frontier else ()
        shown = tuple(Layout.of(at).show(value) for at, value in zip(frontier, values, strict=True))
        return cls(engine=engine, node=node, returned=tuple(returned), arrays=arrays, frontier=frontier, values=shown)

    def run(self, value: Tensor, rows: Int[Tensor, " batch"] | None = None) -> tuple[Tensor, ...]:
        """The returned nodes' values, each in its node's own shape.

        Args:
            value: The given node's value, in the node's own shape.
            rows: Which base run each row of it belongs to; None where they are the base runs in order.
        """
        arrays, values = self.arrays, self.values
        if rows is not None:
            arrays, values = tuple(a[rows] for a in arrays), tuple(v[rows] for v in values)
        kept = [Layout.of(at).restore(v) for at, v in zip(self.frontier, values, strict=True)]
        program = self.engine.program(returned=self.returned, given=(self.node, *self.frontier))
        return program(arrays, (value, *kept), ())


def _batched(node: Node) -> bool:
    return any(size < 0 for size in node.shape or ())
