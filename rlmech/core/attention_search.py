"""Attention found in the graph: matmul -> scale, mask -> softmax -> matmul, in whatever module it stands.

A fused `scaled_dot_product_attention` gets a decomposed second definition. Which weight column belongs to which head is
not assumed: indices are pushed through the reshapes between the projections and the heads. Cost: a few small programs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from rlmech.axes import Axis
from rlmech.core.attention_nodes import Found, Mask, OutputProjection, Projection, Source
from rlmech.core.graph import Alternative, Graph, Node, depends_on_input
from rlmech.core.layout import Layout
from rlmech.core.operations.table import known, names_where
from rlmech.core.program import Address, compile_program

SOFTMAX = names_where(lambda record: record.role == "softmax")
MATMUL = names_where(lambda record: record.role == "matmul")
HEAD_AXES: tuple[Axis, ...] = ("batch", "head", "query", "key")
PROBE_BATCH = 2


def find_attention(graph: Graph, *, weights: bool = True) -> list[Found]:
    """All attention blocks of a graph; adds the synthetic nodes they need.

    Args:
        graph: The graph.
        weights: Whether to look for the linear maps around a block, too, which takes running parts of the graph.
    """
    users = graph.users()
    found: list[Found] = []
    for node in list(graph.nodes):
        if node.op == "scaled_dot_product_attention" and not _from_parameters(node):
            block = _from_fused(graph, node)
        elif node.op in SOFTMAX and _is_last_axis(node):
            block = _from_softmax(node, users)
        else:
            continue
        if block is not None and weights:
            _find_projections(graph, block)
            _find_output(graph, block, graph.users())
        if block is not None:
            found.append(block)
    return found


def _is_last_axis(softmax: Node) -> bool:
    return softmax.shape is not None and softmax.args[1] in (-1, len(softmax.shape) - 1)


def _from_parameters(node: Node) -> bool:
    return not depends_on_input(node)


def _from_softmax(softmax: Node, users: Mapping[Node, list[Node]]) -> Found | None:
    after = softmax
    while True:
        readers = users[after]
        products = [reader for reader in readers if reader.op in MATMUL and reader.args[0] is after]
        if products or len(readers) != 1 or not known(readers[0].op).keeps_elements:
            break
        after = readers[0]
    scores = softmax.args[0]
    before = _score_product(scores)
    if not products or before is None:
        return None
    product, scale, mask = before
    a, b = product.args[-2:] if product.op == "baddbmm" else product.args[:2]
    return _block(softmax, a=a, b=b, z=products[0], scores=scores, pattern=softmax, scale=scale, mask=mask)


def _score_product(scores: Node) -> tuple[Node, float, Mask | None] | None:
    """The product of queries and keys that scores come from, what it is scaled with, and the mask on the way."""
    node, scale, mask = scores, 1.0, None
    while node.op not in MATMUL:
        if not node.args or not isinstance(node.args[0], Node):
            return None
        following = node.args[0]
        match node.op:
            case "mul" | "div" if not isinstance(node.args[1], Node):
                scale *= node.args[1] if node.op == "mul" else 1 / node.args[1]
            case "masked_fill":
                mask = mask or _mask_address(node.args[1])
            case "where":
                kept = isinstance(node.args[1], Node) and node.args[1].op not in {"parameter", "constant", "full"}
                mask = mask or _mask_address(node.args[0], negate=kept)
                following = node.args[1 if kept else 2]
            case "add":
                mask = mask or _additive_mask(node.args[1])
            case "to" | "_to_copy" | "clone" | "contiguous" | "sub":
                pass
            case _:
                return None
        if not isinstance(following, Node):
            return None
        node = following
    mask = mask or (_additive_mask(node.args[0]) if node.op == "baddbmm" else None)
    return node, scale, mask


def _from_fused(graph: Graph, fused: Node) -> Found | None:
    q, k, v, *rest = fused.args
    bias = rest[0] if rest else fused.kwargs.get("attn_mask")
    causal = rest[2] if len(rest) > 2 else fused.kwargs.get("is_causal", False)
    if fused.shape is None or _heads(fused.shape) is None:
        return None
    if fused.kwargs.get("enable_gqa"):  # each head gets its own copy of its group's keys and values
        k, v = (_repeated(graph, value, q.shape[-3] // value.shape[-3], fused) for value in (k, v))
    given = fused.kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if given is None else given
    shape = (*q.shape[:-1], k.sizes[-2])
    swapped = graph.add("transpose", torch.transpose, k, -2, -1, like=fused, shape=(*k.sizes[:-2], *k.sizes[:-3:-1]))
    scores = graph.add("matmul", torch.matmul, q, swapped, like=fused, shape=shape)
    scores = graph.add("mul", torch.mul, scores, scale, like=fused, shape=shape)
    mask = None
    if bias is not None:
        if bias.dtype == torch.bool:
            mask = _mask_address(bias, negate=True)
            hidden = graph.add("logical_not", torch.logical_not, bias, like=bias, shape=bias.shape)
            scores = graph.add("masked_fill", torch.masked_fill, scores, hidden, -math.inf, like=fused, shape=shape)
        else:
            mask = _additive_mask(bias)
            scores = graph.add("add", torch.add, scores, bias, like=fused, shape=shape)
    if causal:
        hide = lambda value: value.masked_fill(_later_keys(value), -math.inf)  # noqa: E731
        scores = graph.add("causal_mask", hide, scores, like=fused, shape=shape)
    # The fused operation gives zeros where every key is hidden, and so must its pattern; a plain softmax gives NaN.
    pattern = graph.add("_safe_softmax", torch.ops.aten._safe_softmax.default, scores, -1, like=fused, shape=shape)
    mixed = graph.add("matmul", torch.matmul, pattern, v, like=fused, shape=fused.shape)
    copies = {node for node in (k, v) if node.synthetic}
    graph.alternatives[fused] = Alternative(triggers=frozenset({scores, pattern, *copies}), definition=mixed)
    return _block(fused, a=q, b=swapped, z=fused, scores=scores, pattern=pattern, scale=scale, mask=mask, v=v)


def _repeated(graph: Graph, value: Node, n: int, fused: Node) -> Node:
    if n == 1:
        return value
    shape = (*value.sizes[:-3], value.sizes[-3] * n, *value.sizes[-2:])
    repeat = torch.ops.aten.repeat_interleave.self_int
    return graph.add("repeat_interleave", repeat, value, n, len(shape) - 3, like=fused, shape=shape)


def _later_keys(scores: Tensor) -> Tensor:
    """Where a key comes after its query, both counted from the first, as `is_causal` does."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)


