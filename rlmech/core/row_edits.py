"""Edits of single rows of a forward pass: each row its own, in one pass.

What an edit sets or adds is put in tables, a line for each plan of edits and a look-up for each row; an edit that
draws, projects, or changes from step to step is called row by row. Either way a row gets, bit for bit, what
it would get alone. Cost: a gather and a `where` for each edited point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlmech.core.edit import Edit
from rlmech.core.hook_point import HookPoint, HookRegistry, Interceptors

MOST_ELEMENTS = 2**24
"""Of a table; larger ones are not made: the edits are called row by row."""
Change = tuple[str, Callable[..., Tensor], Edit]
"""A hook name, the bound function of an edit there, and the edit."""


class Unchanged:
    """Lets every value pass as a copy: a pass that is hooked at some points and changes nothing.

    Args:
        names: The points.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)

    @property
    def is_idle(self) -> bool:
        """Whether there are no points."""
        return not self._names

    def active(self) -> set[str]:
        """The points."""
        return self._names

    def intercept(self, point: HookPoint, value: Tensor) -> Tensor:
        """A copy."""
        return value.clone()


class FirstRow:
    """Shows the functions that are attached to a policy the first row alone; the others only fill the pass.

    Args:
        registry: The policy's.
    """

    is_idle: bool = False

    def __init__(self, registry: HookRegistry) -> None:
        self._registry = registry

    def active(self) -> set[str]:
        """The points that have functions."""
        return self._registry.active()

    def intercept(self, point: HookPoint, value: Tensor) -> Tensor:
        """The value with its first row as the functions leave it."""
        result = value.clone()
        result[:1] = self._registry.intercept(point, value[:1])
        return result


@dataclass(slots=True)
class _Layer:
    """The first edits at a point, or the second ones…, of all plans."""

    functions: list[Callable[..., Tensor] | None]  # by plan, those that are called row by row
    edits: list[tuple[Callable[..., Tensor], Edit] | None]  # by plan, those that tables hold
    tables: tuple[Tensor, Tensor, bool] | None = None  # masks, values, whether values are added


class RowEdits:
    """What is done at some points in the rows of a pass.

    Args:
        plans: Edits, in order; every plan edits the same points.
        plan_of: For each row, the number of its plan.
        hook_dict: The policy's hook points.

    Attributes:
        points: Names of the edited points.
    """

    def __init__(self, plans: Sequence[Sequence[Change]], plan_of: Tensor, hook_dict: Mapping[str, HookPoint]) -> None:
        self.points = tuple(dict.fromkeys(name for name, *_ in plans[0]))
        self._plan_of = plan_of
        self._layers: dict[str, list[_Layer]] = {}
        for name in self.points:
            own = [[(function, edit) for at, function, edit in plan if at == name] for plan in plans]
            size = len(plans) * torch.Size(n or 1 for n in hook_dict[name].shape).numel()
            for depth in range(max(map(len, own))):
                here = [plan[depth] if depth < len(plan) else None for plan in own]
                for adds in (False, True):  # a plan has one of the two in a layer
                    kept = [_fits(one, hook_dict[name], size, adds=adds) for one in here]
                    if any(kept):
                        self._layers.setdefault(name, []).append(_Layer([None] * len(plans), kept))
                called = [None if one is None or _fits(one, hook_dict[name], size) else one[0] for one in here]
                if any(called):
                    self._layers.setdefault(name, []).append(_Layer(called, [None] * len(plans)))

    def of(self, rows: Tensor, *, size: int) -> Interceptors:
        """The edits of some rows, in a pass of so many; the last row's fill it.

        Args:
            rows: Numbers of rows.
            size: Rows of the pass, as many or more.
        """
        plans = self._plan_of[rows]
        return _Chosen(self, plans, torch.cat([plans, plans[-1:].expand(size - len(plans))]))

    def apply(self, point: HookPoint, value: Tensor, plans: Tensor, filled: Tensor) -> Tensor:
        """A value edited row by row; `plans` are those of its rows, `filled` those of the whole pass."""
        result = value.clone()
        for layer in self._layers[point.name]:
            if any(layer.edits):
                if layer.tables is None:
                    layer.tables = _tables(layer.edits, point, value)
                masks, values, adds = layer.tables
                put = values[filled]
                # written into the copy: what is computed next rounds by how its input lies in memory
                torch.where(masks[filled], result + put if adds else put, result, out=result)
                continue
            for row, plan in enumerate(plans.tolist()):
                function = layer.functions[plan]
                if function is not None:
                    result[row : row + 1] = function(result[row : row + 1].clone(), hook=point)
        return result


class _Chosen:
    """The edits of the rows of one pass."""

    is_idle: bool = False

    def __init__(self, edits: RowEdits, plans: Tensor, filled: Tensor) -> None:
        self._edits, self._plans, self._filled = edits, plans, filled

    def active(self) -> set[str]:
        return set(self._edits.points)

    def intercept(self, point: HookPoint, value: Tensor) -> Tensor:
        return self._edits.apply(point, value, self._plans, self._filled)


def _fits(
    change: tuple[Callable[..., Tensor], Edit] | None, point: HookPoint, size: int, *, adds: bool | None = None
) -> tuple[Callable[..., Tensor], Edit] | None:
    """An edit that tables can hold, of one of the two sorts; None for another."""
    if change is None or size > MOST_ELEMENTS:
        return None
    edit = change[1]
    if edit.kind == "steer":
        return change if adds in (None, True) else None
    value = edit.value
    is_one = edit.kind in ("zero", "mean") or (edit.kind == "patch" and value is not None and len(value) == 1)
    in_time = value is not None and value.ndim == len(point.axes) + 1
    steps = edit.site.in_time(point)[0]
    return change if is_one and not in_time and steps is None and adds in (None, False) else None


def _tables(
    edits: Sequence[tuple[Callable[..., Tensor], Edit] | None], point: HookPoint, value: Tensor
) -> tuple[Tensor, Tensor, bool]:
    adds = any(one is not None and one[1].kind == "steer" for one in edits)
    # what is added to -0 is left as it is, sign of a zero included
    blank = torch.full((1, *value.shape[1:]), -0.0 if value.is_floating_point() else 0, dtype=value.dtype)
    blank = blank.to(value.device)
    nowhere = torch.zeros(blank.shape, dtype=torch.bool, device=value.device)
    masks = [
        nowhere if one is None else one[1].site.in_time(point)[1].mask(point)[None].to(value.device) for one in edits
    ]
    values = [blank if one is None else one[0](blank.clone(), hook=point) for one in edits]
    return torch.cat(masks), torch.cat(values), adds
