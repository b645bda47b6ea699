"""Masks of attention: the boolean values that scores are hidden by, on the way from their product to the softmax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rlmech.axes import Axis
from rlmech.core.attention_nodes import Mask
from rlmech.core.contraction import Letters, broadcast_letters, lettered_address, letters_before
from rlmech.core.graph import Node, Size
from rlmech.core.operations.table import known, names_where
from rlmech.core.program import Address

SOFTMAX = names_where(lambda record: record.role == "softmax")


AXES: dict[str, Axis] = {"b": "batch", "h": "head", "q": "query", "k": "key", "d": "d_head"}


PATTERN, ROWS, MIXED = "bhqk", "bkhd", "bqhd"
"""The axes of patterns and scores, of keys and values, and of queries and what attention gives."""


def score_sources(node: Node) -> list[Node]:
    """What scores may be made of, by an operation that scales, shifts, masks or moves them."""
    match node.op:
        case "add":
            given: tuple[Any, ...] = node.args[:2]
        case "where":
            given = node.args[1:3]
        case "mul" | "div" | "sub" | "masked_fill" | "to" | "_to_copy":
            given = node.args[:1]
        case _:
            given = node.args[:1] if known(node.op).keeps_elements and node.shape is not None else ()
    return [source for source in given if isinstance(source, Node) and source.has_batch]


def mask_before(node: Node, letters: Letters, sizes: Mapping[str, Size]) -> Mask | None:
    """The first mask behind a softmax whose scores are no product."""
    while node.op not in SOFTMAX:
        mask = own_mask(node, letters, sizes)
        sources = score_sources(node)
        if mask is not None or not sources:
            return mask
        moved = letters_before(node, letters, sizes)
        letters = moved[1] if moved is not None else broadcast_letters(sources[0], node, letters)
        node = sources[0]
    return None


def own_mask(node: Node, letters: Letters, sizes: Mapping[str, Size]) -> Mask | None:
    """The mask that an operation on scores puts on them."""
    match node.op:
        case "masked_fill":
            return mask_address(node.args[1], node, letters, sizes)
        case "where":
            kept = isinstance(node.args[1], Node) and node.args[1].has_batch
            return mask_address(node.args[0], node, letters, sizes, negate=kept)
        case "add":
            return additive_mask(node.args[1]) or additive_mask(node.args[0])
        case _:
            return None


def mask_address(
    mask: object, scores: Node, letters: Letters, sizes: Mapping[str, Size], *, negate: bool = False
) -> Mask | None:
    """Where a mask lies that is broadcast to scores with some letters."""
    mask, negate = _positive(mask, negate=negate)
    if mask is None or len(mask.sizes) > len(scores.sizes):
        return None
    # an axis of size 1 has a name, too: it stands there in the network
    rest = iter([letter for letter in ("hq" if len(letters) == 4 else "qh") if letter not in "".join(letters)])
    own = tuple(letter or next(rest, "") for letter in letters)[len(letters) - len(mask.sizes) :]
    kept = {letter: size for size, letter in zip(mask.sizes, own, strict=True) if letter}
    wanted = "".join(letter for letter in PATTERN if letter in kept)
    if not wanted.startswith("b") or any(len(letter) > 1 for letter in own):
        return None
    address = lettered_address(mask, own, wanted, kept)
    return None if address is None else _as_mask(address, wanted, negate=negate)


def _positive(mask: Any, *, negate: bool) -> tuple[Node | None, bool]:
    """A boolean value without the negations on it."""
    while isinstance(mask, Node) and mask.op in {"logical_not", "bitwise_not"}:
        mask, negate = mask.args[0], not negate
    boolean = isinstance(mask, Node) and mask.dtype == torch.bool and mask.shape is not None
    return (mask if boolean else None), negate


def _as_mask(address: Address, letters: str, *, negate: bool) -> Mask:
    layout = replace(address.layout, negate=negate)
    return Address(node=address.node, layout=layout), tuple(AXES[letter] for letter in letters)


def additive_mask(bias: object) -> Mask | None:
    """The boolean mask that numbers were made of which are added to scores."""
    while isinstance(bias, Node) and known(bias.op).keeps_elements:
        bias = bias.args[0]
    if not isinstance(bias, Node) or bias.op != "masked_fill":
        return None
    mask, negate = _positive(bias.args[1], negate=False)
    wanted = {2: "bk", 3: "bqk", 4: PATTERN}.get(len(mask.sizes)) if mask is not None else None
    if mask is None or wanted is None or mask.sizes[0] != -1:
        return None
    letters = tuple(wanted)
    address = lettered_address(mask, letters, wanted, dict(zip(letters, mask.sizes, strict=True)))
    return None if address is None else _as_mask(address, wanted, negate=negate)
