"""Operations computed anew in double precision: plainly, and with the sizes of their terms instead of the terms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.operations.reading import record_of
from rlmech.untyped import Settings

Operand = Any
"""What an operation is called with or gives, or a bound or slope of it: a tensor, a number, or a tuple of them."""
Values = Mapping[Node, Operand]
_SIZED = {"view", "_unsafe_view", "reshape"}
_CONVERSIONS = {"to", "_to_copy", "type_as"}
_COPIES = {"where", "masked_fill", "causal_mask", "index_select", "gather", "index", "take_along_dim", "select_scatter",
           "slice_scatter", "expand_as", "view_as", "reshape_as", "maximum", "minimum", "fmax", "fmin", "amax", "amin",
           "max", "min", "tril", "triu", "hstack", "vstack", "dstack", "column_stack"}  # fmt: skip
"""Operations, beside those that move elements, whose results are numbers that they read or hold."""
_SIGNED = {"lerp", "diff", "addcdiv", "scatter", "index_copy"}
"""Affine operations that put signs or numbers of their own to what they read, unseen in their arguments."""


def call(node: Node, values: Values, *, n_rows: int) -> Operand:
    """A node's value, real numbers in double precision, given those of what it reads.

    Args:
        node: The node.
        values: Of the nodes that it reads; `sym_size` needs none.
        n_rows: Rows of the batch.
    """
    if node.op == "sym_size":
        return n_rows
    return apply(node, [filled(arg, values) for arg in node.args], filled(node.kwargs, values), n_rows=n_rows)


def apply(node: Node, args: Sequence[Operand], kwargs: Settings, *, n_rows: int) -> Operand:
    """A node's operation on arguments of any origin."""
    if node.op in _SIZED and node.shape is not None:  # the sizes known, for the arguments hold no batch size
        return args[0].reshape([-size * n_rows if size < 0 else size for size in node.sizes])
    if node.op in _CONVERSIONS and node.dtype is not None and node.dtype.is_floating_point:
        return torch.as_tensor(args[0]).double()  # truth values and whole numbers too
    function: Operand = node.call
    return double(function(*args, **kwargs))


def double(value: Operand) -> Operand:
    """A value with its real numbers in double precision."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return [double(item) for item in value]
    return value


def leaf(graph: Graph, node: Node) -> Tensor:
    """The present value of a parameter or a constant, in double precision."""
    value = node.owner[node.args[0]] if node.op == "parameter" else graph.constants[node.args[0]]
    return double(value.detach())


def filled(value: object, values: Values) -> Operand:
    """An argument with the nodes in it replaced by their values."""
    if isinstance(value, Node):
        return values[value]
    if isinstance(value, list | tuple):
        return [filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, values) for key, item in value.items()}
    return value


def has_sizes(node: Node) -> bool:
    """Whether `sizes_of_terms` describes a node's operation."""
    return node.op not in _SIGNED and record_of(node).name != ""


def sizes_of_terms(node: Node, sizes: Values, *, n_rows: int, moved: Collection[Node] | None = None) -> Operand:
    """The sum of the sizes of the terms that a node's operation adds up, given those of what it reads.

    The operation is affine in what it reads, or in each of several factors. With `moved`, only the terms of these nodes
    count: where these are given by how far they can move, that is how far the result can.

    Args:
        node: A node with `has_sizes`.
        sizes: Sizes of what it reads, none negative; of what is no real number the value.
        n_rows: Rows of the batch.
        moved: Nodes; None for all terms.
    """
    record = record_of(node)
    added = set(range(len(node.args))) if record.affine is None else {*record.affine, *record.added}

    def sized(place: int, arg: Operand) -> Operand:
        if isinstance(arg, list | tuple):
            return [sized(place, item) for item in arg]
        if isinstance(arg, Node):
            value = sizes[arg]
            drops = place in added and moved is not None and arg not in moved
            return (
                torch.zeros_like(value) if drops and isinstance(value, Tensor) and value.is_floating_point() else value
            )
        if isinstance(arg, bool) or not isinstance(arg, int | float):
            return arg
        if place in record.numbers:
            return abs(arg) if moved is None else 0.0
        return abs(arg) if place in record.factors else arg

    args = [sized(place, arg) for place, arg in enumerate(node.args)]
    kwargs = {
        key: abs(value)
        if key in ("alpha", "beta", "value") and isinstance(value, int | float)
        else filled(value, sizes)
        for key, value in node.kwargs.items()
    }
    if record.adds:
        return _sizes_of_batch_norm(node, args, kwargs, n_rows=n_rows, constants=moved is None)
    if node.op == "neg":
        return args[0]
    if node.op in ("sub", "rsub"):
        first, second = args[:2] if node.op == "sub" else (args[1], args[0])
        alpha = abs(args[2]) if len(args) > 2 else kwargs.get("alpha", 1)
        return first + alpha * second
    return apply(node, args, kwargs, n_rows=n_rows)


def _sizes_of_batch_norm(
    node: Node, args: Sequence[Operand], kwargs: Settings, *, n_rows: int, constants: bool
) -> Operand:
    x, weight, bias, mean, *rest = args
    no_bias = None if bias is None else torch.zeros_like(bias)
    scaled = apply(node, [x, weight, no_bias, torch.zeros_like(mean), *rest], kwargs, n_rows=n_rows)
    if not constants:
        return scaled
    return scaled + apply(node, [torch.zeros_like(x), weight, bias, -mean, *rest], kwargs, n_rows=n_rows)


def rounding_terms(node: Node) -> int:
    """How many roundings a node's operation does at most to each of its results, in a row."""
    record = record_of(node)
    if record.moves in ("layout", "reshape", "join") or node.op in _COPIES or record.role == "comparison":
        return 0
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    if record.moves == "convolution":
        return _product(node.args[1].sizes[1:]) + 2
    if record.moves in ("product", "heads", "attention") or (record.moves == "unknown" and record.factors):
        return max(abs(size) for read in node.inputs() for size in read.shape or (1,)) + 2
    if record.moves in ("reduction", "along", "pool") or node.op == "head_sum":
        return _product(source.sizes if source is not None else ()) + 1
    return 4


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size if size > 0 else 1  # rows are not added up
    return product
