"""Names for what decompositions run over: the observation's own axes, and the action scores or gaps explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.circuits.labels import score_units
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address
from rlmech.core.provenance import provenance
from rlmech.errors import MetricError


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedArray:
    """One array of the observation.

    Attributes:
        key: Its key in a dict observation; empty where the observation is one array.
        dims: Names of its axes without the batch; `<axis>_<key>` in a dict observation.
        coords: Names or numbers along them.
    """

    key: str
    dims: tuple[str, ...]
    coords: dict[str, Any]

    def named(self, name: str) -> str:
        """A variable's name for this array."""
        return f"{name}_{self.key}" if self.key else name


def observed_arrays(policy: HookedPolicy) -> tuple[ObservedArray, ...]:
    """The arrays of a policy's observation, in the order in which `policy.coerce` gives them."""
    found: list[ObservedArray] = []
    for name, point in policy.hook_dict.items():
        if policy.points[name].address.node.op != "input":
            continue
        key = str(policy.points[name].address.node.owner)  # of a recurrent policy its state's parts are there too
        dims = tuple(f"{axis}_{key}" if key else str(axis) for axis in point.axes[1:])
        coords: dict[str, Any] = {}
        for dim, axis in zip(dims, point.axes[1:], strict=True):
            names = policy.spec.names(axis)
            coords[dim] = list(names) if len(names) == point.size(axis) else np.arange(point.size(axis))
        found.append(ObservedArray(key=key, dims=dims, coords=coords))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readouts:
    """The numbers that are explained, as sums of action scores.

    Attributes:
        weights: One row per number.
        names: Names along `action`.
    """

    weights: Float[Tensor, "readout action"]
    names: tuple[str, ...] | tuple[int, ...]


def readouts(policy: HookedPolicy, *, better: int | str | None, worse: int | str | None) -> Readouts:
    """Every action's score; or one action's, or the gap between two.

    Args:
        policy: The policy.
        better: The action whose score counts positively, by name or number.
        worse: The one that is taken off.

    Raises:
        MetricError: No such action, `worse` alone, twice the same, or several choices at once.
    """
    scores = next(point for point in policy.hook_dict.values() if point.kind == "output")
    if policy.choices is not None:
        raise policy.choices.several("An attribution", policy.spec.choices)
    n_actions = scores.size("action")
    names = policy.spec.names("action")
    like = next(policy.module.parameters(), torch.zeros(()))
    unit = torch.eye(n_actions, dtype=like.dtype, device=like.device)
    if better is None and worse is None:
        return Readouts(weights=unit, names=names if len(names) == n_actions else tuple(range(n_actions)))
    first, second = (
        None if action is None else policy.spec.action_number(action, n_actions=n_actions) for action in (better, worse)
    )
    if first is None or first == second:
        raise MetricError(
            "An action gap is between two actions.",
            given=f"better={better!r}, worse={worse!r}",
            expected="better, and another action as worse or none",
            fix="better='FASTER', worse='SLOWER'",
        )
    if second is None:
        return Readouts(weights=unit[first : first + 1], names=(str(better),))
    row = unit[first] - unit[second]
    return Readouts(weights=row[None], names=(f"{better} - {worse}",))


def scores_of(policy: HookedPolicy) -> Address:
    """Where the action scores lie, `[batch, action]`.

    Raises:
        EngineError: The policy runs on the eager engine.
        MetricError: It makes several choices at once.
    """
    engine = policy.graph_engine
    address = next(point.address for point in engine.points.values() if point.kind == "output")
    if policy.choices is not None:
        raise policy.choices.several("An attribution", policy.spec.choices)
    return address


def as_variables(arrays: Sequence[Tensor], policy: HookedPolicy) -> tuple[Tensor, ...]:
    """Copies of the observation's arrays that gradients can be taken at; whole numbers become real ones."""
    like = next(policy.module.parameters(), torch.zeros(()))
    real = (array if array.is_floating_point() else array.to(like.dtype) for array in arrays)
    return tuple(array.detach().clone().requires_grad_() for array in real)


def array(values: Tensor | np.ndarray, dims: Sequence[str], *, units: str) -> xr.DataArray:
    """Values with named dimensions and a unit."""
    if isinstance(values, Tensor):
        narrow = values.dtype is torch.bfloat16  # which numpy has not
        values = (values.float() if narrow else values).detach().cpu().numpy()
    return xr.DataArray(values, dims=tuple(dims), attrs={"units": units})


def made_by(policy: HookedPolicy, method: str, **more: Any) -> dict[str, Any]:
    """What is needed to read a result and to make it again."""
    return {
        "method": method,
        "output_kind": policy.output_kind,
        "score_units": score_units(policy),
        **provenance(policy),
        **more,
    }
