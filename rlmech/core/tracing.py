"""A module exported once (`torch.export`, functionalised, symbolic batch) and read into a `Graph`. Cost: 0.1-1 s.

The graph keeps the module's own parameters: each is read through its owner's dict at call time, so training,
`load_state_dict` and `.to` go on underneath.
"""

from __future__ import annotations

import builtins
import io
import logging
import operator
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from rlmech.core.cells import CellsAsOperations, is_mark
from rlmech.core.graph import Graph, Mark, Node, Size
from rlmech.core.operations.aliases import plain_name
from rlmech.untyped import Args, Kwargs

if TYPE_CHECKING:
    from torch.export import ExportedProgram


IDENTITIES = {"lift_fresh_copy", "alias", "lift", "detach_", "dropout", "feature_dropout", "alpha_dropout"}


HARMLESS_MUTATIONS = {"detach_"}


_exporting = RLock()
"""Held while a module is exported, which changes state of the process: torch's fast path, `len`, where text goes."""


class NotTraceable(Exception):
    """The module cannot be exported; the message says why."""


def trace(module: nn.Module, example: Tensor | Mapping[str, Tensor], *, cells: bool = False) -> Graph:
    """Export a module in eval mode into a graph over its own parameters.

    Args:
        module: The module; `module(example)` must work.
        example: An observation batch of at least two rows, or a dict of such.
        cells: Whether single steps of recurrent layers are taken apart, see `cells`.

    Raises:
        NotTraceable: The module's control flow depends on data, or it keeps random or batch-coupling state.
    """
    exported = _export(module, example, cells=cells)
    try:
        if any(_mutates(node) or _encloses(node) for node in exported.graph.nodes):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = exported.run_decompositions({})
        return _Reader(module, exported, example).read()
    finally:
        _let_go(node.meta.get("val") for node in exported.graph.nodes)


def _export(module: nn.Module, example: Tensor | Mapping[str, Tensor], *, cells: bool) -> ExportedProgram:
    from torch.export import Dim  # with sympy and more, a second of imports that a known graph does without

    shapes = {0: Dim.DYNAMIC} if isinstance(example, Tensor) else {key: {0: Dim.DYNAMIC} for key in example}
    argument = example if isinstance(example, Tensor) else dict(example)

    def export() -> ExportedProgram:
        with warnings.catch_warnings(), _quiet(), _EinsumAsMatmul(), CellsAsOperations() if cells else nullcontext():
            warnings.simplefilter("ignore")
            return torch.export.export(module, (argument,), dynamic_shapes=(shapes,), strict=False)

    with _exporting:
        return _prepared(export)


