"""Sites: frozen values that say where in a policy something is read or changed, and how a tensor is read there."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from rlmech.axes import AXES
from rlmech.core.hook_point import HookPoint
from rlmech.errors import SiteError, nearest

Choice = int | str | tuple[int | str, ...]


Index = tuple[Any, ...]


@dataclass(frozen=True, slots=True, init=False, eq=True)
class Site:
    """A place in a policy: a hook name, and which positions along its axes.

    Args:
        name: Hook name.
        selection: By axis name, a position, the spec's name of one (`entity="vehicle_3"`), or several of them.

    Example:
        >>> import rlmech as rlm
        >>> rlm.Site("attention_layer.hook_z", head=2)
        Site('attention_layer.hook_z', head=2)
    """

    name: str
    selection: tuple[tuple[str, Choice], ...]
    _hash: int = field(compare=False, repr=False)

    def __init__(self, name: str, **selection: int | str | Iterable[int | str]) -> None:
        for axis in selection:
            if axis not in AXES or axis == "batch":
                close = nearest(axis, AXES)
                raise SiteError(
                    f"A site cannot be selected by {axis!r}.",
                    given=f"{axis}={selection[axis]!r}",
                    expected=f"an axis of the hook point, one of {', '.join(AXES[1:])}",
                    fix=f"did you mean {close[0]}=…?" if close else "policy.hook_dict[name].axes lists its axes",
                )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "selection", tuple((axis, _choice(axis, value)) for axis, value in selection.items()))
        object.__setattr__(self, "_hash", hash((self.name, self.selection)))  # sweeps look up thousands of them

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        # made anew where it is read: strings hash otherwise in each process, and the hash is kept
        return _site_of, (self.name, self.selection)

    def __repr__(self) -> str:
        return f"Site({', '.join([repr(self.name), *(f'{axis}={choice!r}' for axis, choice in self.selection)])})"

    def positions(self, point: HookPoint) -> dict[str, tuple[int, ...]]:
        """Selected positions by axis, as numbers.

        Raises:
            SiteError: The point has no such axis, position or name.
        """
        return {axis: _positions(point, axis, choice) for axis, choice in self.selection}

    def in_time(self, point: HookPoint) -> tuple[tuple[int, ...] | None, Site]:
        """The steps that it selects, where the point itself has no axis `step`, and the site without them.

        Raises:
            SiteError: A step is a name, or counts from the end.
        """
        chosen = dict(self.selection)
        if "step" not in chosen or "step" in point.axes:
            return None, self
        given = chosen.pop("step")
        steps = given if isinstance(given, tuple) else (given,)
        numbers = tuple(step for step in steps if isinstance(step, int) and step >= 0)
        if len(numbers) != len(steps):
            raise SiteError(
                "A step is a number, counted from the beginning.",
                given=f"step={given!r}",
                expected="0 or more",
                fix="step=0 is the first",
            )
        return numbers, _site_of(self.name, tuple(chosen.items()))

    def index(self, point: HookPoint) -> Index:
        """An index into the point's tensor that keeps all its axes, for reading and for assignment."""
        chosen = self.positions(point)
        several = sum(len(positions) > 1 for positions in chosen.values()) > 1
        index: list[Any] = []
        for place, axis in enumerate(point.axes):
            positions = chosen.get(axis)
            if positions is None and not several:
                index.append(slice(None))
            elif positions is not None and len(positions) == 1 and not several:
                index.append(slice(positions[0], positions[0] + 1))
            elif positions is not None and not several:
                index.append(list(positions))
            else:
                index.append((place, positions))
        return tuple(index) if not several else _OpenMesh(tuple(index))  # type: ignore[return-value]

    def mask(self, point: HookPoint) -> Bool[Tensor, ...]:
        """Which elements of one row of the point's value are selected, in the shape of its axes without the batch."""
        chosen = torch.zeros(1, *(point.size(axis) for axis in point.axes[1:]), dtype=torch.bool)
        return write(chosen, self.index(point), 1)[0]

    def block_shape(self, point: HookPoint) -> tuple[int, ...]:
        """Sizes of what is selected, without the batch and without axes at a single position."""
        chosen = self.positions(point)
        single = {axis for axis, choice in self.selection if not isinstance(choice, tuple)}
        return tuple(
            len(chosen[axis]) if axis in chosen else point.size(axis) for axis in point.axes[1:] if axis not in single
        )


class _OpenMesh(tuple[Any, ...]):
    """Selections along several axes at once: their outer product."""

    __slots__ = ()

    def on(self, value: Tensor) -> tuple[Tensor, ...]:
        chosen = [torch.arange(value.shape[place]) if p is None else torch.tensor(p) for place, p in self]
        return torch.meshgrid(*chosen, indexing="ij")


def read(value: Tensor, index: Index) -> Tensor:
    """What an index selects."""
    return value[index.on(value)] if isinstance(index, _OpenMesh) else value[index]


def write(value: Tensor, index: Index, new: Tensor | float) -> Tensor:
    """The tensor with the selected part set, in place."""
    value[index.on(value) if isinstance(index, _OpenMesh) else index] = new
    return value


def _site_of(name: str, selection: tuple[tuple[str, Choice], ...]) -> Site:
    return Site(name, **dict(selection))


def as_site(site: Site | str) -> Site:
    """A site of its name, or as it is."""
    return Site(site) if isinstance(site, str) else site


def _choice(axis: str, value: object) -> Choice:
    if isinstance(value, str):
        return value
    if isinstance(value, slice):
        raise SiteError(
            "A site is selected by positions, not by a slice.",
            given=f"{axis}={value}",
            expected="a number, a name, or several of them",
            fix=f"{axis}=range(…)",
        )
    if isinstance(value, Iterable):
        several = tuple(item if isinstance(item, str) else _whole(axis, item) for item in value)
        if not several:
            raise SiteError(
                f"Nothing is selected along {axis!r}.", given="[]", expected="at least one position", fix="leave it out"
            )
        return several
    return _whole(axis, value)


def _whole(axis: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise SiteError(
            f"A position along {axis!r} is a whole number or a name.",
            given=f"{axis}={value!r}",
            expected="an int, a name, or several of them",
            fix=f"{axis}=0",
        )
    return operator.index(value)


def _positions(point: HookPoint, axis: str, choice: Choice) -> tuple[int, ...]:
    if axis not in point.axes:
        raise SiteError(
            f"{point.name!r} has no axis {axis!r}.",
            given=f"{axis}={choice!r}",
            expected=f"one of {', '.join(point.axes[1:])}",
            fix="choose a hook point with that axis; policy.hook_dict lists the axes of each",
        )
    return tuple(_position(point, axis, item) for item in (choice if isinstance(choice, tuple) else (choice,)))


def _position(point: HookPoint, axis: str, item: int | str) -> int:
    labels, size = point.labels.get(axis, ()), point.size(axis)
    if isinstance(item, str):
        if item in labels:
            return labels.index(item)
        close = nearest(item, labels)
        raise SiteError(
            f"{point.name!r} has no {axis} named {item!r}.",
            given=f"{axis}={item!r}",
            expected=f"one of {', '.join(labels)}" if labels else f"a number from 0 to {size - 1}",
            fix=f"did you mean {close[0]!r}?" if close else f"give the position, {axis}=0 … {size - 1}",
        )
    if not -size <= item < size:
        raise SiteError(
            f"{point.name!r} has no {axis} {item}.",
            given=f"{axis}={item}",
            expected=f"0 to {size - 1}",
            fix=f"choose one of its {size}",
        )
    return item % size
