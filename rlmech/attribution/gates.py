"""What must stay as it is for a patch to act linearly on the outputs: the gates of a piecewise linear network.

Between a patched node and the outputs, every operation is one of: affine in what the patch changes (nothing to check);
a gate, such as a ReLU or a max-pool, affine as long as its pattern is the base run's; a product, affine as long as at
most one factor changes; anything else (softmax, tanh, normalisation), where nothing may change at all. If all of that
holds between base run and patched run, the outputs move by exactly Jacobian times patch. Sound: what is not known to be
affine counts as "anything else". Cost: nothing here runs; values of both runs are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.masked import is_masked
from rlmech.core.operations.reading import behaviour, boundaries_of, nodes_in, record_of

_ROUNDING = 64
"""Epsilons, relative to a row's largest element, within which a value counts as the same."""

Rule = Literal["gate", "factors", "constant", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that the base run and the patched run must agree on.

    Attributes:
        rule: `gate`: the sides of the gate's boundaries; `factors`: all but one of the factors; `constant`: all inputs
            of the node that move; `unchanged`: the node's own value.
        node: The node it is about.
        reads: The nodes whose values decide.
    """

    rule: Rule
    node: Node
    reads: tuple[Node, ...]

    def holds(self, base: Mapping[Node, Tensor], patched: Mapping[Node, Tensor]) -> Bool[Tensor, " batch"]:
        """For which rows it holds, given the values of `reads` in both runs, batch first where they have one."""
        if self.rule == "gate":
            return self._same_sides(base, patched)
        moving = [read for read in self.reads if read.has_batch]
        same = torch.stack([unchanged_rows(base[read], patched[read]) for read in moving])
        if self.rule != "factors":
            return same.all(0)
        factors = [read for read in moving if self._is_factor(read)]
        changed = torch.stack([~same[moving.index(read)] for read in factors])
        free = torch.tensor([behaviour(self.node, {read}) == "affine" for read in factors], device=same.device)
        return (~changed | free[:, None]).all(0) & (changed.sum(0) <= 1)

    def _is_factor(self, read: Node) -> bool:
        """Whether a product takes a value as a factor, rather than only adds it."""
        added = record_of(self.node).added
        return any(read in nodes_in(arg) for place, arg in enumerate(self.node.args) if place not in added)

    def _same_sides(self, base: Mapping[Node, Tensor], patched: Mapping[Node, Tensor]) -> Bool[Tensor, " batch"]:
        sides = [
            [b.side for b in boundaries_of(self.node, {read: _laid_out(read, run[read]) for read in self.reads})]
            for run in (base, patched)
        ]
        return torch.stack([_equal_rows(was, now) for was, now in zip(*sides, strict=True)]).all(0)


def conditions_behind(graph: Graph, node: Node, *, ends: Sequence[Node]) -> tuple[Condition, ...]:
    """What suffices for the ends to be affine in a node's change; empty where they are so in any case."""
    conditions: list[Condition] = []
    behind = graph.behind({node}, ends)
    moving = {node, *behind}
    for at in behind:
        if at in graph.alternatives and graph.alternatives[at].triggers & {node}:
            continue  # it takes its value from its second definition, which is walked itself
        condition = _condition(at, [source for source in at.inputs() if source in moving])
        if condition is not None:
            conditions.append(condition)
    return tuple(conditions)


def _condition(node: Node, reads: list[Node]) -> Condition | None:
    real = [read for read in dict.fromkeys(reads) if read.dtype is None or read.dtype.is_floating_point]
    if not real:
        return None
    if node.dtype is not None and not node.dtype.is_floating_point:  # a comparison: its outcome is what counts
        return Condition(rule="unchanged", node=node, reads=(node,))
    tensors = tuple(dict.fromkeys(read for read in node.inputs() if read.shape is not None))
    match behaviour(node, real):
        case "fixed" | "affine":
            return None
        case "product":
            return Condition(rule="factors", node=node, reads=tuple(real))
        case "gate":
            return Condition(rule="gate", node=node, reads=tensors)
        case _:
            return Condition(rule="constant", node=node, reads=tuple(real))


def unchanged_rows(base: Tensor, patched: Tensor) -> Bool[Tensor, " batch"]:
    """Which rows are the same up to rounding: a stack of rows may be multiplied in another order than a few."""
    base, patched = base.reshape(base.shape[0], -1), patched.reshape(base.shape[0], -1)
    same = base == patched
    if base.is_floating_point() and not same.all():
        size, hidden = base.abs(), is_masked(-base.abs())  # a mask's size says nothing about the rest of its row
        scale = torch.where(hidden, 0, size).amax(1, keepdim=True)
        bound = _ROUNDING * torch.finfo(base.dtype).eps * torch.where(hidden & size.isfinite(), size, scale)
        same |= (base - patched).abs() <= bound
    return same.all(1)


def batch_first(node: Node, value: Tensor) -> Tensor:
    """A node's value with the batch as its first axis, if it has one."""
    return Layout.of(node).show(value) if node.has_batch else value


def _laid_out(node: Node, value: Tensor) -> Tensor:
    return Layout.of(node).restore(value) if node.has_batch else value


def _equal_rows(base: Tensor, patched: Tensor) -> Tensor:
    return (base == patched).reshape(base.shape[0], -1).all(1)
