"""Attention found in the graph: product -> scale, mask -> softmax -> weighted sum, in whatever module it stands.

Products and sums may be matrix products, products that are summed, or einsums; there may be no query axis, no heads,
and any order of axes. A softmax that weights rows by scores of another kind (additive, learned) is attention without
queries and keys. A fused `scaled_dot_product_attention` gets a decomposed second definition. Cost: a walk around each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlmech.core.attention_maps import find_maps
from rlmech.core.attention_masks import (
    MIXED,
    PATTERN,
    ROWS,
    SOFTMAX,
    additive_mask,
    mask_address,
    mask_before,
    own_mask,
    score_sources,
)
from rlmech.core.attention_nodes import LEARNED, NOT_A_PRODUCT, SHARED, Found, Mask, Source
from rlmech.core.contraction import (
    MATMUL,
    Contraction,
    Letters,
    Places,
    axis_before,
    broadcast_letters,
    contraction_of,
    lettered_address,
    letters_before,
    permutation_of,
)
from rlmech.core.graph import Alternative, Graph, Node, Size, depends_on_input
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import axes_of
from rlmech.core.operations.table import known
from rlmech.core.program import Address


def find_attention(graph: Graph, *, weights: bool = True) -> list[Found]:
    """All attention blocks of a graph; adds the synthetic nodes they need.

    Args:
        graph: The graph.
        weights: Whether to look for the linear maps around a block, too, which takes running parts of the graph.
    """
    users = graph.users()
    found: list[Found] = []
    for node in list(graph.nodes):
        if node.op == "scaled_dot_product_attention" and depends_on_input(node):
            block = _from_fused(graph, node)
        elif node.op in SOFTMAX and node.shape is not None:
            block = _from_softmax(node, users)
        else:
            continue
        if block is not None and weights:
            find_maps(graph, block)
        if block is not None:
            found.append(block)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mix:
    """The sum of values, weighted by a pattern.

    Attributes:
        pattern: Letters of the softmax's axes.
        values: The values, and their letters.
        z: The result, and its letters.
        sizes: The size of each letter.
    """

    pattern: Letters
    values: tuple[Node, Letters]
    z: tuple[Node, Letters]
    sizes: dict[str, Size]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """Where scores come from: the product of queries and keys, what it is scaled with, and the mask on the way."""

    parts: dict[Source, tuple[Node, Letters]]
    sizes: dict[str, Size]
    scale: float = 1.0
    mask: Mask | None = None


def _from_softmax(softmax: Node, users: Mapping[Node, list[Node]]) -> Found | None:
    axes = axes_of(softmax)
    axis = axes[0] if axes else None
    if axis is None or not softmax.has_batch:
        return None
    mix = next((mix for mix in _mixes(softmax, users) if mix.pattern[axis] == "k"), None)
    if mix is None:
        return None
    scores = softmax.args[0]
    found = _score_product(scores, mix.pattern, mix.sizes)
    if found is None:
        if not _row_by_row(scores, axis) & _row_by_row(mix.values[0], mix.values[1].index("k")):
            return None
        found = _Scores(parts={}, sizes=mix.sizes, mask=mask_before(scores, mix.pattern, mix.sizes))
    return _block(softmax, mix, found, scores=scores, pattern=softmax)


def _mixes(softmax: Node, users: Mapping[Node, list[Node]]) -> Iterator[_Mix]:
    """The sums over one axis that weight something with a softmax, whose elements may be moved before."""
    stack: list[tuple[Node, ...]] = [(softmax,)]
    while stack:
        path = stack.pop(0)
        for reader in users[path[-1]]:
            ends = [reader, *(user for user in users[reader] if reader.op == "mul" and user.op == "sum")]
            for contraction in filter(None, map(contraction_of, ends)):
                for place in (0, 1):
                    mix = _mix(contraction, place, path)
                    if mix is not None:
                        yield mix
            if known(reader.op).keeps_elements and reader.shape is not None and len(path) < 8:
                stack.append((*path, reader))


def _mix(contraction: Contraction, place: int, path: tuple[Node, ...]) -> _Mix | None:
    """A contraction as a weighted sum, given which factor is the pattern and the way from the softmax to it."""
    (weights, weights_at), (values, values_at) = contraction.factors[place], contraction.factors[1 - place]
    if weights is not path[-1] or not values.has_batch or not depends_on_input(values):
        return None
    named = _roles(contraction, weights, weights_at, values, values_at)
    if named is None:
        return None
    letter, sizes = named
    read = lambda at: tuple("" if p is None else letter[p] for p in at)  # noqa: E731
    letters: Letters = read(weights_at)
    for node in reversed(path[1:]):
        before = letters_before(node, letters, sizes)
        if before is None:
            return None
        letters = before[1]
    return _Mix(
        pattern=letters, values=(values, read(values_at)), z=(contraction.node, read(contraction.at)), sizes=sizes
    )


def _roles(
    contraction: Contraction, weights: Node, weights_at: Places, values: Node, values_at: Places
) -> tuple[dict[int, str], dict[str, Size]] | None:
    """What each place of a weighted sum is, and the sizes of what they are.

    Both factors have the batch and the heads; the pattern alone has queries (before the matrices of a product, heads
    that share their values), the values alone the elements of a head.
    """
    size = {place: n for node, at in ((weights, weights_at), (values, values_at))
            for n, place in zip(node.sizes, at, strict=True) if place is not None}  # fmt: skip
    letter = {contraction.summed: "k"}
    sizes: dict[str, Size] = {"b": -1, "h": 1, "q": 1, "d": 1, "k": size[contraction.summed]}
    for place, n in size.items():
        if place == contraction.summed:
            continue
        if n < 0:
            if not {place} <= {*weights_at} & {*values_at}:
                return None
            letter[place] = "b" if n == -1 else "hb" if weights.batch_inner else "bh"
            name, n = "h", -n
        else:
            head = place in values_at or (contraction.node.op in MATMUL and place < len(contraction.node.sizes) - 2)
            name = ("h" if head else "q") if place in weights_at else "d"
            letter[place] = name if n != 1 else ""
        if n != 1:
            if sizes[name] != 1:
                return None  # two axes of heads, say: no names for them
            sizes[name] = n
    return (letter, sizes) if any("b" in own for own in letter.values()) and sizes["k"] > 0 else None


def _score_product(node: Node, letters: Letters, sizes: dict[str, Size]) -> _Scores | None:
    """Walk from the softmax back to the product of queries and keys, over scales, masks and moves of elements."""
    contraction = contraction_of(node)
    if contraction is not None:
        return _query_and_key(contraction, letters, sizes)
    for following in score_sources(node):
        if following.shape is None:
            continue
        moved = letters_before(node, letters, sizes)
        own = moved[1] if moved is not None else broadcast_letters(following, node, letters)
        found = _score_product(following, own, sizes)
        if found is None:
            continue
        if node.op in ("mul", "div") and not isinstance(node.args[1], Node):
            return replace(found, scale=found.scale * (node.args[1] if node.op == "mul" else 1 / node.args[1]))
        if found.mask is None:
            return replace(found, mask=own_mask(node, letters, sizes))
        return found
    return None


def _query_and_key(contraction: Contraction, letters: Letters, sizes: dict[str, Size]) -> _Scores | None:
    """A product's factors: the one with the key axis, and the one without."""
    named = dict(zip(contraction.at, letters, strict=True))
    named[contraction.summed] = "d"
    factors = [(node, tuple("" if p is None else named.get(p, "") for p in at)) for node, at in contraction.factors]
    keyed = ["k" in "".join(own) for _, own in factors]
    if keyed[0] == keyed[1]:
        return None
    (key, key_letters), (query, query_letters) = factors[keyed.index(True)], factors[keyed.index(False)]
    wide = key.sizes[key_letters.index("d")] if "d" in key_letters else 0
    missing = sizes["q"] != 1 and "q" not in "".join(query_letters)
    if wide < 1 or missing or not key.has_batch or not depends_on_input(key):
        return None
    mask = additive_mask(contraction.node.args[0]) if contraction.node.op == "baddbmm" else None
    parts: dict[Source, tuple[Node, Letters]] = {"q": (query, query_letters), "k": (key, key_letters)}
    return _Scores(parts=parts, sizes=sizes | {"d": wide}, mask=mask)


