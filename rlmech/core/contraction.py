"""Sums of products over one axis, in whatever way a network writes them, and the axes of values followed as letters.

    result[places of both, of one, of the other] = sum over one place of first * second

A matrix product, a product that is summed, and an einsum are the same. A letter stands for what an axis is (`b` for the
batch, the others as the caller says); an axis that two are folded into has two letters, the outer one first; one of
size 1 that stands for nothing has none. Cost: nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlmech.core.graph import Node, Size
from rlmech.core.layout import Layout
from rlmech.core.operations.table import names_where
from rlmech.core.program import Address

MATMUL = names_where(lambda record: record.role == "matmul")
_REGROUPING = {"view", "reshape", "_unsafe_view", "flatten", "unflatten"}
_PERMUTING = {"permute", "transpose", "movedim", "t", "mT", "adjoint", "numpy_T"}
_UNMOVED = {"clone", "contiguous", "to", "_to_copy", "dropout", "detach"}

Places = tuple[int | None, ...]
"""For each axis of a value its place in the joint space of a contraction; None for one that is broadcast, or kept."""
Letters = tuple[str, ...]
"""For each axis of a value its letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """A sum over one place of the product of two values.

    Attributes:
        node: The result.
        at: Where its axes lie.
        factors: The two values, and where their axes lie.
        summed: The place that is summed over.
    """

    node: Node
    at: Places
    factors: tuple[tuple[Node, Places], tuple[Node, Places]]
    summed: int


def contraction_of(node: Node) -> Contraction | None:
    """The contraction whose result a node is; None for any other node."""
    if node.shape is None:
        return None
    if node.op in MATMUL:
        return _of_matmul(node)
    if node.op == "sum":
        return _of_sum(node)
    return _of_einsum(node) if node.op == "einsum" else None


def _of_matmul(node: Node) -> Contraction | None:
    first, second = node.args[-2:] if node.op == "baddbmm" else node.args[:2]
    if not (_is_matrix(first) and _is_matrix(second)):
        return None
    lead = node.sizes[:-2]
    m, summed, n = (len(lead) + i for i in range(3))
    sides = ((first, (m, summed)), (second, (summed, n)))
    a, b = ((factor, (*_aligned(factor.sizes[:-2], lead), *own)) for factor, own in sides)
    return Contraction(node=node, at=(*range(len(lead)), m, n), factors=(a, b), summed=summed)


def _of_sum(node: Node) -> Contraction | None:
    product, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
    dims = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
    if not isinstance(product, Node) or product.op != "mul" or not isinstance(dims, list | tuple) or len(dims) != 1:
        return None
    first, second = product.args[:2]
    if not (_is_value(first) and _is_value(second)):
        return None
    rank = len(product.sizes)
    summed = dims[0] % rank
    kept = len(node.sizes) == rank
    at = tuple(None if place == summed else place for place in range(rank) if kept or place != summed)
    a, b = ((factor, _aligned(factor.sizes, product.sizes)) for factor in (first, second))
    return Contraction(node=node, at=at, factors=(a, b), summed=summed)


def _of_einsum(node: Node) -> Contraction | None:
    equation = node.args[0]
    operands = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
    if not isinstance(equation, str) or "." in equation or "->" not in equation or len(operands) != 2:
        return None
    left, out = equation.replace(" ", "").split("->")
    names = left.split(",")
    summed = [name for name in dict.fromkeys(names[0]) if name in names[1] and name not in out]
    everything = dict.fromkeys("".join(names))
    plain = all(len(set(own)) == len(own) for own in names) and set(everything) - {*summed} <= set(out)
    if len(summed) != 1 or not plain or not all(_is_value(value) for value in operands):
        return None
    place = {name: i for i, name in enumerate(everything)}
    a, b = ((value, tuple(place[name] for name in own)) for value, own in zip(operands, names, strict=True))
    return Contraction(node=node, at=tuple(place[name] for name in out), factors=(a, b), summed=place[summed[0]])


def _is_value(value: object) -> bool:
    return isinstance(value, Node) and value.shape is not None


def _is_matrix(value: object) -> bool:
    return isinstance(value, Node) and value.shape is not None and len(value.shape) >= 2


def _aligned(sizes: Sequence[Size], joint: Sequence[Size]) -> Places:
    """Where axes lie in the shape that they are broadcast to."""
    offset = len(joint) - len(sizes)
    return tuple(None if size == 1 and joint[offset + i] != 1 else offset + i for i, size in enumerate(sizes))


def broadcast_letters(value: Node, result: Node, letters: Letters) -> Letters:
    """The letters of a value that is broadcast to a result with some letters."""
    return tuple("" if place is None else letters[place] for place in _aligned(value.sizes, result.sizes))


