"""Boxes around observations: a radius, radii by feature, or the least and the greatest values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlmech.core.bounds.intervals import Interval
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError

Extent = float | np.ndarray | Tensor | Sequence[float]
Box = Extent | tuple[Extent, Extent] | Mapping[str, Any]
"""A radius, radii that broadcast to the observation, `(low, high)`, radii by feature name, or boxes by a dict's key."""


def box_around(policy: HookedPolicy, arrays: Sequence[Tensor], box: Box) -> tuple[Interval, ...]:
    """The least and the greatest values of each array of an observation, in double precision.

    Args:
        policy: The policy.
        arrays: The observation's arrays, rows first, in the observation's own units.
        box: A radius around each number; radii that broadcast to the rows (a list, an array or a tensor); a tuple
            `(low, high)` of arrays that broadcast to them and hold the observation; or a mapping: from feature names to
            radii, the other features fixed, or from the keys of a dict observation to any of these, the others fixed.

    Raises:
        ObservationError: The box does not fit the observation, is not finite, or leaves it out.
    """
    if not isinstance(box, Mapping):
        return tuple(_one(array, box) for array in arrays)
    named, keys = dict(box), [str(node.owner) for node in policy.graph_engine.graph.inputs]
    if keys != [""]:
        _check_names(named, keys, what="array")
        return tuple(_one(array, named.get(key, 0.0)) for key, array in zip(keys, arrays, strict=True))
    names = policy.spec.names("feature")
    if not names:
        raise _unfit(
            "The policy's spec names no features.", given=list(named), expected="a radius, or an array of radii"
        )
    _check_names(named, names, what="feature")
    radii = torch.tensor([float(named.get(name, 0.0)) for name in names], dtype=torch.float64)
    return tuple(_one(array, radii) for array in arrays)


def _one(array: Tensor, box: Any) -> Interval:
    centre = array.detach().double()
    if isinstance(box, tuple):
        ends = cast("tuple[Any, ...]", box)
        if len(ends) != 2:
            raise _unfit("A tuple is a box's low and high.", given=f"{len(ends)} parts", expected="(low, high)")
        low, high = (_fitted(end, centre) for end in ends)
        if bool((low > centre).any()) or bool((high < centre).any()):
            raise _unfit(
                "The box leaves out its own observation.",
                given=f"{int(((low > centre) | (high < centre)).sum())} numbers outside",
                expected="low <= observation <= high",
            )
        return Interval(low, high)
    if array.dtype is torch.bool:  # which action may be taken is no matter of degree
        return Interval(centre, centre)
    radius = _fitted(box, centre)
    if bool((radius < 0).any()):
        raise _unfit("A radius is negative.", given=float(radius.min()), expected="0 or more")
    # the observation moved by the radius in the policy's own precision is rounded, perhaps outward
    precision = array.dtype if array.is_floating_point() else torch.float64
    slack = torch.finfo(precision).eps * (centre.abs() + radius) * (radius > 0)
    return Interval(centre - radius - slack, centre + radius + slack)


def _fitted(value: Any, like: Tensor) -> Tensor:
    try:
        given = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
        found = given.detach().to(like).expand_as(like)
    except (RuntimeError, TypeError, ValueError):
        shape = tuple(np.shape(value)) if not isinstance(value, dict) else type(value).__name__
        raise _unfit(
            "The box does not fit the observation.",
            given=shape,
            expected=f"a shape that broadcasts to {tuple(like.shape)}",
        ) from None
    if not bool(found.isfinite().all()):
        raise _unfit("The box is not finite.", given="infinity or NaN", expected="finite numbers")
    return found


def _check_names(given: Mapping[str, Any], known: Sequence[str], *, what: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise _unfit(
            f"The observation has no {what} {unknown[0]!r}.", given=unknown[0], expected=f"one of {list(known)}"
        )


def _unfit(problem: str, *, given: object, expected: object) -> ObservationError:
    return ObservationError(
        problem, given=given, expected=expected, fix="box=0.1, box=[0.1, 0.0, ...] by feature, or box=(low, high)"
    )
