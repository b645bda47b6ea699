"""The eager engine: the same hook points, by the same names, on the live modules.

For what cannot be exported, and for networks in train mode. Modules say where a call stands, a `TorchFunctionMode` sees
the calls themselves: a point is the k-th call of an operation in a module call. It knows no weights of attention and
offers what the example reaches. Cost: a few times a forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlmech.core.attention import AttentionBlock, AttentionBlocks
from rlmech.core.attention_nodes import Found, Role
from rlmech.core.attention_search import find_attention
from rlmech.core.engine import EngineName, leave_out
from rlmech.core.graph import Graph, Node, Size
from rlmech.core.hook_point import HookPoint, Interceptors
from rlmech.core.layout import Layout
from rlmech.core.module_record import PassHook
from rlmech.core.observation import ObservationFormat
from rlmech.core.operations.aliases import plain_name
from rlmech.core.points import OutputKind, Point, name_points, strip_root
from rlmech.untyped import Args, Kwargs

Key = tuple[str, str, int, int]
"""(module call, operation, which call of it there, which of its results)."""

_watch: ContextVar[object] = ContextVar("rlmech eager pass", default=None)
"""The pass whose module calls are followed at present, in this thread."""
NO_WEIGHTS = "the eager engine sees calls, not the graph that leads from weights to heads"
INSIDE_A_CALL = "it is computed inside a single call of torch, which the eager engine cannot look into"
BATCHES = (5, 7)
SINGLE_ROWS = 8


class EagerEngine:
    """Hooks on the live modules and functions.

    Args:
        module: The network.
        observation: Its observation format.
        reason: Why there is no graph.
        root: Module path that falls away in names.
        output_kind: What the scores are.
    """

    name: EngineName = "eager"

    def __init__(
        self, module: nn.Module, observation: ObservationFormat, *, reason: str, root: str, output_kind: OutputKind
    ) -> None:
        self.reason, self._module, self._observation = reason, module, observation
        self.points: dict[str, Point] = {}
        self.left_out: dict[str, str] = {}
        blocks: dict[str, Found] = {}
        for recording in self._recordings():
            found = {strip_root(block.scope, root): block for block in find_attention(recording, weights=False)}
            for block in found.values():
                block.reasons = dict.fromkeys(("q", "k", "v", "output"), NO_WEIGHTS) | block.reasons
            points = name_points(
                recording, module, root=root, blocks=found, output_kind=output_kind, states=observation.states
            )
            outputs = {name: point for name, point in points.items() if point.kind == "output"}
            for name, point in points.items():
                if name not in outputs:
                    self.points.setdefault(name, point)
            self.points |= {name: self.points.pop(name, point) for name, point in outputs.items()}
            for path, block in found.items():
                blocks.setdefault(path, block)
        named: dict[str, AttentionBlock] = {}
        for path, block in blocks.items():
            names: dict[Role, str] = {role: f"{path}.hook_{role}".lstrip(".") for role in block.addresses}
            named[path] = AttentionBlock(
                Graph(nodes=[], inputs=(), outputs=(), constants={}), block, path=path, names=names
            )
        self.attention = AttentionBlocks(named, {})
        for name, point in list(self.points.items()):
            if point.kind not in ("observation", "output") and point.address.node.owner is None:
                self.leave_out(name, INSIDE_A_CALL)

    def leave_out(self, name: str, reason: str) -> None:
        """Offer a point no longer."""
        leave_out(self.points, self.left_out, self.attention, name, reason)

    def stored(self) -> str | None:
        """No graph, nothing to store."""
        return None

    def forward(self, arrays: tuple[Tensor, ...]) -> Tensor:
        """The scores, with nothing hooked."""
        return _outputs(self._module(self._observation.argument(arrays)))[0]

    def run(
        self,
        arrays: tuple[Tensor, ...],
        names: tuple[str, ...],
        registry: Interceptors,
        hook_dict: Mapping[str, HookPoint],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scores and the named activations in canonical axes, with the registry's functions applied."""
        active, values = registry.active(), dict[str, Tensor]()

        def visit(name: str, value: Tensor) -> Tensor:
            layout = _layout_for(self.points[name], value)
            if name in active:
                value = layout.restore(registry.intercept(hook_dict[name], layout.show(value)))
            if name in names:
                values[name], value = _kept(value, layout)
            return value

        wanted = [name for name in self.points if name in active or name in names]
        by_key: dict[Key, list[str]] = {}
        for name in wanted:
            if self.points[name].kind != "output" and self.points[name].address.node.op != "input":
                by_key.setdefault(self.points[name].address.node.owner, []).append(name)
        inputs = [name for name, point in self.points.items() if point.address.node.op == "input"]
        arrays = tuple(
            visit(name, array) if name in wanted else array for name, array in zip(inputs, arrays, strict=True)
        )

        def on_result(key: Key, value: Tensor) -> Tensor:
            for name in by_key.get(key, ()):
                value = visit(name, value)
            return value

        with _watching(self._module, on_result):
            outputs = _outputs(self._module(self._observation.argument(arrays)))
        ends = [name for name, point in self.points.items() if point.kind == "output"]
        for place, name in enumerate(ends):
            if name in wanted:
                outputs[place] = visit(name, outputs[place])
        return outputs[0], {name: values[name] for name in names if name in values}

    def _recordings(self) -> Iterator[Graph]:
        """Graphs of what single runs called: two batches for the shapes, then single rows for other branches."""
        first, second = (self._record(n) for n in BATCHES)
        same = [(node.op, node.scope) for node in first.nodes] == [(node.op, node.scope) for node in second.nodes]
        for place, node in enumerate(first.nodes):
            if node.shape is None:
                continue
            other = second.nodes[place].shape if same else None
            node.shape = _symbolic(node.shape, other if other and len(other) == len(node.shape) else None)
        yield first
        rows = max(value.shape[0] for value in self._observation.example.values())
        for row in range(min(rows, SINGLE_ROWS)):
            single = self._record(1, row=row)
            for node in single.nodes:
                if node.shape:
                    node.shape = (-1, *node.shape[1:]) if node.shape[0] == 1 else node.shape
            yield single

    def _record(self, n: int, *, row: int | None = None) -> Graph:
        if row is None:
            arrays = self._observation.samples(n)
        else:
            arrays = tuple(value[row : row + 1] for value in self._observation.example.values())
        parameter = next(self._module.parameters(), None)
        if parameter is not None:
            arrays = tuple(array.to(parameter.device) for array in arrays)
        recorder = _Recorder(dict(zip(self._observation.shapes, arrays, strict=True)))
        modes = {module: module.training for module in self._module.modules()}
        buffers = {name: value.clone() for name, value in self._module.named_buffers()}
        if row is not None:
            self._module.eval()  # batch statistics of one row do not exist; its branches are the same
        try:
            with torch.no_grad(), _watching(self._module, recorder.on_result, recorder.on_call):
                outputs = _outputs(self._module(self._observation.argument(arrays)))
        finally:
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for name, value in self._module.named_buffers():
                    value.copy_(buffers[name])
        return recorder.graph(outputs)


