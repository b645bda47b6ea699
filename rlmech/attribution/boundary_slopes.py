"""How steeply the boundaries of all gates rise along each number of an observation, patterns frozen.

    steepness[row, boundary] = |d pre / d x|           Euclidean, over the whole observation

Numbers that meet in no boundary and in no value before them, as the features of different vehicles before attention,
share a tangent pass: element by element, one of them alone is felt (compressed Jacobians). Where they meet, their
tangents are told apart and go on by themselves. Cost: a pass for each set of numbers as far as they stay apart, and
behind that a pass of the rest of the network for each number.
Source: Curtis, Powell and Reid 1974, *On the Estimation of Sparse Jacobian Matrices*, J. Inst. Math. Appl. 13.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlmech.circuits.frozen import Frozen, Gate
from rlmech.core.dependence import push_dependence
from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Node
from rlmech.core.layout import Layout
from rlmech.core.operations.reading import record_of
from rlmech.core.recent import Recent

LARGEST_MASK = 1 << 22
"""Numbers of an observation times elements of a value up to which it is worked out which depends on which."""
PLANS = 8
"""Sets of gates whose plans are kept for a policy, the last used ones."""
_plans: WeakKeyDictionary[GraphEngine, Recent[object, Plan]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """A frozen pattern of one query times values, where each number of the observation is in one row of the values.

    Attributes:
        node: The product.
        pattern: The pattern.
        values: What it weighs.
        row: For each number, the row of the values that depends on it.
    """

    node: Node
    pattern: Node
    values: Node
    row: Int[Tensor, " number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which numbers of an observation share a tangent pass, and where they are told apart.

    Attributes:
        colour: The shared pass of each number.
        early: For each gate, whether its slopes are read in the shared passes.
        cut: Nodes at which the numbers are told apart.
        reach: For each of these, the elements that depend on each number, the number first.
        mixes: Products at which they are told apart.
    """

    colour: Int[Tensor, " number"]
    early: tuple[bool, ...]
    cut: tuple[Node, ...] = ()
    reach: tuple[Bool[Tensor, "number ..."], ...] = ()
    mixes: tuple[Mix, ...] = ()

    @property
    def n_colours(self) -> int:
        """How many shared passes there are."""
        return int(self.colour.max()) + 1 if len(self.colour) else 0


def plan_of(frozen: Frozen, sizes: Sequence[int]) -> Plan:
    """The plan for the gates of a frozen policy.

    Args:
        frozen: The frozen policy.
        sizes: Numbers of each array of one observation.
    """
    engine = frozen.policy.graph_engine
    key = (tuple(gate.node for gate in frozen.gates), frozen.patterns, tuple(sizes))
    return _plans.setdefault(engine, Recent(PLANS)).get(key, lambda: _planned(frozen, sizes))


def steepness(
    frozen: Frozen, plan: Plan, arrays: Sequence[Tensor], patterns: Sequence[Tensor], *, widths: Sequence[int]
) -> Tensor:
    """How steeply the boundaries of all gates rise, `[batch, boundary]`, gate by gate.

    Args:
        frozen: The frozen policy.
        plan: Its plan.
        arrays: The observation's tensors.
        patterns: The frozen patterns of these rows.
        widths: How many boundaries each gate has.
    """
    n, sizes = len(arrays[0]), [value[0].numel() for value in arrays]
    engine = frozen.policy.graph_engine
    first = tuple(gate for gate, early in zip(frozen.gates, plan.early, strict=True) if early)
    later = tuple(gate for gate, early in zip(frozen.gates, plan.early, strict=True) if not early)
    apart = tuple(dict.fromkeys((*plan.cut, *(mix.values for mix in plan.mixes))))

    reads = tuple(dict.fromkeys((*(read for gate in first for read in gate.reads), *apart)))
    shared = engine.program(returned=reads, given=frozen.patterns)

    def early(*inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(reads, shared(inputs, patterns, ()), strict=True))
        return (boundaries(first, values, inputs[0], n), *(values[node] for node in apart))

    basis = torch.zeros(plan.n_colours, sum(sizes), dtype=arrays[0].dtype, device=arrays[0].device)
    basis[plan.colour.to(basis.device), torch.arange(sum(sizes), device=basis.device)] = 1
    along = [
        part.reshape(-1, 1, *value.shape[1:]).expand(-1, *value.shape)
        for part, value in zip(basis.split(sizes, 1), arrays, strict=True)
    ]
    (_, *at_cut), (rise, *tangents) = _along_all(early, arrays, along)
    steep = [_length(rise)]
    if later:
        values, moves = dict(zip(apart, at_cut, strict=True)), dict(zip(apart, tangents, strict=True))
        given = (*plan.cut, *(mix.node for mix in plan.mixes), *frozen.patterns)
        wanted = tuple(dict.fromkeys(read for gate in later for read in gate.reads))
        rest = engine.program(returned=wanted, given=given)
        of_pattern = dict(zip(frozen.patterns, patterns, strict=True))
        starts = [values[node] for node in plan.cut]
        starts += [torch.matmul(of_pattern[mix.pattern], values[mix.values]) for mix in plan.mixes]
        own = [_apart(node, moves[node], reach, plan) for node, reach in zip(plan.cut, plan.reach, strict=True)]
        own += [_mixed(mix, of_pattern[mix.pattern], moves[mix.values], plan) for mix in plan.mixes]

        def late(*cut: Tensor) -> tuple[Tensor, ...]:
            read = dict(zip(wanted, rest(arrays, (*cut, *patterns), ()), strict=True))
            return (boundaries(later, read, arrays[0], n),)

        (rise,) = _along_all(late, starts, own)[1]
        steep.append(_length(rise))
    return _in_order(plan, widths, steep)


