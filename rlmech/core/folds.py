"""Which way a batch is folded into another axis: `[batch * entity ...]`, or as torch's own attention does it, reversed.

Sizes do not tell. One row of the observation is exchanged; where a value then changes are that row's elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.program import compile_program


def mark_folds(graph: Graph, observation: tuple[Tensor, ...]) -> None:
    """Set `Node.batch_inner` for the values whose batch is folded into another axis, and runs fastest there.

    Args:
        graph: The graph.
        observation: At least three different rows.
    """
    folded = [node for node in graph.nodes if node.shape and any(size < -1 for size in node.shape)]
    if not folded:
        return
    exchanged = tuple(torch.cat([array[:-1], array[:1]]) for array in observation)
    program = compile_program(graph, returned=folded)
    with torch.no_grad():
        before, after = program(observation, (), ()), program(exchanged, (), ())
    n = observation[0].shape[0]
    for node, was, now in zip(folded, before, after, strict=True):
        node.batch_inner = _runs_fastest(node, was, now, n)


def _runs_fastest(node: Node, was: Tensor, now: Tensor, n: int) -> bool:
    axis = next(i for i, size in enumerate(node.sizes) if size < -1)
    changed = (was != now).movedim(axis, 0).reshape(was.shape[axis], -1).any(1).nonzero()[:, 0]
    of_last_row = changed // -node.sizes[axis] == n - 1
    return len(changed) > 0 and not bool(of_last_row.all()) and bool((changed % n == n - 1).all())