class _Recorder:
    """Writes the calls of one run down as a graph."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.nodes: list[Node] = []
        self.by_tensor: dict[int, Node] = {}
        self.alive: list[Tensor] = []
        self.pending: tuple[Callable[..., object], tuple[object, ...], dict[str, object]] | None = None
        self.inputs = tuple(self._add("input", value, owner=key) for key, value in inputs.items())

    def on_call(self, call: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.pending = call, args, kwargs

    def on_result(self, key: Key, value: Tensor) -> Tensor:
        assert self.pending is not None  # noqa: S101  # on_call comes first
        call, args, kwargs = self.pending
        scope, op, _, part = key
        named = [kwargs[name] for name in ("dim", "mask", "value", "other") if name in kwargs]
        converted = tuple(self._convert(argument) for argument in (*args, *named))
        if part:
            source = self._add(op, None, scope=scope, call=call, args=converted)
            converted, op = (source, part - 1), "getitem"
        self._add(op, value, scope=scope, call=call, args=converted, owner=key)
        return value

    def graph(self, outputs: list[Tensor]) -> Graph:
        ends = tuple(self.by_tensor.get(id(value)) or self._add("output", value) for value in outputs)
        return Graph(nodes=self.nodes, inputs=self.inputs, outputs=ends, constants={})

    def _add(self, op: str, value: Tensor | None, **fields: Any) -> Node:
        shape = None if value is None else tuple(value.shape)
        node = Node(len(self.nodes), op, shape=shape, dtype=None if value is None else value.dtype, **fields)
        self.nodes.append(node)
        if value is not None:
            self.by_tensor[id(value)] = node
            self.alive.append(value)
        return node

    def _convert(self, value: object) -> object:
        if isinstance(value, Tensor):
            return self.by_tensor.get(id(value)) or self._add("parameter", value)
        if isinstance(value, list | tuple):
            return tuple(self._convert(item) for item in value)
        return value


def _unfolded(function: Any) -> Callable[..., Any]:
    """A Python function of torch that does not hand itself over to a function mode as a whole."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, "has_torch_function": lambda *_: False},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_UNFOLDED_ATTENTION = _unfolded(F.multi_head_attention_forward)


