"""The steps of a delta plan: each computes one value for a block of rows (pair, slot), from base and source runs.

A slot is a job. What a job leaves alone is read from the base run and broadcast over slots, never copied per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.graph import Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import record_of
from rlmech.patching.sweeps.flow import Flow, sizes_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A weighted sum of the scores, which a plan then gives instead of them.

    Attributes:
        weights: For each pair, or one row for all.
        base: The sum in the base run.
    """

    weights: Float[Tensor, "pair_or_one action"]
    base: Float[Tensor, " pair"]

    def of(self, pairs: slice | Tensor) -> Tensor:
        """The weights of some pairs, or the one row for all."""
        return self.weights if len(self.weights) == 1 else self.weights[pairs]


@dataclass(slots=True, kw_only=True)
class Runs:
    """Base and source runs of all pairs, batch first; weights as they are.

    Attributes:
        base: Values of the base run.
        source: Values of the run with the whole point replaced.
        reading: What is read of the scores, where that is a weighted sum.
        matrices: What chains of linear operations come to, by their ends, for all plans of a sweep.
        prepared: What each step shares between blocks; plans themselves keep nothing of a call.
    """

    base: dict[Node, Tensor]
    source: dict[Node, Tensor]
    reading: Reading | None = None
    matrices: dict[tuple[Node, Node], Tensor] = field(default_factory=dict)
    prepared: dict[Step, dict[str, Tensor]] = field(default_factory=dict)

    def difference(self, node: Node) -> Tensor:
        """Source less base, [pair ...]; zero where both are the same infinity, as masked scores are."""
        source, base = self.source[node], self.base[node]
        return (source - base).masked_fill_((source == base) | (source.isnan() & base.isnan()), 0)


@dataclass(slots=True, kw_only=True)
class Block:
    """Some pairs times some jobs: rows in the order (pair, slot).

    Attributes:
        runs: Base and source runs.
        pairs: The pairs.
        jobs: The jobs: the same ones for every pair, or `[pair slot]`.
        n_pairs: Number of pairs.
        n_slots: Number of slots.
        order: The pair that each place of the runs stands for; None where they are in order.
        values: What has been computed, laid out like the nodes, a row for each (pair, slot).
    """

    runs: Runs
    pairs: slice
    jobs: slice | Tensor
    n_pairs: int
    n_slots: int
    order: Tensor | None = None
    values: dict[Node, Tensor] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows of this block."""
        return self.n_pairs * self.n_slots

    def rows_of(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pair and the job of each row."""
        pair = (
            torch.arange(self.pairs.start, self.pairs.stop, device=device)
            if self.order is None
            else self.order[self.pairs]
        )
        if isinstance(self.jobs, Tensor):
            return pair.repeat_interleave(self.n_slots), self.jobs.reshape(-1)
        job = torch.arange(self.jobs.start, self.jobs.stop, device=device)
        return pair.repeat_interleave(self.n_slots), job.repeat(self.n_pairs)

    def put(self, values: Tensor, table: Tensor) -> None:
        """Write a number for each pair and slot into a table [job pair]."""
        if isinstance(self.jobs, slice) and self.order is None:
            table[self.jobs, self.pairs] = values.reshape(self.n_pairs, self.n_slots).T
        else:
            pair, job = self.rows_of(table.device)
            table[job, pair] = values.reshape(-1).to(table)

    def base(self, node: Node) -> Tensor:
        """Base values, [pair 1 ...]."""
        return self.runs.base[node][self.pairs].unsqueeze(1)

    def of_jobs(self, table: Tensor) -> Tensor:
        """Rows of a table with a row per job, [pair|1 slot ...]."""
        if isinstance(self.jobs, slice):
            return table[self.jobs].unsqueeze(0)
        return table.index_select(0, self.jobs.reshape(-1)).reshape(self.n_pairs, self.n_slots, *table.shape[1:])

    def of_pairs_and_jobs(self, table: Tensor) -> Tensor:
        """Entries of a table [pair job], [pair slot]."""
        mine = table[self.pairs]
        return mine[:, self.jobs] if isinstance(self.jobs, slice) else mine.gather(1, self.jobs)

    def rows(self, value: Tensor) -> Tensor:
        """[pair|1 slot|1 ...] as rows."""
        shape = value.shape[2:]
        return value.expand(self.n_pairs, self.n_slots, *shape).reshape(self.n_rows, *shape)


class Step(ABC):
    """One value; `prepare` computes once per call what all blocks share."""

    def __init__(self, node: Node) -> None:
        self.node, self.layout = node, Layout.of(node) if node.shape is not None else Layout.plain(())

    @property
    @abstractmethod
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""

    def prepare(self, runs: Runs) -> dict[str, Tensor]:
        """What all blocks share."""
        return {}

    @abstractmethod
    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""

    @property
    def can_read(self) -> bool:
        """Whether it gives a weighted sum of its value, `[batch action]`, for less than the value itself."""
        return False

    def read(self, block: Block, reading: Reading) -> Tensor:
        """The weighted sum of its value, `[pair slot]`."""
        raise NotImplementedError

    def finish(self, value: Tensor) -> Tensor:
        """Rows, batch first, laid out like the node."""
        return self.layout.restore(value)


class Mixed(Step):
    """where(mask, source, base), for operations that must see it whole."""

    def __init__(self, node: Node, mask: Tensor) -> None:
        super().__init__(node)
        self.mask = mask

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""
        return {self.node}, {self.node}

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        source = block.runs.source[self.node][block.pairs].unsqueeze(1)
        mixed = torch.where(block.of_jobs(self.mask), source, block.base(self.node))
        return self.finish(block.rows(mixed))


