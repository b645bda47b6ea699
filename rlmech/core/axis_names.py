"""Axes named by what reads them.

A value is an image where a convolution reads or makes it; it has rows of entities where each is made from one row of
the observation, or attention reads them; else its axes are only numbered. Names follow values through the graph:
forwards from the observation and from what attention reads, through operations that keep rows apart, and backwards to
what attention's rows are made of. Cost: two passes over the nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import cast

from rlmech.axes import Axis
from rlmech.core.attention_nodes import Found
from rlmech.core.contraction import permutation_of
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.table import known, names_where

IMAGE: tuple[Axis, ...] = ("batch", "channel", "height", "width")
SIGNAL: tuple[Axis, ...] = ("batch", "channel", "width")
OBSERVATION: dict[int, tuple[Axis, ...]] = {
    1: ("batch",),
    2: ("batch", "feature"),
    3: ("batch", "entity", "feature"),
}
_SPATIAL_RANK = {"conv1d": 3, "conv2d": 4, "conv3d": 5, "conv_transpose1d": 3, "conv_transpose2d": 4}
_ARITHMETIC = {"add", "sub", "mul", "div", "to", "_to_copy", "clone", "contiguous", "masked_fill", "where", "neg"}
_MAKES_NEURONS = {"linear", "addmm", "embedding"}
_SPATIAL = names_where(lambda record: record.kind in ("convolution", "pool"))
_ROW_WISE = names_where(lambda record: record.kind in ("activation", "norm") and "softmax" not in record.name)
"""Operations that treat the last axis, or each element, by itself."""


def numbered(rank: int) -> tuple[Axis, ...]:
    """The names of axes of which nothing is known: `batch axis_1 axis_2`...

    Example:
        >>> numbered(3)
        ('batch', 'axis_1', 'axis_2')
    """
    return ("batch", *(cast("Axis", f"axis_{place}") for place in range(1, rank)))


class AxisNames:
    """The names of the axes of a graph's values.

    Args:
        graph: The graph.
        blocks: Its attention blocks.
        states: Keys of the inputs that are no observations but parts of a recurrent state.
    """

    def __init__(self, graph: Graph, blocks: Iterable[Found], *, states: Collection[str] = ()) -> None:
        self.graph = graph
        self.observations = {node: self._observation(node) for node in graph.inputs if node.owner not in states}
        self.rows = self._rows(blocks)

    def of_observation(self, node: Node) -> tuple[Axis, ...]:
        """The names of an observation's axes."""
        axes = self.observations[node]
        return ("batch", "entity") if node in self.rows and len(axes) == 2 else axes

    def of(self, node: Node, layout: Layout) -> tuple[Axis, ...]:
        """The names of the axes of an activation, as its layout shows them."""
        rank = len(layout.canonical_shape)
        if rank <= 2:
            return ("batch", "neuron")[:rank]
        if self._is_image(node):
            return {3: SIGNAL, 4: IMAGE}.get(rank, ("batch", "channel", *numbered(rank)[2:]))
        axes = list(numbered(rank))
        if node in self.rows and rank == 3:
            axes[1] = "entity"
        if self._has_neurons(node):
            axes[-1] = "neuron"
        return tuple(axes)

    def _observation(self, node: Node) -> tuple[Axis, ...]:
        rank = len(node.sizes)
        found = self._read_by_convolution(node)
        if found is not None:
            return found
        if self._is_embedded(node):
            return numbered(rank)
        return OBSERVATION.get(rank, numbered(rank))

    def _read_by_convolution(self, node: Node) -> tuple[Axis, ...] | None:
        """The names that the first convolution gives, carried back over scalings and permutations."""
        users = self.graph.users()
        rank = len(node.sizes)
        stack = [(node, tuple(range(rank)))]
        seen = {node}
        while stack:
            value, order = stack.pop()
            for reader in users[value]:
                first = reader.args[0] if reader.args else None
                if reader in seen or reader.shape is None or not (first is value or _holds(first, value)):
                    continue
                seen.add(reader)
                if _SPATIAL_RANK.get(reader.op) == rank or (reader.op == "convolution" and rank > 2):
                    names: tuple[Axis, ...] = {3: SIGNAL, 4: IMAGE}.get(rank, ("batch", "channel", *numbered(rank)[2:]))
                    return tuple(names[order.index(axis)] for axis in range(rank))
                joined = reader.op == "cat" and _axis(reader) == 1
                if (joined or reader.op in _ROW_WISE | _ARITHMETIC) and len(reader.shape) == rank:
                    stack.append((reader, order))
                elif (moved := permutation_of(reader)) is not None:
                    stack.append((reader, tuple(order[axis] for axis in moved)))
        return None

    def _is_embedded(self, node: Node) -> bool:
        """Whether the values are numbers of things, e.g. tokens, which an embedding looks up."""
        users = self.graph.users()
        stack, seen = [node], {node}
        while stack:
            for reader in users[stack.pop()]:
                if reader.op == "embedding":
                    return True
                if reader.op in _ARITHMETIC and reader not in seen:
                    seen.add(reader)
                    stack.append(reader)
        return False

    def _is_image(self, node: Node) -> bool:
        while node.op not in _SPATIAL:
            passed = node.op in _ROW_WISE | _ARITHMETIC | {"getitem", "chunk", "split", "split_with_sizes"}
            if not passed or not node.args or not isinstance(node.args[0], Node):
                return False
            node = node.args[0]
        return True

    def _has_neurons(self, node: Node) -> bool:
        """Whether the last axis is that of a layer's units."""
        while node.op not in _MAKES_NEURONS:
            passed = node.op in _ROW_WISE | _ARITHMETIC | {"getitem", "select", "slice", "cat"}
            before = next(node.inputs(), None)
            if not passed or before is None or before.shape is None or len(before.shape) < 2:
                return False
            node = before
        return True

    def _rows(self, blocks: Iterable[Found]) -> set[Node]:
        """The values `[batch entity neuron]`, and the tokens `[batch entity]`."""
        rows = {node for node, axes in self.observations.items() if axes[1:2] == ("entity",)}
        for block in blocks:
            read = [self._before_heads(address.node) for address in (*block.sources.values(), block.values)]
            rows |= {node for node in (*read, *self._after_heads(block.z.node)) if _is_stack(node)}
        for node in self.graph.nodes:
            if node.op not in ("parameter", "constant", "input") and any(s in rows for s in self._row_sources(node)):
                rows.add(node)
        for node in reversed(self.graph.nodes):
            if node in rows:
                rows |= {source for source in self._row_sources(node) if source not in rows}
        return rows

    @staticmethod
    def _before_heads(node: Node) -> Node:
        """The stack of rows that queries, keys or values are made of; torch's own attention moves its batch."""
        while (node.op == "linear" or known(node.op).keeps_elements) and isinstance(node.args[0], Node):
            if node.op == "linear" and _is_stack(node):
                break
            node = node.args[0]
            if _is_stack(node) and not known(node.op).keeps_elements:
                break
        return node

    def _after_heads(self, z: Node) -> list[Node]:
        """The linear layers that read what attention puts out."""
        users, found, stack = self.graph.users(), list[Node](), [z]
        while stack:
            for reader in users[stack.pop()]:
                if reader.op == "linear":
                    found.append(reader)
                elif known(reader.op).keeps_elements:
                    stack.append(reader)
        return found

    def _row_sources(self, node: Node) -> Iterator[Node]:
        """What each row of a value is made of, row by row."""
        if not _is_stack(node):
            return
        keeps = node.op in _ROW_WISE | _ARITHMETIC | {"linear"}
        joined = node.op in {"cat", "slice"} and _axis(node) == 1
        for source in node.inputs():
            rows = _is_stack(source) and (joined or (keeps and source.sizes[1] == node.sizes[1]))
            if rows or (node.op == "embedding" and source.shape == node.sizes[:2]):
                yield source


def _holds(first: object, value: Node) -> bool:
    """Whether the first argument is a list that has a value in it, as `cat` takes them."""
    return isinstance(first, list | tuple) and any(item is value for item in first)


def _is_stack(node: Node) -> bool:
    return node.shape is not None and len(node.shape) == 3 and node.shape[0] == -1


def _axis(node: Node) -> int:
    given = node.args[1] if len(node.args) > 1 else 0
    return given % len(node.sizes) if isinstance(given, int) else 0
