"""The steps of a delta plan: each computes one value for a block of rows (pair, slot), from base and source runs.

A slot is a job. What a job leaves alone is read from the base run and broadcast over slots, never copied per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlmech.core.graph import Node
from rlmech.core.layout import Layout
from rlmech.interventions.flow import RESHAPES, Flow, definition_of, sizes_for
from rlmech.interventions.linear_chain import Values, has_batch, linear_sources, push

NARROW = 16
"""Last axes up to this size are laid out in front while they are computed: loops run over slots instead."""


@dataclass(slots=True, kw_only=True)
class Runs:
    """Base and source runs of all pairs, batch first; weights as they are."""

    base: dict[Node, Tensor]
    source: dict[Node, Tensor]

    def difference(self, node: Node) -> Tensor:
        """Source less base, [pair ...]; zero where both are the same infinity, as masked scores are."""
        source, base = self.source[node], self.base[node]
        return (source - base).masked_fill_(source == base, 0)


@dataclass(slots=True, kw_only=True)
class Block:
    """Some pairs times some jobs: rows in the order (pair, slot).

    Attributes:
        runs: Base and source runs.
        pairs: The pairs.
        jobs: The jobs: the same ones for every pair, or `[pair slot]`.
        n_pairs: Number of pairs.
        n_slots: Number of slots.
        values: What has been computed, laid out like the nodes, a row for each (pair, slot).
    """

    runs: Runs
    pairs: slice
    jobs: slice | Tensor
    n_pairs: int
    n_slots: int
    values: dict[Node, Tensor] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows of this block."""
        return self.n_pairs * self.n_slots

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

    def prepare(self, runs: Runs) -> None:  # noqa: B027  # most steps share nothing
        """Compute what all blocks share."""

    @abstractmethod
    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""

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
        return {self.node}, {self.node}

    def run(self, block: Block) -> Tensor:
        source = block.runs.source[self.node][block.pairs].unsqueeze(1)
        mixed = torch.where(block.of_jobs(self.mask), source, block.base(self.node))
        return self.finish(block.rows(mixed))


class Base(Step):
    """A value that the patch leaves alone, a copy per row."""

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        return {self.node}, set()

    def run(self, block: Block) -> Tensor:
        value = block.runs.base[self.node]
        return self.finish(block.rows(block.base(self.node))) if has_batch(self.node) else value


class Chain:
    """The linear operations from one value to another, as a matrix [element of the first, element of the second].

    Args:
        flow: The flow.
        start: Where the chain begins.
        end: Where it ends.
    """

    def __init__(self, flow: Flow, start: Node, end: Node) -> None:
        self.flow, self.start, self.end = flow, start, end
        inside: set[Node] = set()
        stack = [end]
        while stack:
            node = stack.pop()
            if node is not start and node not in inside:
                inside.add(node)
                stack.extend(linear_sources(flow, node) or ())
        self.links = [node for node in flow.order if node in inside]
        self.constants = {
            source
            for node in self.links
            for source in flow.sources(node)
            if source not in inside and source is not start and source.shape is not None and not has_batch(source)
        }

    @property
    def direct(self) -> Node | None:
        """The weight, where the chain is one linear layer."""
        only = self.links[0] if len(self.links) == 1 else None
        return only.args[1] if only is not None and only.op == "linear" else None

    @property
    def work(self) -> int:
        """Multiply-adds per row of running it link by link."""
        return sum(
            size_of(node) * node.args[0].sizes[-1] for node in self.links if node.op in {"linear", "mm", "matmul"}
        )

    def apply(self, basis: Tensor, runs: Runs) -> Tensor:
        """Carry changes [n element] of the first value to changes [n element] of the last."""
        if self.direct is not None and len(self.start.sizes) == 2:
            return basis @ runs.base[self.direct].T
        n = len(basis)
        constants: Values = {node: runs.base[node] for node in self.constants}
        layout = Layout.of(self.start)
        changes = {self.start: layout.restore(basis.reshape(n, *layout.canonical_shape[1:]))}
        for node in self.links:
            changes[node] = push(self.flow, node, changes, constants, n)
        return Layout.of(self.end).show(changes[self.end]).reshape(n, -1)


