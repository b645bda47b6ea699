"""Hook points and the registry of functions attached to them.

A hook is `fn(tensor, hook=point) -> tensor | None`, as in TransformerLens. It gets a copy, so that what it does in
place reaches this activation and nothing else; what it returns must keep shape, dtype and device. Several run in order,
forward and backward alike. Forward passes made inside a hook see only the hooks attached there. Hooks belong to the
context (`contextvars`) that attached them: threads and tasks that share a policy do not see each other's.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rlmech.axes import Axis
from rlmech.errors import HookError, SiteError
from rlmech.habits import OF_HOOK_POINT, unknown_name

HookFunction = Callable[..., Tensor | None]
Direction = Literal["fwd", "bwd"]
Kind = Literal[
    "observation",
    "linear",
    "convolution",
    "activation",
    "norm",
    "pool",
    "recurrent",
    "state",
    "gate",
    "layer",
    "query",
    "key",
    "value",
    "scores",
    "pattern",
    "mask",
    "z",
    "result",
    "attn_out",
    "output",
]


Attached = Mapping[tuple[Direction, str], tuple[int, ...]]
"""Numbers of handles by direction and hook name, in the order in which they were attached; never changed in place."""

_NOTHING: Attached = {}
_attached: ContextVar[Mapping[int, Attached]] = ContextVar("rlmech hooks", default={})  # noqa: B039  # never mutated
"""What each registry, by number, has attached in this context: numbers alone, so that it keeps nothing alive."""
_numbers = itertools.count()
_step: ContextVar[int | None] = ContextVar("rlmech step", default=None)
"""The step that a sequence or an episode is at, in this context."""


@contextmanager
def at_step(step: int) -> Generator[None]:
    """Tell hooks which step of a sequence or an episode the passes inside are."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


