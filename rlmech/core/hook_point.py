"""Hook points and the registry of functions attached to them.

A hook is `fn(tensor, hook=point) -> tensor | None`, as in TransformerLens. It gets a copy, so that what it does in
place reaches this activation and nothing else; what it returns must keep shape, dtype and device. Several run in order,
forward and backward alike. Forward passes made inside a hook see only the hooks attached there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlmech.axes import Axis
from rlmech.errors import HookError, SiteError

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


class HookHandle:
    """One attached function; `remove` takes exactly it away, and knows whether it ever ran.

    Usable as a context manager.
    """

    def __init__(self, function: HookFunction, name: str, attached: dict[str, list[HookHandle]]) -> None:
        self.function, self.name, self.fired = function, name, 0
        self.listening = True
        self._attached = attached
        attached.setdefault(name, []).append(self)

    def remove(self) -> None:
        """Detach the function; detaching twice does nothing. A backward pass that is still to come passes it by."""
        self.listening = False
        handles = self._attached.get(self.name, [])
        if self in handles:
            handles.remove(self)
        if not handles:
            self._attached.pop(self.name, None)

    def move(self, attached: dict[str, list[HookHandle]]) -> None:
        """Attach the function elsewhere."""
        self.remove()
        self.listening, self._attached = True, attached
        attached.setdefault(self.name, []).append(self)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class HookRegistry:
    """All functions attached to the points of one policy."""

    def __init__(self) -> None:
        self.attached: dict[Direction, dict[str, list[HookHandle]]] = {"fwd": {}, "bwd": {}}

    def attach(self, name: str, function: HookFunction, direction: Direction) -> HookHandle:
        """Attach a function to a point by name."""
        return HookHandle(function, name, self.attached[direction])

    def active(self) -> set[str]:
        """Names of the points that have functions."""
        return {*self.attached["fwd"], *self.attached["bwd"]}

    @property
    def is_idle(self) -> bool:
        """Whether nothing is attached anywhere."""
        return not (self.attached["fwd"] or self.attached["bwd"])

    def clear(self, name: str) -> None:
        """Detach everything from a point."""
        for names in self.attached.values():
            names.pop(name, None)

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Let code that runs inside a hook see only the hooks that it attaches itself."""
        outer = self.attached
        inner: dict[Direction, dict[str, list[HookHandle]]] = {"fwd": {}, "bwd": {}}
        self.attached = inner
        try:
            yield
        finally:
            left, self.attached = inner, outer
            for direction, names in left.items():
                for handle in [handle for handles in names.values() for handle in handles]:
                    handle.move(outer[direction])

    def intercept(self, point: HookPoint, value: Tensor) -> Tensor:
        """Pass an activation, in canonical axes, through the functions attached to its point."""
        for handle in tuple(self.attached["fwd"].get(point.name, ())):
            value = self.run(handle, point, value)
        backward = tuple(self.attached["bwd"].get(point.name, ()))
        if backward:
            value = self._listen(point, value, backward)
        return value

    def run(self, handle: HookHandle, point: HookPoint, value: Tensor) -> Tensor:
        """What one attached function makes of an activation or of its gradient, checked."""
        handle.fired += 1
        given = value.clone()
        with self.suspended():
            returned = handle.function(given, hook=point)
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


class HookPoint(nn.Module):
    """A named place in a policy where activations can be read and changed.

    Attributes:
        name: Its name, e.g. `attention_layer.hook_pattern`.
        axes: Names of its axes, the batch first.
        shape: Sizes, None for the batch.
        kind: What stands there.
        labels: Names along an axis, where they are known, e.g. `{"entity": ("ego", "vehicle_1")}`.
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

    def add_hook(self, fn: HookFunction, dir: Direction = "fwd") -> HookHandle:
        """Attach a function until its handle, or `remove_hooks`, takes it away.

        Args:
            fn: `fn(tensor, hook=point) -> tensor | None`; for `dir="bwd"` the tensor is the gradient.
            dir: `fwd` for the activation, `bwd` for its gradient.

        Returns:
            The handle; `handle.remove()` detaches, and `with point.add_hook(fn):` does so by itself.
        """
        return self._registry.attach(self.name, fn, dir)

    def remove_hooks(self) -> None:
        """Detach everything from this point."""
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
