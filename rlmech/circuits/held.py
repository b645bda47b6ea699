"""A policy held still on given states, cut at some nodes: how one value moves with those before it.

    end  =  sum over cuts  J_cut cut  +  J_obs obs  +  constant

Attention patterns and the scales of layer norms are numbers of the state then, and gates are as they are: between the
cuts everything is linear, which is checked (the second derivative vanishes). Cost: a forward pass, and a backward pass
for each `pull`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlmech.core.graph import Node
from rlmech.core.hold import Curves, Held, hold
from rlmech.core.operations.table import known
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, ObservationError

Values = Mapping[Node, Tensor]
_CHECK_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """One value and those that it was computed from, held still.

    Attributes:
        end: The value, laid out like its node.
        arrays: The observation's arrays.
        cuts: The values that the graph was cut at, by node.
    """

    end: Tensor
    arrays: tuple[Tensor, ...]
    cuts: Mapping[Node, Tensor]

    def pull(self, weights: Tensor) -> tuple[tuple[Tensor, ...], dict[Node, Tensor]]:
        """The gradient of the weighted end with respect to the observation's arrays and to the cuts."""
        sources = (*self.arrays, *self.cuts.values())
        found = torch.autograd.grad(self.end, sources, weights, retain_graph=True, materialize_grads=True)
        return found[: len(self.arrays)], dict(zip(self.cuts, found[len(self.arrays) :], strict=True))

    def bends(self) -> bool:
        """Whether the end has a second derivative, along one random direction."""
        generator = torch.Generator().manual_seed(_CHECK_SEED)
        sources = (*self.arrays, *self.cuts.values())
        slopes = torch.autograd.grad(
            self.end, sources, _random(self.end, generator), create_graph=True, materialize_grads=True
        )
        along = sum((slope * _random(slope, generator)).sum() for slope in slopes)
        if not isinstance(along, Tensor) or not along.requires_grad:
            return False
        curvature = torch.autograd.grad(along, sources, retain_graph=True, materialize_grads=True)
        return any(bool(part.any()) for part in curvature)


def linear_run(
    policy: HookedPolicy,
    arrays: Sequence[Tensor],
    end: Node,
    *,
    cuts: Values,
    patterns: Values,
    start: Node | None = None,
    curves: Curves = "own",
) -> HeldRun:
    """Run a policy up to one node from the observation and the given cuts, patterns and norms' scales held.

    Args:
        policy: The policy.
        arrays: Its observation's tensors.
        end: Where to.
        cuts: Nodes that are given, with their values.
        patterns: Attention patterns, with their values.
        start: The one cut whose part is asked for; None for those of all of them and of the observation.
        curves: Whether smooth functions such as tanh are themselves, which is refused, or their tangents.

    Raises:
        AttentionError: Between the cuts something bends that is no gate.
        ObservationError: An array of the observation does not hold real numbers.
    """
    given = {node: value.detach().clone() for node, value in cuts.items() if node is not end}
    inputs = dict(zip(policy.graph_engine.graph.inputs, arrays, strict=True)) if start is None else {}
    _check_real(inputs.values())
    held = hold(policy, norms=True, curves=curves, cut=tuple(given))
    with torch.enable_grad():
        leaves = tuple(array.detach().clone().requires_grad_(start is None) for array in arrays)
        for node, value in given.items():
            value.requires_grad_(start in (None, node))
        frozen = {node: patterns[node].detach() for node in held.patterns}
        value = held.run(leaves, (end,), given=given | frozen)[end]
        varying = given if start is None else {start: given[start]}
        run = HeldRun(end=value, arrays=leaves if start is None else (), cuts=varying)
        bends = bends_of(held, end, start=(*inputs, *varying))
        if any(known(name).role == "attention" for name in bends) or (value.requires_grad and run.bends()):
            found = [name for name in bends if not (known(name).gating or known(name).role == "norm")]
            raise AttentionError(
                f"There is no linear path through {type(policy.module).__name__}: something bends between its gates.",
                given=f"operations {', '.join(found or bends)}",
                expected="linear layers, ReLU-like activations, layer norms, and attention that policy.attention lists",
                fix="patch the paths instead: rlm.edges.path_patching",
            )
    return run


def _check_real(arrays: Iterable[Tensor]) -> None:
    for array in arrays:
        if not array.is_floating_point():
            raise ObservationError(
                "A decomposition along paths starts from real numbers.",
                given=f"an observation of {array.dtype}",
                expected="floats",
                fix="wrap a network that takes floats: move the conversion out of it",
            )


def bends_of(held: Held, end: Node, *, start: Collection[Node]) -> list[str]:
    """Names of the operations up to a node that are not linear in what moves with the start; gates and norms too."""
    found = (node for node, acts in held.moving([end], start) if acts != "affine")
    return sorted({node.op for node in found if node.dtype is None or node.dtype.is_floating_point})


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