class HookHandle:
    """One attached function; `remove` takes exactly it away, and knows whether it ever ran.

    Usable as a context manager.
    """

    def __init__(self, function: HookFunction, name: str, direction: Direction, registry: HookRegistry) -> None:
        self.function, self.name, self.fired = function, name, 0
        self.key: tuple[Direction, str] = (direction, name)
        self.listening = True
        self.number = next(_numbers)
        self._registry = registry

    def remove(self) -> None:
        """Detach the function; detaching twice does nothing. A backward pass that is still to come passes it by."""
        self.listening = False
        self._registry.detach(self)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class HookRegistry:
    """All functions attached to the points of one policy.

    They act in the context (`contextvars`) that attached them and in those copied from it later: a thread's or task's
    hooks do not reach another's.
    """

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._handles: dict[int, HookHandle] = {}

    def attach(self, pairs: Iterable[tuple[str, HookFunction]], direction: Direction) -> list[HookHandle]:
        """Attach functions to points by name, in order."""
        handles = [HookHandle(function, name, direction, self) for name, function in pairs]
        attached = dict(self._here())
        for handle in handles:
            self._handles[handle.number] = handle
            attached[handle.key] = (*attached.get(handle.key, ()), handle.number)
        self._set(attached)
        return handles

    def detach(self, handle: HookHandle) -> None:
        """Take a function away, whichever context attached it."""
        if self._handles.pop(handle.number, None) is None:
            return
        key = handle.key
        attached = dict(self._here())
        if key in attached:
            attached[key] = tuple(number for number in attached[key] if number != handle.number)
            self._set(attached)

    def active(self) -> set[str]:
        """Names of the points that have functions in this context."""
        return {
            name for (_, name), numbers in self._here().items() if any(number in self._handles for number in numbers)
        }

    @property
    def is_idle(self) -> bool:
        """Whether nothing is attached anywhere in this context."""
        return not self._handles or not self.active()

    def functions(self) -> list[tuple[str, HookFunction]]:
        """Names and functions of all that is attached in this context."""
        return [(name, handle.function) for direction, name in self._here() for handle in self._at(direction, name)]

    def clear(self, name: str) -> None:
        """Detach everything that this context attached to a point."""
        for handle in (*self._at("fwd", name), *self._at("bwd", name)):
            handle.remove()

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Let code that runs inside a hook see only the hooks that it attaches itself; those it leaves act on."""
        outer = self._here()
        self._set(_NOTHING)
        try:
            yield
        finally:
            left = self._here()
            keys = dict.fromkeys((*outer, *left))
            self._set({key: (*outer.get(key, ()), *left.get(key, ())) for key in keys})

    def _here(self) -> Attached:
        return _attached.get().get(self._number, _NOTHING)

    def _set(self, attached: Attached) -> None:
        alive = {key: numbers for key, numbers in attached.items() if any(n in self._handles for n in numbers)}
        everything = {number: other for number, other in _attached.get().items() if number != self._number}
        _attached.set({**everything, self._number: alive} if alive else everything)

    def _at(self, direction: Direction, name: str) -> list[HookHandle]:
        numbers = self._here().get((direction, name), ())
        return [handle for number in numbers if (handle := self._handles.get(number)) is not None]

    def intercept(self, point: HookPoint, value: Tensor) -> Tensor:
        """Pass an activation, in canonical axes, through the functions attached to its point."""
        for handle in self._at("fwd", point.name):
            value = self.run(handle, point, value)
        backward = self._at("bwd", point.name)
        if backward:
            value = self._listen(point, value, backward)
        return value

    def run(self, handle: HookHandle, point: HookPoint, value: Tensor) -> Tensor:
        """What one attached function makes of an activation or of its gradient, checked."""
        handle.fired += 1
        given = value.clone()
        with self.suspended():
            try:
                returned = handle.function(given, hook=point)
            except TypeError as error:
                if _takes_hook(handle.function):
                    raise
                raise _wrong_signature(handle.function, point) from error
        result = given if returned is None else returned
        check_replacement(point, value, result)
        return result

    def _listen(self, point: HookPoint, value: Tensor, handles: Sequence[HookHandle]) -> Tensor:
        if not value.requires_grad:
            if not torch.is_grad_enabled():
                why, fix = "gradients are switched off", "run it outside torch.no_grad()"
            else:
                why, fix = "nothing before it requires a gradient", "let a parameter or the observation require one"
            raise HookError(
                f"A backward hook on {point.name!r} can never fire: {why}.",
                given=f"bwd_hooks on {point.name!r}",
                expected="an activation that requires a gradient",
                fix=fix,
            )
        value = value.view_as(value)
        for handle in handles:
            value.register_hook(_backward(self, handle, point))
        return value


class Interceptors(Protocol):
    """What stands between values that are computed and their use; a `HookRegistry` is one."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing."""
        ...

    def active(self) -> set[str]:
        """Names of the points where there is something."""
        ...

    def intercept(self, point: HookPoint, value: Tensor) -> Tensor:
        """What takes a value's place, in canonical axes and of the same shape, dtype and device."""
        ...


