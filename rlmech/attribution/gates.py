"""What must stay as it is for a patch to act linearly on the outputs: the gates of a piecewise linear network.

Between a patched node and the outputs, every operation is one of: affine in what the patch changes (nothing to check);
a gate, such as a ReLU or a max-pool, affine as long as its pattern is the base run's; a product, affine as long as at
most one factor changes; anything else (softmax, tanh, normalisation), where nothing may change at all. If all of that
holds between base run and patched run, the outputs move by exactly Jacobian times patch. Sound: what is not known to be
affine counts as "anything else". Cost: nothing here runs; values of both runs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout

AFFINE = {
    "add", "add_", "sub", "rsub", "neg", "sum", "mean", "cat", "stack", "concat", "view", "_unsafe_view", "reshape",
    "permute", "transpose", "t", "mT", "squeeze", "unsqueeze", "flatten", "unflatten", "expand", "expand_as",
    "contiguous", "clone", "select", "slice", "narrow", "getitem", "split", "split_with_sizes", "chunk", "unbind",
    "index_select", "gather", "index", "movedim", "flip", "roll", "repeat", "where", "masked_fill", "fill",
    "select_scatter", "slice_scatter", "constant_pad_nd", "pad", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "to", "_to_copy", "zeros_like", "ones_like", "full_like",
    "head_sum",
}  # fmt: skip
"""Operations affine in all their floating-point arguments together."""

FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("mul", "matmul", "mm", "bmm", "linear"), (0, 1)),
    "addmm": (1, 2),
    "einsum": (1,),
    "div": (0,),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "batch_norm", "head_result"), (0,)),
    "_native_batch_norm_legit_no_training": (0,),
    "scaled_dot_product_attention": (2,),
}
"""Operations affine in each of these arguments as long as nothing else that they take changes."""

GATES: dict[str, Callable[..., Tensor]] = {
    "relu": lambda x: x > 0,
    "leaky_relu": lambda x, slope=0.01: x > 0,
    "abs": torch.sign,
    "threshold": lambda x, threshold, value: x > threshold,
    "relu6": lambda x: (x <= 0).to(torch.int8) - (x >= 6).to(torch.int8),
    "hardtanh": lambda x, low=-1, high=1: (x <= low).to(torch.int8) - (x >= high).to(torch.int8),
    "clamp": lambda x, low=None, high=None: _outside(x, low, high),
    "clamp_min": lambda x, low: x < low,
    "clamp_max": lambda x, high: x > high,
    "max_pool1d": lambda x, *args: F.max_pool1d(x, *args, return_indices=True)[1],
    "max_pool2d": lambda x, *args: F.max_pool2d(x, *args, return_indices=True)[1],
    "amax": lambda x, dim=(), keepdim=False: x == x.amax(dim, keepdim=True),
    "amin": lambda x, dim=(), keepdim=False: x == x.amin(dim, keepdim=True),
}
"""Operations affine in their first argument as long as this, computed from it, stays the same."""

_BY_AXIS = {"max_pool1d", "max_pool2d", "amax", "amin"}

_ROUNDING = 64
"""Epsilons, relative to a row's largest element, within which a value counts as the same."""

Rule = Literal["gate", "factors", "constant", "order", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that the base run and the patched run must agree on.

    Attributes:
        rule: `gate`: the gate's pattern; `factors`: all but one of the factors; `constant`: all inputs of the node;
            `order`: which of two inputs is the larger; `unchanged`: the node's own value.
        node: The node it is about.
        reads: The nodes whose values decide.
    """

    rule: Rule
    node: Node
    reads: tuple[Node, ...]

    def holds(self, base: Mapping[Node, Tensor], patched: Mapping[Node, Tensor]) -> Bool[Tensor, " batch"]:
        """For which rows it holds, given the values of `reads`, batch first, in both runs."""
        if self.rule == "gate":
            code = GATES[self.node.op]
            (read,) = self.reads
            return _equal_rows(code(base[read], *self.node.args[1:]), code(patched[read], *self.node.args[1:]))
        if self.rule == "order":
            a, b = self.reads
            return _equal_rows(torch.sign(base[a] - base[b]), torch.sign(patched[a] - patched[b]))
        same = torch.stack([unchanged_rows(base[read], patched[read]) for read in self.reads])
        if self.rule != "factors":
            return same.all(0)
        free = torch.tensor([self.may_vary(read) for read in self.reads], device=same.device)
        return (same | free[:, None]).all(0) & ((~same).sum(0) <= 1)

    def may_vary(self, read: Node) -> bool:
        """Whether a product is affine in this factor, wherever it takes it."""
        return all(read not in _within(a) or i in FACTORS[self.node.op] for i, a in enumerate(self.node.args))


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
    real = [read for read in reads if read.dtype is None or read.dtype.is_floating_point]
    if node.dtype is not None and not node.dtype.is_floating_point:  # a comparison: its outcome is what counts
        return Condition(rule="unchanged", node=node, reads=(node,)) if real else None
    if node.op in AFFINE or not real:
        return None
    if node.op in FACTORS and not node.kwargs:
        condition = Condition(rule="factors", node=node, reads=tuple(reads))
        return None if len(reads) == 1 and condition.may_vary(reads[0]) else condition
    if node.op in GATES and not node.kwargs and not any(_within(argument) for argument in node.args[1:]):
        if node.op not in _BY_AXIS or Layout.of(reads[0]).is_identity:
            return Condition(rule="gate", node=node, reads=(reads[0],))
    elif node.op in ("maximum", "minimum") and all(isinstance(a, Node) and _rows(a) for a in node.args):
        return Condition(rule="order", node=node, reads=tuple(node.args))
    return Condition(rule="constant", node=node, reads=tuple(reads))


def unchanged_rows(base: Tensor, patched: Tensor) -> Bool[Tensor, " batch"]:
    """Which rows are the same up to rounding: a stack of rows may be multiplied in another order than a few."""
    base, patched = base.reshape(base.shape[0], -1), patched.reshape(base.shape[0], -1)
    same = base == patched
    if base.is_floating_point():
        finite = torch.where(base.isfinite(), base, 0).abs()
        bound = _ROUNDING * torch.finfo(base.dtype).eps * finite.amax(1, keepdim=True)
        same |= (base - patched).abs() <= bound
    return same.all(1)


def batch_first(node: Node, value: Tensor) -> Tensor:
    """A node's value with the batch as its first axis."""
    return Layout.of(node).show(value)


def _rows(node: Node) -> bool:
    return bool(node.shape) and Layout.of(node).is_identity and node.sizes[0] == -1


def _equal_rows(base: Tensor, patched: Tensor) -> Tensor:
    return (base == patched).reshape(base.shape[0], -1).all(1)


def _outside(x: Tensor, low: float | None, high: float | None) -> Tensor:
    code = torch.zeros_like(x, dtype=torch.int8)
    if low is not None:
        code += (x < low).to(torch.int8)
    if high is not None:
        code -= (x > high).to(torch.int8)
    return code


def _within(argument: Any) -> tuple[Node, ...]:
    """The nodes in one argument, however nested."""
    if isinstance(argument, Node):
        return (argument,)
    if isinstance(argument, list | tuple):
        return tuple(node for item in argument for node in _within(item))
    return ()