class _FunctionMode(TorchFunctionMode):
    def __init__(
        self,
        scope: Callable[[], str],
        on_result: Callable[[Key, Tensor], Tensor],
        on_call: Callable[..., None] | None,
    ) -> None:
        super().__init__()
        self.scope, self.on_result, self.on_call = scope, on_result, on_call
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Args = (),
        kwargs: Kwargs | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # one call to torch's mode: look inside it
            with self:
                return _UNFOLDED_ATTENTION(*args, **kwargs)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not name or name in ("__set__", "__setitem__") or not _makes_tensors(result):
            return result
        op = plain_name(name if name.endswith("__") else name.removesuffix("_"))
        scope = self.scope()
        k = self.counts[scope, op]
        self.counts[scope, op] += 1
        if self.on_call is not None:
            self.on_call(func, args, kwargs)
        if isinstance(result, Tensor):
            return self._visit((scope, op, k, 0), result, args)
        parts = (
            self._visit((scope, op, k, i + 1), p, ()) if isinstance(p, Tensor) else p for i, p in enumerate(result)
        )
        return type(result)(parts) if type(result) in (tuple, list) else tuple(parts)

    def _visit(self, key: Key, value: Tensor, args: tuple[object, ...]) -> Tensor:
        new = self.on_result(key, value)
        if new is not value and args and value is args[0]:  # an in-place call whose result may go unused
            value.copy_(new)
            return value
        return new


def _makes_tensors(result: object) -> bool:
    if isinstance(result, tuple | list):
        return any(isinstance(part, Tensor) for part in result)
    return isinstance(result, Tensor)


@contextmanager
def _watching(
    module: nn.Module,
    on_result: Callable[[Key, Tensor], Tensor],
    on_call: Callable[..., None] | None = None,
) -> Generator[None]:
    """Call back for every tensor that a function makes inside the module, with the module call it stands in."""
    stack: list[str] = [""]
    calls: Counter[str] = Counter()
    this_pass = object()

    def enter(path: str) -> PassHook:
        def hook(*_: object) -> None:
            if _watch.get() is this_pass:  # module hooks fire for every thread, and for passes made inside a hook
                stack.append(f"{path}@{calls[path]}" if calls[path] else path)
                calls[path] += 1

        return PassHook(hook)

    def leave(*_: object) -> None:
        if _watch.get() is this_pass:
            stack.pop()

    def aside(key: Key, value: Tensor) -> Tensor:
        token = _watch.set(None)
        try:
            return on_result(key, value)
        finally:
            _watch.reset(token)

    handles: list[Any] = []
    token = _watch.set(this_pass)
    try:
        for path, child in module.named_modules():
            if path:
                handles.append(child.register_forward_pre_hook(enter(path)))
                handles.append(child.register_forward_hook(PassHook(leave), always_call=True))
        with _FunctionMode(lambda: stack[-1], aside, on_call):
            yield
    finally:
        _watch.reset(token)
        for handle in handles:
            handle.remove()


def _outputs(output: Any) -> list[Tensor]:
    return [part for part in output if isinstance(part, Tensor)] if isinstance(output, tuple | list) else [output]


def _symbolic(shape: tuple[int, ...], other: tuple[int, ...] | None) -> tuple[Size, ...]:
    first, second = BATCHES
    if other is None:
        return (-1, *shape[1:]) if shape and shape[0] == first else shape
    return tuple(
        a if a == b else -(a // first) if a * second == b * first else a for a, b in zip(shape, other, strict=True)
    )


def _kept(value: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """What a cache keeps of a value, and the value that the network goes on with, which it may change in place."""
    kept = layout.show(value).clone()
    followed = torch.is_grad_enabled() and value.requires_grad  # gradients are taken at what the cache holds
    return kept, layout.restore(kept).clone() if followed else value


def _layout_for(point: Point, value: Tensor) -> Layout:
    """The point's layout; on a branch that the example's batches did not take, sizes may be known only now."""
    layout = point.address.layout
    return layout if len(layout.shape) == value.ndim else replace(layout, **vars(Layout.plain(tuple(value.shape))))
