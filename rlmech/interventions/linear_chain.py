"""Chains of linear operations: how a change of one value moves a later one when everything between them is linear.

`push` carries changes (rows of a basis, or masked differences) through linear operations with their constants dropped:
push(d) = f(base + d) - f(base), exactly. A chain is one matrix then, cheaper than its links where it is long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlmech.core.attention_search import LAYOUT_OPS, MATMUL
from rlmech.core.graph import Node
from rlmech.interventions.flow import RESHAPES, Flow, definition_of, sizes_for

Values = Mapping[Node, Tensor]
_POOLS = {"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"}
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}


def has_batch(node: Node) -> bool:
    """Whether a value has a row per observation; weights and what is made of them alone have none."""
    return any(size < 0 for size in node.shape or ())


def linear_sources(flow: Flow, node: Node) -> list[Node] | None:
    """The patched values that a node is linear in, everything else as in the base run; None where it is not linear."""
    changed = set(flow.order)
    before = [source for source in dict.fromkeys(flow.sources(node)) if source in changed]
    if definition_of(flow.graph, node, flow.start) is not None:
        return before
    linear = (
        node.op in {"linear", "neg", "head_sum", "cat"}
        or node.op in _POOLS
        or ((node.op in LAYOUT_OPS or node.op in RESHAPES) and node.args[0].shape is not None)
        or (node.op in _CONVOLUTIONS and node.args[0] in changed)
        or (node.op in {"mean", "sum"} and not node.kwargs and len(node.args) > 1)
        or (node.op in {"add", "sub"} and not node.kwargs)
        or (node.op in {"mul", "div"} and len(before) == 1 and _is_scaling(node, before[0]))
        or (node.op in MATMUL | {"mm"} and node.args[0] in changed and _is_constant(node.args[1], changed))
        or (node.op == "addmm" and node.args[1] in changed and _is_constant(node.args[2], changed))
    )
    return before if linear and all(source.dtype == node.dtype for source in before) else None


def push(flow: Flow, node: Node, changes: Values, constants: Values, n: int) -> Tensor:
    """The change of a linear node's value, given the changes of what it is linear in.

    Args:
        flow: The flow.
        node: The node; `linear_sources` gave its inputs.
        changes: Changes of its inputs, n rows each, laid out like the nodes.
        constants: Values of the weights that it reads.
        n: Number of rows.
    """

    def change(value: Any) -> Any:
        return changes.get(value) if isinstance(value, Node) else value

    definition = definition_of(flow.graph, node, flow.start)
    if definition is not None:
        return changes[definition].reshape(sizes_for(node, n))
    first, *rest = node.args
    call: Callable[..., Tensor] = node.call or torch.clone
    match node.op:
        case "linear":
            return torch.nn.functional.linear(changes[first], constants[rest[0]])
        case "addmm":
            return changes[rest[0]] @ constants[rest[1]]
        case "head_sum":
            return call(changes[first], None)
        case "conv1d" | "conv2d" | "conv3d":
            return call(changes[first], constants[rest[0]], None, *rest[2:], **node.kwargs)
        case "cat":
            parts = [_zeros(part, n, changes) if change(part) is None else changes[part] for part in first]
            return torch.cat(parts, *rest)
        case "add" | "sub":
            return _difference(node, change(first), change(rest[0]), n)
        case "mul" | "div" | "matmul" | "bmm" | "mm":
            factors = [changes.get(a, constants.get(a)) if isinstance(a, Node) else a for a in node.args]
            return call(*factors)
        case _ if node.op in RESHAPES:
            sizes = sizes_for(node, n)
            return changes[first].expand(sizes) if node.op == "expand" else changes[first].reshape(sizes)
        case _:
            return call(changes[first], *(_plain(value, n) for value in rest), **node.kwargs)


def _difference(node: Node, first: Any, second: Any, n: int) -> Tensor:
    a, b = (value if isinstance(value, Tensor) else None for value in (first, second))
    if b is not None:
        b = b if node.op == "add" else -b
    total = b if a is None else a if b is None else a + b
    assert total is not None  # noqa: S101  # a linear node depends on at least one patched value
    return total.expand(sizes_for(node, n))


def _is_scaling(node: Node, source: Node) -> bool:
    first, second = node.args[:2]
    other = second if first is source else first
    return (first is source or node.op == "mul") and not (isinstance(other, Node) and has_batch(other))


def _is_constant(value: Any, changed: set[Node]) -> bool:
    return isinstance(value, Node) and value not in changed and not has_batch(value)


def _zeros(part: Node, n: int, changes: Values) -> Tensor:
    like = next(iter(changes.values()))
    return torch.zeros(sizes_for(part, n), dtype=like.dtype, device=like.device)


def _plain(value: Any, n: int) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item, n) for item in value]
    return n if isinstance(value, Node) and value.op == "sym_size" else value