def _block(softmax: Node, mix: _Mix, found: _Scores, *, scores: Node, pattern: Node) -> Found | None:
    sizes = mix.sizes
    shown = [
        lettered_address(scores, mix.pattern, PATTERN, sizes),
        lettered_address(pattern, mix.pattern, PATTERN, sizes),
        lettered_address(*mix.z, MIXED, sizes),
    ]
    values = lettered_address(*mix.values, ROWS, sizes) or lettered_address(*mix.values, ROWS, sizes | {"h": 1})
    if values is None or any(address is None for address in shown):
        return None
    at_scores, at_pattern, z = (address for address in shown if address is not None)
    reasons: dict[str, str] = {}
    if sizes["h"] != values.layout.canonical_shape[2]:
        reasons["v"] = SHARED
    scale, parts = found.scale, dict[Source, Address]()
    ordered: dict[Source, str] = {"q": MIXED, "k": ROWS}
    for role, axes in ordered.items():
        part = found.parts.get(role)
        address = None if part is None else lettered_address(*part, axes, found.sizes)
        if address is None:
            reasons[role] = _why_not(part)
            continue
        parts[role], own = _unscaled(address)
        scale *= own
    return Found(
        scope=softmax.scope,
        softmax=softmax,
        scores=at_scores,
        pattern=at_pattern,
        q=parts.get("q"),
        k=parts.get("k"),
        v=None if "v" in reasons else _simplest(values),
        values=values,
        z=z,
        scale=scale,
        mask=found.mask,
        reasons=reasons,
    )


