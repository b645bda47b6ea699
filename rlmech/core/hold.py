"""A policy held still: attention patterns, norms' scales, gates as each state has them, the graph cut at some values.

What is left between the cuts is linear in what moves, or says where it bends. This is the one way to freeze anything:
exact maps and terms, expansions into paths, compositions of heads and forms with open gates all hold a policy so. Cost
of holding: nothing; of a run: a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlmech.core.graph import Node
from rlmech.core.operations.aliases import plain_name
from rlmech.core.operations.reading import Behaviour, behaviour
from rlmech.core.operations.table import known
from rlmech.core.policy import HookedPolicy
from rlmech.untyped import Args, Kwargs

Gates = Literal["own", "open"]
Curves = Literal["own", "tangent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A policy with parts of it held still; made by `hold`.

    Attributes:
        policy: The policy.
        patterns: The nodes of the attention patterns that are held; a cut one is not among them.
        norms: Whether norms keep the scale that they have.
        gates: Whether gates are as each state has them, or all open.
        curves: Whether smooth functions are themselves, or their tangents at each state.
        cut: Nodes whose values are given.
    """

    policy: HookedPolicy
    patterns: tuple[Node, ...]
    norms: bool
    gates: Gates
    curves: Curves
    cut: tuple[Node, ...]

    @property
    def fixed(self) -> frozenset[Node]:
        """The nodes that no way leads past: cuts and patterns."""
        return frozenset((*self.patterns, *self.cut))

    def order(self, ends: Sequence[Node]) -> list[Node]:
        """What some nodes are computed from behind the cuts and patterns, which are left out, sources first."""
        within = self.fixed - frozenset(ends)
        return self.policy.graph_engine.graph.computed_order(ends, replaced=self.fixed, cut=within)

    def sources(self, node: Node) -> list[Node]:
        """What a node is computed from."""
        return self.policy.graph_engine.graph.sources_of(node, replaced=self.fixed)

    def reaches(self, start: Node, end: Node) -> bool:
        """Whether one node reaches another on a way past no cut and no pattern."""
        return start is end or any(start in self.sources(node) for node in self.order([end]))

    def moving(self, ends: Sequence[Node], starts: Collection[Node]) -> Iterator[tuple[Node, Behaviour]]:
        """The nodes that move with some others, in an order of computation, and what each is in what moves in it.

        A node of whole numbers or of truth is given too, but what it decides counts as fixed.
        """
        graph, moving = self.policy.graph_engine.graph, set(starts)
        for node in self.order(ends):
            if node in moving:
                continue
            definition = graph.definition_of(node, replaced=self.fixed)
            acts = behaviour(node, moving) if definition is None else "affine" if definition in moving else "fixed"
            if acts == "fixed":
                continue
            if node.dtype is None or node.dtype.is_floating_point:
                moving.add(node)
            yield node, acts

    def run(
        self, arrays: Sequence[Tensor], nodes: Sequence[Node], *, given: Mapping[Node, Tensor]
    ) -> dict[Node, Tensor]:
        """The values of some nodes, part of the autograd graph behind the arrays and the given values.

        Args:
            arrays: The observation's tensors.
            nodes: Which.
            given: The values at the cuts, and of patterns that need not be computed again.
        """
        wanted = tuple(dict.fromkeys(nodes))
        computed = [pattern for pattern in self.patterns if pattern not in given]
        program = self.policy.graph_engine.program(returned=wanted, given=tuple(given), hooked=tuple(computed))
        with self.acting():
            values = program(tuple(arrays), tuple(given.values()), [torch.Tensor.detach] * len(computed))
        return dict(zip(wanted, values, strict=True))

    @contextmanager
    def acting(self) -> Generator[None]:
        """Norms, gates and curves as they are held, for passes made inside; patterns and cuts are for `run` alone."""
        with _Operations(norms=self.norms, gates=self.gates, curves=self.curves):
            yield


def hold(
    policy: HookedPolicy,
    *,
    patterns: bool = True,
    norms: bool = False,
    gates: Gates = "own",
    curves: Curves = "own",
    cut: Sequence[Node] = (),
) -> Held:
    """Hold parts of a policy still.

    Args:
        policy: The policy.
        patterns: Whether attention patterns are numbers of the state, which pass on no gradient.
        norms: Whether the scales of layer norms are.
        gates: `own`: as each state has them; `open`: they let everything through, which is no state's own.
        curves: `own`: smooth functions such as tanh as they are; `tangent`: their tangents at each state.
        cut: Nodes whose values are given.
    """
    every = [policy.points[block.names["pattern"]].address.node for block in policy.attention.values()]
    held = tuple(pattern for pattern in every if pattern not in cut) if patterns else ()
    return Held(policy=policy, patterns=held, norms=norms, gates=gates, curves=curves, cut=tuple(cut))


class _Operations(TorchFunctionMode):
    """Norms whose scale is a number of the state, linear in what they normalise; gates all open; curves' tangents."""

    def __init__(self, *, norms: bool, gates: Gates, curves: Curves) -> None:
        super().__init__()
        self.norms, self.open, self.tangents = norms, gates == "open", curves == "tangent"

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        name = getattr(func, "_opname", getattr(func, "__name__", ""))
        record = known(plain_name(name.removesuffix("_")))
        if self.norms and record.role == "norm":
            return _NORMS[record.name](*args, **(kwargs or {}))
        if self.open and record.gating is not None and record.gating.opens:
            return args[0]
        if self.tangents and record.curve:
            return _tangent(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _tangent(function: Callable[..., Tensor], x: Tensor, *args: object, **kwargs: object) -> Tensor:
    at = x.detach().requires_grad_()
    with torch.enable_grad(), torch.DisableTorchFunction():
        value = function(at, *args, **kwargs)
        (slope,) = torch.autograd.grad(value.sum(), at)
    return value.detach() + slope * (x - at.detach())


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: FBT001, FBT002  # torch's signature
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    normed = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt().detach()
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    axes = tuple(range(-len(shape), 0))
    normed = x * (x.square().mean(axes, keepdim=True) + eps).rsqrt().detach()
    return normed if weight is None else normed * weight


_NORMS: dict[str, Callable[..., Tensor]] = {"layer_norm": _layer_norm, "rms_norm": _rms_norm}
