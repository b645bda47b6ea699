"""A circuit over many states: its mean and spread, and for how many of them it holds.

    mean, standard deviation;  share of states with the mean's sign;  share of states with the commonest form

Two states have the same form where the same gates are open, those that change nothing aside. Cost: one pass over the
states, a part of them in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.results import storable
from rlmech.untyped import JsonObject

_STATES_AT_ONCE = 128
_SIGNATURE_SEED = 0
_N_SIGNATURES = 3
_ALIKE = {"float32": 1e-5, "float64": 1e-11}
"""How far, of the largest, the signatures of one form lie apart by rounding."""

Forms = Callable[[Float[Tensor, "batch entity feature"]], tuple[xr.DataArray, xr.DataArray]]
"""Forms of some states, `[batch ... entity ...]`, and which entities are there, `[batch entity]`."""


def averaged(states: Float[Tensor, "batch entity feature"], forms: Forms) -> xr.Dataset:
    """The mean of a form over the states in which the entity is there, and how well it stands for them.

    Returns:
        `circuit`, `spread` and `sign_share` of the form's dimensions, `n_states[entity]`, and `form_share` and
        `n_forms` for each query and entity; NaN, or 0 for numbers, where an entity is never there.
    """
    sums: JsonObject = dict.fromkeys(("total", "squares", "positive", "negative", "n_states"), 0.0)
    signatures: list[xr.DataArray] = []
    seen: list[xr.DataArray] = []
    form = xr.DataArray()
    for part in states.split(_STATES_AT_ONCE):
        form, present = forms(part)
        signatures.append(_signatures(form))
        seen.append(present)
        shown = form.where(present, 0.0).astype("float64")
        for name, values in (
            ("total", shown),
            ("squares", shown**2),
            ("positive", shown > 0),
            ("negative", shown < 0),
            ("n_states", present),
        ):
            sums[name] = sums[name] + values.sum("batch")
    n_states = sums["n_states"]
    count = n_states.where(n_states > 0)  # an entity that is never there has no mean: NaN
    mean = sums["total"] / count
    agreeing = xr.where(mean > 0, sums["positive"], sums["negative"])
    unlike = count - sums["positive"] - sums["negative"]
    tolerance = _ALIKE.get(str(form.dtype), _ALIKE["float32"])
    variables = {
        "circuit": mean.assign_attrs(form.attrs),
        "spread": ((sums["squares"] / count - mean**2).clip(min=0) ** 0.5).assign_attrs(form.attrs),
        "sign_share": (xr.where(mean == 0, unlike, agreeing) / count).transpose(*mean.dims).assign_attrs(units="1"),
    }
    held = _commonest(xr.concat(signatures, "batch"), xr.concat(seen, "batch"), tolerance)
    averages = as_dataset(variables, n_states=n_states.astype(int), **held)
    return storable(averages, {"n_states": len(states), "spread": "standard deviation over states"})


def as_dataset(variables: dict[str, xr.DataArray], **counts: xr.DataArray) -> xr.Dataset:
    """Variables that keep their unit, and share all else that was said of each."""
    shared = {key: value for key, value in variables["circuit"].attrs.items() if key != "units"}
    own = {name: values.drop_attrs().assign_attrs(units=values.attrs["units"]) for name, values in variables.items()}
    return storable(xr.Dataset({**own, **counts}), shared)


def _signatures(form: xr.DataArray) -> xr.DataArray:
    """A few random sums of each state's form over its heads and features: the same where the forms are."""
    over = ["head", *(str(dim) for dim in form.dims[-2:])]
    shape = [form.sizes[dim] for dim in over]
    drawn = torch.randn(_N_SIGNATURES, *shape, generator=torch.Generator().manual_seed(_SIGNATURE_SEED))
    weights = xr.DataArray(drawn.double().numpy(), dims=("signature", *over))
    return xr.dot(form.astype("float64"), weights, dim=over)


def _commonest(signatures: xr.DataArray, present: xr.DataArray, tolerance: float) -> dict[str, xr.DataArray]:
    """How many different forms there are, and the share of states that have the commonest."""
    leading = tuple(str(dim) for dim in signatures.dims if dim not in ("batch", "signature"))
    values = signatures.transpose("batch", *leading, "signature")
    there = present.broadcast_like(values.isel(signature=0)).transpose("batch", *leading).values
    share, number = np.full(there.shape[1:], np.nan), np.zeros(there.shape[1:], dtype=int)
    for place in np.ndindex(*there.shape[1:]):
        own = values.values[(slice(None), *place)][there[(slice(None), *place)]]
        if len(own):
            counts = _counts(own, tolerance)
            share[place], number[place] = counts.max() / len(own), len(counts)
    coords = {dim: signatures.coords[dim] for dim in leading if dim in signatures.coords}
    return {
        "form_share": xr.DataArray(share, dims=leading, coords=coords, attrs={"units": "1"}),
        "n_forms": xr.DataArray(number, dims=leading, coords=coords, attrs={"units": "1"}),
    }


def _counts(signatures: np.ndarray, tolerance: float) -> np.ndarray:
    """How often each signature occurs; those that a gap separates in some sum are different."""
    groups = np.empty(signatures.shape, dtype=int)
    for place, column in enumerate(signatures.T):
        order = np.argsort(column)
        apart = np.diff(column[order]) > tolerance * np.abs(column).max()
        groups[order, place] = np.concatenate(([0], apart.cumsum()))
    return np.unique(groups, axis=0, return_counts=True)[1]
