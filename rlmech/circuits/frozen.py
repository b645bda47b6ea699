"""A policy with its attention patterns frozen: which of its values vary with the observation, its gates, its offsets.

    scores = J x + sum over sources of their share        on the observation's own linear region

`freeze` walks the graph once and refuses what bends between gates, or takes the tangents of curves at the observation.
`run` is one forward pass, ready for backward passes; the patterns are the policy's own on that observation, and pass on
no gradient. Cost of `freeze`: about 1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlmech.core.conditions import conditions, looked_up
from rlmech.core.graph import Node
from rlmech.core.hold import hold
from rlmech.core.operations.reading import boundaries_of, nodes_in, record_of, rows_first
from rlmech.core.operations.record import Boundary
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, EngineError

_PLAIN_BIASES = {"linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution"}
"""Operations whose bias is what they add, laid out like the last axis or, of a convolution, like axis 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate, or a smooth curve, on the way to the scores.

    Attributes:
        node: The operation.
        name: Its hook point's name, or its place in the network where it has none.
    """

    node: Node
    name: str

    @property
    def reads(self) -> tuple[Node, ...]:
        """The tensors that it reads."""
        return tuple(dict.fromkeys(self.node.inputs()))

    def apply(self, x: Tensor, values: dict[Node, Tensor]) -> Tensor:
        """What it makes of x in the place of its first argument, the others as in `values`."""
        call: Any = self.node.call
        return call(x, *(_filled(arg, values) for arg in self.node.args[1:]), **_filled(self.node.kwargs, values))

    def boundaries(self, values: dict[Node, Tensor]) -> list[Boundary]:
        """Its boundaries, given the values of what it reads, one row each of the batch first."""
        return boundaries_of(self.node, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number enters that does not come from the observation: a bias, a constant, a saturated gate, a tangent.

    Attributes:
        name: The parameter's name, or the place in the network.
        node: The operation that adds it.
        added: The node of the bias that it adds; None where what it adds is worked out from the operation.
    """

    name: str
    node: Node
    added: Node | None

    @property
    def reads(self) -> tuple[Node, ...]:
        """The nodes whose values decide what is added."""
        return (self.added,) if self.added is not None else tuple(dict.fromkeys(self.node.inputs()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The part of a policy between its inputs (or given values) and some ends, attention patterns frozen.

    Attributes:
        policy: The policy.
        ends: The nodes that it leads to.
        given: Nodes at which it is cut; they count as inputs.
        patterns: The pattern nodes on the way.
        varying: The nodes that vary with the inputs.
        gates: The gates on the way, in the order in which they are computed.
        curves: The smooth functions on the way that act by their tangents, likewise.
        sources: Where offsets enter, likewise.
        mixes: Products of a frozen pattern of a single query and values, whose gradient is an outer product.
    """

    policy: HookedPolicy
    ends: tuple[Node, ...]
    given: tuple[Node, ...]
    patterns: tuple[Node, ...]
    varying: frozenset[Node]
    gates: tuple[Gate, ...]
    curves: tuple[Gate, ...]
    sources: tuple[Source, ...]
    mixes: tuple[Node, ...]

    def run(
        self, arrays: Sequence[Tensor], nodes: Sequence[Node], *, given: Sequence[Tensor] = ()
    ) -> dict[Node, Tensor]:
        """The values of some nodes, part of the autograd graph behind `arrays` and `given`."""
        wanted = tuple(dict.fromkeys(nodes))
        held: dict[Node, Tensor] = {}
        hooks: dict[Node, Callable[[Tensor], Tensor]] = dict.fromkeys(self.patterns, torch.Tensor.detach)
        for mix in self.mixes:
            pattern, mixed = mix.args
            hooks[pattern] = lambda value, node=pattern: held.setdefault(node, value.detach())
            hooks[mixed] = lambda value, node=mixed: held.setdefault(node, value)
            hooks[mix] = lambda value, p=pattern, v=mixed: _apply_mix(value, held[p], held[v])
        program = self.policy.graph_engine.program(returned=wanted, given=self.given, hooked=tuple(hooks))
        values = dict(zip(wanted, program(arrays, given, tuple(hooks.values())), strict=True))
        for source in self.sources:
            if source.added is source.node and source.node in values:  # an end that is a constant, and a leaf
                values[source.node] = values[source.node].detach().requires_grad_()
        return values


def freeze(
    policy: HookedPolicy,
    ends: Sequence[Node],
    *,
    given: Sequence[Node] = (),
    vary: Literal["all", "given"] = "all",
    curves: Literal["refused", "tangent"] = "refused",
) -> Frozen:
    """Find what varies, the gates and the sources of offsets between the inputs and some nodes.

    Args:
        policy: The policy.
        ends: Where to.
        given: Nodes to cut the graph at.
        vary: `all` for the inputs and the given nodes, `given` for these alone, the rest held as it is.
        curves: What to do with smooth functions such as tanh.

    Raises:
        EngineError: The policy runs on the eager engine, or something on the way bends between its gates.
        AttentionError: A softmax is on the way that belongs to no verified attention block.
    """
    graph, held = policy.graph_engine.graph, hold(policy, cut=given)
    namer = _Namer(policy)
    varying = {*given, *({*graph.inputs} - conditions(graph) if vary == "all" else ())}
    gates: list[Gate] = []
    bent: list[Gate] = []
    sources: list[Source] = []
    passing = ("affine", "gate", "curve") if curves == "tangent" else ("affine", "gate")
    for node, acts in held.moving(ends, tuple(varying)):
        if acts not in passing or not _is_told(node):
            raise _bent(policy, node, namer.place(node))
        if acts != "affine":
            (gates if acts == "gate" else bent).append(Gate(node=node, name=namer.gate(node)))
        if node.dtype is None or node.dtype.is_floating_point:
            varying.add(node)
            if graph.definition_of(node, replaced=held.fixed) is None:
                sources.extend(_sources(node, varying, namer))
    if vary == "all":  # what does not vary, as behind switches alone, is an offset as a whole
        constant = [end for end in ends if end not in varying]
        sources.extend(Source(name=namer.place(end), node=end, added=end) for end in constant)
    order = held.order(ends)
    read = {*ends, *(source for node in order for source in held.sources(node))}
    return Frozen(
        policy=policy,
        ends=tuple(ends),
        given=tuple(given),
        patterns=tuple(pattern for pattern in held.patterns if pattern in read),
        varying=frozenset(varying),
        gates=tuple(gates),
        curves=tuple(bent),
        sources=tuple(sources),
        mixes=tuple(node for node in order if _is_mix(node, held.patterns, varying)),
    )


def _is_told(node: Node) -> bool:
    """Whether what a node decides is told by gates: numbers are, and comparisons; other whole numbers jump unseen."""
    real = node.dtype is None or node.dtype.is_floating_point
    return real or record_of(node).role == "comparison" or node.op == "getitem"


class _Mix(torch.autograd.Function):
    """A product that has been computed, pattern times values, with a gradient cheaper than torch's for one query."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, pattern: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(pattern, values)
        return mixed.view_as(mixed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pattern, values = ctx.saved_tensors
        laid_out = torch.empty_like(values)  # as the values lie, which saves a copy
        return None, None, torch.mul(pattern.transpose(-1, -2), gradients[0], out=laid_out)


def _apply_mix(mixed: Tensor, pattern: Tensor, values: Tensor) -> Tensor:
    return _Mix.apply(mixed.detach(), pattern, values) if values.requires_grad else mixed  # pyright: ignore[reportReturnType]


def _is_mix(node: Node, patterns: Sequence[Node], varying: set[Node]) -> bool:
    if node.op not in {"matmul", "bmm"} or node.args[0] not in patterns or node.args[1] not in varying:
        return False
    pattern, values = node.args
    return pattern.sizes[-2] == 1 and pattern.sizes[:-2] == values.sizes[:-2]


def offsets(
    frozen: Frozen, gradients: dict[Node, Tensor], values: dict[Node, Tensor], *, sources: Sequence[Source]
) -> Tensor:
    """What each source adds to a number, row by row: `[batch, source]`.

    Args:
        frozen: The frozen policy.
        gradients: The number's gradient at each source's node, in the node's own shape.
        values: Of what the sources read.
        sources: Which.
    """
    shares: list[Tensor] = []
    for source in sources:
        gradient = gradients[source.node]
        share = gradient * _added(source, values, frozen.varying)
        weighted = rows_first(source.node, share.masked_fill_(gradient == 0, 0))  # a mask of -inf adds nothing there
        shares.append(weighted.flatten(1).sum(1) if weighted.ndim > 1 else weighted)
    return torch.stack(shares, dim=-1)


def _added(source: Source, values: dict[Node, Tensor], varying: frozenset[Node]) -> Tensor:
    """The constant part of what an operation computes, in a shape that broadcasts to the node's."""
    node = source.node
    call: Any = node.call
    if source.added is not None:
        bias = values[source.added].detach()
        is_convolution = record_of(node).moves == "convolution" and source.added is not node
        return bias.reshape(-1, *(1,) * (len(node.sizes) - 2)) if is_convolution else bias
    if (
        record_of(node).gating is not None or record_of(node).curve
    ):  # its value less what its slopes make of what varies
        leaves = {
            read: values[read].detach().expand(_rows_of(node, values[read])).requires_grad_()
            for read in source.reads
            if read in varying
        }
        with torch.enable_grad():
            y = call(*(_filled(arg, values | leaves) for arg in node.args), **_filled(node.kwargs, values))
            slopes = torch.autograd.grad(y.sum(), list(leaves.values()))
        return (y - sum(slope * x for slope, x in zip(slopes, leaves.values(), strict=True))).detach()
    at_zero = {
        read: torch.zeros_like(values[read]) if read in varying else values[read].detach() for read in source.reads
    }
    return call(*(_filled(arg, at_zero) for arg in node.args), **_filled(node.kwargs, at_zero))


def _rows_of(node: Node, value: Tensor) -> list[int]:
    """The sizes of a node that acts element by element, given a value that it reads, which may be narrower."""
    batch = next((size for size, own in zip(value.shape, node.sizes[-value.ndim :], strict=True) if own < 0), 1)
    return [-size * batch if size < 0 else size for size in node.sizes]


def _filled(value: Any, values: dict[Node, Tensor]) -> Any:
    if isinstance(value, Node):
        return values[value]
    if isinstance(value, list | tuple):
        return [_filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value


def _sources(node: Node, varying: set[Node], namer: _Namer) -> Iterator[Source]:
    record = record_of(node)
    if record.curve:
        yield Source(name=namer.place(node), node=node, added=None)
    elif record.gating is not None:
        read = [node.args[place] for place in record.gating.reads if len(node.args) > place]
        if record.gating.shifts and (len(read) == 1 or not all(arg in varying for arg in read)):
            yield Source(name=namer.place(node), node=node, added=None)
    elif node.op in _PLAIN_BIASES and not node.kwargs:
        bias = node.args[record.added[0]] if len(node.args) > record.added[0] else None
        if isinstance(bias, Node) and bias not in varying:
            yield Source(name=namer.constant(bias, node), node=node, added=bias)
    elif _puts_in(node, varying):
        constants = [read for read in node.inputs() if read not in varying]
        name = namer.constant(constants[0], node) if len(constants) == 1 else namer.place(node)
        yield Source(name=name, node=node, added=None)


def _puts_in(node: Node, varying: set[Node]) -> bool:
    """Whether an affine operation adds numbers that do not vary."""
    record = record_of(node)
    added = (*record.added, *(range(len(node.args)) if record.affine is None else record.affine))
    for place, arg in enumerate(node.args):
        if place in added and any(_is_real(read) and read not in varying for read in nodes_in(arg)):
            return True
        if place in record.numbers and isinstance(arg, int | float) and arg != 0:
            return True
    return record.adds


def _is_real(node: Node) -> bool:
    return node.dtype is not None and node.dtype.is_floating_point


def _bent(policy: HookedPolicy, node: Node, place: str) -> AttentionError | EngineError:
    if record_of(node).role in ("softmax", "attention"):
        return AttentionError(
            f"A softmax in {place!r} belongs to no verified attention block, so its pattern cannot be frozen.",
            given=f"{type(policy.module).__name__}, with the blocks {list(policy.attention)}",
            expected="attention that passes its check, or none",
            fix="policy.attention[path] says why a block is not offered; patching and ablation need none",
        )
    if any(
        node.op in ("one_hot", "embedding") and _reads(node, source) for source in looked_up(policy.graph_engine.graph)
    ):
        return EngineError(
            "The observation is whole numbers that the network looks up, which have no slope.",
            given=f"{node.op!r} in {place!r}",
            expected="an observation of real numbers",
            fix="rlm.activation_patching or rlm.ablation_sweep, at hook points behind the lookup",
        )
    return EngineError(
        f"The scores are not piecewise linear: {node.op!r} in {place!r} bends between gates.",
        given=type(policy.module).__name__,
        expected="linear layers, convolutions, ReLU-like gates, max-pools, sums and scalings; attention is frozen",
        fix="use rlm.activation_patching, or captum's integrated_gradients, which asks for no linear pieces",
    )


def _reads(node: Node, source: Node) -> bool:
    """Whether a node reads another one, over whatever moves or counts it."""
    return any(
        before is source or (before.dtype is not None and not before.dtype.is_floating_point and _reads(before, source))
        for before in node.inputs()
    )


class _Namer:
    """Names for operations: their hook points' where they have one, else their module's path and their own name."""

    def __init__(self, policy: HookedPolicy) -> None:
        self.hooks: dict[Node, str] = {}
        self.root = ""
        for name, point in policy.points.items():
            self.hooks.setdefault(point.address.node, name)
            scope, path = point.address.node.scope, name.removesuffix(".hook_out")
            if path != name and scope.endswith(path):
                self.root = scope[: -len(path)]
        self.taken: dict[str, int] = {}

    def gate(self, node: Node) -> str:
        return self.hooks.get(node) or self.place(node)

    def place(self, node: Node) -> str:
        if node in self.hooks:
            return self.hooks[node].removesuffix(".hook_out")
        return ".".join(part for part in (node.scope.removeprefix(self.root), f"{node.op}_{node.index}") if part)

    def constant(self, constant: Node, user: Node) -> str:
        """A parameter's name, also where it is cut or reshaped before it is added."""
        parameters: set[str] = set()
        stack = [constant]
        while stack:
            node = stack.pop()
            if node.op == "parameter":
                parameters.add(node.scope.removeprefix(self.root))
            stack.extend(node.inputs())
        return parameters.pop() if len(parameters) == 1 else self.place(user)