def _why_not(part: tuple[Node, Letters] | None) -> str:
    if part is None:
        return NOT_A_PRODUCT
    return SHARED if "b" in "".join(part[1]) else LEARNED


def _row_by_row(node: Node, axis: int) -> set[tuple[Node, int]]:
    """Values that a value is made of row by row, and which of their axes the rows are."""
    found: set[tuple[Node, int]] = set()
    stack = [(node, axis)]
    while stack:
        at = stack.pop()
        if at not in found and at[0].has_batch:
            found.add(at)
            stack.extend(_rows_before(*at))
    return found


def _rows_before(node: Node, axis: int) -> Iterator[tuple[Node, int]]:
    moved = axis_before(node, axis) if known(node.op).keeps_elements or node.op in SOFTMAX else None
    if moved is not None:
        yield moved
    elif known(node.op).moves in ("elementwise", "channelwise"):
        for source in node.inputs():
            own = axis - (len(node.sizes) - len(source.shape or ()))
            if source.shape is not None and own >= 0 and source.shape[own] == node.sizes[axis]:
                yield source, own
    elif known(node.op).role in ("layer", "norm") and axis < len(node.sizes) - 1:
        source = node.args[0]  # an addmm's are two-dimensional, without an axis of rows beside the batch
        if source.shape is not None and len(source.shape) == len(node.sizes):
            yield source, axis


