"""The policy as an explicit graph: values, the operations that make them, and the module each one stands in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlmech.untyped import Args, Kwargs

Size = int
"""A size: n >= 0 is fixed; -k stands for k times the batch size."""


@dataclass(eq=False, slots=True)
class Node:
    """One value of the graph.

    Attributes:
        index: Position in `Graph.nodes`.
        op: `input`, `parameter`, `constant`, or the operation's plain name (`linear`, `relu`, `softmax`...).
        call: What computes it: an ATen overload or a Python operator; None for leaves.
        args: Positional arguments, nodes among them, possibly nested in lists and tuples.
        kwargs: Keyword arguments, likewise.
        scope: Path of the module call it stands in, `name@1` for a module's second call.
        shape: Sizes; None for what is not a tensor.
        dtype: Dtype of a tensor, else None.
        owner: For a parameter or buffer: the dict that holds it. For an input: its key.
        synthetic: Whether it was added to the module's own operations: a per-head result, decomposed attention.
        batch_inner: Whether the batch runs fastest where it is folded into another axis.
    """

    index: int
    op: str
    call: Callable[..., Any] | None = None
    args: Args = ()
    kwargs: Kwargs = field(default_factory=dict)
    scope: str = ""
    shape: tuple[Size, ...] | None = None
    dtype: torch.dtype | None = None
    owner: Any = None
    synthetic: bool = False
    batch_inner: bool = False

    def __repr__(self) -> str:
        return f"%{self.index}:{self.op}"

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes of what is known to be a tensor."""
        if self.shape is None:
            raise TypeError(f"{self} is no tensor")
        return self.shape

    @property
    def has_batch(self) -> bool:
        """Whether there is a row per observation; weights and what is made of them alone have none."""
        return any(size < 0 for size in self.shape or ())

    def inputs(self) -> Iterator[Node]:
        """The nodes among the arguments."""
        yield from _nodes_in((self.args, tuple(self.kwargs.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A second definition of a node, used when one of `triggers` is replaced by a hook."""

    triggers: frozenset[Node]
    definition: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A value that is known by its role rather than by its operation: a state or the gates of a recurrent layer."""

    node: Node
    scope: str
    role: str


@dataclass(slots=True, kw_only=True)
class Graph:
    """All values of one forward pass, in an order in which they can be computed.

    Attributes:
        nodes: The nodes; synthetic ones (per-head results, decomposed attention) come last.
        inputs: The observation, one node per array of it.
        outputs: What the module returns, in order.
        constants: Tensors made inside `forward`.
        alternatives: Second definitions; see `Alternative`.
        marks: States and gates of recurrent layers, in order.
    """

    nodes: list[Node]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    constants: dict[str, Tensor]
    alternatives: dict[Node, Alternative] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list[Mark])

    def add(self, op: str, call: Callable[..., Any], *args: Any, like: Node, shape: tuple[Size, ...]) -> Node:
        """Append a synthetic node that stands in the scope of `like`."""
        node = Node(len(self.nodes), op, call, args, {}, like.scope, shape, like.dtype, synthetic=True)
        self.nodes.append(node)
        return node

    def definition_of(self, node: Node, *, replaced: Collection[Node] = ()) -> Node | None:
        """The second definition that a node is computed by when some nodes are replaced; None for its own."""
        alternative = self.alternatives.get(node)
        if alternative is None or alternative.triggers.isdisjoint(replaced):
            return None
        return alternative.definition

    def sources_of(self, node: Node, *, replaced: Collection[Node] = ()) -> list[Node]:
        """What a node is computed from when some nodes are replaced; a batch size is the observation's own."""
        if node.op == "sym_size":
            return []
        definition = self.definition_of(node, replaced=replaced)
        return list(node.inputs()) if definition is None else [definition]

    def computed_order(
        self, ends: Iterable[Node], *, replaced: Collection[Node] = (), cut: Collection[Node] = ()
    ) -> list[Node]:
        """Some nodes and all that they are computed from: sources first, and else as the module has them.

        Args:
            ends: The nodes.
            replaced: Nodes whose replacement calls for second definitions.
            cut: Nodes that are left out, and what they alone need.
        """
        order: list[Node] = []
        done: set[Node] = set(cut)
        stack = [(end, False) for end in _last_first(ends)]
        while stack:
            node, expanded = stack.pop()
            if node in done:
                continue
            if expanded:
                done.add(node)
                order.append(node)
            else:
                stack.append((node, True))
                stack.extend((source, False) for source in _last_first(self.sources_of(node, replaced=replaced)))
        return order

    def behind(
        self,
        starts: Collection[Node],
        ends: Iterable[Node],
        *,
        replaced: Collection[Node] = (),
        cut: Collection[Node] = (),
    ) -> list[Node]:
        """The nodes on a way from some nodes to others, in an order of computation, without the starts.

        Args:
            starts: Where the ways begin; their replacement calls for second definitions.
            ends: Where they end.
            replaced: Further nodes that call for second definitions.
            cut: Nodes that no way passes or ends in, as if their values were fixed.
        """
        fixed = {*starts, *cut}
        depends = {node: node not in cut for node in fixed}
        order: list[Node] = []
        for node in self.computed_order(ends, replaced={*replaced, *fixed}, cut=fixed):
            depends[node] = any(depends[source] for source in self.sources_of(node, replaced={*replaced, *fixed}))
            if depends[node]:
                order.append(node)
        return order

    def users(self) -> dict[Node, list[Node]]:
        """For each node, those that read it."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs():
                users[source].append(node)
        return users


def depends_on_input(node: object) -> bool:
    """Whether a value depends on the observation, rather than on parameters and constants alone."""
    stack, seen = [node] if isinstance(node, Node) else [], {node}
    while stack:
        current = stack.pop()
        if current.op == "input":
            return True
        fresh = [source for source in current.inputs() if source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _last_first(nodes: Iterable[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: -node.index)


def _nodes_in(value: object) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _nodes_in(item)
