"""What runs again when a node's value is replaced: the nodes behind it, what they read from before it, and the run.

Cost: the walk is linear in the graph; a run costs the part of the network behind the node, for the rows given. Nothing
here knows of sites or metrics, and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import row_numbers
from rlmech.core.recent import Recent

_LEAVES = {"parameter", "constant", "input"}
FRONTIERS = 64
"""Nodes whose frontiers are kept for a policy, the last used ones: they are told by the graph alone."""
_frontiers: WeakKeyDictionary[GraphEngine, Recent[object, tuple[Node, ...]]] = WeakKeyDictionary()


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
        key = (node, tuple(returned))
        frontier = _frontiers.setdefault(engine, Recent(FRONTIERS)).get(key, lambda: _frontier(engine, node, returned))
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


def _frontier(engine: GraphEngine, node: Node, returned: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes from before a node that are read on the way from it to others."""
    graph = engine.graph
    behind = graph.behind({node}, returned)
    inside = {node, *behind}
    read = [source for at in behind for source in graph.sources_of(at, replaced={node})]
    read += [end for end in returned if end not in inside]
    anew = inside | row_numbers(graph)  # those are made anew for the rows of each run
    return tuple(dict.fromkeys(at for at in read if at not in anew and at.op not in _LEAVES and at.has_batch))
