"""A policy with its attention patterns frozen: which of its values vary with the observation, its gates, its offsets.

    scores = J x + sum over sources of their share        on the observation's own linear region

`freeze` walks the graph once and refuses what bends between gates. `run` is one forward pass, ready for backward
passes; the patterns are the policy's own on that observation, and pass on no gradient. Cost of `freeze`: about 1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlmech.circuits.rules import ADDED, AFFINE, COMPARISONS, FACTORS, FIXED, GATES, KEYWORDS, SHIFTING, Boundary
from rlmech.core.graph import Graph, Node
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, EngineError

_PUTTING = {"add", "add_", "sub", "rsub", "cat", "concat", "stack", "where", "masked_fill", "select_scatter",
            "slice_scatter", "constant_pad_nd", "pad", "batch_norm",
            "_native_batch_norm_legit_no_training"}  # fmt: skip
"""Affine operations that can add numbers of their own; their value at zero is what they add."""
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
_SOFTMAX = {"softmax", "_softmax", "_safe_softmax", "scaled_dot_product_attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate on the way to the scores.

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
        args = [values[arg] if isinstance(arg, Node) else arg for arg in self.node.args]
        kwargs = {key: values[arg] if isinstance(arg, Node) else arg for key, arg in self.node.kwargs.items()}
        found = GATES[self.node.op](*args, **kwargs)
        return [replace(b, distance=rows_first(self.node, b.distance)) for b in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number enters that does not come from the observation: a bias, a constant, a saturated gate.

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
        sources: Where offsets enter, likewise.
        mixes: Products of a frozen pattern of a single query and values, whose gradient is an outer product.
    """

    policy: HookedPolicy
    ends: tuple[Node, ...]
    given: tuple[Node, ...]
    patterns: tuple[Node, ...]
    varying: frozenset[Node]
    gates: tuple[Gate, ...]
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
        return dict(zip(wanted, program(arrays, given, tuple(hooks.values())), strict=True))


def freeze(
    policy: HookedPolicy, ends: Sequence[Node], *, given: Sequence[Node] = (), vary: Literal["all", "given"] = "all"
) -> Frozen:
    """Find what varies, the gates and the sources of offsets between the inputs and some nodes.

    Args:
        policy: The policy.
        ends: Where to.
        given: Nodes to cut the graph at.
        vary: `all` for the inputs and the given nodes, `given` for these alone, the rest held as it is.

    Raises:
        EngineError: The policy runs on the eager engine, or something on the way bends between its gates.
        AttentionError: A softmax is on the way that belongs to no verified attention block.
    """
    graph = policy.graph_engine.graph
    every = [policy.points[block.names["pattern"]].address.node for block in policy.attention.values()]
    patterns = [pattern for pattern in every if pattern not in given]
    replaced = {*patterns, *given}
    order = _order(graph, ends, replaced)
    namer = _Namer(policy)
    varying: set[Node] = set(given)
    gates: list[Gate] = []
    sources: list[Source] = []
    for node in order:
        if node.op == "input" and vary == "all":
            varying.add(node)
        if node in replaced or node.op == "input":
            continue
        definition = _definition(graph, node, replaced)
        reads = [definition] if definition else list(node.inputs())
        if node.op in FIXED or not any(read in varying for read in reads):
            continue
        if definition is not None:
            varying.add(node)
            continue
        if node.op in GATES and _is_plain(node):
            gates.append(Gate(node=node, name=namer.gate(node)))
        elif not _is_affine(node, varying):
            raise _bent(policy, node, namer.place(node))
        if node.dtype is None or node.dtype.is_floating_point:
            varying.add(node)
            sources.extend(_sources(node, varying, namer))
        elif node.op not in COMPARISONS and node.op != "getitem":
            raise _bent(policy, node, namer.place(node))
    return Frozen(
        policy=policy,
        ends=tuple(ends),
        given=tuple(given),
        patterns=tuple(pattern for pattern in patterns if pattern in order),
        varying=frozenset(varying),
        gates=tuple(gates),
        sources=tuple(sources),
        mixes=tuple(node for node in order if node in varying - set(given) and _is_mix(node, patterns, varying)),
    )


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


