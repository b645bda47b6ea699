"""Attention, found in the graph and verified numerically.

A block is matmul -> scale, mask -> softmax -> matmul, in whatever module it stands, or a fused
`scaled_dot_product_attention`, which is given a decomposed second definition. Which weight column belongs to which head is
not assumed: indices are pushed through the reshapes between the projection and the heads. Cost: a few small programs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from rlmech.core.graph import Alternative, Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.program import Address, compile_program
from rlmech.errors import AttentionError, nearest

Role = Literal["q", "k", "v", "attn_scores", "pattern", "mask", "z", "result", "attn_out"]

LAYOUT_OPS = {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "contiguous",
    "clone", "select", "slice", "unflatten", "flatten", "split", "chunk", "split_with_sizes", "unbind", "getitem",
    "swapaxes", "movedim", "repeat", "numpy_T", "adjoint", "mT",
}  # fmt: skip
SOFTMAX = {"softmax", "_softmax", "_safe_softmax"}
MATMUL = {"matmul", "bmm", "baddbmm"}
HEAD_AXES = ("batch", "head", "query", "key")
Source = Literal["q", "k", "v"]


@dataclass(slots=True, eq=False)
class Found:
    """The nodes of one attention block, before names are given."""

    scope: str
    softmax: Node
    scores: Address
    pattern: Address
    q: Address
    k: Address
    v: Address
    z: Address
    scale: float
    mask: tuple[Address, tuple[str, ...]] | None = None
    projections: dict[Source, Projection] = field(default_factory=dict)
    output: OutputProjection | None = None
    result: Address | None = None
    attn_out: Address | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[Role, Address]:
        """Where each role lies."""
        found: dict[Role, Address | None] = {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "mask": self.mask[0] if self.mask else None,
            "attn_scores": self.scores,
            "pattern": self.pattern,
            "z": self.z,
            "result": self.result,
            "attn_out": self.attn_out,
        }
        return {role: address for role, address in found.items() if address is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear map from entities to heads: node, weight and bias, and which output feature is which (head, d_head)."""

    source: Node
    layer: Node
    weight: Node
    bias: Node | None
    columns: Tensor
    rows: Tensor
    transposed: bool

    def split(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight `[head d_model d_head]` and bias `[head d_head]`."""
        by_output = weight.T if self.transposed else weight
        split = rearrange(by_output[self.columns], "head d_head d_model -> head d_model d_head")
        return split, None if bias is None else bias[self.columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputProjection:
    """The linear map that combines the heads: node, weight and bias, and which input feature is which (head, d_head)."""

    layer: Node
    weight: Node
    bias: Node | None
    columns: Tensor
    transposed: bool

    def split(self, weight: Tensor) -> Tensor:
        """Weight `[head d_head d_model]`."""
        by_input = weight if self.transposed else weight.T
        return by_input[self.columns]


class AttentionBlock:
    """One attention layer of a policy: its sizes, its weights per head, as they are now, and its hook names.

    Attributes:
        path: Path of the module it stands in; empty for the root.
        n_heads: Number of heads.
        d_head: Size of a head's queries, keys and values.
        scale: What scores are multiplied with, 1/sqrt(d_head) as a rule.
        names: Hook name of each role: `q k v attn_scores pattern z`, and `mask result attn_out` where there are.
        reasons: For what is not offered: why.
    """

    def __init__(self, graph: Graph, found: Found, *, path: str, names: Mapping[Role, str]) -> None:
        self.path, self.names, self.scale = path, dict(names), found.scale
        self.n_heads, self.d_head = found.q.layout.canonical_shape[2:]
        self.reasons = dict(found.reasons)
        self._graph, self._found = graph, found

    def __repr__(self) -> str:
        return f"AttentionBlock({self.path!r}, n_heads={self.n_heads}, d_head={self.d_head})"

    @property
    def d_model(self) -> int:
        """Size of what the queries are read from."""
        return self.W_Q.shape[1]

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:  # noqa: N802
        """Query weights."""
        return self._projection("q")[0]

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:  # noqa: N802
        """Key weights."""
        return self._projection("k")[0]

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:  # noqa: N802
        """Value weights."""
        return self._projection("v")[0]

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:  # noqa: N802
        """Output weights."""
        output = self._output()
        return output.split(value_of(self._graph, output.weight))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"] | None:  # noqa: N802
        """Query bias, or None."""
        return self._projection("q")[1]

    @property
    def b_K(self) -> Float[Tensor, "head d_head"] | None:  # noqa: N802
        """Key bias, or None."""
        return self._projection("k")[1]

    @property
    def b_V(self) -> Float[Tensor, "head d_head"] | None:  # noqa: N802
        """Value bias, or None."""
        return self._projection("v")[1]

    @property
    def b_O(self) -> Float[Tensor, " d_model"] | None:  # noqa: N802
        """Output bias, or None."""
        output = self._output()
        return None if output.bias is None else value_of(self._graph, output.bias)

    def _projection(self, source: Source) -> tuple[Tensor, Tensor | None]:
        if source not in self._found.projections:
            raise self._refuse(f"W_{source.upper()}", source)
        projection = self._found.projections[source]
        bias = None if projection.bias is None else value_of(self._graph, projection.bias)
        return projection.split(value_of(self._graph, projection.weight), bias)

    def _output(self) -> OutputProjection:
        if self._found.output is None:
            raise self._refuse("W_O", "output")
        return self._found.output

    def _refuse(self, what: str, part: str) -> AttentionError:
        return AttentionError(
            f"The attention in {self.path or 'the root'!r} has no {what}: {self.reasons[part]}.",
            given=what,
            expected="a single linear layer whose rows are entities and whose columns are heads",
            fix=f"use the hook points that there are: {', '.join(self.names.values())}",
        )


class AttentionBlocks(Mapping[str, AttentionBlock]):
    """The attention layers of a policy by module path; asking for one that failed its check raises with the reason."""

    def __init__(self, blocks: Mapping[str, AttentionBlock], reasons: Mapping[str, str]) -> None:
        self._blocks, self._reasons = dict(blocks), dict(reasons)

    def __getitem__(self, path: str) -> AttentionBlock:
        if path in self._blocks:
            return self._blocks[path]
        close = nearest(path, self._blocks)
        reason = self._reasons.get(path)
        raise AttentionError(
            f"There is no attention block at {path!r}" + (f": {reason}." if reason else "."),
            given=repr(path),
            expected=f"one of {list(self._blocks)}" if self._blocks else "nothing: no attention was found",
            fix=f"did you mean {close[0]!r}?" if close else "policy.attention lists the blocks",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


def value_of(graph: Graph, node: Node) -> Tensor:
    """The present value of a node that depends on parameters only."""
    return compile_program(graph, returned=(node,))((), (), ())[0]


def find_attention(graph: Graph) -> list[Found]:
    """All attention blocks of a graph; adds the synthetic nodes they need."""
    users = graph.users()
    found: list[Found] = []
    for node in list(graph.nodes):
        if node.op == "scaled_dot_product_attention" and not _from_parameters(node):
            block = _from_fused(graph, node)
        elif node.op in SOFTMAX and _is_last_axis(node):
            block = _from_softmax(node, users)
        else:
            continue
        if block is not None:
            _find_projections(graph, block)
            _find_output(graph, block, graph.users())
            found.append(block)
    return found


def _is_last_axis(softmax: Node) -> bool:
    return softmax.shape is not None and softmax.args[1] in (-1, len(softmax.shape) - 1)


def _from_parameters(node: Node) -> bool:
    return not any(source.op == "input" for source in _ancestors(node))


def _from_softmax(softmax: Node, users: Mapping[Node, list[Node]]) -> Found | None:
    after = softmax
    while True:
        readers = users[after]
        products = [reader for reader in readers if reader.op in MATMUL and reader.args[0] is after]
        if products or len(readers) != 1 or readers[0].op not in LAYOUT_OPS:
            break
        after = readers[0]
    scores, product, scale, mask = softmax.args[0], softmax.args[0], 1.0, None
    while product.op not in MATMUL:
        if product.op in {"mul", "div"} and not isinstance(product.args[1], Node):
            scale *= product.args[1] if product.op == "mul" else 1 / product.args[1]
        elif product.op == "masked_fill":
            mask = mask or _mask_address(product.args[1])
        elif product.op == "where":
            hides = isinstance(product.args[1], Node) and product.args[1].op not in {"parameter", "constant", "full"}
            mask = mask or _mask_address(product.args[0], negate=hides)
            product = product.args[1] if hides else product.args[2]
            continue
        elif product.op == "add":
            mask = mask or _additive_mask(product.args[1])
        elif product.op not in {"to", "_to_copy", "clone", "contiguous", "sub"}:
            return None
        if not product.args or not isinstance(product.args[0], Node):
            return None
        product = product.args[0]
    if not products or scores.shape is None:
        return None
    a, b = product.args[-2:] if product.op == "baddbmm" else product.args[:2]
    if product.op == "baddbmm":
        mask = mask or _additive_mask(product.args[0])
    return _block(softmax, a=a, b=b, z=products[0], scores=scores, pattern=softmax, scale=scale, mask=mask)


def _from_fused(graph: Graph, fused: Node) -> Found | None:
    q, k, v, *rest = fused.args
    bias = rest[0] if rest else fused.kwargs.get("attn_mask")
    causal = rest[2] if len(rest) > 2 else fused.kwargs.get("is_causal", False)
    if causal or not fused.shape or len(fused.shape) != 4 or fused.kwargs.get("enable_gqa"):
        return None
    scale = fused.kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    shape = (*q.shape[:-1], k.shape[-2])
    swapped = graph.add("transpose", torch.transpose, k, -2, -1, like=fused, shape=(*k.shape[:-2], *k.shape[:-3:-1]))
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
    pattern = graph.add("softmax", torch.softmax, scores, -1, like=fused, shape=shape)
    mixed = graph.add("matmul", torch.matmul, pattern, v, like=fused, shape=fused.shape)
    graph.alternatives[fused] = Alternative(triggers=frozenset({scores, pattern}), definition=mixed)
    return _block(fused, a=q, b=swapped, z=fused, scores=scores, pattern=pattern, scale=scale, mask=mask, v=v)


def _block(
    softmax: Node,
    *,
    a: Node,
    b: Node,
    z: Node,
    scores: Node,
    pattern: Node,
    scale: float,
    mask: tuple[Address, tuple[str, ...]] | None,
    v: Node | None = None,
) -> Found | None:
    v = z.args[1] if v is None else v
    swaps = {a: (0, 2, 1, 3), b: (0, 3, 1, 2), v: (0, 2, 1, 3), z: (0, 2, 1, 3)}  # keys stand transposed in the product
    whole = {node: _heads(node.shape) for node in (*swaps, scores, pattern)}
    if any(layout is None for layout in whole.values()):
        return None
    shown = {node: Address(node=node, layout=layout) for node, layout in whole.items() if layout}
    q, k, value, mixed = (Address(node=n, layout=_reorder(shown[n].layout, order)) for n, order in swaps.items())
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


def _reorder(layout: Layout, order: tuple[int, ...]) -> Layout:
    return Layout(
        shape=layout.shape, split=layout.split, order=tuple(layout.order[i] for i in order), negate=layout.negate
    )


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


def _mask_address(mask: Any, *, negate: bool = False) -> tuple[Address, tuple[str, ...]] | None:
    while isinstance(mask, Node) and mask.op in {"logical_not", "bitwise_not"}:
        mask, negate = mask.args[0], not negate
    if not isinstance(mask, Node) or mask.dtype != torch.bool or mask.shape is None:
        return None
    axes = {2: ("batch", "key"), 3: ("batch", "query", "key"), 4: HEAD_AXES}.get(len(mask.shape))
    if axes is None or mask.shape[0] != -1:
        return None
    layout = Layout(shape=mask.shape, split=mask.shape, order=tuple(range(len(mask.shape))), negate=negate)
    return Address(node=mask, layout=layout), axes


def _additive_mask(bias: Any) -> tuple[Address, tuple[str, ...]] | None:
    while isinstance(bias, Node) and bias.op in LAYOUT_OPS:
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
    while layer.op in LAYOUT_OPS:
        layer = layer.args[0]
    source, weight, bias, transposed = _affine(layer)
    columns, rows = _trace_indices(graph, layer, address)
    return Projection(
        source=source, layer=layer, weight=weight, bias=bias, columns=columns, rows=rows, transposed=transposed
    )


def _affine(layer: Node) -> tuple[Node, Node, Node | None, bool]:
    if layer.op == "linear":
        bias = layer.args[2] if len(layer.args) > 2 else None
        return layer.args[0], layer.args[1], bias, False
    if layer.op in {"matmul", "mm"} and not any(node.op == "input" for node in _ancestors(layer.args[1])):
        return layer.args[0], layer.args[1], None, True
    if layer.op == "addmm":
        return layer.args[1], layer.args[2], layer.args[0], True
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


PROBE_BATCH = 2


def _index_tensor(node: Node) -> Tensor:
    sizes = [-size * PROBE_BATCH if size < 0 else size for size in node.shape or ()]
    return torch.arange(math.prod(sizes)).reshape(sizes)


def _placeholders(graph: Graph) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros([-size * PROBE_BATCH if size < 0 else size for size in node.shape or ()], dtype=node.dtype)
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
    layout = _row_layout(layer, flat_rows[:, 0], n_queries=sizes[1])
    inverse = torch.argsort(flat_columns[0]).reshape(sizes[2], sizes[3])
    if layout is None or inverse.numel() != flat_columns.shape[1]:
        block.reasons["output"] = "the combining layer takes more than the heads' outputs"
        return
    block.output = OutputProjection(layer=layer, weight=weight, bias=bias, columns=inverse, transposed=transposed)
    block.attn_out = Address(node=layer, layout=layout)
    block.result = _add_result(graph, block)


def _combining_layer(z: Node, users: Mapping[Node, list[Node]]) -> Node | None:
    frontier = [z]
    while frontier:
        node = frontier.pop()
        for user in users[node]:
            if user.op in {"linear", "matmul", "mm"} and user.args[0] is node:
                return user
            if user.op == "addmm" and user.args[1] is node:
                return user
            if user.op in LAYOUT_OPS:
                frontier.append(user)
    return None


def _row_layout(layer: Node, rows: Tensor, *, n_queries: int) -> Layout | None:
    """The layout of the combining layer's output as batch, query, d_model, given the order of its rows."""
    shape = layer.shape or ()
    d_model = shape[-1]
    if torch.equal(rows, torch.arange(len(rows))):
        return Layout(shape=shape, split=(-1, n_queries, d_model), order=(0, 1, 2))
    by_query = torch.arange(len(rows)).reshape(-1, n_queries).T.reshape(-1)
    if torch.equal(rows, by_query):
        return Layout(shape=shape, split=(n_queries, -1, d_model), order=(1, 0, 2))
    return None


def _add_result(graph: Graph, block: Found) -> Address:
    """Append z_h W_O^h per head, and the combining layer's second definition as its sum."""
    output, z = block.output, block.z
    assert output is not None and block.attn_out is not None  # noqa: S101  # set by the only caller
    batch, n_queries, n_heads, _ = z.layout.canonical_shape
    d_model = (output.layer.shape or ())[-1]
    shape = (batch, n_queries, n_heads, d_model)

    def per_head(mixed: Tensor, weight: Tensor) -> Tensor:
        return einsum(z.layout.show(mixed), output.split(weight), "b q h d, h d m -> b q h m")

    combined_layout = block.attn_out.layout

    def combine(result: Tensor, bias: Tensor | None) -> Tensor:
        total = result.sum(2)
        return combined_layout.restore(total if bias is None else total + bias)

    result = graph.add("head_result", per_head, z.node, output.weight, like=output.layer, shape=shape)
    result.scope = block.scope
    total = graph.add(
        "head_sum", combine, result, output.bias, like=output.layer, shape=output.layer.shape or ()
    )
    graph.alternatives[output.layer] = Alternative(triggers=frozenset({result}), definition=total)
    return Address(node=result, layout=Layout.plain(shape))


def _ancestors(node: Any) -> set[Node]:
    seen: set[Node] = set()
    stack = [node] if isinstance(node, Node) else []
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack.extend(current.inputs())
    return seen


def verify(graph: Graph, block: Found, observation: tuple[Tensor, ...]) -> str | None:
    """Check a block against its equations.

    Args:
        graph: The graph.
        block: A block that `find_attention` found.
        observation: `PROBE_BATCH` rows of observation, as the graph's inputs.

    Returns:
        None where the core holds (pattern and z), else the reason why the block is not offered. Projections that fail
        are dropped from the block, with the reason in `block.reasons`.
    """
    addresses = [block.q, block.k, block.v, block.scores, block.pattern, block.z]
    program = compile_program(graph, returned=[address.node for address in addresses])
    values = [address.layout.show(value) for address, value in zip(addresses, program(observation, (), ()), strict=True)]
    q, k, v, scores, pattern, z = values
    if not _close(torch.softmax(scores, -1), pattern):
        return "the pattern is not the softmax of the scores"
    if not _close(einsum(pattern, v, "b h q k, b k h d -> b q h d"), z):
        return "z is not the pattern times the values"
    product = einsum(q, k, "b q h d, b k h d -> b h q k") * block.scale
    visible = torch.isfinite(scores) & (scores > -1e8)
    if not _close(product[visible], scores[visible]):
        block.reasons["scores"] = "scores hold more than the scaled product of queries and keys"
    shown: dict[Source, Tensor] = {"q": q, "k": k, "v": v}
    for name in list(block.projections):
        if not _projection_holds(graph, block.projections[name], shown[name], observation):
            del block.projections[name]
            block.reasons[name] = "the linear layer found does not reproduce them"
    if block.output is not None and not _output_holds(graph, block, z, observation):
        block.output = block.result = block.attn_out = None
        block.reasons["output"] = "the sum over heads of z W_O does not give the combining layer's output"
    return None


def _projection_holds(
    graph: Graph, projection: Projection, expected: Tensor, observation: tuple[Tensor, ...]
) -> bool:
    nodes = [projection.source, projection.weight, *([projection.bias] if projection.bias else [])]
    source, weight, *bias = compile_program(graph, returned=nodes)(observation, (), ())
    split, split_bias = projection.split(weight, bias[0] if bias else None)
    made = einsum(source.reshape(-1, source.shape[-1])[projection.rows], split, "b e m, h m d -> b e h d")
    made = made if split_bias is None else made + split_bias
    return _close(made, expected)


def _output_holds(graph: Graph, block: Found, z: Tensor, observation: tuple[Tensor, ...]) -> bool:
    output, attn_out = block.output, block.attn_out
    assert output is not None and attn_out is not None  # noqa: S101  # checked by the only caller
    nodes = [attn_out.node, output.weight, *([output.bias] if output.bias else [])]
    expected, weight, *bias = compile_program(graph, returned=nodes)(observation, (), ())
    made = einsum(z, output.split(weight), "b q h d, h d m -> b q m")
    made = made + bias[0] if bias else made
    return _close(made, attn_out.layout.show(expected))


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-4 * max(scale, 1e-6)).all())
