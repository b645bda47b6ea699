"""The state of a recurrent policy: how it goes into the module, how it comes out, and what its parts are called.

    module(obs, state) -> (scores, state)  or  (scores, value, state)

A module keeps its state as it likes: a tensor, or tuples, lists and dicts of them, the batch on any axis. Here it is a
dict by hook name, the batch first, e.g. `{"lstm.hook_h": [batch neuron], "lstm.hook_c": [batch neuron]}`: the state
after a step is what the cache holds at those points. Layers of one of torch's own recurrent modules are parts of their
own. Found by running the module on two batches; cost: two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlmech.core.cells import LAYERS
from rlmech.core.points import strip_root
from rlmech.errors import StateError

State = dict[str, Tensor]
"""By hook name, a row for each of the batch."""
TENSOR = "tensor"
"""Where a state's nesting has a tensor."""
OBSERVATION = ""
"""Key under which a step takes an observation that is a single array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One tensor of a module's own state.

    Attributes:
        names: Its parts: one, or one for each layer of `[layer batch unit]`.
        axis: Its batch axis.
        shape: Its sizes without the batch.
    """

    names: tuple[str, ...]
    axis: int
    shape: tuple[int, ...]

    @property
    def is_layered(self) -> bool:
        """Whether its first axis is that of layers, as torch's own recurrent modules keep it."""
        return self.axis == 1 and len(self.shape) == 2

    def parts(self, value: Tensor) -> dict[str, Tensor]:
        """Its parts, the batch first."""
        if self.is_layered:
            return {name: value[layer] for layer, name in enumerate(self.names)}
        return {self.names[0]: value.movedim(self.axis, 0) if self.axis else value}

    def whole(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The tensor, as the module keeps it."""
        if self.is_layered:
            return torch.stack([parts[name] for name in self.names])
        value = parts[self.names[0]]
        return value.movedim(0, self.axis) if self.axis else value


class StateForm:
    """How a module keeps its state.

    Args:
        module: The module.
        given: `state(n)` for n rows, or a state with a row for each observation of the example.
        obs: Two or more observations.
        n_rows: How many.
        root: Module path that falls away in names.

    Attributes:
        initial: The state that every episode begins with, one row.
        has_value: Whether the module gives a state value, too.

    Raises:
        StateError: It is no state, its batch axis cannot be told, or the module does not give it back.
    """

    def __init__(self, module: nn.Module, given: Any, obs: Any, *, n_rows: int, root: str = "") -> None:
        first, leaves, self._nesting = _begin(given, n_rows)
        with torch.no_grad():
            self.has_value = len(self._split(module, module(obs, first))) == 3
        shapes = [
            (axis, tuple(size for place, size in enumerate(leaf.shape) if place != axis)) for leaf, axis in leaves
        ]
        names = _names_of(self._nesting)
        plain = [Leaf(names=(name,), axis=axis, shape=shape) for name, (axis, shape) in zip(names, shapes, strict=True)]
        read = _readers(module, [leaf for leaf, _ in leaves], lambda told: module(obs, self._unflatten(told)))
        self.leaves = tuple(_named(leaf, read.get(place, ()), root) for place, leaf in enumerate(plain))
        rows = {
            n: v for leaf, (value, _) in zip(self.leaves, leaves, strict=True) for n, v in leaf.parts(value).items()
        }
        for name, value in rows.items():
            if not torch.equal(value[:1].expand_as(value), value):
                raise StateError(
                    "The rows of the state at the beginning differ.",
                    given=f"{name} with other values from row to row",
                    expected="one state that every episode begins with",
                    fix="give that one as HookedPolicy(..., state=...), and others to policy.step(obs, state)",
                )
        self.initial: State = {name: value[:1].detach().clone() for name, value in rows.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The parts, in order."""
        return tuple(self.initial)

    def step(self, module: nn.Module, obs: Any, parts: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Scores, the value where there is one, and the parts of the state after it."""
        own = self._unflatten([leaf.whole(parts) for leaf in self.leaves])
        *outputs, state = self._split(module, module(obs, own))
        after: State = {}
        for leaf, value in zip(self.leaves, _tensors(state), strict=True):
            after |= leaf.parts(value)
        return (*outputs, *(after[name] for name in self.names))

    def _unflatten(self, leaves: Sequence[Tensor]) -> object:
        """The state as the module keeps it."""
        return _filled(self._nesting, leaves)

    def _split(self, module: nn.Module, output: object) -> tuple[Any, ...]:
        """Scores, the value where there is one, and the state, as the module gave them."""
        parts = tuple(output) if isinstance(output, tuple | list) else ()
        if len(parts) not in (2, 3) or not self._is_state(parts[len(parts) - 1]):
            raise StateError(
                f"{type(module).__name__} does not give its state back as it takes it.",
                given=_described(output),
                expected="(scores, state) or (scores, value, state), the state nested as the one that went in",
                fix="wrap it in a module whose forward(obs, state) returns that",
            )
        return parts

    def _is_state(self, value: object) -> bool:
        return _nesting(value) == self._nesting


def _begin(given: object, n_rows: int) -> tuple[object, list[tuple[Tensor, int]], object]:
    """A state for the example, its tensors with their batch axes, and how they nest."""
    first, other = (given(n_rows), given(n_rows + 1)) if callable(given) else (given, None)
    leaves, nesting = _tensors(first), _nesting(first)
    others: list[Tensor | None] = [None] * len(leaves) if other is None else [*_tensors(other)]
    if not leaves or nesting is None or len(others) != len(leaves):
        raise StateError(
            "That is no state.",
            given=_described(first),
            expected="a tensor, or tuples, lists and dicts of tensors",
            fix="give it as the module takes it, e.g. state=lambda n: (torch.zeros(1, n, 64), torch.zeros(1, n, 64))",
        )
    return first, [(leaf, _batch_axis(leaf, more, n_rows)) for leaf, more in zip(leaves, others, strict=True)], nesting


def _batch_axis(leaf: Tensor, more: Tensor | None, n_rows: int) -> int:
    if more is None:
        axes = [axis for axis, size in enumerate(leaf.shape) if size == n_rows]
    else:
        axes = [axis for axis, (a, b) in enumerate(zip(leaf.shape, more.shape, strict=False)) if b == a + 1]
    if len(axes) == 1 and (more is None or leaf.ndim == more.ndim):
        return axes[0]
    raise StateError(
        "The batch axis of the state cannot be told.",
        given=f"a state of shape {list(leaf.shape)} for {n_rows} rows",
        expected=f"exactly one axis of size {n_rows}",
        fix="give a function of the number of rows: state=lambda n: torch.zeros(1, n, 64)",
    )


def _tensors(state: object) -> list[Tensor]:
    """The tensors of a state, in order; those of dicts by their keys."""
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _nesting(state: object) -> object:
    """How a state nests its tensors: the same, with their keys and places instead; None where it holds something else.

    Keys lead to dicts, and places to tuples and lists; a dict is told from another order of its keys by that order.
    """
    if isinstance(state, Tensor):
        return TENSOR
    if isinstance(state, Mapping):
        inner = {str(key): _nesting(part) for key, part in state.items()}
        return None if None in inner.values() else (dict, tuple(inner.items()))
    if isinstance(state, tuple | list):
        parts = tuple(_nesting(part) for part in state)
        return None if None in parts else (type(state), parts)
    return None


def _filled(nesting: Any, tensors: Sequence[Tensor]) -> Any:
    """The state of some tensors."""
    rest = iter(tensors)

    def fill(inner: Any) -> object:
        if inner == TENSOR:
            return next(rest)
        kind, parts = inner
        if kind is dict:
            return {key: fill(part) for key, part in parts}
        values = [fill(part) for part in parts]
        return kind(*values) if hasattr(kind, "_fields") else kind(values)

    return fill(nesting)


def _names_of(nesting: object) -> list[str]:
    """What the tensors of a state are called: the keys that lead to them, or their places."""

    def paths(inner: Any, path: tuple[str, ...], *, keyed: bool) -> list[str]:
        if inner == TENSOR:
            return ["hook_" + ".".join(path) if keyed else "_".join(["hook_state", *path])]
        kind, parts = inner
        fields = getattr(kind, "_fields", None)
        named = parts if kind is dict else zip(fields or map(str, range(len(parts))), parts, strict=True)
        told = keyed or kind is dict or fields is not None
        return [name for key, part in named for name in paths(part, (*path, key), keyed=told)]

    return paths(nesting, (), keyed=False)


def _readers(
    module: nn.Module, values: Sequence[Tensor], call: Callable[[Sequence[Tensor]], object]
) -> dict[int, tuple[str, ...]]:
    """By the place of a tensor, what torch's own recurrent module that reads it calls its layers' parts.

    Each tensor gets values of its own, so that what a module is given tells which one it is.
    """
    generator = torch.Generator().manual_seed(0)
    told = [value + 0.1 * torch.rand(value.shape, generator=generator).to(value) for value in values]
    found: dict[int, tuple[str, ...]] = {}

    def listener(path: str, layer: nn.Module) -> Callable[..., None]:
        n_layers = getattr(layer, "num_layers", 1)

        def listen(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = kwargs.get("hx", args[1] if len(args) > 1 else None)
            for role, value in zip("hc", given if isinstance(given, tuple | list) else (given,), strict=False):
                places = [k for k, own in enumerate(told) if isinstance(value, Tensor) and _same_numbers(value, own)]
                names = tuple(f"{path}.{f'l{k}.' if n_layers > 1 else ''}hook_{role}" for k in range(n_layers))
                for place in places:
                    found.setdefault(place, names)

        return listen

    handles = [
        layer.register_forward_pre_hook(listener(path, layer), with_kwargs=True)
        for path, layer in module.named_modules()
        if isinstance(layer, LAYERS)
    ]
    try:
        with torch.no_grad():
            call(told)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _same_numbers(value: Tensor, other: Tensor) -> bool:
    return value.numel() == other.numel() and torch.equal(value.flatten(), other.flatten())


def _named(leaf: Leaf, read_as: tuple[str, ...], root: str) -> Leaf:
    """A leaf whose parts are called as the module that reads it has them, or as the state nests it."""
    n_parts = leaf.shape[0] if leaf.is_layered else 1
    own = leaf.names[0]
    names = (own,) if n_parts == 1 else tuple(f"l{layer}.{own}" for layer in range(n_parts))
    if len(read_as) == n_parts:
        names = tuple(strip_root(name, root) for name in read_as)
    return Leaf(names=names, axis=leaf.axis, shape=leaf.shape)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(_described, value))})"
    return f"a {type(value).__name__}"