def rows_first(node: Node, value: Tensor) -> Tensor:
    """A value that is laid out like a node, or like what it reads, with the batch as its first axis."""
    sizes = node.shape if node.shape is not None else node.args[0].sizes
    axis = next(i for i, size in enumerate(sizes) if size < 0)
    folded = -sizes[axis]
    if folded > 1:
        split = (folded, -1) if node.batch_inner else (-1, folded)
        value = value.unflatten(axis, split)
        axis += node.batch_inner
    return value if axis == 0 else value.movedim(axis, 0)


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
        return bias.reshape(-1, *(1,) * (len(node.sizes) - 2)) if node.op in _CONVOLUTIONS else bias
    if node.op in SHIFTING:
        x = values[node.args[0]].detach().requires_grad_()
        with torch.enable_grad():
            y = call(x, *(_filled(arg, values) for arg in node.args[1:]), **node.kwargs)
            (slope,) = torch.autograd.grad(y.sum(), x)
        return (y - slope * x).detach()
    at_zero = {read: torch.zeros_like(v) if read in varying else v.detach() for read, v in values.items()}
    return call(*(_filled(arg, at_zero) for arg in node.args), **_filled(node.kwargs, at_zero))


def _filled(value: Any, values: dict[Node, Tensor]) -> Any:
    if isinstance(value, Node):
        return values[value]
    if isinstance(value, list | tuple):
        return [_filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value


def _sources(node: Node, varying: set[Node], namer: _Namer) -> Iterator[Source]:
    if node.op in SHIFTING:
        yield Source(name=namer.place(node), node=node, added=None)
    elif node.op in ADDED or node.op in _CONVOLUTIONS:
        place = 2 if node.op in _CONVOLUTIONS else ADDED[node.op][0]
        bias = node.args[place] if len(node.args) > place else None
        if isinstance(bias, Node) and bias not in varying:
            yield Source(name=namer.constant(bias, node), node=node, added=bias)
    elif node.op in _PUTTING and _puts_in(node, varying):
        constants = [read for read in node.inputs() if read not in varying]
        name = namer.constant(constants[0], node) if len(constants) == 1 else namer.place(node)
        yield Source(name=name, node=node, added=None)


def _puts_in(node: Node, varying: set[Node]) -> bool:
    if any(read not in varying and read.dtype is not None and read.dtype.is_floating_point for read in node.inputs()):
        return True
    numbers = {"masked_fill": node.args[2:], "constant_pad_nd": node.args[2:], "pad": node.args[3:]}
    own = numbers.get(node.op, node.args[1:] if node.op in {"add", "sub", "rsub", "where"} else ())
    return any(isinstance(arg, int | float) and arg != 0 for arg in own)


def _is_plain(node: Node) -> bool:
    """Whether it is what its table says: a keyword that is not known, as div's `rounding_mode`, may change that."""
    return node.kwargs.keys() <= KEYWORDS


def _is_affine(node: Node, varying: set[Node]) -> bool:
    if node.op in AFFINE:
        return _is_plain(node)
    if node.op not in FACTORS or not _is_plain(node):
        return False
    taken = [(place, read) for place, arg in enumerate(node.args) for read in _nodes(arg) if read in varying]
    factors = [place for place, _ in taken if place not in ADDED.get(node.op, ())]
    plain = not any(read in varying for arg in node.kwargs.values() for read in _nodes(arg))
    return plain and len(factors) <= 1 and all(place in FACTORS[node.op] for place in factors)


def _bent(policy: HookedPolicy, node: Node, place: str) -> AttentionError | EngineError:
    if node.op in _SOFTMAX:
        return AttentionError(
            f"A softmax in {place!r} belongs to no verified attention block, so its pattern cannot be frozen.",
            given=f"{type(policy.module).__name__}, with the blocks {list(policy.attention)}",
            expected="attention that passes its check, or none",
            fix="policy.attention[path] says why a block is not offered; patching and ablation need none",
        )
    return EngineError(
        f"The scores are not piecewise linear: {node.op!r} in {place!r} bends between gates.",
        given=type(policy.module).__name__,
        expected="linear layers, convolutions, ReLU-like gates, max-pools, sums and scalings; attention is frozen",
        fix="use rlm.activation_patching, or captum's integrated_gradients, which asks for no linear pieces",
    )


def _order(graph: Graph, ends: Sequence[Node], replaced: set[Node]) -> list[Node]:
    """What the ends need, in an order in which it can be computed; nothing of what replaced nodes would need."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [(end, False) for end in ends]
    while stack:
        node, expanded = stack.pop()
        if node in done:
            continue
        if expanded or node in replaced:
            done.add(node)
            order.append(node)
            continue
        stack.append((node, True))
        definition = _definition(graph, node, replaced)
        reads = [definition] if definition else list(node.inputs())
        stack.extend((read, False) for read in reads if read.op != "sym_size")
    return order


def _definition(graph: Graph, node: Node, replaced: set[Node]) -> Node | None:
    alternative = graph.alternatives.get(node)
    return alternative.definition if alternative and alternative.triggers & replaced else None


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _nodes(item)


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
