"""The linear steps of a delta plan: changes that enter linear layers, convolutions and products of two values.

    f(base + d) = f(base) + F d

The matrix F of a whole chain of linear operations is made once per call, from the weights as they then are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlmech.core.graph import Node
from rlmech.core.layout import Layout
from rlmech.patching.sweeps.delta_steps import Block, Reading, Runs, Step, flat, size_of
from rlmech.patching.sweeps.flow import Flow
from rlmech.patching.sweeps.linear_chain import Values, linear_sources, push

NARROW = 16
"""Last axes up to this size are laid out in front while they are computed: loops run over slots instead."""


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
            if source not in inside and source is not start and source.shape is not None and not source.has_batch
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
        """Nodes whose base and whose source values it reads."""
        return {self.chain.start, self.node, *self.chain.constants}, {self.chain.start}

    def prepare(self, runs: Runs) -> dict[str, Tensor]:
        """What all blocks share."""
        start = self.chain.start
        change = flat(runs.difference(start)).index_select(1, self.element)
        if self.touched is not None:  # some jobs reach this value at no element
            change = change * self.touched.to(change)
        weight = self.chain.direct
        if weight is not None and len(start.sizes) == 2:
            row = runs.base[weight].index_select(1, self.element).T
        else:
            basis = change.new_zeros(len(self.element), size_of(start))
            basis.scatter_(1, self.element[:, None], 1)
            row = self.chain.apply(basis, runs)
        return {"change": change, "row": row if row.shape[1] <= NARROW else row.contiguous()}

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        own = block.runs.prepared[self]
        change, row = block.of_pairs_and_jobs(own["change"]), block.of_jobs(own["row"])
        base = flat(block.runs.base[self.node][block.pairs]).unsqueeze(1)
        if row.shape[-1] <= NARROW:
            moved = torch.addcmul(base.permute(2, 0, 1), change[None], row.permute(2, 0, 1)).permute(1, 2, 0)
        else:
            moved = torch.addcmul(base, change[:, :, None], row)
        return self.finish(moved.reshape(block.n_rows, *self.layout.canonical_shape[1:]))

    @property
    def can_read(self) -> bool:
        """A row's sum is that of the base run, and the change times the weighted sum of its row."""
        return len(self.node.sizes) == 2

    def read(self, block: Block, reading: Reading) -> Tensor:
        """The weighted sum of the node's value, `[pair slot]`."""
        own = block.runs.prepared[self]
        slope = reading.of(block.pairs) @ own["row"].T
        slope = (
            slope[:, block.jobs]
            if isinstance(block.jobs, slice)
            else slope.expand(block.n_pairs, -1).gather(1, block.jobs)
        )
        return torch.addcmul(reading.base[block.pairs][:, None], block.of_pairs_and_jobs(own["change"]), slope)


class OneChannel(Step):
    """Each job changes one channel that a convolution reads: base + that channel's part of the convolution.

    All channels' parts together cost what the convolution itself costs on a pair, however many jobs share them.
    """

    def __init__(self, node: Node, mask: Tensor) -> None:
        super().__init__(node)
        self.source, self.weight, self.settings = node.args[0], node.args[1], node.args[3:]
        self.channel = mask.flatten(2).all(2).int().argmax(1)

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""
        return {self.source, self.weight, self.node}, {self.source}

    def prepare(self, runs: Runs) -> dict[str, Tensor]:
        """What all blocks share."""
        weight = runs.base[self.weight].transpose(0, 1)  # [channel out ...]
        return {"change": runs.difference(self.source), "kernels": weight.reshape(-1, 1, *weight.shape[2:])}

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        stride, padding, dilation = (*self.settings, *(1, 0, 1)[len(self.settings) :])[:3]
        own = block.runs.prepared[self]
        change = own["change"][block.pairs]
        parts = torch.conv2d(change, own["kernels"], None, stride, padding, dilation, change.shape[1])
        parts = parts.reshape(block.n_pairs, change.shape[1], -1, *parts.shape[2:])
        if isinstance(block.jobs, slice):
            chosen = parts[:, self.channel[block.jobs]]
        else:
            chosen = parts[torch.arange(block.n_pairs, device=parts.device)[:, None], self.channel[block.jobs]]
        return (block.base(self.node) + chosen).reshape(block.n_rows, *parts.shape[2:])


class Folded(Step):
    """A chain of linear operations as one matrix product."""

    def __init__(self, chain: Chain, mask: Tensor | None) -> None:
        super().__init__(chain.end)
        self.chain, self.mask = chain, None if mask is None else flat(mask)

    @property
    def reads(self) -> tuple[set[Node], set[Node]]:
        """Nodes whose base and whose source values it reads."""
        return {self.chain.start, self.node, *self.chain.constants}, set() if self.mask is None else {self.chain.start}

    def prepare(self, runs: Runs) -> dict[str, Tensor]:
        """What all blocks share."""
        start = flat(runs.base[self.chain.start])
        ends = self.chain.start, self.chain.end
        if ends not in runs.matrices:
            eye = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
            runs.matrices[ends] = self.chain.apply(eye, runs)
        matrix, rest = runs.matrices[ends], flat(runs.base[self.node])
        if self.mask is None:
            return {"matrix": matrix, "rest": torch.addmm(rest, start, matrix, alpha=-1)}
        change = flat(runs.difference(self.chain.start))
        return {"matrix": matrix, "rest": rest, "change": change, "mask": self.mask.to(start.dtype)}

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        start, own = self.chain.start, block.runs.prepared[self]
        if self.mask is None:
            value = Layout.of(start).show(block.values[start]).reshape(block.n_rows, -1)
        else:
            changes = own["change"][block.pairs].unsqueeze(1)
            value = (block.of_jobs(own["mask"]) * changes).reshape(block.n_rows, -1)
        moved = (value @ own["matrix"]).reshape(block.n_pairs, block.n_slots, -1)
        moved += own["rest"][block.pairs].unsqueeze(1)
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
        """Nodes whose base and whose source values it reads."""
        base = {self.second} | (set() if self.computed else {self.first, self.node})
        return base, set() if self.replaced is None else {self.second}

    def prepare(self, runs: Runs) -> dict[str, Tensor]:
        """What all blocks share."""
        if self.replaced is None:
            return {}
        change = runs.difference(self.second)
        return {"change": change, "rows": self.replaced.to(change.dtype).unsqueeze(-2)}

    def run(self, block: Block) -> Tensor:
        """The node's value for a block, laid out like the node."""
        shape = self.layout.canonical_shape[1:]
        if self.computed:
            value = block.values[self.first]
            first = value.reshape(block.n_pairs, block.n_slots, *value.shape[1:])
            total = self._stacked(first, block.runs.base[self.second][block.pairs])
        else:
            first, total = block.base(self.first), block.base(self.node)
        if self.replaced is not None:
            own = block.runs.prepared[self]
            total = total + self._stacked(first * block.of_jobs(own["rows"]), own["change"][block.pairs])
        return total.reshape(block.n_rows, *shape)

    @staticmethod
    def _stacked(first: Tensor, second: Tensor) -> Tensor:
        """[pair slot ... m k] @ [pair ... k n], slots stacked into m."""
        if first.ndim == 5 and first.shape[3] == 1:
            return (first.squeeze(3).transpose(1, 2) @ second).transpose(1, 2).unsqueeze(3)
        pairs, slots, *lead, m, k = first.shape
        stacked = first.movedim(1, -3).reshape(pairs, *lead, slots * m, k) @ second
        return stacked.reshape(pairs, *lead, slots, m, -1).movedim(-3, 1)
