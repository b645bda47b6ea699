"""Which group of inputs each element of a graph depends on, where it depends on one alone.

A network that embeds each vehicle by itself keeps them apart up to its attention: an element of an embedding moves with
the inputs of its own vehicle only. Found by pushing masks through the operations, so no such dependence is missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlmech.core.dependence import push_dependence
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout


class Groups:
    """Groups of inputs, and the nodes whose elements depend on one of them each.

    Args:
        graph: The graph.
        ends: The nodes that are asked about.
        of_inputs: For each input of the graph the group of each number of a row, from 0.
        replaced: Nodes that decide which second definitions are followed.

    Attributes:
        count: How many groups there are.
        of_inputs: For each input the group of each number of a row.
        owners: Node -> the group of each element of a row, flattened as it is shown.
    """

    def __init__(
        self, graph: Graph, ends: Sequence[Node], *, of_inputs: Sequence[Tensor], replaced: Sequence[Node]
    ) -> None:
        self.count = 1 + max(int(groups.max()) for groups in of_inputs)
        self.of_inputs = tuple(of_inputs)
        self.owners: dict[Node, Tensor] = {}
        self._members: dict[Node, Tensor] = {}
        numbers, mixed = torch.arange(self.count), set[Node]()

        def own(node: Node, mask: Tensor | None) -> Tensor | None:
            if node.op == "input":
                groups = of_inputs[graph.inputs.index(node)]
                mask = groups[None] == numbers.view(-1, *(1,) * groups.ndim)
            if mask is not None:
                shown = Layout.of(node).show(mask).flatten(1)
                if bool((shown.sum(0) <= 1).all()) and mixed.isdisjoint(graph.sources_of(node, replaced=replaced)):
                    self.owners[node] = shown.long().argmax(0)
                else:
                    mixed.add(node)
            return mask

        push_dependence(graph, ends, n_rows=self.count, replaced=replaced, block=own, head_layouts={})

    def apart(self, node: Node) -> bool:
        """Whether each element of a node, and of all it is computed from, depends on one group at most."""
        return node in self.owners

    def moving(self, moves: Sequence[Tensor]) -> Tensor:
        """Which groups hold a number that moves, `[batch group]`.

        Args:
            moves: For each input of the graph which of its numbers do, rows first.
        """
        found = torch.zeros(len(moves[0]), self.count, dtype=torch.bool)
        for own, groups in zip(moves, self.of_inputs, strict=True):
            for group in range(self.count):
                found[:, group] |= (own & (groups == group)).flatten(1).any(1)
        return found

    def members(self, node: Node) -> Tensor:
        """Which elements belong to which group, `[element group]`, 0 or 1."""
        if node not in self._members:
            self._members[node] = torch.nn.functional.one_hot(self.owners[node], self.count).double()
        return self._members[node]
