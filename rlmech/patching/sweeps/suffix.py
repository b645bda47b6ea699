"""The plain way to run patches: rows of (job, pair) stacked, everything after the first replaced value run on them.

Bit-equal to hooking each job by itself but for the batch size; any number of points per job. What depends on no
replaced point is read from the base runs. The delta plans are checked against this, and fall back to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import row_numbers
from rlmech.core.program import Address, Interceptor, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """One point of a set of jobs: where it lies, what each job replaces of it, and by what.

    Attributes:
        address: Where the point lies.
        mask: Per job, the replaced elements, canonical axes.
        value: The source, canonical axes, a row per pair.
    """

    address: Address
    mask: Bool[Tensor, job * shape]
    value: Tensor


class SuffixPlan:
    """The program that reruns what depends on some points.

    Args:
        engine: The policy's graph engine.
        starts: The replaced points.
        ends: The outputs.
    """

    def __init__(self, engine: GraphEngine, starts: Sequence[Node], ends: Sequence[Address]) -> None:
        self.starts, self.ends = tuple(dict.fromkeys(starts)), tuple(ends)
        self.prefix = prefix_of(engine.graph, self.starts, [end.node for end in ends])
        self.program: Program = engine.program(
            returned=[end.node for end in ends], given=self.prefix, hooked=self.starts
        )
        self._layouts = [Layout.of(node) for node in self.prefix]

    def run(
        self,
        arrays: Sequence[Tensor],
        base: Mapping[Node, Tensor],
        replaced: Sequence[Replaced],
        *,
        job: Int[Tensor, " row"],
        pair: Int[Tensor, " row"],
    ) -> list[Tensor]:
        """The outputs, canonical axes, of some rows.

        Args:
            arrays: The observation arrays of all pairs.
            base: Base values of the prefix, batch first.
            replaced: The points that the jobs replace.
            job: The job of each row.
            pair: The pair of each row.
        """
        given = [lay.restore(base[n].index_select(0, pair)) for n, lay in zip(self.prefix, self._layouts, strict=True)]
        stacked = [array.index_select(0, pair) for array in arrays]
        hooks = [self._hook([r for r in replaced if r.address.node is node], job, pair) for node in self.starts]
        outputs = self.program(stacked, given, hooks)
        return [end.layout.show(value) for end, value in zip(self.ends, outputs, strict=True)]

    @staticmethod
    def _hook(points: Sequence[Replaced], job: Tensor, pair: Tensor) -> Interceptor:
        def replace(value: Tensor) -> Tensor:
            for point in points:
                layout = point.address.layout
                shown = layout.show(value)
                mask, source = point.mask.index_select(0, job), point.value.index_select(0, pair)
                value = layout.restore(torch.where(mask, source, shown))
            return value

        return replace


def prefix_of(graph: Graph, starts: Sequence[Node], ends: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes with a row per observation before which nothing needs to run again when `starts` are replaced.

    What counts rows is left out: a program makes it anew for the rows that it is given.
    """
    replaced = set(starts)
    wanted = [*ends, *(source for start in starts for source in graph.sources_of(start, replaced=replaced))]
    again = {*replaced, *graph.behind(starts, wanted)}
    read = itertools.chain(wanted, *(graph.sources_of(node, replaced=replaced) for node in again))
    leaves = {"parameter", "constant", "input"}
    kept = {node for node in read if node not in again and node.op not in leaves and node.shape is not None}
    own = kept - row_numbers(graph)
    return tuple(sorted((node for node in own if node.has_batch), key=lambda node: node.index))
