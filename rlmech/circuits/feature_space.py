"""QK and OV forms in feature space: state by state, and averaged over states.

    score_h(q, i) = [x_q; 1] F_h,i [x_i; 1]^T,      F = scale M_q M_k^T,   M from the gates of that state

Cost: the maps of `gated`, then one einsum. Memory of a form per state is its own size; averages run in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from rlmech.circuits.gated import downstream_maps, gated_maps, ungated_downstream, ungated_maps
from rlmech.circuits.labels import choose_block, labelled, provenance
from rlmech.core.attention import AttentionBlock
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError

Readout = Literal["action", "d_model"]
States = Float[Tensor | np.ndarray, "batch entity feature"]
_QK_DIMS = ("batch", "head", "query", "entity", "feature_query", "feature_key")
_OV_DIMS: dict[Readout, tuple[str, ...]] = {
    "d_model": ("batch", "head", "entity", "feature", "d_model"),
    "action": ("batch", "head", "query", "entity", "feature", "action"),
}
_STATES_AT_ONCE = 128


def qk_forms(policy: HookedPolicy, obs: States, *, block: str | None = None) -> xr.DataArray:
    """Each state's own bilinear form from the query's and the key's features to the score, exact.

    Args:
        policy: A policy that is piecewise linear up to the scores.
        obs: States.
        block: Path of the attention block; None where there is one.

    Returns:
        `[batch, head, query, entity, feature_query, feature_key]`, dimensionless; the last feature is a constant 1.
        With both sides' features put in it gives the score before the mask.

    Raises:
        AttentionError: No such block, entities mix before it, or an embedding is not piecewise linear.
        ObservationError: The observation is no table of entities.
    """
    found = choose_block(policy, block)
    return labelled(policy, _qk(found, gated_maps(policy, as_states(policy, obs), _names(found, "q", "k"))), _QK_DIMS)


def ov_forms(policy: HookedPolicy, obs: States, *, to: Readout = "action", block: str | None = None) -> xr.DataArray:
    """Each state's own map from an entity's features to what full attention to it would add, exact.

    Args:
        policy: A policy that is piecewise linear up to the values and, for `to="action"`, after the attention.
        obs: States.
        to: `action` for the scores, `d_model` for the attention block's output before any residual.
        block: Path of the attention block; None where there is one.

    Returns:
        `[batch, head, query, entity, feature, action]` in the unit of the scores, or `[batch, head, entity, feature,
        d_model]`; the last feature is a constant 1. Weighted with the pattern and summed over heads and entities it
        gives the attention output without its bias, and what that contributes to the scores.

    Raises:
        AttentionError: No such block, entities mix before it, or something on the way is not piecewise linear.
        ObservationError: The observation is no table of entities.
    """
    found = choose_block(policy, block)
    obs = as_states(policy, obs)
    values = gated_maps(policy, obs, _names(found, "v"))
    onward = downstream_maps(policy, obs, found.names["attn_out"]) if to == "action" else None
    return labelled(policy, _ov(found, values, onward), _OV_DIMS[to])


def mean_qk(policy: HookedPolicy, obs: States | None, *, block: AttentionBlock) -> xr.Dataset:
    """`qk_forms` averaged over the states in which the entity is there."""
    return _averaged(policy, obs, block, lambda part: qk_forms(policy, part, block=block.path))


def mean_ov(policy: HookedPolicy, obs: States | None, *, to: Readout, block: AttentionBlock) -> xr.Dataset:
    """`ov_forms` averaged over the states in which the entity is there."""
    return _averaged(policy, obs, block, lambda part: ov_forms(policy, part, to=to, block=block.path))


def ungated_qk(policy: HookedPolicy, *, block: AttentionBlock) -> xr.Dataset:
    """The form of the weights alone, every gate open."""
    form = labelled(policy, _qk(block, ungated_maps(policy, _names(block, "q", "k"))), _QK_DIMS)
    return xr.Dataset({"circuit": form.isel(batch=0)}, attrs=_attrs(policy, block, gates="all open: no state's own"))


def ungated_ov(policy: HookedPolicy, *, to: Readout, block: AttentionBlock) -> xr.Dataset:
    """The map of the weights alone, every gate open."""
    onward = ungated_downstream(policy, block.names["attn_out"]) if to == "action" else None
    form = labelled(policy, _ov(block, ungated_maps(policy, _names(block, "v")), onward), _OV_DIMS[to])
    return xr.Dataset({"circuit": form.isel(batch=0)}, attrs=_attrs(policy, block, gates="all open: no state's own"))


def as_states(policy: HookedPolicy, obs: States | None) -> Float[Tensor, "batch entity feature"]:
    """Observations of entities as a tensor.

    Raises:
        ObservationError: None given, or the policy's observation is no table of entities.
    """
    axes = policy.hook_dict["hook_obs"].axes if "hook_obs" in policy.hook_dict else ()
    if axes != ("batch", "entity", "feature"):
        raise ObservationError(
            "Circuits in feature space need an observation of entities.",
            given=f"observation axes {' '.join(axes) or '(several arrays)'}",
            expected="batch entity feature",
            fix="take space='model'",
        )
    if obs is None:
        raise ObservationError(
            "A circuit in feature space goes through the ReLU gates of given states.",
            given="obs=None",
            expected="states, [batch entity feature]",
            fix="pass obs=recording.obs or the like; or gated=False for the ungated product, which is no circuit",
        )
    parameter = next(policy.module.parameters())
    return torch.as_tensor(obs).to(parameter)


def _names(block: AttentionBlock, *roles: Literal["q", "k", "v"]) -> list[str]:
    return [block.names[role] for role in roles]


def _qk(block: AttentionBlock, maps: dict[str, Tensor]) -> Tensor:
    q, k = maps[block.names["q"]], maps[block.names["k"]]
    return block.scale * einsum(
        q, k, "batch query left head d_head, batch entity right head d_head -> batch head query entity left right"
    )


def _ov(block: AttentionBlock, maps: dict[str, Tensor], onward: Tensor | None) -> Tensor:
    to_model = einsum(
        maps[block.names["v"]],
        block.W_O.detach(),
        "batch entity feature head d_head, head d_head d_model -> batch head entity feature d_model",
    )
    if onward is None:
        return to_model
    pattern = "batch head entity feature d_model, batch query d_model action -> batch head query entity feature action"
    return einsum(to_model, onward, pattern)


def _averaged(
    policy: HookedPolicy, obs: States | None, block: AttentionBlock, forms: Callable[[States], xr.DataArray]
) -> xr.Dataset:
    states = as_states(policy, obs)
    total, squares, count = 0.0, 0.0, 0.0
    for part in states.split(_STATES_AT_ONCE):
        form = forms(part).astype("float64")
        present = _present(policy, part, block).assign_coords(entity=form.entity)
        form = form.where(present, 0.0)
        total, squares, count = (
            total + form.sum("batch"),
            squares + (form**2).sum("batch"),
            count + present.sum("batch"),
        )
    n_states = xr.DataArray(count)
    seen = n_states.where(n_states > 0)  # an entity that is never there has no mean: NaN
    mean = total / seen
    variance = (squares / seen - mean**2).clip(min=0)
    attrs = _attrs(
        policy, block, gates="as in each state", n_states=len(states), spread="standard deviation over states"
    )
    return xr.Dataset({"circuit": mean, "spread": variance**0.5, "n_states": n_states}, attrs=attrs)


def _present(policy: HookedPolicy, obs: Tensor, block: AttentionBlock) -> xr.DataArray:
    """Which entities the attention can see, `[batch, entity]`."""
    everything = torch.ones(obs.shape[:2], dtype=torch.bool)
    name = block.names.get("mask")
    if name is None:
        return xr.DataArray(everything.numpy(), dims=("batch", "entity"))
    with torch.no_grad():
        _, cache = policy.run_with_cache(obs, names=name)
    hidden = xr.DataArray(cache[name].detach().cpu().numpy(), dims=cache.axes(name))
    hidden = hidden.all([axis for axis in hidden.dims if axis not in ("batch", "key")]).rename(key="entity")
    return ~hidden & xr.DataArray(everything.numpy(), dims=("batch", "entity"))


def _attrs(policy: HookedPolicy, block: AttentionBlock, **more: object) -> dict[str, object]:
    return provenance(policy, block, space="feature", **more)