def _prepared(export: Callable[[], ExportedProgram]) -> ExportedProgram:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return export()
        except Exception:
            with _len_as_shape():  # slower: every `len` of the export goes through Python
                return export()
    except Exception as error:  # export fails in many ways; all of them mean that there is no graph
        raise NotTraceable(str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _quiet() -> Generator[None]:
    """Keep torch from printing whole graphs when something cannot be exported; the error says what is needed."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):  # the graph itself is printed, not logged
            yield
    finally:
        logger.setLevel(level)


def _let_go(values: Iterable[object]) -> None:
    """Take apart what torch keeps of an export, some 80 KB each time.

    Its symbolic sizes, its fake tensors and caches of its own refer to each other in a circle through C++, where
    Python's collector cannot follow; and its functions remember every set of sizes that they were asked about.
    """
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    modes = {id(value.fake_mode): value.fake_mode for value in values if isinstance(value, FakeTensor)}
    for mode in modes.values():
        sizes = mode.shape_env
        if sizes is not None:
            sizes.fake_tensor_cache.clear()
            if sizes.tracked_fakes is not None:
                sizes.tracked_fakes.clear()
    for method in vars(ShapeEnv).values():
        forget = getattr(method, "cache_clear", None)
        if forget is not None:
            forget()


@contextmanager
def _len_as_shape() -> Generator[None]:
    """Let `len(x)` be `x.shape[0]`: Python makes a plain number of it, which would fix the batch size."""
    plain = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else plain(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


class _EinsumAsMatmul(TorchFunctionMode):
    """Traces a product of two tensors over one axis as the matrix product that it is: attention is then seen in it."""

    def __torch_function__(self, func: Any, types: object, args: Args = (), kwargs: Kwargs | None = None) -> object:
        if func is torch.einsum and isinstance(args[0], str):
            operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
            product = _as_matmul(args[0], list(operands))
            if product is not None:
                return product
        return func(*args, **(kwargs or {}))


def _as_matmul(equation: str, operands: list[Tensor]) -> Tensor | None:
    text = equation.replace(" ", "")
    if len(operands) != 2 or "..." in text or "->" not in text:
        return None
    left, out = text.split("->")
    a, b = left.split(",")
    shared = [axis for axis in out if axis in a and axis in b]
    rows = [axis for axis in out if axis in a and axis not in b]
    columns = [axis for axis in out if axis in b and axis not in a]
    summed = [axis for axis in a if axis in b and axis not in out]
    plain = len(set(a)) == len(a) == len(shared + rows + summed) and len(set(b)) == len(b) == len(
        shared + columns + summed
    )
    if not plain or len(rows) > 1 or len(columns) > 1 or len(summed) != 1 or not rows + columns:
        return None
    left, right = (
        _permuted(operands[0], a, shared + rows + summed),
        _permuted(operands[1], b, shared + summed + columns),
    )
    if not rows:  # as a single query, whose axis is left out, is written
        return _permuted((left.unsqueeze(-2) @ right).squeeze(-2), "".join(shared + columns), list(out))
    if not columns:
        return _permuted((left @ right.unsqueeze(-1)).squeeze(-1), "".join(shared + rows), list(out))
    return _permuted(left @ right, "".join(shared + rows + columns), list(out))


def _permuted(tensor: Tensor, have: str, wanted: list[str]) -> Tensor:
    order = [have.index(axis) for axis in wanted]
    return tensor if order == list(range(len(order))) else tensor.permute(order)


def _mutates(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable) and _plain_name(node.target) not in HARMLESS_MUTATIONS


def _encloses(node: torch.fx.Node) -> bool:
    """Whether operations stand in a region, as of `torch.autocast`, `torch.no_grad` or `torch.vmap`."""
    return node.op == "get_attr" or "functorch" in str(getattr(node.target, "__module__", ""))


class _Reader:
    """Turns an exported program into a `Graph`."""

    def __init__(self, module: nn.Module, exported: ExportedProgram, example: Tensor | Mapping[str, Tensor]) -> None:
        self.module, self.exported = module, exported
        self.specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        self.keys = [""] if isinstance(example, Tensor) else list(example)
        self.map: dict[torch.fx.Node, Any] = {}
        self._known_scopes: dict[str, bool] = {}
        self.graph = Graph(nodes=[], inputs=(), outputs=(), constants={})

    def read(self) -> Graph:
        graph, outputs = self.graph, ()
        for source in self.exported.graph.nodes:
            match source.op:
                case "placeholder":
                    self.map[source] = self._leaf(source)
                case "call_function":
                    self.map[source] = self._operation(source)
                case "output":
                    outputs = self._convert(source.args[0])
                case _:
                    raise NotTraceable(f"the exported graph holds a {source.op} node, {source.target}")
        graph.inputs = tuple(node for node in graph.nodes if node.op == "input")
        mutated = len(self.exported.graph_signature.output_specs) - len(self.exported.graph_signature.user_outputs)
        if mutated:
            raise NotTraceable("the module changes its own buffers in forward")
        if not outputs or not isinstance(outputs[0], Node):
            raise NotTraceable("the module's first output does not depend on its input")
        graph.outputs = tuple(output for output in outputs if isinstance(output, Node))  # less a state that is None
        return graph

    def _leaf(self, source: torch.fx.Node) -> Node:
        from torch.export.graph_signature import InputKind

        spec = self.specs[source.name]
        shape, dtype = _shape(source.meta["val"])
        node = Node(len(self.graph.nodes), "input", shape=shape, dtype=dtype)
        match spec.kind:
            case InputKind.USER_INPUT:
                node.owner = self.keys[sum(1 for other in self.graph.nodes if other.op == "input")]
            case InputKind.PARAMETER | InputKind.BUFFER:
                target = str(spec.target)
                path, _, name = target.rpartition(".")
                owner = self.module.get_submodule(path)
                node.op = "parameter"
                node.owner = owner._parameters if spec.kind is InputKind.PARAMETER else owner._buffers  # pyright: ignore[reportPrivateUsage]
                node.args, node.scope = (name,), target
            case InputKind.CONSTANT_TENSOR:
                node.op, node.args = "constant", (str(spec.target),)
                constant = self.exported.constants[str(spec.target)]
                self.graph.constants[str(spec.target)] = constant.detach().clone()  # type: ignore[union-attr]
            case _:
                raise NotTraceable(f"the module takes a {spec.kind} that cannot be carried")
        self.graph.nodes.append(node)
        return node

    def _operation(self, source: torch.fx.Node) -> Any:
        name = _plain_name(source.target)
        if name in {"_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size", "_assert_tensor_metadata"}:
            return None
        args, kwargs = self._convert(source.args), self._convert(dict(source.kwargs))
        if is_mark(source.target):
            self.graph.marks.append(Mark(node=args[0], scope=self._scope(source), role=args[1]))
            return args[0]
        if name in {"dropout", "feature_dropout", "alpha_dropout"} and args[2] and args[1] > 0:
            raise NotTraceable(
                f"there is dropout alive in eval mode (p={args[1]}) in {self._scope(source) or 'the root'}: "
                "it is made inside forward, so eval() cannot switch it off"
            )
        if name in IDENTITIES or _whole_slice(name, args) or _same_dtype(name, source, args):
            return args[0]
        shape, dtype = _shape(source.meta.get("val"))
        call = _DIFFERENTIABLE.get(name, source.target)
        assert callable(call)  # noqa: S101  # fx's own invariant for call_function
        node = Node(len(self.graph.nodes), name, call, args, kwargs, self._scope(source), shape, dtype)
        self.graph.nodes.append(node)
        return node

    def _scope(self, source: torch.fx.Node) -> str:
        """The path of the module whose call an operation is of; a module called again has `@1`."""
        paths = [""]
        for key in source.meta.get("nn_module_stack") or {}:
            name = key.removeprefix("L__self__") if key.startswith("L__self__") else ""
            # of what is called by a module that was not called by way of the root, torch tells the path from there on
            whole = (f"{outer}.{name}" if outer else name for outer in paths)
            paths.append(next((path for path in whole if self._is_module(path)), name))
        return paths[-1]

    def _is_module(self, scope: str) -> bool:
        if scope not in self._known_scopes:
            path = ".".join(part.partition("@")[0] for part in scope.split("."))
            try:
                self.module.get_submodule(path)
                self._known_scopes[scope] = True
            except AttributeError:
                self._known_scopes[scope] = False
        return self._known_scopes[scope]

    def _convert(self, value: object) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.map[value]
        if isinstance(value, tuple | list):
            return (
                type(value)(self._convert(item) for item in value)
                if type(value) in (tuple, list)
                else tuple(self._convert(item) for item in value)
            )
        if isinstance(value, Mapping):
            return {key: self._convert(item) for key, item in value.items()}
        return value


def _copied(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: FBT001, FBT002  # torch's own
    """What `aten::copy` gives: it has no derivative of its own."""
    return source.to(into.dtype, non_blocking=non_blocking).expand_as(into)


def _floor_divided(value: Tensor, by: Tensor | float) -> Tensor:
    """What `aten::floor_divide` gives, which has no derivative either: zero, where there is one."""
    return torch.div(value, by, rounding_mode="floor")


def _heaviside(value: Tensor, at_zero: Tensor) -> Tensor:
    return torch.heaviside(value.detach(), at_zero.detach())


_DIFFERENTIABLE: dict[str, Callable[..., object]] = {
    "copy": _copied,
    "floor_divide": _floor_divided,
    "heaviside": _heaviside,
}
"""Stand-ins for operations that autograd refuses: an export makes `copy` of `y[:, 2:4] = x`, which autograd can do."""


def _plain_name(target: object) -> str:
    if isinstance(target, OpOverload):
        schema = target._schema  # pyright: ignore[reportPrivateUsage]
        return plain_name(schema.name.rpartition("::")[2], schema.overload_name)
    return "getitem" if target is operator.getitem else getattr(target, "__name__", str(target))


def _whole_slice(name: str, args: Args) -> bool:
    return name == "slice" and len(args) == 4 and args[2] in (0, None) and args[3] == 2**63 - 1


def _same_dtype(name: str, source: torch.fx.Node, args: Args) -> bool:
    if name not in {"to", "_to_copy"} or not isinstance(args[0], Node):
        return False
    return source.meta["val"].dtype == args[0].dtype and "memory_format" not in source.kwargs


def _shape(value: object) -> tuple[tuple[Size, ...] | None, torch.dtype | None]:
    if not isinstance(value, Tensor):
        return None, None
    return tuple(_size(size) for size in value.shape), value.dtype


def _size(size: int | torch.SymInt) -> Size:
    if isinstance(size, int):
        return size
    expression = size.node.expr  # a sympy expression; sympy itself need not be imported for it
    if expression.is_Integer:
        return int(expression)
    symbols = list(expression.free_symbols)
    ratio = expression / symbols[0] if len(symbols) == 1 else None
    if ratio is None or not ratio.is_Integer:
        raise NotTraceable(f"a tensor has the size {expression}, which is no multiple of the batch size")
    return -int(ratio)
