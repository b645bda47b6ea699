"""A traced graph as plain JSON, so that a policy that was wrapped before need not be exported again.

A graph is found again by `graph_key`: versions, the classes of all modules and what they hold, the shapes of the
weights and of the observation. It is read only under that key, and parity is proved on every wrap all the same; a graph
that is damaged, or fails, is traced anew. Kept on disk only where the whole module is made of classes of installed
packages, whose code follows from their version. Cost: a few milliseconds and some ten kilobytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import math
import operator
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from rlmech.core.graph import Graph, Mark, Node
from rlmech.core.module_record import held_by_modules
from rlmech.core.tracing import trace
from rlmech.files import moved_into_place
from rlmech.untyped import JsonObject, Settings

FORMAT = 1
PACKAGES = ("torch", "stable_baselines3", "sb3_contrib", "rlmech")
"""Packages whose modules' code is known by their version."""
_ROOT = Path(__file__).parents[1]
_OFFERED: ContextVar[tuple[str, ...]] = ContextVar("offered", default=())


class NotStorable(Exception):
    """A graph, or a module, that plain JSON cannot carry; the message says what stands in the way."""


@contextmanager
def offered(text: str | None) -> Generator[None]:
    """Offer a graph to the policies that are wrapped inside the `with`: each takes it only if the key is its own.

    Args:
        text: What `to_json` wrote; None offers nothing.
    """
    token = _OFFERED.set((*_OFFERED.get(), *([text] if isinstance(text, str) else [])))
    try:
        yield
    finally:
        _OFFERED.reset(token)


def graph_of(
    module: nn.Module, example: Tensor | Mapping[str, Tensor], *, cells: bool = False, anew: bool = False
) -> tuple[Graph, bool]:
    """The graph of a module, and whether it was traced before.

    One that is traced now is kept for the next process, where the module's code follows from versions.

    Args:
        module: The module.
        example: A batch of observations.
        cells: Whether single steps of recurrent layers are taken apart.
        anew: Whether to trace it even where its graph is known.

    Raises:
        NotTraceable: There is no graph.
    """
    try:
        key = graph_key(module, example)
    except NotStorable:
        return trace(module, example, cells=cells), False
    known = None if anew else known_graph(module, key)
    if known is not None:
        return known, True
    graph = trace(module, example, cells=cells)
    if _is_installed(module):
        _keep(graph, module, key)
    return graph, False


def known_graph(module: nn.Module, key: str) -> Graph | None:
    """The graph of a module as it was traced before; None where nothing is kept under its key."""
    for text in _OFFERED.get():
        graph = _read(text, key, module)
        if graph is not None:
            return graph
    if not _is_installed(module):
        return None
    try:
        return _read(_kept(key).read_text(), key, module)
    except (OSError, UnicodeDecodeError):
        return None


def _keep(graph: Graph, module: nn.Module, key: str) -> None:
    try:
        text = to_json(graph, module, key=key)
        _kept(key).parent.mkdir(parents=True, exist_ok=True)
        with moved_into_place(_kept(key)) as partial:
            partial.write_text(text)
    except (NotStorable, OSError):
        pass  # it is traced again next time


