"""A policy held still on given states, cut at some nodes: how one value moves with those before it.

    end  =  sum over cuts  J_cut cut  +  J_obs obs  +  constant

Attention patterns and the scales of layer norms are numbers of the state then, and gates are as they are: between the
cuts everything is linear, which is checked (the second derivative vanishes). Cost: a forward pass, and a backward pass
for each `pull`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlmech.core.graph import Node
from rlmech.core.operations.aliases import plain_name
from rlmech.core.operations.reading import behaviour
from rlmech.core.operations.table import known
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, ObservationError

Values = Mapping[Node, Tensor]
NORMS = ("layer_norm", "rms_norm")
"""Names of the norms whose scale is held."""

_FUSED = "scaled_dot_product_attention"
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


def hold(
    policy: HookedPolicy,
    arrays: Sequence[Tensor],
    end: Node,
    *,
    cuts: Values,
    patterns: Values,
    start: Node | None = None,
    curves: Literal["refused", "tangent"] = "refused",
) -> HeldRun:
    """Run a policy up to one node from the observation and the given cuts, patterns and norms' scales held.

    Args:
        policy: The policy.
        arrays: Its observation's tensors.
        end: Where to.
        cuts: Nodes that are given, with their values.
        patterns: Attention patterns, with their values.
        start: The one cut whose part is asked for; None for those of all of them and of the observation.
        curves: What to do with smooth functions such as tanh.

    Raises:
        AttentionError: Between the cuts something bends that is no gate.
        ObservationError: An array of the observation does not hold real numbers.
    """
    given = {node: value.detach().clone() for node, value in cuts.items() if node is not end}
    inputs = dict(zip(policy.graph_engine.graph.inputs, arrays, strict=True)) if start is None else {}
    _check_real(inputs.values())
    frozen = {node: value.detach() for node, value in patterns.items()}
    with torch.enable_grad(), _Held(tangents=curves == "tangent"):
        leaves = tuple(array.detach().clone().requires_grad_(start is None) for array in arrays)
        for node, value in given.items():
            value.requires_grad_(start in (None, node))
        program = policy.graph_engine.program(returned=(end,), given=(*given, *frozen))
        (value,) = program(leaves, (*given.values(), *frozen.values()), ())
        varying = given if start is None else {start: given[start]}
        run = HeldRun(end=value, arrays=leaves if start is None else (), cuts=varying)
        bends = bends_of(policy, end, start=(*inputs, *varying), cut=(*given, *frozen))
        if _FUSED in bends or (value.requires_grad and run.bends()):
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


def bends_of(policy: HookedPolicy, end: Node, *, start: Collection[Node], cut: Collection[Node]) -> list[str]:
    """Names of the operations up to a node that are not linear in what varies with the start; gates and norms too."""
    cuts = {*start, *cut} - {end}
    varying = set(start)
    found: set[str] = set()
    for node in reversed(_before(policy, end, cut=cuts)):
        real = node.dtype is None or node.dtype.is_floating_point
        if node not in varying and real and any(source in varying for source in _sources(policy, node, cuts)):
            varying.add(node)
            if _defined_anew(policy, node, cuts) is None and behaviour(node, varying) not in ("affine", "fixed"):
                found.add(node.op)
    return sorted(found)


def reaches(policy: HookedPolicy, start: Node, end: Node, *, cut: Collection[Node]) -> bool:
    """Whether one node reaches another on a way that avoids the cuts."""
    return start in _before(policy, end, cut=set(cut) - {end})


def _defined_anew(policy: HookedPolicy, node: Node, cut: set[Node]) -> Node | None:
    """The second definition that is used of a node, given that its graph is cut."""
    alternative = policy.graph_engine.graph.alternatives.get(node)
    return alternative.definition if alternative is not None and alternative.triggers & cut else None


def _sources(policy: HookedPolicy, node: Node, cut: set[Node]) -> list[Node]:
    if node in cut:
        return []
    definition = _defined_anew(policy, node, cut)
    return list(node.inputs()) if definition is None else [definition]


def _before(policy: HookedPolicy, end: Node, *, cut: set[Node]) -> list[Node]:
    """The nodes that a node is computed from, itself first, each after those that read it."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [(end, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((source, False) for source in _sources(policy, node, cut))
    return order[::-1]


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


class _Held(TorchFunctionMode):
    """Norms whose scale is a number of the state, linear in what they normalise; curves that are their tangents."""

    def __init__(self, *, tangents: bool) -> None:
        super().__init__()
        self.tangents = tangents

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "_opname", getattr(func, "__name__", ""))
        if name == "layer_norm":
            return _layer_norm(*args, **(kwargs or {}))
        if name == "rms_norm":
            return _rms_norm(*args, **(kwargs or {}))
        if self.tangents and known(plain_name(name)).curve:
            return _tangent(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _tangent(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
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