def letters_before(node: Node, letters: Letters, sizes: Mapping[str, Size]) -> tuple[Node, Letters] | None:
    """The value that a node moves the elements of, and its letters; None where the node does anything else.

    Args:
        node: The node.
        letters: Of its axes.
        sizes: The size of each letter.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.shape is None or node.shape is None:
        return None
    before: Letters | None = None
    if node.op in _PERMUTING:
        order = permutation_of(node)
        if order is not None:
            places = dict(zip(order, letters, strict=True))
            before = tuple(places[axis] for axis in range(len(order)))
    elif node.op in _UNMOVED:
        before = letters if source.shape == node.shape else None
    elif node.op == "expand":
        before = broadcast_letters(source, node, letters)
    elif node.op in _REGROUPING or (node.op in ("squeeze", "unsqueeze")):
        before = _regrouped(node.sizes, letters, source.sizes, sizes)
    return None if before is None else (source, before)


def permutation_of(node: Node) -> tuple[int, ...] | None:
    """For each axis of a permuted value, which axis of the original it is."""
    rank = len(node.sizes)
    order = list(range(rank))
    rest = node.args[1:]
    match node.op:
        case "permute":
            given = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
            return tuple(axis % rank for axis in given)
        case "transpose":
            i, j = (axis % rank for axis in rest[:2])
            order[i], order[j] = order[j], order[i]
            return tuple(order)
        case "movedim":
            sources, ends = ([given] if isinstance(given, int) else list(given) for given in rest[:2])
            moved = {end % rank: source % rank for source, end in zip(sources, ends, strict=True)}
            others = iter(axis for axis in order if axis not in moved.values())
            return tuple(moved[place] if place in moved else next(others) for place in order)
        case "t" | "numpy_T":
            return tuple(reversed(order))
        case "mT" | "adjoint":
            return (*order[:-2], rank - 1, rank - 2)
        case _:
            return None


def _regrouped(
    sizes: Sequence[Size], letters: Letters, before: Sequence[Size], of_letter: Mapping[str, Size]
) -> Letters | None:
    """Letters over a reshape: axes of size 1 come and go, others are folded together or apart."""
    found = [""] * len(before)
    for ours, theirs in _groups(sizes, before):
        left = [letter for axis in ours for letter in letters[axis]]
        for axis in theirs:
            weight, taken = _weight(1), ""
            while left and weight != _weight(before[axis]):
                taken += left[0]
                size = _weight(of_letter[left.pop(0)])
                weight = (weight[0] + size[0], weight[1] * size[1])
            if weight != _weight(before[axis]):
                return None
            found[axis] = taken
        if left:
            return None
    return tuple(found)


def _groups(sizes: Sequence[Size], others: Sequence[Size]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes on both sides that hold the same elements, without axes of size 1."""
    ours, theirs = ([axis for axis, size in enumerate(side) if size != 1] for side in (sizes, others))
    while ours and theirs:
        taken: tuple[list[int], list[int]] = ([ours.pop(0)], [theirs.pop(0)])
        weights = [_weight(sizes[taken[0][0]]), _weight(others[taken[1][0]])]
        while weights[0] != weights[1]:
            short = 0 if weights[0] < weights[1] else 1  # the one without the batch, else the one of fewer elements
            side, rest = ((sizes, ours), (others, theirs))[short]
            if not rest:
                return
            axis = rest.pop(0)
            more = _weight(side[axis])
            taken[short].append(axis)
            weights[short] = (weights[short][0] + more[0], weights[short][1] * more[1])
        yield taken


def _weight(size: Size) -> tuple[int, int]:
    """How often the batch is in a size, and how many elements there are for each row."""
    return (1, -size) if size < 0 else (0, size)


def axis_before(node: Node, axis: int) -> tuple[Node, int] | None:
    """The value that a node moves the elements of, and which of its axes one of the node's own is there."""
    letters = tuple(chr(0x61 + place) if size != 1 else "" for place, size in enumerate(node.sizes))
    sizes = {letter: size for letter, size in zip(letters, node.sizes, strict=True) if letter}
    found = letters_before(node, letters, sizes)
    if found is None or not letters[axis] or letters[axis] not in found[1]:
        return None
    return found[0], found[1].index(letters[axis])


def lettered_address(node: Node, letters: Letters, wanted: str, sizes: Mapping[str, Size]) -> Address | None:
    """A value shown with its axes in the order of some letters; those that it lacks have size 1 there.

    None where an axis is none of them, or one that has more than one position is missing.
    """
    split: list[Size] = []
    place: dict[str, int] = {}
    for size, own in zip(node.sizes, letters, strict=True):
        if (not own and size != 1) or any(letter not in wanted or letter in place for letter in own):
            return None
        for letter in own:
            place[letter] = len(split)
            split.append(sizes[letter])
    for letter in wanted:
        if letter not in place:
            if sizes.get(letter, 1) != 1:
                return None
            place[letter] = len(split)
            split.append(1)
    order = tuple(place[letter] for letter in wanted)
    return Address(node=node, layout=Layout(shape=node.sizes, split=tuple(split), order=order))