def folder() -> Path:
    """Where graphs are kept: `RLMECH_CACHE`, else `rlmech/graphs` in the user's cache directory."""
    own = os.environ.get("RLMECH_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlmech"
    return base / "graphs"


def graph_key(module: nn.Module, example: Tensor | Mapping[str, Tensor]) -> str:
    """What a module's graph follows from, as a SHA-256.

    Raises:
        NotStorable: The module holds something that cannot be told apart by its value.
    """
    arrays = {"": example} if isinstance(example, Tensor) else example
    told = [
        FORMAT,
        [[package, _version(package)] for package in sorted({_package(type(child)) for child in module.modules()})],
        torch.__version__.partition("+")[0],
        str(torch.get_default_dtype()),
        [[key, str(value.dtype), list(value.shape[1:])] for key, value in arrays.items()],
        [[path, f"{type(child).__module__}.{type(child).__qualname__}"] for path, child in module.named_modules()],
        [_tensor_told(name, value) for name, value in module.state_dict(keep_vars=True).items()],
        _tied(module),
        [[name, _told(value)] for name, value in held_by_modules(module)],
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def to_json(graph: Graph, module: nn.Module, *, key: str) -> str:
    """A graph, as it was traced (synthetic nodes are found anew), as JSON under its key.

    Args:
        graph: The graph.
        module: The module that it was traced from.
        key: Its `graph_key`.

    Raises:
        NotStorable: It holds a value or an operation that JSON does not carry.
    """
    content = {
        "key": key,
        "nodes": [_node_to_json(node, module) for node in graph.nodes if not node.synthetic],
        "inputs": [node.index for node in graph.inputs],
        "outputs": [node.index for node in graph.outputs],
        "marks": [[mark.node.index, mark.scope, mark.role] for mark in graph.marks],
        "constants": {name: _tensor_to_json(value) for name, value in graph.constants.items()},
    }
    body = json.dumps(content, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "graph": body})


def _read(text: str, key: str, module: nn.Module) -> Graph | None:
    """The graph of a text; None where it is of another key, or is not what `to_json` wrote."""
    try:
        sealed = json.loads(text)
        body = sealed["graph"]
        if hashlib.sha256(body.encode()).hexdigest() != sealed["sha256"]:
            return None
        content = json.loads(body)
        if content["key"] != key:
            return None
        graph = Graph(nodes=[], inputs=(), outputs=(), constants={})
        graph.constants.update({name: _tensor_from_json(value) for name, value in content["constants"].items()})
        for entry in content["nodes"]:
            graph.nodes.append(_node_from_json(entry, graph.nodes, module))
        graph.inputs = tuple(graph.nodes[index] for index in content["inputs"])
        graph.outputs = tuple(graph.nodes[index] for index in content["outputs"])
        graph.marks = [
            Mark(node=graph.nodes[i], scope=str(scope), role=str(role)) for i, scope, role in content["marks"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None
    return graph


# ---- what the key follows from


def _kept(key: str) -> Path:
    """The file of a graph; another one once the code that traces has changed, which an editable install does often."""
    return folder() / f"{key[:32]}-{_source()}.json"


@cache
def _source() -> str:
    files = sorted(path for part in ("core", "nets", "adapters") for path in (_ROOT / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _package(kind: object) -> str:
    return kind.__module__.partition(".")[0]


def _is_installed(module: nn.Module) -> bool:
    return all(_package(type(child)) in PACKAGES for child in module.modules())


def _tied(module: nn.Module) -> list[list[str]]:
    """Names of one and the same parameter or submodule."""
    by_object: dict[int, list[str]] = {}
    for name, value in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
        *module.named_modules(remove_duplicate=False),
    ):
        by_object.setdefault(id(value), []).append(name)
    return sorted(names for names in by_object.values() if len(names) > 1)


def _tensor_told(name: str, value: Tensor) -> list[object]:
    return [name, str(value.dtype), list(value.shape), str(value.device)]


def _told(value: Any) -> object:
    """A value of a module's own, so that two of one text are one value."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
    if isinstance(value, tuple | list):
        return [type(value).__name__, [_told(item) for item in value]]
    if isinstance(value, Mapping):
        return [type(value).__name__, [[_told(key), _told(item)] for key, item in value.items()]]
    package = _package(value if hasattr(value, "__qualname__") else type(value))
    if package not in (*PACKAGES, "gymnasium", "numpy", "builtins", "functools", "collections"):
        raise NotStorable(f"{value!r} of the user's own")
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return [type(value).__qualname__, repr(value) if package == "gymnasium" else ""]


# ---- nodes


def _node_to_json(node: Node, module: nn.Module) -> dict[str, object]:
    entry: JsonObject = {
        "op": node.op,
        "scope": node.scope,
        "shape": None if node.shape is None else list(node.shape),
        "dtype": None if node.dtype is None else str(node.dtype),
    }
    match node.op:
        case "input":
            return {**entry, "key": node.owner}
        case "parameter":
            owner = module.get_submodule(node.scope.rpartition(".")[0])
            return {**entry, "name": node.args[0], "is_buffer": node.owner is owner._buffers}  # pyright: ignore[reportPrivateUsage]
        case "constant":
            return {**entry, "name": node.args[0]}
        case _:
            arguments = {"args": _value_to_json(node.args), "kwargs": _value_to_json(node.kwargs)}
            return {**entry, "call": _call_to_json(node.call), **arguments}


def _node_from_json(entry: Settings, nodes: list[Node], module: nn.Module) -> Node:
    shape = None if entry["shape"] is None else tuple(int(size) for size in entry["shape"])
    node = Node(len(nodes), entry["op"], scope=entry["scope"], shape=shape, dtype=_named(entry["dtype"], torch.dtype))
    match node.op:
        case "input":
            node.owner = entry["key"]
        case "parameter":
            owner = module.get_submodule(node.scope.rpartition(".")[0])
            node.owner = owner._buffers if entry["is_buffer"] else owner._parameters  # pyright: ignore[reportPrivateUsage]
            node.owner[entry["name"]]  # a KeyError where the module has no such weight
            node.args = (entry["name"],)
        case "constant":
            node.args = (entry["name"],)
        case _:
            node.call = _call_from_json(entry["call"])
            node.args, node.kwargs = _value_from_json(entry["args"], nodes), _value_from_json(entry["kwargs"], nodes)
    return node


def _call_to_json(call: Callable[..., object] | None) -> str:
    if isinstance(call, OpOverload):
        name = call._schema.name.replace("::", ".")  # pyright: ignore[reportPrivateUsage]
        return f"{name}.{call._overloadname}"  # pyright: ignore[reportPrivateUsage]
    name = getattr(call, "__name__", "")
    if call is not None and getattr(operator, name, None) is call:
        return f"operator.{name}"
    raise NotStorable(f"the operation {call!r}")


def _call_from_json(name: str) -> Callable[..., Any]:
    first, _, rest = name.partition(".")
    if first == "operator":
        return getattr(operator, rest)
    operation, _, overload = rest.rpartition(".")
    return getattr(getattr(getattr(torch.ops, first), operation), overload)


_KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def _value_to_json(value: object) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Node):
        return {"node": value.index}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_value_to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _value_to_json(item)] for key, item in value.items()]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return {name: str(value)}
    raise NotStorable(f"an argument of type {type(value).__name__}")


def _value_from_json(value: Any, nodes: list[Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "node":
            if not 0 <= content < len(nodes):
                raise ValueError(f"node {content} of {len(nodes)}")
            return nodes[content]
        case "float":
            return float(content)
        case "tuple":
            return tuple(_value_from_json(item, nodes) for item in content)
        case "list":
            return [_value_from_json(item, nodes) for item in content]
        case "dict":
            return {key: _value_from_json(item, nodes) for key, item in content}
        case "device":
            return torch.device(content)
        case _:
            return _named(content, _KINDS[kind])


def _named(text: str | None, kind: type) -> Any:
    """The dtype, layout or memory format of a name such as `torch.float32`."""
    if text is None:
        return None
    value = getattr(torch, text.removeprefix("torch."))
    if not isinstance(value, kind):
        raise ValueError(text)
    return value


def _bytes(value: Tensor) -> bytes:
    """A tensor's numbers as they stand in memory, of any dtype and rank."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _tensor_to_json(value: Tensor) -> dict[str, object]:
    bits = _bytes(value)
    return {
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "device": str(value.device),
        "bytes": base64.b64encode(bits).decode(),
    }


def _tensor_from_json(entry: Settings) -> Tensor:
    dtype = _named(entry["dtype"], torch.dtype)
    bits = bytearray(base64.b64decode(entry["bytes"], validate=True))
    value = torch.frombuffer(bits, dtype=dtype) if bits else torch.empty(0, dtype=dtype)
    return value.reshape(entry["shape"]).to(entry["device"])
