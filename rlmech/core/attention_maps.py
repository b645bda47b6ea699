"""The linear maps around an attention block: which weight column is which head's, and the layer that combines heads.

Nothing is assumed of how heads are laid out: indices are pushed through the reshapes between the layers and the heads.
Cost: a few small programs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import einsum
from torch import Tensor

from rlmech.core.attention_nodes import Found, OutputProjection, Projection
from rlmech.core.graph import Alternative, Graph, Node, depends_on_input
from rlmech.core.layout import Layout
from rlmech.core.operations.table import known
from rlmech.core.program import Address, compile_program

PROBE_BATCH = 2


def find_maps(graph: Graph, block: Found) -> None:
    """Find a block's projections and its combining layer; why one is not found stands in the block's `reasons`."""
    _find_projections(graph, block)
    _find_output(graph, block, graph.users())


def _find_projections(graph: Graph, block: Found) -> None:
    for name, address in block.sources.items():
        try:
            block.projections[name] = _projection(graph, address)
        except _NoProjectionError as error:
            block.reasons[name] = str(error)


class _NoProjectionError(Exception):
    """There is no single linear layer; the message says why."""


def _projection(graph: Graph, address: Address) -> Projection:
    layer = address.node
    while known(layer.op).keeps_elements:
        layer = layer.args[0]
    source, weight, bias, transposed = _affine(layer)
    columns, rows = _trace_indices(graph, layer, address)
    return Projection(
        source=source, layer=layer, weight=weight, bias=bias, columns=columns, rows=rows, transposed=transposed
    )


def _affine(layer: Node) -> tuple[Node, Node, Node | None, bool]:
    match layer.op, layer.args:
        case "linear", (source, weight, *bias):
            return source, weight, bias[0] if bias else None, False
        case "matmul" | "mm", (source, weight) if not depends_on_input(weight):
            return source, weight, None, True
        case "addmm", (bias, source, weight) if all(factor == 1 for factor in layer.kwargs.values()):
            return source, weight, bias, True
        case "addmm", _:
            raise _NoProjectionError("the layer is an addmm that scales its product or its bias")
        case _:
            pass
    raise _NoProjectionError(f"they come from {layer.op!r}, not from one linear layer")


def _trace_indices(graph: Graph, layer: Node, address: Address) -> tuple[Tensor, Tensor]:
    """Which output feature of the layer each (head, d_head) is, and which of its rows each (batch, entity)."""
    index = _index_tensor(layer)
    program = compile_program(graph, returned=(address.node,), given=(layer,))
    observation = _placeholders(graph)
    moved = address.layout.show(program(observation, (index,), ())[0])
    d_out = index.shape[-1]
    features, rows = moved % d_out, moved // d_out
    if not bool((features == features[:1, :1]).all()) or not bool((rows == rows[:, :, :1, :1]).all()):
        raise _NoProjectionError("heads and entities are mixed between the linear layer and the heads")
    return features[0, 0].clone(), rows[:, :, 0, 0].clone()


def _index_tensor(node: Node) -> Tensor:
    sizes = [-size * PROBE_BATCH if size < 0 else size for size in node.sizes]
    return torch.arange(math.prod(sizes)).reshape(sizes)


def _placeholders(graph: Graph) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros([-size * PROBE_BATCH if size < 0 else size for size in node.sizes], dtype=node.dtype)
        for node in graph.inputs
    )


def _find_output(graph: Graph, block: Found, users: Mapping[Node, list[Node]]) -> None:
    layer = _combining_layer(block.z.node, users)
    if layer is None:
        block.reasons["output"] = "the heads' outputs do not go into one linear layer"
        return
    try:
        source, weight, bias, transposed = _affine(layer)
    except _NoProjectionError as error:
        block.reasons["output"] = str(error)
        return
    z = block.z.layout
    sizes = [PROBE_BATCH if size < 0 else size for size in z.canonical_shape]
    index = torch.arange(math.prod(sizes)).reshape(sizes)
    program = compile_program(graph, returned=(source,), given=(block.z.node,))
    moved = program(_placeholders(graph), (z.restore(index),), ())[0]
    width = sizes[2] * sizes[3]
    columns, rows = moved % width, moved // width
    flat_rows, flat_columns = rows.reshape(-1, rows.shape[-1]), columns.reshape(-1, columns.shape[-1])
    if not bool((flat_rows == flat_rows[:, :1]).all()) or not bool((flat_columns == flat_columns[:1]).all()):
        block.reasons["output"] = "the network mixes heads and entities before it combines them"
        return
    if len(flat_rows) != sizes[0] * sizes[1]:
        block.reasons["output"] = "the combining layer reads only some of the queries"
        return
    layout = _row_layout(layer, flat_rows[:, 0], n_queries=sizes[1])
    inverse = torch.argsort(flat_columns[0]).reshape(sizes[2], sizes[3])
    if layout is None or inverse.numel() != flat_columns.shape[1]:
        block.reasons["output"] = "the combining layer takes more than the heads' outputs"
        return
    block.output = OutputProjection(layer=layer, weight=weight, bias=bias, columns=inverse, transposed=transposed)
    block.attn_out = Address(node=layer, layout=layout)
    block.result = _add_result(graph, block.z, block.output, block.attn_out, block.scope)


def _combining_layer(z: Node, users: Mapping[Node, list[Node]]) -> Node | None:
    frontier = [z]
    while frontier:
        node = frontier.pop()
        for user in users[node]:
            if user.op in {"linear", "matmul", "mm"} and user.args[0] is node:
                return user
            if user.op == "addmm" and user.args[1] is node:
                return user
            if known(user.op).keeps_elements:
                frontier.append(user)
    return None


def _row_layout(layer: Node, rows: Tensor, *, n_queries: int) -> Layout | None:
    """The layout of the combining layer's output as batch, query, d_model, given the order of its rows."""
    shape = layer.sizes
    d_model = shape[-1]
    if torch.equal(rows, torch.arange(len(rows))):
        return Layout(shape=shape, split=(-1, n_queries, d_model), order=(0, 1, 2))
    by_query = torch.arange(len(rows)).reshape(-1, n_queries).T.reshape(-1)
    if torch.equal(rows, by_query):
        return Layout(shape=shape, split=(n_queries, -1, d_model), order=(1, 0, 2))
    return None


def _add_result(graph: Graph, z: Address, output: OutputProjection, attn_out: Address, scope: str) -> Address:
    """Append z_h W_O^h per head, and the combining layer's second definition as its sum."""
    batch, n_queries, n_heads, _ = z.layout.canonical_shape
    d_model = (output.layer.sizes)[-1]
    shape = (batch, n_queries, n_heads, d_model)

    def per_head(mixed: Tensor, weight: Tensor) -> Tensor:
        return einsum(z.layout.show(mixed), output.split(weight), "b q h d, h d m -> b q h m")

    def combine(result: Tensor, bias: Tensor | None) -> Tensor:
        total = result.sum(2)
        return attn_out.layout.restore(total if bias is None else total + bias)

    result = graph.add("head_result", per_head, z.node, output.weight, like=output.layer, shape=shape)
    result.scope = scope
    total = graph.add("head_sum", combine, result, output.bias, like=output.layer, shape=output.layer.sizes)
    graph.alternatives[output.layer] = Alternative(triggers=frozenset({result}), definition=total)
    return Address(node=result, layout=Layout.plain(shape))