class HookPoint(nn.Module):
    """A named place in a policy where activations can be read and changed.

    Attributes:
        name: Its name, e.g. `attention_layer.hook_pattern`.
        axes: Names of its axes, the batch first.
        shape: Sizes, None for the batch.
        kind: What stands there.
        labels: Names along an axis, where they are known, e.g. `{"entity": ("ego", "vehicle_1")}`.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> policy.hook_dict["1.hook_out"]
        HookPoint(1.hook_out [batch neuron=8])
        >>> policy.hook_dict["1.hook_out"].size("neuron")
        8
    """

    def __init__(
        self,
        name: str,
        *,
        axes: tuple[Axis, ...],
        shape: tuple[int | None, ...],
        kind: Kind,
        registry: HookRegistry,
        labels: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.axes, self.shape, self.kind = name, axes, shape, kind
        self.labels: dict[str, tuple[str, ...]] = dict(labels or {})
        self._registry = registry

    @property
    def step(self) -> int | None:
        """The step that the sequence or episode is at, from 0, while a hook runs in one; else None."""
        return _step.get()

    def add_hook(self, fn: HookFunction, dir: Direction = "fwd") -> HookHandle:
        """Attach a function until its handle, or `remove_hooks`, takes it away; it acts in this thread or task only.

        Args:
            fn: `fn(tensor, hook=point) -> tensor | None`; for `dir="bwd"` the tensor is the gradient.
            dir: `fwd` for the activation, `bwd` for its gradient.

        Returns:
            The handle; `handle.remove()` detaches, and `with point.add_hook(fn):` does so by itself.
        """
        return self._registry.attach([(self.name, fn)], dir)[0]

    def remove_hooks(self) -> None:
        """Detach everything that this thread or task attached to this point."""
        self._registry.clear(self.name)

    def size(self, axis: str) -> int:
        """Size along an axis other than the batch.

        Raises:
            SiteError: The point has no such axis.
        """
        sizes: dict[str, int | None] = dict(zip(self.axes, self.shape, strict=True))
        size = sizes.get(axis)
        if size is None:
            raise SiteError(
                f"{self.name!r} has no axis {axis!r}.",
                given=f"axis {axis!r}",
                expected=f"one of {', '.join(self.axes[1:])}",
                fix="choose a hook point that has the axis, or another axis",
            )
        return size

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
        raise unknown_name("HookPoint", name, vars(HookPoint), OF_HOOK_POINT)

    def extra_repr(self) -> str:
        """Name, axes and sizes."""
        sizes = " ".join(
            f"{axis}={size}" if size is not None else axis for axis, size in zip(self.axes, self.shape, strict=True)
        )
        return f"{self.name} [{sizes}]"


def check_replacement(point: HookPoint, value: Tensor, result: Any) -> None:
    """Refuse a replacement that is not a tensor of the activation's own shape, dtype and device."""
    if isinstance(result, Tensor) and (result.shape, result.dtype, result.device) == (
        value.shape,
        value.dtype,
        value.device,
    ):
        return
    raise HookError(
        f"A hook on {point.name!r} returned what cannot stand in for the activation.",
        given=_describe(result),
        expected=f"{_describe(value)}, axes {' '.join(point.axes)}, or None",
        fix="return a tensor of the same shape, dtype and device; nothing is broadcast",
    )


def _takes_hook(function: HookFunction) -> bool:
    try:
        inspect.signature(function).bind(None, hook=None)
    except TypeError:
        return False
    except ValueError:  # built into C, and says nothing
        return True
    return True


def _wrong_signature(function: HookFunction, point: HookPoint) -> HookError:
    return HookError(
        f"A hook on {point.name!r} does not take what it is called with.",
        given=f"{getattr(function, '__name__', 'a function')}{inspect.signature(function)}",
        expected="fn(tensor, hook), which returns a tensor or None",
        fix="lambda tensor, hook: tensor * 0",
    )


def check_fired(handles: Sequence[HookHandle]) -> None:
    """Refuse to pass over a hook that was never reached."""
    silent = [handle.name for handle in handles if not handle.fired]
    if silent:
        raise HookError(
            f"{len(silent)} of {len(handles)} hooks never fired.",
            given=f"hooks on {', '.join(map(repr, silent[:3]))}{'…' if len(silent) > 3 else ''}",
            expected="a forward pass inside the with, and for backward hooks a backward pass, that reaches them",
            fix="run the policy (and backward) inside the with, or hook points that this input reaches",
        )


def _backward(registry: HookRegistry, handle: HookHandle, point: HookPoint) -> Callable[[Tensor], Tensor]:
    def run(gradient: Tensor) -> Tensor:
        return registry.run(handle, point, gradient) if handle.listening else gradient

    return run


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return f"a {type(value).__name__}"
