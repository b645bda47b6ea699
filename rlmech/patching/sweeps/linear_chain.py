"""Chains of linear operations: how a change of one value moves a later one when everything between them is linear.

`push` carries changes (rows of a basis, or masked differences) through linear operations with their constants dropped:
push(d) = f(base + d) - f(base), exactly. A chain is one matrix then, cheaper than its links where it is long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlmech.core.graph import Node
from rlmech.core.operations.reading import behaviour, record_of
from rlmech.patching.sweeps.flow import Flow, sizes_for

Values = Mapping[Node, Tensor]


def linear_sources(flow: Flow, node: Node) -> list[Node] | None:
    """The patched values that a node is linear in, everything else as in the base run; None where it is not linear."""
    changed = set(flow.order)
    before = [source for source in dict.fromkeys(flow.sources(node)) if source in changed]
    if flow.definition_of(node) is not None:
        return before
    carried = not node.kwargs and behaviour(node, before) == "affine" and _is_carried(node, before, changed)
    return before if carried and all(source.dtype == node.dtype for source in before) else None


def _is_carried(node: Node, before: list[Node], changed: set[Node]) -> bool:
    """Whether `push` can carry changes through an affine operation: a weight must be one, the same for all rows."""
    match record_of(node).moves:
        case "layout" | "reshape":
            return node.args[0].shape is not None
        case "elementwise":
            scaled = node.op in {"mul", "div"} and _is_scaling(node, before[0])
            return node.op in {"add", "sub", "neg"} or scaled
        case "product":
            first, second = (node.args[place] for place in record_of(node).factors)
            return node.op != "baddbmm" and _is_layer(first, second, changed=changed) and before == [first]
        case "convolution":
            plain = node.op in {"conv1d", "conv2d", "conv3d"} and not node.args[1].has_batch
            return plain and before == [node.args[0]]
        case "pool" | "reduction":
            return True
        case _:
            return node.op in {"head_sum", "cat"}


def push(flow: Flow, node: Node, changes: Values, constants: Values, n: int) -> Tensor:
    """The change of a linear node's value, given the changes of what it is linear in.

    Args:
        flow: The flow.
        node: The node; `linear_sources` gave its inputs.
        changes: Changes of its inputs, n rows each, laid out like the nodes.
        constants: Values of the weights that it reads.
        n: Number of rows.
    """
    definition = flow.definition_of(node)
    if definition is not None:
        return changes[definition].reshape(sizes_for(node, n))
    if record_of(node).moves == "reshape":
        sizes = sizes_for(node, n)
        value = changes[node.args[0]]
        return value.expand(sizes) if node.op == "expand" else value.reshape(sizes)
    if node.op in {"add", "sub"}:
        return _difference(node, changes, n)
    if node.op == "cat":
        parts = [changes[part] if part in changes else _zeros(part, n, changes) for part in node.args[0]]
        return torch.cat(parts, *node.args[1:])
    return _weighted(node, changes, constants, n)


def _weighted(node: Node, changes: Values, constants: Values, n: int) -> Tensor:
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
        case "mul" | "div" | "matmul" | "bmm" | "mm":
            return call(*(changes.get(a, constants.get(a)) if isinstance(a, Node) else a for a in node.args))
        case _:
            return call(changes[first], *(_plain(value, n) for value in rest), **node.kwargs)


def _difference(node: Node, changes: Values, n: int) -> Tensor:
    signed = [
        -changes[value] if place and node.op == "sub" else changes[value]
        for place, value in enumerate(node.args[:2])
        if isinstance(value, Node) and value in changes
    ]
    total = signed[0] if len(signed) == 1 else signed[0] + signed[1]
    return total.expand(sizes_for(node, n))


def _is_scaling(node: Node, source: Node) -> bool:
    first, second = node.args[:2]
    other = second if first is source else first
    return (first is source or node.op == "mul") and not (isinstance(other, Node) and other.has_batch)


def _is_layer(value: object, weight: object, *, changed: set[Node]) -> bool:
    constant = isinstance(weight, Node) and weight not in changed and not weight.has_batch
    return value in changed and constant


def _zeros(part: Node, n: int, changes: Values) -> Tensor:
    like = next(iter(changes.values()))
    return torch.zeros(sizes_for(part, n), dtype=like.dtype, device=like.device)


def _plain(value: object, n: int) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item, n) for item in value]
    return n if isinstance(value, Node) and value.op == "sym_size" else value
