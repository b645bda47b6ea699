"""What may move around a state, in the features' own units, and the boxes and balls that follow.

    |x_i - x0_i| <= r * reach_i        for each number that may move; in another norm, |(x - x0) / reach|_p <= r

A feature that the policy's spec gives a range is scaled by it: a reach of 1.5 for `x` is 1.5 m. Whether a vehicle is
there is no matter of degree, so the presence feature never moves, nor does anything of a vehicle that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlmech.core.bounds.balls import Ball
from rlmech.core.bounds.boxes import Box, box_around
from rlmech.core.bounds.intervals import Interval
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError

Norm = Literal["inf", "2", "1"]
PRESENT = 0.5  # a presence from which on a vehicle is there
_OFF_RANGE = 1e-6  # of a range, by which rounding may leave it


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What may move around a state, and how far in proportion: a box, or a ball of another norm.

    Attributes:
        features: Names of features that move, or how far each does, in its own unit (those that the spec gives a range;
            else as the network sees it). Numbers count along the last axis where the spec names none. None for all
            but presence, by the same number each as the network sees them.
        entities: Names or numbers of the entities that move; None for all. Absent ones never do.
        norm: `inf`, where each number moves by itself; `2` or `1`, where they share.
        clipped: Whether moves stop at the end of a feature's range; else a box that leaves one is refused.

    Example:
        >>> Move(features={"x": 1.5, "y": 1.5}, entities=["vehicle_1"]).norm
        'inf'
    """

    features: Mapping[str | int, float] | Sequence[str | int] | str | None = None
    entities: Sequence[str | int] | None = None
    norm: Norm = "inf"
    clipped: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("inf", "2", "1"):
            raise _unfit("There is no such norm.", given=repr(self.norm), expected="'inf', '2' or '1'", fix="norm='2'")
        for name, reach in self.amounts.items():
            if not 0 <= float(reach) < float("inf"):
                raise _unfit(
                    f"The feature {name!r} cannot move by {reach}.",
                    given=reach,
                    expected="0 or more, and finite",
                    fix="Move(features={'x': 1.5})",
                )

    @property
    def amounts(self) -> dict[str | int, float]:
        """How far each feature moves; empty for all."""
        if self.features is None:
            return {}
        if isinstance(self.features, Mapping):
            return dict(self.features)
        names = [self.features] if isinstance(self.features, str) else list(self.features)
        return dict.fromkeys(names, 1.0)

    def unit(self, policy: HookedPolicy) -> str:
        """The unit of a radius that multiplies this move; `1` where several are mixed."""
        units = {
            policy.spec.features[policy.spec.index("feature", name)].unit or "1"
            for name, reach in self.amounts.items()
            if isinstance(name, str) and reach
        }
        return units.pop() if len(units) == 1 and set(self.amounts.values()) == {1.0} else "1"

    def reach(self, policy: HookedPolicy, arrays: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """How far each number moves, as the network sees it, in double precision.

        Args:
            policy: The policy.
            arrays: The observation's arrays, rows first.

        Raises:
            ObservationError: The observation has no such feature or entity, or the policy's spec does not name them.
        """
        if len(arrays) > 1 and (self.features is not None or self.entities is not None):
            raise _unfit(
                "A dict observation has no features of its own.",
                given=f"{len(arrays)} arrays",
                expected="one array, or a move of all numbers",
                fix="leave out features= and entities=, or give score_bounds a box by the dict's keys",
            )
        return tuple(self._reach_one(policy, array) for array in arrays)

    def _reach_one(self, policy: HookedPolicy, array: Tensor) -> Tensor:
        if array.dtype is torch.bool:  # which action may be taken is no matter of degree
            return torch.zeros(array.shape, dtype=torch.float64, device=array.device)
        spec, size = policy.spec, array.shape[-1]
        names = spec.names("feature") if len(spec.features) == size else ()
        each = torch.zeros(size, dtype=torch.float64, device=array.device)
        if self.features is None:
            each += 1
            if names and spec.presence is not None:
                each[names.index(spec.presence)] = 0
        for name, amount in self.amounts.items():
            place = _place(name, names, size, what="feature")
            if names and names[place] == spec.presence:
                raise _unfit(
                    f"{spec.presence!r} says whether a vehicle is there, which is no matter of degree.",
                    given=f"features with {spec.presence!r}",
                    expected="features that are measured",
                    fix="rlm.patching.ablation_sweep and Scene.remove take vehicles out",
                )
            feature = spec.features[place] if names else None
            ranged = feature is not None and feature.low is not None and feature.high is not None
            each[place] = amount * 2 / (feature.high - feature.low) if ranged else amount  # pyright: ignore
        found = each.expand_as(array).clone()
        if self.entities is not None:
            if array.ndim != 3:
                raise _unfit(
                    "The observation has no entities.",
                    given=f"entities={list(self.entities)}, an observation of {array.ndim - 1} axes",
                    expected="an observation with an axis of entities",
                    fix="leave out entities=",
                )
            chosen = torch.zeros(array.shape[1], dtype=torch.bool, device=array.device)
            for name in self.entities:
                chosen[_place(name, spec.names("entity"), array.shape[1], what="entity")] = True
            found = found * chosen[:, None]
        there = present(policy, array)
        return found if there is None else found * there[..., None]


def present(policy: HookedPolicy, array: Tensor) -> Tensor | None:
    """Which entities are there, `[batch entity]`; None where the observation does not say so."""
    place = policy.spec.presence_index
    if place is None or array.ndim != 3 or array.shape[-1] != len(policy.spec.features):
        return None
    return array[..., place] >= PRESENT


def ranges(policy: HookedPolicy, arrays: Sequence[Tensor]) -> tuple[Interval, ...]:
    """Between what each number can be, as the network sees it: the features' ranges, wider where the state already is.

    Args:
        policy: The policy.
        arrays: The observation's arrays.
    """
    found: list[Interval] = []
    for array in arrays:
        at, features = array.detach().double(), policy.spec.features
        low, high = torch.full_like(at, -torch.inf), torch.full_like(at, torch.inf)
        if len(features) == array.shape[-1]:
            for place, feature in enumerate(features):
                if feature.low is not None:
                    low[..., place], high[..., place] = -1, 1
        if not array.is_floating_point() and array.dtype is torch.uint8:
            low, high = torch.zeros_like(at), torch.full_like(at, 255.0)
        found.append(Interval(torch.minimum(low, at), torch.maximum(high, at)))
    return tuple(found)


def region_of(
    policy: HookedPolicy, arrays: Sequence[Tensor], box: Box | Move
) -> tuple[tuple[Interval, ...], Ball | None]:
    """The box, and the ball where there is one, of a move or a box.

    Args:
        policy: The policy.
        arrays: The observation's arrays.
        box: A move at radius 1, or a box as the network sees it.

    Raises:
        ObservationError: It does not fit, leaves a feature's range, or lets a vehicle be there or not.
    """
    limits = ranges(policy, arrays)
    if isinstance(box, Move):
        reach = box.reach(policy, arrays)
        found = moved_box(arrays, [_rounded_up(a, by) for a, by in zip(arrays, reach, strict=True)], 1.0, None)
        if box.clipped:
            found = tuple(
                Interval(torch.maximum(end.low, limit.low), torch.minimum(end.high, limit.high))
                for end, limit in zip(found, limits, strict=True)
            )
        ball = None if box.norm == "inf" else Ball(norm=int(box.norm), radii=reach)
    else:
        found, ball = box_around(policy, arrays, box), None
    for array, own, limit in zip(arrays, found, limits, strict=True):
        _check_range(policy, array, own, limit)
    return found, ball


def moved_box(
    arrays: Sequence[Tensor], reach: Sequence[Tensor], radius: float | Tensor, limits: Sequence[Interval] | None
) -> tuple[Interval, ...]:
    """The box of all that lies no further than a radius, a number or one for each row.

    Args:
        arrays: The observation's arrays.
        reach: How far each number moves at radius 1.
        radius: The radius.
        limits: Where moves stop; None for nowhere.
    """
    found: list[Interval] = []
    for place, (array, each) in enumerate(zip(arrays, reach, strict=True)):
        at = array.detach().double()
        by = each * (radius.view(-1, *(1,) * (each.ndim - 1)) if isinstance(radius, Tensor) else radius)
        low, high = at - by, at + by
        if limits is not None:
            low, high = torch.maximum(low, limits[place].low), torch.minimum(high, limits[place].high)
        found.append(Interval(low, high))
    return tuple(found)


def _rounded_up(array: Tensor, reach: Tensor) -> Tensor:
    """How far a state moved in the policy's own precision can come, which rounds it, perhaps outward."""
    precision = array.dtype if array.is_floating_point() else torch.float64
    return reach + torch.finfo(precision).eps * (array.double().abs() + reach) * (reach > 0)


def _check_range(policy: HookedPolicy, array: Tensor, own: Interval, limit: Interval) -> None:
    out = (own.low < limit.low - _OFF_RANGE) | (own.high > limit.high + _OFF_RANGE)
    spec = policy.spec
    if bool(out.any()):
        row, *_, place = out.nonzero()[0].tolist()
        feature = spec.features[place] if len(spec.features) == array.shape[-1] else None
        name = f"feature {feature.name!r}" if feature is not None else "observation"
        given = (own.low[out].min().item(), own.high[out].max().item())
        raise _unfit(
            f"The box leaves the range of the {name} in row {row}: no state is there.",
            given=f"{given[0]:.4g} to {given[1]:.4g} as the network sees it",
            expected=f"{limit.low[out][0].item():.4g} to {limit.high[out][0].item():.4g}"
            + (f", that is {feature.low:g} to {feature.high:g} {feature.unit}" if feature is not None else ""),
            fix="a smaller box, or Move(..., clipped=True), which stops at the end of the range",
        )
    place = spec.presence_index
    if present(policy, array) is not None and place is not None:
        crosses = (own.low[..., place] < PRESENT) & (own.high[..., place] >= PRESENT)
        if bool(crosses.any()):
            row, entity = crosses.nonzero()[0].tolist()
            raise _unfit(
                f"In the box, {spec.entities[entity] if spec.entities else entity!r} of row {row} is there and is not.",
                given=f"{spec.presence!r} on both sides of {PRESENT}",
                expected="a box in which each vehicle is there, or is not",
                fix="leave the presence feature as it is; ask once with the vehicle and once without",
            )


def _place(name: str | int, names: Sequence[str], size: int, *, what: str) -> int:
    if isinstance(name, str) and name in names:
        return list(names).index(name)
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < size:
        return name
    raise _unfit(
        f"The observation has no {what} {name!r}.",
        given=repr(name),
        expected=f"one of {list(names)}" if names else f"a number from 0 to {size - 1}: the policy's spec names none",
        fix="policy.spec lists the names",
    )


def _unfit(problem: str, *, given: object, expected: object, fix: str) -> ObservationError:
    return ObservationError(problem, given=given, expected=expected, fix=fix)