class OneElement(Step):
    """Each job changes one element: base + change of the element * its row of the chain's matrix."""

    def __init__(self, chain: Chain, mask: Tensor) -> None:
        super().__init__(chain.end)
        self.chain, self.element = chain, flat(mask).int().argmax(1)
        self.touched = None if bool(flat(mask).any(1).all()) else flat(mask).any(1)

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        return {self.chain.start, self.node, *self.chain.constants}, {self.chain.start}

    def prepare(self, runs: Runs) -> None:
        start = self.chain.start
        self.element = self.element.to(runs.base[start].device)
        self.change = flat(runs.difference(start)).index_select(1, self.element)
        if self.touched is not None:  # some jobs reach this value at no element
            self.change = self.change * self.touched.to(self.change)
        weight = self.chain.direct
        if weight is not None and len(start.sizes) == 2:
            self.row = runs.base[weight].index_select(1, self.element).T
        else:
            basis = torch.zeros(len(self.element), size_of(start), dtype=self.change.dtype, device=self.change.device)
            basis.scatter_(1, self.element[:, None], 1)
            self.row = self.chain.apply(basis, runs)
        self.narrow = self.row.shape[1] <= NARROW
        if not self.narrow:
            self.row = self.row.contiguous()

    def run(self, block: Block) -> Tensor:
        change, row = block.of_pairs_and_jobs(self.change), block.of_jobs(self.row)
        base = flat(block.runs.base[self.node][block.pairs]).unsqueeze(1)
        if self.narrow:
            moved = torch.addcmul(base.permute(2, 0, 1), change[None], row.permute(2, 0, 1)).permute(1, 2, 0)
        else:
            moved = torch.addcmul(base, change[:, :, None], row)
        return self.finish(moved.reshape(block.n_rows, *self.layout.canonical_shape[1:]))


class Folded(Step):
    """A chain of linear operations as one matrix product."""

    def __init__(self, chain: Chain, mask: Tensor | None) -> None:
        super().__init__(chain.end)
        self.chain, self.mask = chain, None if mask is None else flat(mask)

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        return {self.chain.start, self.node, *self.chain.constants}, set() if self.mask is None else {self.chain.start}

    def prepare(self, runs: Runs) -> None:
        start = flat(runs.base[self.chain.start])
        eye = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
        self.matrix = self.chain.apply(eye, runs)
        self.rest = flat(runs.base[self.node])
        if self.mask is None:
            self.rest = torch.addmm(self.rest, start, self.matrix, alpha=-1)
        else:
            self.change = flat(runs.difference(self.chain.start))
            self.weight = self.mask.to(start.dtype)

    def run(self, block: Block) -> Tensor:
        start = self.chain.start
        if self.mask is None:
            value = Layout.of(start).show(block.values[start]).reshape(block.n_rows, -1)
        else:
            value = (block.of_jobs(self.weight) * self.change[block.pairs].unsqueeze(1)).reshape(block.n_rows, -1)
        moved = (value @ self.matrix).reshape(block.n_pairs, block.n_slots, -1)
        moved += self.rest[block.pairs].unsqueeze(1)
        return self.finish(moved.reshape(block.n_rows, *self.layout.canonical_shape[1:]))


