"""What one node of a graph does to what moves in it, by the record of its operation.

The only place where a record meets a call: keywords that it does not allow, reductions that mix the rows of a batch,
forms of a call that it does not describe make the operation unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.operations.record import UNKNOWN, Boundary, Operation
from rlmech.core.operations.table import known

_16_BITS = (torch.float16, torch.bfloat16)
_SIZED = frozenset({"zeros", "ones", "full", "empty", "scalar_tensor", "fill"})
"""Operations that read a number of rows as a size alone, and make all rows alike."""
_PICKS = frozenset(
    {"index", "index_put", "index_select", "gather", "scatter", "scatter_add", "take", "embedding", "embedding_bag"}
)
"""Operations that may look rows up by their numbers: what they give is a row's own again."""
Behaviour = Literal["fixed", "affine", "product", "gate", "curve", "unknown"]
"""What an operation is in those of its arguments that move: `fixed` where they do not matter, `product` where it is
affine in each of several alone, `gate` affine between boundaries, `curve` a smooth function of each number."""


def record_of(node: Node) -> Operation:
    """The record that describes a node's call; that of an unknown operation where none does."""
    record = known(node.op)
    if not {key for key, value in node.kwargs.items() if value is not None} <= record.keywords:
        return UNKNOWN
    if record.axes is not None:
        axes = axes_of(node)
        if axes is None or _mixes_rows(node.args[0], axes):
            return UNKNOWN
    if node.op in ("batch_norm", "instance_norm") and node.args[5]:
        return UNKNOWN  # the statistics are the batch's own
    return UNKNOWN if _rounds(node) else record


def behaviour(node: Node, moving: Collection[Node]) -> Behaviour:
    """What a node's operation is in some of the nodes that it reads.

    Args:
        node: The node.
        moving: The nodes that move, of real numbers.
    """
    record = record_of(node)
    if any(read in moving for value in node.kwargs.values() for read in nodes_in(value)):
        return "unknown"
    places = [place for place, value in enumerate(node.args) for read in nodes_in(value) if read in moving]
    taken = [place for place in places if place not in record.shape_only]
    if not taken:
        return "fixed"
    if record.affine is None or (record.affine and set(taken) <= set(record.affine)):
        return "affine"
    if record.factors and set(taken) <= {*record.factors, *record.added}:
        return "affine" if sum(place not in record.added for place in taken) <= 1 else "product"
    if record.gating is not None and set(taken) <= set(record.gating.reads):
        return "gate"
    return "curve" if record.curve and set(taken) == {0} else "unknown"


def numbers_read(node: Node) -> list[Node]:
    """The nodes whose numbers, and not only their sizes, a node's operation reads."""
    shape_only = record_of(node).shape_only
    values = [*(value for place, value in enumerate(node.args) if place not in shape_only), *node.kwargs.values()]
    return [read for value in values for read in nodes_in(value)]


def axes_of(node: Node) -> tuple[int, ...] | None:
    """The axes along which a node's operation runs, counted from the first; None where they are not told."""
    place = known(node.op).axes
    source = node.args[0] if node.args else None
    if place is None or not isinstance(source, Node) or source.shape is None:
        return None
    given = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    axes = (given,) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(axes, list | tuple) or not axes:
        return None
    return tuple(axis % len(source.sizes) for axis in axes)


def boundaries_of(node: Node, values: dict[Node, Tensor]) -> list[Boundary]:
    """The boundaries of a gate, rows of the batch first.

    Args:
        node: A node whose record has a gating.
        values: What it reads, laid out like the nodes.
    """
    gating = record_of(node).gating
    assert gating is not None  # noqa: S101  # the caller's own invariant: only gates have boundaries
    args = [values[arg] if isinstance(arg, Node) else arg for arg in node.args]
    kwargs = {key: values[arg] if isinstance(arg, Node) else arg for key, arg in node.kwargs.items()}
    found = gating.boundaries(*args, **kwargs)
    return [
        Boundary(
            distance=_rows_first(b.distance, *_distance_sizes(node, competing=b.competing)),
            inclusive=b.inclusive,
            competing=b.competing,
        )
        for b in found
    ]


def rows_first(node: Node, value: Tensor) -> Tensor:
    """A value that is laid out like a node, with the batch as its first axis."""
    return _rows_first(value, node.sizes, node.batch_inner)


def row_numbers(graph: Graph) -> frozenset[Node]:
    """Values that count rows, as `torch.arange(len(x))` does, and what is computed of them until rows are looked up.

    They belong to a batch, not to a row: no row of them may be taken into another batch, where they are made anew.
    """
    counted: set[Node] = set()
    observed: set[Node] = set(graph.inputs)
    for node in graph.nodes:
        reads = list(node.inputs())
        if node.op != "sym_size" and any(read in observed for read in reads):
            observed.add(node)
        if any(read in counted for read in reads):
            if node.op not in _PICKS or node not in observed:
                counted.add(node)
        elif node.has_batch and node not in observed and node.op not in _SIZED and known(node.op).moves == "unknown":
            counted.add(node)
    return frozenset(counted)


def nodes_in(value: object) -> Iterator[Node]:
    """The nodes in an argument, however nested."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from nodes_in(item)


def _mixes_rows(source: Node, axes: Sequence[int]) -> bool:
    """Whether one of some axes holds the batch."""
    return any(source.sizes[axis] < 0 for axis in axes)


def _rounds(node: Node) -> bool:
    """Whether it cuts wider numbers to 16 bits, in steps that are no rounding to who works in more of them."""
    if node.dtype not in _16_BITS or all(read.dtype in _16_BITS for read in node.inputs()):
        return False
    stack, seen = list(node.inputs()), set[Node]()
    while stack:
        read = stack.pop()
        if read.op in ("input", "parameter", "constant") and read.dtype in (torch.float32, torch.float64):
            return True
        stack.extend(fresh for fresh in read.inputs() if fresh not in seen)
        seen.update(read.inputs())
    return False


def _distance_sizes(node: Node, *, competing: bool) -> tuple[tuple[int, ...], bool]:
    """The sizes of a boundary's distances, as far as the batch needs them: competitors stand last."""
    axes = axes_of(node) if competing else None
    if axes is None:
        like = node if node.shape is not None else node.args[0]
        return like.sizes, like.batch_inner
    source = node.args[0]
    return tuple(size for axis, size in enumerate(source.sizes) if axis not in axes), source.batch_inner


def _rows_first(value: Tensor, sizes: Sequence[int], batch_inner: bool) -> Tensor:  # noqa: FBT001
    axis = next(i for i, size in enumerate(sizes) if size < 0)
    folded = -sizes[axis]
    if folded > 1:
        value = value.unflatten(axis, (folded, -1) if batch_inner else (-1, folded))
        axis += batch_inner
    return value if axis == 0 else value.movedim(axis, 0)