class Softmax(Step):
    """Softmax of where(mask, source, base), only on the rows along the last axis that a job reaches."""

    def __init__(self, node: Node, mask: Tensor) -> None:
        super().__init__(node)
        self.scores = node.args[0]
        self.softmax: Callable[..., Tensor] = node.call if node.op == "_safe_softmax" and node.call else torch.softmax
        rows = mask.flatten(1, -2)
        touched = rows.any(-1)
        self.n_touched = int(touched.sum(1).max())
        self.row = touched.byte().argsort(dim=1, descending=True, stable=True)[:, : self.n_touched]
        self.mask = rows.gather(1, self.row.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""
        return {self.node, self.scores}, {self.scores}

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        base, source = block.runs.base[self.scores][block.pairs], block.runs.source[self.scores][block.pairs]
        n_rows, width = base.shape[1:-1].numel(), base.shape[-1]
        row = block.of_jobs(self.row)
        pair = torch.arange(block.n_pairs, device=row.device).reshape(-1, 1, 1)
        place = (pair * n_rows + row).reshape(-1)
        shape = (block.n_pairs, block.n_slots, self.n_touched, width)
        taken = [value.reshape(-1, width).index_select(0, place).reshape(shape) for value in (source, base)]
        pattern = self.softmax(torch.where(block.of_jobs(self.mask), *taken), -1)
        result = block.rows(block.base(self.node)).clone()
        slot = torch.arange(block.n_rows, device=row.device).reshape(block.n_pairs, block.n_slots, 1)
        result.view(-1, width).index_copy_(0, (slot * n_rows + row).reshape(-1), pattern.reshape(-1, width))
        return result


class Base(Step):
    """A value that the patch leaves alone, a copy per row."""

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""
        return {self.node}, set()

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        value = block.runs.base[self.node]
        return self.finish(block.rows(block.base(self.node))) if self.node.has_batch else value


class Plain(Step):
    """The operation itself on rows; what the patch leaves alone is broadcast over slots where that can be."""

    def __init__(self, flow: Flow, node: Node, *, computed: set[Node], in_place: bool) -> None:
        super().__init__(node)
        self.computed, self.in_place = computed, in_place
        self.definition = flow.definition_of(node)
        self.others = [n for n in flow.sources(node) if n not in computed and n.shape is not None]
        self.per_row = {n for n in self.others if n.has_batch}
        tensors = [n for n in flow.sources(node) if n.shape is not None and n.has_batch]
        aligned = node.shape is not None and all(n.sizes[0] == -1 and len(n.sizes) == len(node.shape) for n in tensors)
        self.record = record_of(node)
        self.broadcasts = bool(self.per_row) and self.record.moves == "elementwise" and aligned
        self.call: Callable[..., Any] = self.record.written.function or node.call or torch.clone

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""
        return set(self.others), set()

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        node = self.node
        if self.definition is not None:
            return block.values[self.definition].reshape(sizes_for(node, block.n_rows))
        if self.in_place:
            return torch.relu_(block.values[node.args[0]])
        if self.record.moves == "reshape":
            sizes = sizes_for(node, block.n_rows)
            value = block.values[node.args[0]]
            return value.expand(sizes) if node.op == "expand" else value.reshape(sizes)
        result = self.call(*[self._given(arg, block) for arg in node.args], **node.kwargs)
        return result.reshape(block.n_rows, *result.shape[2:]) if self.broadcasts else result

    @property
    def can_read(self) -> bool:
        """A linear layer: a row's sum is the product of what it reads with the weighted sum of the layer's weights."""
        node = self.node
        layer = node.op == "linear" and not node.kwargs and self.definition is None and len(node.sizes) == 2
        return layer and self.computed == {node.args[0]} and not self.per_row

    def read(self, block: Block, reading: Reading) -> Tensor:
        """The weighted sum of the layer's value, `[pair slot]`."""
        source, weight, *bias = self.node.args
        weights, rows = reading.of(block.pairs), block.values[source]
        slope = weights @ block.runs.base[weight]
        if len(slope) == 1:
            total = (rows @ slope[0]).reshape(block.n_pairs, block.n_slots)
        else:
            total = torch.bmm(rows.reshape(block.n_pairs, block.n_slots, -1), slope.unsqueeze(2)).squeeze(2)
        return total + (weights @ block.runs.base[bias[0]])[:, None] if bias and bias[0] is not None else total

    def _given(self, value: object, block: Block) -> object:
        if not isinstance(value, Node):
            return [self._given(item, block) for item in value] if isinstance(value, list | tuple) else value
        if value.op == "sym_size":
            return block.n_rows
        if value in self.computed:
            rows = block.values[value]
            return rows.reshape(block.n_pairs, block.n_slots, *rows.shape[1:]) if self.broadcasts else rows
        if value not in self.per_row:
            return block.runs.base[value]
        if self.broadcasts:
            return block.base(value)
        return Layout.of(value).restore(block.rows(block.base(value)))


def size_of(node: Node) -> int:
    """Elements of a value per observation."""
    total = 1
    for size in Layout.of(node).canonical_shape[1:]:
        total *= size
    return total


def flat(value: Tensor) -> Tensor:
    """All axes but the first as one."""
    return value.reshape(len(value), -1)
