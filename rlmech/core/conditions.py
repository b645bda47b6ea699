"""Observations that are not varied: truth values that only decide (action masks), whole numbers that are looked up.

A mask has no neighbourhood: gradients, boxes and lines hold it as it is in each state. Whole numbers that an embedding
or a one-hot row looks up have nothing between them either; what needs a slope there says so.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from rlmech.core.graph import Graph, Node
from rlmech.core.operations.table import known

_LOOKUPS = frozenset(("embedding", "one_hot", "index", "index_select", "gather", "embedding_bag", "take"))
_DECIDES = {"where": 0, "masked_fill": 1}
"""Operations that read a condition, and at which place."""


def conditions(graph: Graph) -> frozenset[Node]:
    """The inputs that are truth values and decide alone."""
    truths = [node for node in graph.inputs if node.dtype is torch.bool]
    return frozenset(node for node in truths if _only_decides(graph, node)) if truths else frozenset()


def looked_up(graph: Graph) -> tuple[Node, ...]:
    """The inputs of whole numbers of which no arithmetic is made before they are looked up."""
    whole = [node for node in graph.inputs if node.dtype is not None and not node.dtype.is_floating_point]
    return tuple(node for node in whole if node.dtype is not torch.bool and _is_looked_up(graph, node)) if whole else ()


def _only_decides(graph: Graph, start: Node) -> bool:
    stack, seen, users = [start], {start}, graph.users()
    while stack:
        node = stack.pop()
        for reader in users[node]:
            place = _DECIDES.get(reader.op)
            if place is not None:
                if any(arg is node for i, arg in enumerate(reader.args) if i != place):
                    return False
            elif reader.dtype is not torch.bool:
                return False
            elif reader not in seen:
                seen.add(reader)
                stack.append(reader)
    return True


def _is_looked_up(graph: Graph, start: Node) -> bool:
    stack, seen, users, found = [start], {start}, graph.users(), False
    while stack:
        for reader in users[stack.pop()]:
            if reader.op in _LOOKUPS:
                found = True
            elif reader.dtype is not None and reader.dtype.is_floating_point:
                return False
            elif reader not in seen and (known(reader.op).keeps_elements or _stays_whole(reader)):
                seen.add(reader)
                stack.append(reader)
    return found


def _stays_whole(node: Node) -> bool:
    return node.dtype is not None and not node.dtype.is_floating_point and node.dtype is not torch.bool


def keys_of(nodes: Collection[Node]) -> frozenset[str]:
    """The keys of inputs in the observation."""
    return frozenset(str(node.owner) for node in nodes)