def _block(
    softmax: Node,
    *,
    a: Node,
    b: Node,
    z: Node,
    scores: Node,
    pattern: Node,
    scale: float,
    mask: Mask | None,
    v: Node | None = None,
) -> Found | None:
    values: Node = z.args[1] if v is None else v
    whole = {node: _heads(node.shape) for node in (a, b, values, z, scores, pattern)}
    if any(layout is None for layout in whole.values()):
        return None
    shown = {node: Address(node=node, layout=layout) for node, layout in whole.items() if layout}
    q, value, mixed = (_moved(shown[node], (0, 2, 1, 3)) for node in (a, values, z))
    k = _moved(shown[b], (0, 3, 1, 2))  # keys stand transposed in the product
    (q, scale_q), (k, scale_k) = _unscaled(q), _unscaled(k)
    return Found(
        scope=softmax.scope,
        softmax=softmax,
        scores=shown[scores],
        pattern=shown[pattern],
        q=q,
        k=k,
        v=_simplest(value),
        z=mixed,
        scale=scale * scale_q * scale_k,
        mask=mask,
    )


def _unscaled(address: Address) -> tuple[Address, float]:
    """The same value before it was multiplied with numbers, and their product."""
    address, scale = _simplest(address), 1.0
    while address.node.op in {"mul", "div"} and not isinstance(address.node.args[1], Node):
        scale *= address.node.args[1] if address.node.op == "mul" else 1 / address.node.args[1]
        address = _simplest(Address(node=address.node.args[0], layout=address.layout))
    return address, scale


def _heads(shape: tuple[int, ...] | None) -> Layout | None:
    """The layout of `[*lead m n]` as batch, head, m, n."""
    if shape is None or len(shape) < 3 or shape[-1] < 0 or shape[-2] < 0:
        return None
    lead, (m, n) = shape[:-2], shape[-2:]
    if len(lead) == 2 and lead[0] == -1 and lead[1] > 0:
        split, order = shape, (0, 1, 2, 3)
    elif len(lead) == 2 and lead[1] == -1 and lead[0] > 0:
        split, order = shape, (1, 0, 2, 3)
    elif len(lead) == 1 and lead[0] < 0:
        split, order = (-1, -lead[0], m, n), (0, 1, 2, 3)
    else:
        return None
    return Layout(shape=shape, split=split, order=order)


def _moved(address: Address, order: tuple[int, ...]) -> Address:
    """The same value with its canonical axes in another order."""
    layout = address.layout
    order = tuple(layout.order[i] for i in order)
    return Address(node=address.node, layout=Layout(shape=layout.shape, split=layout.split, order=order))


def _simplest(address: Address) -> Address:
    """The same value a few permutations earlier, where it may already lie in canonical order."""
    node, layout = address.node, address.layout
    while not layout.is_identity and layout.split == layout.shape and node.op in {"permute", "transpose"}:
        source, rank = node.args[0], len(layout.shape)
        if node.op == "permute":
            moved = [axis % rank for axis in node.args[1]]
        else:
            moved = list(range(rank))
            i, j = (axis % rank for axis in node.args[1:3])
            moved[i], moved[j] = moved[j], moved[i]
        order = tuple(moved[axis] for axis in layout.order)
        node, layout = source, Layout(shape=source.shape, split=source.shape, order=order)
    return Address(node=node, layout=layout)


def _mask_address(mask: Any, *, negate: bool = False) -> Mask | None:
    while isinstance(mask, Node) and mask.op in {"logical_not", "bitwise_not"}:
        mask, negate = mask.args[0], not negate
    if not isinstance(mask, Node) or mask.dtype != torch.bool or mask.shape is None:
        return None
    by_rank: dict[int, tuple[Axis, ...]] = {2: ("batch", "key"), 3: ("batch", "query", "key"), 4: HEAD_AXES}
    axes = by_rank.get(len(mask.shape))
    if axes is None or mask.shape[0] != -1:
        return None
    layout = Layout(shape=mask.shape, split=mask.shape, order=tuple(range(len(mask.shape))), negate=negate)
    return Address(node=mask, layout=layout), axes


def _additive_mask(bias: Any) -> Mask | None:
    while isinstance(bias, Node) and known(bias.op).keeps_elements:
        bias = bias.args[0]
    if isinstance(bias, Node) and bias.op == "masked_fill":
        return _mask_address(bias.args[1])
    return None


def _find_projections(graph: Graph, block: Found) -> None:
    sources: dict[Source, Address] = {"q": block.q, "k": block.k, "v": block.v}
    for name, address in sources.items():
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
        case "addmm", (bias, source, weight):
            return source, weight, bias, True
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
    source, weight, bias, transposed = _affine(layer)
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
