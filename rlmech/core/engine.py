"""The graph engine: runs a policy as generated programs, one per set of points that a call hooks or reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlmech.core.attention import AttentionBlock, AttentionBlocks
from rlmech.core.attention_maps import PROBE_BATCH
from rlmech.core.attention_nodes import Found, Role, value_of
from rlmech.core.attention_search import find_attention
from rlmech.core.attention_verify import verify
from rlmech.core.folds import mark_folds
from rlmech.core.graph import Graph, Node
from rlmech.core.graph_file import NotStorable, graph_key, graph_of, to_json
from rlmech.core.hook_point import HookPoint, Interceptors
from rlmech.core.layout import Layout
from rlmech.core.observation import ObservationFormat
from rlmech.core.points import OutputKind, Point, name_points, strip_root
from rlmech.core.program import Program, compile_program
from rlmech.core.recent import Recent
from rlmech.errors import CacheError, EngineError

EngineName = Literal["graph", "eager"]
PROGRAMS = 1024
"""Programs that an engine remembers: some 5 KB each; discovery and paths use several hundred in turn."""

Reader = tuple[Program, tuple[tuple[str, Layout], ...]]
"""A program that returns some points and the scores, and the layouts of those points that it gives in other axes."""


@runtime_checkable
class Engine(Protocol):
    """What runs a policy: the points it offers, and forward passes that hook and read them."""

    @property
    def name(self) -> EngineName:
        """`graph` or `eager`."""
        ...

    @property
    def reason(self) -> str:
        """Why this engine."""
        ...

    @property
    def points(self) -> Mapping[str, Point]:
        """The hook points, in the order in which they are computed, the outputs last."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Points that cannot be shown, and why."""
        ...

    @property
    def attention(self) -> AttentionBlocks:
        """The attention layers."""
        ...

    def leave_out(self, name: str, reason: str) -> None:
        """Offer a point no longer."""
        ...

    def stored(self) -> str | None:
        """The traced graph as JSON, for another process; None where there is none that JSON carries."""
        ...

    def forward(self, arrays: tuple[Tensor, ...]) -> Tensor:
        """The scores, with nothing hooked."""
        ...

    def run(
        self,
        arrays: tuple[Tensor, ...],
        names: tuple[str, ...],
        registry: Interceptors,
        hook_dict: Mapping[str, HookPoint],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scores and the named activations in canonical axes, with the registry's functions applied."""
        ...


class GraphEngine:
    """Programs over the traced graph.

    Args:
        module: The network, in eval mode.
        observation: Its observation format.
        root: Module path that falls away in names.
        output_kind: What the scores are.
        anew: Whether to trace the module even where its graph is known.

    Attributes:
        is_known: Whether the graph was traced in another process.

    Raises:
        NotTraceable: There is no graph.
    """

    name: EngineName = "graph"
    reason = "the module was exported"

    def __init__(
        self,
        module: nn.Module,
        observation: ObservationFormat,
        *,
        root: str,
        output_kind: OutputKind,
        anew: bool = False,
    ) -> None:
        samples = observation.samples(3)
        example = dict(zip(observation.shapes, samples, strict=True)) if observation.is_dict else samples[0]
        self._module, self._example = module, example
        self.graph, self.is_known = graph_of(module, example, cells=bool(observation.states), anew=anew)
        mark_folds(self.graph, samples)
        self.attention, found = _verified(self.graph, observation.samples(PROBE_BATCH), root)
        self.points = name_points(
            self.graph, module, root=root, blocks=found, output_kind=output_kind, states=observation.states
        )
        self.left_out: dict[str, str] = {}
        self._begin()

    def _begin(self) -> None:
        """Start with no programs but the plain one."""
        self._programs: Recent[tuple[tuple[Node, ...], tuple[Node, ...], tuple[Node, ...]], Program] = Recent(PROGRAMS)
        self._readers: Recent[tuple[str, ...], Reader] = Recent(PROGRAMS)
        self._scores = self.points[next(name for name, p in self.points.items() if p.kind == "output")].address
        self._plain = self.program(returned=(self._scores.node,))
        self._plain_layout = self._scores.layout.is_identity

    def program(self, *, returned: Sequence[Node], given: Sequence[Node] = (), hooked: Sequence[Node] = ()) -> Program:
        """The program for a set of nodes, compiled when first asked for."""
        key = (tuple(returned), tuple(given), tuple(hooked))
        return self._programs.get(
            key, lambda: compile_program(self.graph, returned=returned, given=given, hooked=hooked)
        )

    def leave_out(self, name: str, reason: str) -> None:
        """Offer a point no longer."""
        leave_out(self.points, self.left_out, self.attention, name, reason)

    def stored(self) -> str | None:
        """The traced graph as JSON, for another process; None where there is none that JSON carries."""
        try:
            return to_json(self.graph, self._module, key=graph_key(self._module, self._example))
        except NotStorable:
            return None

    def forward(self, arrays: tuple[Tensor, ...]) -> Tensor:
        """The scores, with nothing hooked."""
        scores = self._plain(arrays, (), ())[0]
        return scores if self._plain_layout else self._scores.layout.show(scores)

    def run(
        self,
        arrays: tuple[Tensor, ...],
        names: tuple[str, ...],
        registry: Interceptors,
        hook_dict: Mapping[str, HookPoint],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scores and the named activations in canonical axes, with the registry's functions applied."""
        if registry.is_idle:
            return self._read(arrays, names)
        active = registry.active()
        by_node: dict[Node, list[str]] = {}
        for name in self.points:
            if name in active:
                by_node.setdefault(self.points[name].address.node, []).append(name)
        interceptors = [self._interceptor(on_node, registry, hook_dict) for on_node in by_node.values()]
        program = self.program(returned=self._returned(names), hooked=tuple(by_node))
        *values, scores = program(arrays, (), interceptors)
        shown = {name: self.points[name].address.layout.show(value) for name, value in zip(names, values, strict=True)}
        return self._scores.layout.show(scores), shown

    def _read(self, arrays: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The same with nothing hooked: what it takes per call is looked up, not worked out."""
        program, rearranged = self._readers.get(names, lambda: self._reader(names))
        values = program(arrays, (), ())
        shown = dict(zip(names, values, strict=False))  # the scores stand last, without a name
        for name, layout in rearranged:
            shown[name] = layout.show(shown[name])
        return self._scores.layout.show(values[-1]), shown

    def _reader(self, names: tuple[str, ...]) -> Reader:
        layouts = ((name, self.points[name].address.layout) for name in names)
        rearranged = tuple((name, layout) for name, layout in layouts if not layout.is_identity)
        return self.program(returned=self._returned(names)), rearranged

    def deferred(self, name: str, cache: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        """How to compute a `hook_result` later, from a cache's own z; the weights must not have changed by then."""
        node = self.points[name].address.node
        z = name.removesuffix("result") + "z"
        layout, call = self.points[z].address.layout, node.call or torch.einsum
        weight = value_of(self.graph, node.args[1])
        version = weight._version  # torch's own counter of in-place changes

        def compute() -> Tensor:
            if weight._version != version:
                raise CacheError(
                    f"{name!r} was not computed yet, and the weights have changed since.",
                    given="a cache from before the change",
                    expected="the weights of the forward pass",
                    fix=f"ask for it by name: run_with_cache(obs, names={name!r})",
                )
            return call(layout.restore(cache[z]), weight)

        return compute

    def _returned(self, names: tuple[str, ...]) -> tuple[Node, ...]:
        return (*(self.points[name].address.node for name in names), self._scores.node)

    def retype(self, old: torch.dtype, new: torch.dtype) -> None:
        """Let operations that name the policy's float dtype, and the graph's constants, follow a change of it."""
        for node in self.graph.nodes:
            node.args = tuple(new if value is old else value for value in node.args)
            node.kwargs = {key: new if value is old else value for key, value in node.kwargs.items()}
        for key, constant in self.graph.constants.items():
            self.graph.constants[key] = constant.to(new) if constant.dtype is old else constant
        self._forget()

    def move(self, device: torch.device) -> None:
        """Let the graph's constants, and operations that name a device, follow the parameters."""
        for key, constant in self.graph.constants.items():
            self.graph.constants[key] = constant.to(device)
        for node in self.graph.nodes:
            node.args = tuple(device if isinstance(value, torch.device) else value for value in node.args)
            node.kwargs = {
                key: device if isinstance(value, torch.device) else value for key, value in node.kwargs.items()
            }
        self._forget()

    def _forget(self) -> None:
        self._programs.clear()
        self._readers.clear()
        self._plain = self.program(returned=(self._scores.node,))

    def _interceptor(
        self, names: Sequence[str], registry: Interceptors, hook_dict: Mapping[str, HookPoint]
    ) -> Callable[[Tensor], Tensor]:
        def intercept(value: Tensor) -> Tensor:
            for name in names:
                layout = self.points[name].address.layout
                value = layout.restore(registry.intercept(hook_dict[name], layout.show(value)))
            return value

        return intercept


def offered_names(engine: Engine, names: tuple[str, ...], *, all_of_them: bool) -> tuple[str, ...]:
    """Those hook names that an engine offers.

    Args:
        engine: The engine that runs in train mode.
        names: Hook names of the policy.
        all_of_them: Whether they are simply all names, some of which the engine need not have.

    Raises:
        EngineError: One was asked for that needs the graph.
    """
    missing = [name for name in names if name not in engine.points]
    if missing and not all_of_them:
        raise EngineError(
            f"{missing[0]!r} needs the traced graph, and the policy runs on the eager engine.",
            given=f"engine 'eager': {engine.reason}",
            expected="engine 'graph'",
            fix="put the network in eval mode: policy.eval()",
        )
    return tuple(name for name in names if name in engine.points)


def leave_out(
    points: dict[str, Point], left_out: dict[str, str], attention: AttentionBlocks, name: str, reason: str
) -> None:
    """Take a point out of what an engine offers, and its role out of the attention block that names it."""
    del points[name]
    left_out[name] = reason
    for block in attention.values():
        roles: list[Role] = [role for role, other in block.names.items() if other == name]
        block.reasons.update(dict.fromkeys(roles, reason))
        for role in roles:
            block.names.pop(role)


def _verified(graph: Graph, observation: tuple[Tensor, ...], root: str) -> tuple[AttentionBlocks, dict[str, Found]]:
    """The attention blocks that pass their numerical check, by path, and why the others do not."""
    kept: dict[str, Found] = {}
    reasons: dict[str, str] = {}
    with torch.no_grad():
        for block in find_attention(graph):
            path = strip_root(block.scope, root)
            taken = sum(1 for other in (*kept, *reasons) if other == path or other.startswith(f"{path}.attention_"))
            if taken:
                path = f"{path}.attention_{taken}".lstrip(".")
            reason = verify(graph, block, observation)
            if reason is None:
                kept[path] = block
            else:
                reasons[path] = reason
    blocks: dict[str, AttentionBlock] = {}
    for path, block in kept.items():
        names: dict[Role, str] = {role: f"{path}.hook_{role}".lstrip(".") for role in block.addresses}
        blocks[path] = AttentionBlock(graph, block, path=path, names=names)
    return AttentionBlocks(blocks, reasons), kept