class Product(Step):
    """A matrix product whose second factor is not copied per row: slots stack up as rows of the first one.

        (A' (B + m D)) = A' B + (A' m) D,   D = source - base of the second factor, m the replaced rows of it

    Args:
        node: The product.
        first: Its first factor; computed per row unless the patch leaves it alone.
        second: Its second factor; from the base run, or replaced in part.
        computed: Whether the first factor is computed per row.
        rows: Per job, the replaced rows of the second factor `[job ... key]`; None where it is left alone.
    """

    def __init__(self, node: Node, *, first: Node, second: Node, computed: bool, rows: Tensor | None) -> None:
        super().__init__(node)
        self.first, self.second, self.computed, self.replaced = first, second, computed, rows

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        base = {self.second} | (set() if self.computed else {self.first, self.node})
        return base, set() if self.replaced is None else {self.second}

    def prepare(self, runs: Runs) -> None:
        if self.replaced is not None:
            self.change = runs.difference(self.second)
            self.weight = self.replaced.to(self.change.dtype).unsqueeze(-2)

    def run(self, block: Block) -> Tensor:
        shape = self.layout.canonical_shape[1:]
        if self.computed:
            value = block.values[self.first]
            first = value.reshape(block.n_pairs, block.n_slots, *value.shape[1:])
            total = self._stacked(first, block.runs.base[self.second][block.pairs])
        else:
            first, total = block.base(self.first), block.base(self.node)
        if self.replaced is not None:
            total = total + self._stacked(first * block.of_jobs(self.weight), self.change[block.pairs])
        return total.reshape(block.n_rows, *shape)

    @staticmethod
    def _stacked(first: Tensor, second: Tensor) -> Tensor:
        """[pair slot ... m k] @ [pair ... k n], slots stacked into m."""
        if first.ndim == 5 and first.shape[3] == 1:
            return (first.squeeze(3).transpose(1, 2) @ second).transpose(1, 2).unsqueeze(3)
        pairs, slots, *lead, m, k = first.shape
        stacked = first.movedim(1, -3).reshape(pairs, *lead, slots * m, k) @ second
        return stacked.reshape(pairs, *lead, slots, m, -1).movedim(-3, 1)


class Plain(Step):
    """The operation itself on rows; what the patch leaves alone is broadcast over slots where that can be."""

    def __init__(self, flow: Flow, node: Node, *, computed: set[Node], in_place: bool) -> None:
        super().__init__(node)
        self.computed, self.in_place = computed, in_place
        self.definition = definition_of(flow.graph, node, flow.start)
        self.others = [n for n in flow.sources(node) if n not in computed and n.shape is not None]
        self.per_row = {n for n in self.others if has_batch(n)}
        tensors = [n for n in flow.sources(node) if n.shape is not None and has_batch(n)]
        aligned = node.shape is not None and all(n.sizes[0] == -1 and len(n.sizes) == len(node.shape) for n in tensors)
        self.broadcasts = bool(self.per_row) and node.op in BROADCASTING and aligned
        self.call: Callable[..., Any] = DIRECT.get(node.op) or node.call or torch.clone

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        return set(self.others), set()

    def run(self, block: Block) -> Tensor:
        node = self.node
        if self.definition is not None:
            return block.values[self.definition].reshape(sizes_for(node, block.n_rows))
        if self.in_place:
            return torch.relu_(block.values[node.args[0]])
        if node.op in RESHAPES:
            sizes = sizes_for(node, block.n_rows)
            value = block.values[node.args[0]]
            return value.expand(sizes) if node.op == "expand" else value.reshape(sizes)
        result = self.call(*[self._given(arg, block) for arg in node.args], **node.kwargs)
        return result.reshape(block.n_rows, *result.shape[2:]) if self.broadcasts else result

    def _given(self, value: Any, block: Block) -> Any:
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


BROADCASTING = {"add", "sub", "mul", "div", "masked_fill", "where", "lt", "gt", "le", "ge", "logical_and", "logical_or"}
DIRECT: dict[str, Callable[..., Any]] = {
    "linear": torch.nn.functional.linear,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "matmul": torch.matmul,
    "add": torch.add,
    "mul": torch.mul,
    "div": torch.div,
}


def size_of(node: Node) -> int:
    """Elements of a value per observation."""
    total = 1
    for size in Layout.of(node).canonical_shape[1:]:
        total *= size
    return total


def flat(value: Tensor) -> Tensor:
    """All axes but the first as one."""
    return value.reshape(len(value), -1)
