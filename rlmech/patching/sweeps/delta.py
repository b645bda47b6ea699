"""Delta propagation: what many small patches of one value do to the outputs, computing only what they change.

Three things make a job cheap: what the patch leaves apart is read from two whole runs (`flow`), a change that enters a
chain of linear operations is one product with the chain's matrix, and attention recomputes only what the patch reaches,
its values never copied per row. Rows that change nothing are found beforehand and not computed: they are the base run,
bit for bit. Exact up to rounding, which the sweep checks against the plain suffix before it trusts a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import axes_of, record_of, row_numbers
from rlmech.patching.sweeps.delta_linear import Chain, Folded, OneChannel, OneElement, Product
from rlmech.patching.sweeps.delta_steps import Base, Block, Mixed, Plain, Reading, Runs, Softmax, Step, flat, size_of
from rlmech.patching.sweeps.flow import Flow, spread
from rlmech.patching.sweeps.linear_chain import linear_sources

LARGEST_MATRIX = 1 << 20
"""Elements of the largest matrix that a chain of linear operations is folded into."""
WORTH_COMPRESSING = 0.6
"""Share of rows that change something above which leaving the others out costs more than it saves."""
WORTH_SAVING = 1 << 16
"""Elements of the widest value that leaving rows out must save before it pays."""


class NoDeltaError(Exception):
    """There is no delta plan for these jobs; the message says why."""


class _Reach:
    """Rows in which a replaced value differs from the base where a job replaces it."""

    def __init__(self, node: Node, mask: Tensor, weighting: Node | None = None) -> None:
        self.node, self.weighting = node, weighting
        rows = flat(mask)
        self.weight = rows.float()
        self.element = rows.int().argmax(1) if bool((rows.sum(1) == 1).all()) else None

    def find(self, runs: Runs) -> Bool[Tensor, "pair job"]:
        differs = runs.source[self.node] != runs.base[self.node]
        if self.weighting is not None:  # a value that is multiplied with exact zeros reaches nothing
            read = (runs.base[self.weighting] != 0).any(-2)
            differs = differs.any(-1) & read
        differs = flat(differs)
        if self.element is not None:
            return differs.index_select(1, self.element)
        return differs.float() @ self.weight.T > 0


class DeltaPlan:
    """How to compute the outputs of a set of jobs on one value.

    Args:
        graph: The graph.
        start: The value's node.
        masks: Per job, the replaced elements, laid out like the node.
        ends: The outputs; at least one depends on the value.
        fold: Whether there are rows enough to make folding chains of linear operations worth its while.

    Raises:
        NoDeltaError: The graph holds something on the way that the steps cannot carry.
    """

    def __init__(
        self, graph: Graph, start: Node, masks: Bool[Tensor, job * shape], ends: Sequence[Node], *, fold: bool
    ) -> None:
        self.start, self.ends, self.fold = start, tuple(ends), fold
        self.flow: Flow = spread(graph, start, masks, ends)
        self.changed = set(self.flow.order)
        if not row_numbers(graph).isdisjoint(read for node in self.flow.order for read in (node, *node.inputs())):
            raise NoDeltaError("rows are looked up by their numbers")
        self.steps: dict[Node, Step] = {}
        self.replaced = _Reach(start, self._mask(start))
        self.reaches: list[_Reach] = []
        self._origins: dict[Node, Node] = {}
        self._readers: dict[Node, int] = {}
        for node in self.flow.order:
            for source in self.flow.sources(node):
                self._readers[source] = self._readers.get(source, 0) + 1
        for end in self.ends:
            self._emit(end)
        reads = [step.reads for step in self.steps.values()]
        weighting = {reach.weighting for reach in self.reaches if reach.weighting is not None}
        self.base_nodes = _sorted(
            {*self.ends, *(n for base, _ in reads for n in base), *self._reached(reads), *weighting}
        )
        self.source_nodes = _sorted(self._reached(reads))
        self.width = max(size_of(step.node) for step in self.steps.values() if step.node.shape is not None)

    def _reached(self, reads: Sequence[tuple[set[Node], set[Node]]]) -> set[Node]:
        """The nodes whose source values are needed."""
        return {self.start, *(n for _, source in reads for n in source), *(reach.node for reach in self.reaches)}

    # ---- planning

    def _ready_made(self, node: Node) -> Tensor | None:
        """Per job, the replaced elements, batch first, where the value is ready-made."""
        return self._mask(node) if node in self.flow.masks else None

    def _mask(self, node: Node) -> Tensor:
        return Layout.of(node).show(self.flow.masks[node])

    def _emit(self, node: Node) -> None:
        """Plan a node's rows, after those that it needs."""
        if node in self.steps:
            return
        mask = self._ready_made(node)
        if node not in self.changed:
            self.steps[node] = Base(node)
        elif mask is not None:
            self.reaches.append(_Reach(node, mask))
            self.steps[node] = Mixed(node, mask)
        else:
            rules = (self._chained, self._product, self._softmax, self._convolved)
            step = next((step for rule in rules if (step := rule(node)) is not None), None) or self._plain(node)
            self.steps[node] = step

    def _origin(self, node: Node) -> Node:
        """The first value from which everything up to the node is linear; the node itself where nothing is."""
        if node not in self._origins:
            before = linear_sources(self.flow, node) if self._ready_made(node) is None else None
            origins = {self._origin(source) for source in before} if before else set[Node]()
            self._origins[node] = origins.pop() if len(origins) == 1 else node
        return self._origins[node]

    def _chained(self, node: Node) -> Step | None:
        start = self._origin(node)
        if start is node or start.shape is None or node.shape is None:
            return None
        chain, mask = Chain(self.flow, start, node), self._ready_made(start)
        if mask is not None and bool((flat(mask).sum(1) <= 1).all()):
            self.reaches.append(_Reach(start, mask))
            return OneElement(chain, mask)
        size = size_of(start) * size_of(node)
        if not self.fold or chain.direct is not None or not 0 < size < min(chain.work, LARGEST_MATRIX):
            return None
        if mask is None:
            self._emit(start)
        else:
            self.reaches.append(_Reach(start, mask))
        return Folded(chain, mask)

    def _product(self, node: Node) -> Step | None:
        if record_of(node).role != "matmul" or node.op == "baddbmm" or node.kwargs:
            return None
        first, second = node.args[:2]
        stacks = all(n.sizes[0] == -1 and len(n.sizes) == len(node.sizes) for n in (first, second, node))
        if not stacks or len(node.sizes) < 3 or first is second or any(s < 0 for s in node.sizes[1:]):
            return None
        mask, rows = self._ready_made(second), None
        if second in self.changed:
            if mask is None or not torch.equal(mask.any(-1), mask.all(-1)):
                return None
            rows = mask[..., 0]
        computed = first in self.changed
        if rows is not None and (not computed or self._ready_made(first) is None):
            self.reaches.append(_Reach(second, rows, weighting=first))
        elif rows is not None:
            self.reaches.append(_Reach(second, self._mask(second)))
        if computed:
            self._emit(first)
        return Product(node, first=first, second=second, computed=computed, rows=rows)

    def _softmax(self, node: Node) -> Step | None:
        if record_of(node).role != "softmax" or axes_of(node) != (len(node.sizes) - 1,) or node.sizes[0] != -1:
            return None
        if node.args[2:] not in ((), (None,)) or node.kwargs:
            return None  # computed in another dtype
        source = node.args[0]
        mask = self._ready_made(source) if source in self.changed else None
        if mask is None or mask.any(-1).all():
            return None
        self.reaches.append(_Reach(source, mask))
        return Softmax(node, mask)

    def _convolved(self, node: Node) -> Step | None:
        if node.op != "conv2d" or node.kwargs or (node.args[6:] or (1,))[0] != 1:
            return None
        source = node.args[0]
        mask = self._ready_made(source) if source in self.changed else None
        if mask is None or source.sizes[0] != -1:
            return None
        channels = mask.flatten(2)
        if not torch.equal(channels.any(2), channels.all(2)) or not bool((channels.any(2).sum(1) == 1).all()):
            return None
        self.reaches.append(_Reach(source, mask))
        return OneChannel(node, mask)

    def _plain(self, node: Node) -> Step:
        before = [source for source in self.flow.sources(node) if source.op != "sym_size"]
        if record_of(node).moves == "reshape":  # its sizes are the node's own
            before = before[:1]
        strange = [source for source in before if source.shape is None and source not in self.changed]
        if strange or (node.call is None and self.flow.definition_of(node) is None):
            raise NoDeltaError(f"{node.op!r} takes {strange[0].op if strange else 'something'!r}, which is no tensor")
        batches = [source for source in before if source.shape and sum(size < 0 for size in source.shape) > 1]
        if batches:
            raise NoDeltaError(f"{node.op!r} reads a value with the batch on two axes")
        computed = {source for source in before if source in self.changed}
        for source in computed:
            self._emit(source)
        only = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        in_place = node.op == "relu" and only in computed and self._owned(only)
        return Plain(self.flow, node, computed=computed, in_place=in_place)

    def _owned(self, node: Node) -> bool:
        """Whether a value is fresh memory that one step alone reads."""
        fresh = isinstance(self.steps[node], OneElement | Folded) or node.op in {"linear", "conv2d"}
        return (
            fresh and self._readers.get(node, 0) == 1 and node not in self.ends and not record_of(node).keeps_elements
        )

    # ---- running

    def active(self, runs: Runs) -> Bool[Tensor, "pair job"]:
        """Rows whose outputs can differ from the base run's."""
        reached = [reach.find(runs) for reach in self.reaches]
        found = reached[0] if len(reached) == 1 else torch.stack(reached).any(0)
        start_alone = len(reached) == 1 and self.reaches[0].node is self.start and self.reaches[0].weighting is None
        return found if start_alone else found & self.replaced.find(runs)

    def blocks(self, runs: Runs, active: Bool[Tensor, "pair job"], *, elements: int) -> Iterator[Block]:
        """Blocks of rows to run.

        Args:
            runs: Base and source runs.
            active: Rows to compute.
            elements: Elements of the widest value in a block: what fits the cache.
        """
        n_pairs, n_jobs = active.shape
        most = max(1, elements // self.width)
        counts = active.sum(1)
        total = int(counts.sum())
        if total == 0:
            return
        chosen, order = None, None
        rows = n_pairs * n_jobs
        compressed = total < WORTH_COMPRESSING * rows and (rows - total) * self.width > WORTH_SAVING
        if compressed:
            order = counts.argsort(stable=True)[int((counts == 0).sum()) :]
            reading = runs.reading
            runs = Runs(
                base={n: self._ordered(n, runs.base[n], order) for n in self.base_nodes},
                source={n: v.index_select(0, order) for n, v in runs.source.items()},
                reading=None if reading is None else Reading(weights=reading.of(order), base=reading.base[order]),
                matrices=runs.matrices,
            )
            chosen = active.index_select(0, order).byte().argsort(dim=1, descending=True, stable=True)
            longest = counts.index_select(0, order).tolist()
        else:
            longest = [n_jobs] * n_pairs
        for step in self.steps.values():
            runs.prepared[step] = step.prepare(runs)
        for pairs in _pair_blocks(longest, most):
            slots = longest[pairs.stop - 1]
            for first in range(0, slots, most):
                n_slots = min(most, slots - first)
                slot_range = slice(first, first + n_slots)
                jobs = slot_range if chosen is None else chosen[pairs, slot_range]
                n = pairs.stop - pairs.start
                yield Block(runs=runs, pairs=pairs, jobs=jobs, n_pairs=n, n_slots=n_slots, order=order)

    @staticmethod
    def _ordered(node: Node, value: Tensor, order: Tensor) -> Tensor:
        return value.index_select(0, order) if node.has_batch else value

    def run(self, block: Block) -> list[Tensor]:
        """The outputs of a block, laid out like their nodes."""
        for node, step in self.steps.items():
            block.values[node] = step.run(block)
        return [block.values[end] for end in self.ends]

    @property
    def can_read(self) -> bool:
        """Whether it gives a weighted sum of the first output for less than the output itself."""
        return self.steps[self.ends[0]].can_read

    def read(self, block: Block, reading: Reading) -> Float[Tensor, "pair slot"]:
        """The weighted sum of a block's scores, the first output, which are not computed for it."""
        for node, step in self.steps.items():
            if node is self.ends[0]:  # what the others need comes after it
                break
            block.values[node] = step.run(block)
        return self.steps[self.ends[0]].read(block, reading)


def _pair_blocks(longest: Sequence[int], most: int) -> Iterator[slice]:
    """Runs of pairs whose rows, all as many as the last pair's, stay within the budget; ascending counts."""
    start = 0
    while start < len(longest):
        stop = start + 1
        while stop < len(longest) and (stop + 1 - start) * longest[stop] <= most:
            stop += 1
        yield slice(start, stop)
        start = stop


def _sorted(nodes: set[Node]) -> tuple[Node, ...]:
    return tuple(sorted(nodes, key=lambda node: node.index))