def _along_all(
    function: Callable[..., tuple[Tensor, ...]], at: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A function's values, and their derivatives along several directions, the direction first."""

    def one(*tangents: Tensor) -> tuple[Any, ...]:
        return torch.func.jvp(function, tuple(at), tangents)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, when forward gradients are first used
        return torch.func.vmap(one, out_dims=(None, 0))(*along)  # pyright: ignore[reportArgumentType]  # None is taken


def boundaries(gates: Sequence[Gate], values: dict[Node, Tensor], like: Tensor, n: int) -> Tensor:
    """The boundaries of some gates side by side, `[batch, boundary]`: zero where a gate turns."""
    flat = [b.distance.reshape(n, -1) for gate in gates for b in gate.boundaries(values)]
    return torch.cat(flat, dim=1) if flat else like.new_zeros(n, 0)


def _length(rise: Tensor) -> Tensor:
    """Euclidean length over the first axis; torch's own norm of a first axis takes ten times as long."""
    return rise.square_().sum(0).sqrt_()


def _in_order(plan: Plan, widths: Sequence[int], parts: Sequence[Tensor]) -> Tensor:
    """Early and late gates' boundaries as the gates stand."""
    if len(parts) == 1:
        return parts[0]
    early, late = (
        iter(part.split([w for w, own in zip(widths, plan.early, strict=True) if own is first], dim=1))
        for part, first in zip(parts, (True, False), strict=True)
    )
    return torch.cat([next(early if own else late) for own in plan.early], dim=1)


def _apart(node: Node, tangents: Tensor, reach: Tensor, plan: Plan) -> Tensor:
    """A value's tangents of shared passes as one for each number."""
    layout = Layout.of(node)
    shown = torch.func.vmap(layout.show)(tangents)[plan.colour.to(tangents.device)]
    own = torch.where(reach.to(tangents.device).unsqueeze(1), shown, 0)
    return torch.func.vmap(layout.restore)(own)


def _mixed(mix: Mix, pattern: Tensor, tangents: Tensor, plan: Plan) -> Tensor:
    """The product's tangents, one for each number, from those of what it weighs: one row of it and its weight."""
    row, colour = mix.row.to(tangents.device), plan.colour.to(tangents.device)
    there = (row >= 0).reshape(-1, *(1,) * (tangents.ndim - 2))
    weight = pattern.squeeze(-2).movedim(-1, 0)[row.clamp(min=0)].unsqueeze(-1)
    moved = tangents.movedim(-2, 0)[row.clamp(min=0), colour]
    return torch.where(there, moved * weight, 0).unsqueeze(-2)


# ---- planning


def size_of(node: Node) -> int:
    """Elements of a value per observation."""
    return math.prod(Layout.of(node).canonical_shape[1:])


def _planned(frozen: Frozen, sizes: Sequence[int]) -> Plan:
    n_numbers = sum(sizes)
    alone = Plan(colour=torch.arange(n_numbers), early=(True,) * len(frozen.gates))
    engine = frozen.policy.graph_engine
    ends = list(dict.fromkeys(node for gate in frozen.gates for node in (gate.node, *gate.reads)))
    order = engine.graph.computed_order(ends, replaced=frozen.patterns, cut=frozen.patterns)
    widest = max((size_of(node) for node in order if node.shape is not None and node.has_batch), default=0)
    if n_numbers * widest > LARGEST_MASK or any(record_of(node).moves == "heads" for node in order):
        return alone
    masks = _masks(frozen, ends, sizes)
    colour = _coloured([masks[end] for end in ends if end in masks], n_numbers)
    if int(colour.max()) + 1 > n_numbers // 2:
        return alone
    free = {node: not _meet(mask, colour) for node, mask in masks.items()}
    early = tuple(all(free.get(node, False) for node in (gate.node, *gate.reads)) for gate in frozen.gates)
    if not any(early):
        return alone
    reads = [read for gate, own in zip(frozen.gates, early, strict=True) if not own for read in gate.reads]
    cut, mixes = _frontier(frozen, reads, masks, free)
    given = {*cut, *(mix.node for mix in mixes), *frozen.patterns}
    again = engine.graph.computed_order(reads, replaced=given, cut=given)
    if any(free[node] for node in again if node in masks):
        return alone  # a second definition leads past the cut
    reach = tuple(masks[node] for node in cut)
    return Plan(colour=colour, early=early, cut=tuple(cut), reach=reach, mixes=tuple(mixes))


def _masks(frozen: Frozen, ends: Sequence[Node], sizes: Sequence[int]) -> dict[Node, Tensor]:
    """Which elements of the values before some ends depend on each number, `[number ...]`, patterns frozen."""
    graph, n_numbers = frozen.policy.graph_engine.graph, sum(sizes)
    found: dict[Node, Tensor] = {}

    def block(node: Node, mask: Tensor | None) -> Tensor | None:
        if node.op == "input":
            place = graph.inputs.index(node)
            start = sum(sizes[:place])
            own = torch.zeros(n_numbers, sizes[place], dtype=torch.bool)
            own[torch.arange(start, start + sizes[place]), torch.arange(sizes[place])] = True
            mask = own.reshape(n_numbers, *node.sizes[1:])
        if node in frozen.patterns or mask is None or not node.has_batch:
            return None
        found[node] = Layout.of(node).show(mask)
        real = node.dtype is None or node.dtype.is_floating_point
        return mask if real else None  # what a comparison decides has no slope

    push_dependence(graph, ends, n_rows=n_numbers, replaced=frozen.patterns, block=block, head_layouts={})
    return found


def _coloured(masks: Sequence[Tensor], n_numbers: int) -> Tensor:
    """Numbers that meet in no element get one colour; elements in which half of them meet are told apart anyway."""
    together = torch.zeros(n_numbers, n_numbers, dtype=torch.bool)
    for mask in masks:
        flat = mask.reshape(n_numbers, -1).float()
        few = flat[:, flat.sum(0) <= n_numbers // 2]
        together |= few @ few.T > 0
    colour = torch.full((n_numbers,), -1)
    for number in range(n_numbers):
        taken = set(colour[together[number]].tolist())
        colour[number] = next(free for free in range(n_numbers) if free not in taken)
    return colour


def _meet(mask: Tensor, colour: Tensor) -> bool:
    """Whether two numbers of one colour reach one element."""
    flat = mask.reshape(len(mask), -1).float()
    count = flat.new_zeros(int(colour.max()) + 1, flat.shape[1]).index_add_(0, colour, flat)
    return bool((count > 1).any())


def _frontier(
    frozen: Frozen, reads: Sequence[Node], masks: dict[Node, Tensor], free: dict[Node, bool]
) -> tuple[list[Node], list[Mix]]:
    """The last values before some others in which numbers of one colour do not meet."""
    graph = frozen.policy.graph_engine.graph
    cut: list[Node] = []
    mixes: list[Mix] = []
    stack, seen = list(reads), set(reads)
    while stack:
        node = stack.pop()
        if node not in masks:
            continue
        if free[node]:
            cut.append(node)
            continue
        mix = _mix(frozen, node, masks, free)
        if mix is not None:
            mixes.append(mix)
            continue
        before = [source for source in graph.sources_of(node, replaced=frozen.patterns) if source not in seen]
        seen.update(before)
        stack.extend(before)
    return cut, mixes


def _mix(frozen: Frozen, node: Node, masks: dict[Node, Tensor], free: dict[Node, bool]) -> Mix | None:
    if node not in frozen.mixes:
        return None
    pattern, values = node.args
    if values not in masks or not free[values] or node.sizes[0] != -1 or values.sizes[0] != -1:
        return None
    rows = masks[values].movedim(-2, 1).flatten(2).any(2)
    if bool((rows.sum(1) > 1).any()):
        return None
    row = torch.where(rows.any(1), rows.int().argmax(1), -1)
    return Mix(node=node, pattern=pattern, values=values, row=row)