def _from_fused(graph: Graph, fused: Node) -> Found | None:
    q, k, v, *rest = fused.args
    bias = rest[0] if rest else fused.kwargs.get("attn_mask")
    causal = rest[2] if len(rest) > 2 else fused.kwargs.get("is_causal", False)
    lead = None if fused.shape is None else _lead(fused)
    if lead is None:
        return None
    if fused.kwargs.get("enable_gqa"):  # each head gets its own copy of its group's keys and values
        k, v = (_repeated(graph, value, q.shape[-3] // value.shape[-3], fused) for value in (k, v))
    given = fused.kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if given is None else given
    shape = (*fused.sizes[:-1], k.sizes[-2])
    swapped = graph.add("transpose", torch.transpose, k, -2, -1, like=fused, shape=(*k.sizes[:-2], *k.sizes[:-3:-1]))
    scores = graph.add("matmul", torch.matmul, q, swapped, like=fused, shape=shape)
    scores = graph.add("mul", torch.mul, scores, scale, like=fused, shape=shape)
    letters = (*lead[0], "q", "k")
    sizes: dict[str, Size] = {**lead[1], "q": shape[-2], "k": shape[-1], "d": v.sizes[-1]}
    mask = None
    if bias is not None:
        if bias.dtype == torch.bool:
            mask = mask_address(bias, scores, letters, sizes, negate=True)
            hidden = graph.add("logical_not", torch.logical_not, bias, like=bias, shape=bias.shape)
            scores = graph.add("masked_fill", torch.masked_fill, scores, hidden, -math.inf, like=fused, shape=shape)
        else:
            mask = additive_mask(bias)
            scores = graph.add("add", torch.add, scores, bias, like=fused, shape=shape)
    if causal:
        hide = lambda value: value.masked_fill(_later_keys(value), -math.inf)  # noqa: E731
        scores = graph.add("causal_mask", hide, scores, like=fused, shape=shape)
    # The fused operation gives zeros where every key is hidden, and so must its pattern; a plain softmax gives NaN.
    pattern = graph.add("_safe_softmax", torch.ops.aten._safe_softmax.default, scores, -1, like=fused, shape=shape)
    mixed = graph.add("matmul", torch.matmul, pattern, v, like=fused, shape=fused.sizes)
    copies = {node for node in (k, v) if node.synthetic}
    graph.alternatives[fused] = Alternative(triggers=frozenset({scores, pattern, *copies}), definition=mixed)
    for node in (scores, pattern):
        node.batch_inner = fused.batch_inner
    parts = {role: (node, (*_own_lead(node, fused, lead[0]), *own)) for role, node, own in
             (("q", q, "qd"), ("k", k, "kd"), ("v", v, "kd"))}  # fmt: skip
    mix = _Mix(pattern=letters, values=parts["v"], z=(fused, (*lead[0], "q", "d")), sizes=sizes)
    product = _Scores(
        parts={"q": parts["q"], "k": parts["k"]}, sizes=sizes | {"d": q.sizes[-1]}, scale=scale, mask=mask
    )
    return _block(fused, mix, product, scores=scores, pattern=pattern)


def _lead(node: Node) -> tuple[Letters, dict[str, Size]] | None:
    """The letters of the axes before a stack of matrices: batch and heads in either order, folded, or no heads."""
    match node.sizes[:-2]:
        case (-1, n) if n > 0:
            return ("b", "h" if n > 1 else ""), {"b": -1, "h": n}
        case (n, -1) if n > 0:
            return ("h" if n > 1 else "", "b"), {"b": -1, "h": n}
        case (n,) if n < 0:
            return ("b" if n == -1 else "hb" if node.batch_inner else "bh",), {"b": -1, "h": -n}
        case _:
            return None


def _own_lead(node: Node, fused: Node, lead: Letters) -> Letters:
    offset = len(fused.sizes) - len(node.sizes)
    pairs = zip(node.sizes[:-2], fused.sizes[offset:-2], lead[offset:], strict=True)
    return tuple(letter if own == whole else "" for own, whole, letter in pairs)


def _repeated(graph: Graph, value: Node, n: int, fused: Node) -> Node:
    if n == 1:
        return value
    shape = (*value.sizes[:-3], value.sizes[-3] * n, *value.sizes[-2:])
    repeat = torch.ops.aten.repeat_interleave.self_int
    return graph.add("repeat_interleave", repeat, value, n, len(shape) - 3, like=fused, shape=shape)


def _later_keys(scores: Tensor) -> Tensor:
    """Where a key comes after its query, both counted from the first, as `is_causal` does."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)


def _unscaled(address: Address) -> tuple[Address, float]:
    """The same value before it was multiplied with numbers, and their product."""
    address, scale = _simplest(address), 1.0
    while address.node.op in {"mul", "div"} and not isinstance(address.node.args[1], Node):
        scale *= address.node.args[1] if address.node.op == "mul" else 1 / address.node.args[1]
        address = _simplest(Address(node=address.node.args[0], layout=address.layout))
    return address, scale


def _simplest(address: Address) -> Address:
    """The same value a few permutations earlier, where it may already lie in canonical order."""
    node, layout = address.node, address.layout
    while not layout.is_identity and layout.split == layout.shape:
        moved, source = permutation_of(node), node.args[0] if node.args else None
        if moved is None or not isinstance(source, Node) or source.shape is None:
            break
        order = tuple(moved[axis] for axis in layout.order)
        node, layout = source, Layout(shape=source.shape, split=source.shape, order=order)
    return Address(node=node, layout=layout)
