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
from jaxtyping import Bool, Float
from torch import Tensor

from rlmech.circuits.gated import downstream_maps, gated_maps, ungated_downstream, ungated_maps
from rlmech.circuits.labels import choose_block, labelled, provenance, score_units
from rlmech.core.attention import AttentionBlock
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError

Readout = Literal["action", "d_model"]
States = Float[Tensor | np.ndarray, "batch entity feature"]
_QK_DIMS = ("batch", "head", "query", "entity", "feature_query", "feature_key")
_OV_MODEL_DIMS = ("batch", "head", "entity", "feature", "d_model")
_OV_ACTION_DIMS = ("batch", "head", "query", "entity", "feature", "action")
GATED, UNGATED = "as in each state", "all open: no state's own"
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
    return _qk(policy, found, gated_maps(policy, as_states(policy, obs), _names(found, "q", "k")), gates=GATED)


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
    return _ov(policy, found, values, onward, gates=GATED)


def mean_qk(policy: HookedPolicy, obs: States | None, *, block: AttentionBlock) -> xr.Dataset:
    """`qk_forms` averaged over the states in which the entity is there."""
    return _averaged(policy, obs, block, lambda part: qk_forms(policy, part, block=block.path))


def mean_ov(policy: HookedPolicy, obs: States | None, *, to: Readout, block: AttentionBlock) -> xr.Dataset:
    """`ov_forms` averaged over the states in which the entity is there."""
    return _averaged(policy, obs, block, lambda part: ov_forms(policy, part, to=to, block=block.path))


def ungated_qk(policy: HookedPolicy, *, block: AttentionBlock) -> xr.Dataset:
    """The form of the weights alone, every gate open."""
    check_entities(policy)
    form = _qk(policy, block, ungated_maps(policy, _names(block, "q", "k")), gates=UNGATED)
    return _dataset({"circuit": form.isel(batch=0)})


def ungated_ov(policy: HookedPolicy, *, to: Readout, block: AttentionBlock) -> xr.Dataset:
    """The map of the weights alone, every gate open."""
    check_entities(policy)
    values = ungated_maps(policy, _names(block, "v"))
    onward = ungated_downstream(policy, block.names["attn_out"]) if to == "action" else None
    form = _ov(policy, block, values, onward, gates=UNGATED)
    return _dataset({"circuit": form.isel(batch=0)})


def check_entities(policy: HookedPolicy) -> None:
    """Refuse a policy whose observation is no table of entities.

    Raises:
        ObservationError: It is not.
    """
    axes = policy.hook_dict["hook_obs"].axes if "hook_obs" in policy.hook_dict else ()
    if axes != ("batch", "entity", "feature"):
        raise ObservationError(
            "Circuits in feature space need an observation of entities.",
            given=f"observation axes {' '.join(axes) or '(several arrays)'}",
            expected="batch entity feature",
            fix="take space='model'",
        )


def as_states(policy: HookedPolicy, obs: States | None) -> Float[Tensor, "batch entity feature"]:
    """Observations of entities as a tensor.

    Raises:
        ObservationError: None given, or the policy's observation is no table of entities.
    """
    check_entities(policy)
    if obs is None or len(obs) == 0:
        raise ObservationError(
            "A circuit in feature space goes through the ReLU gates of given states.",
            given="obs=None" if obs is None else "no state",
            expected="states, [batch entity feature]",
            fix="pass obs=, e.g. a recording's; or gated=False for the ungated product, which is no circuit",
        )
    return torch.as_tensor(obs).to(next(policy.module.parameters()))


def _names(block: AttentionBlock, *roles: Literal["q", "k", "v"]) -> list[str]:
    return [block.names[role] for role in roles]


def _qk(policy: HookedPolicy, block: AttentionBlock, maps: dict[str, Tensor], *, gates: str) -> xr.DataArray:
    q, k = maps[block.names["q"]], maps[block.names["k"]]
    form = block.scale * einsum(
        q, k, "batch query left head d_head, batch entity right head d_head -> batch head query entity left right"
    )
    attrs = provenance(policy, block, space="feature", gates=gates)
    return labelled(policy, form, _QK_DIMS, units="1").assign_attrs(attrs)


def _ov(
    policy: HookedPolicy, block: AttentionBlock, maps: dict[str, Tensor], onward: Tensor | None, *, gates: str
) -> xr.DataArray:
    form = einsum(
        maps[block.names["v"]],
        block.W_O.detach(),
        "batch entity feature head d_head, head d_head d_model -> batch head entity feature d_model",
    )
    dims, units = _OV_MODEL_DIMS, "1"
    if onward is not None:
        to_action = "batch head entity feature d_model, batch query d_model action -> {}"
        form = einsum(form, onward, to_action.format(" ".join(_OV_ACTION_DIMS)))
        dims, units = _OV_ACTION_DIMS, score_units(policy)
    attrs = provenance(policy, block, space="feature", gates=gates)
    return labelled(policy, form, dims, units=units).assign_attrs(attrs)


def _averaged(
    policy: HookedPolicy, obs: States | None, block: AttentionBlock, forms: Callable[[States], xr.DataArray]
) -> xr.Dataset:
    states = as_states(policy, obs)
    total, squares, count, attrs = 0.0, 0.0, 0.0, {}
    for part in states.split(_STATES_AT_ONCE):
        form = forms(part).astype("float64")
        attrs = form.attrs
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
    spread = (squares / seen - mean**2).clip(min=0) ** 0.5
    variables = {"circuit": mean.assign_attrs(attrs), "spread": spread.assign_attrs(attrs)}
    return _dataset(variables, n_states=n_states).assign_attrs(
        n_states=len(states), spread="standard deviation over states"
    )


def _dataset(variables: dict[str, xr.DataArray], **counts: xr.DataArray) -> xr.Dataset:
    """Variables that keep their unit, and share all else that was said of each."""
    shared = {key: value for key, value in variables["circuit"].attrs.items() if key != "units"}
    own = {name: values.drop_attrs().assign_attrs(units=values.attrs["units"]) for name, values in variables.items()}
    return xr.Dataset({**own, **counts}, attrs=shared)


def visible_keys(
    policy: HookedPolicy, arrays: tuple[Tensor, ...], block: AttentionBlock
) -> Bool[Tensor, "batch key"] | None:
    """Which keys some query and head of a block can see; None where it has no mask."""
    name = block.names.get("mask")
    if name is None:
        return None
    point = policy.points[name]
    with torch.no_grad():
        (mask,) = policy.graph_engine.program(returned=(point.address.node,))(arrays, (), ())
    hidden = point.address.layout.show(mask)
    places = [place for place, axis in enumerate(point.axes) if axis not in ("batch", "key")]
    return ~hidden.all(dim=places) if places else ~hidden


def _present(policy: HookedPolicy, obs: Tensor, block: AttentionBlock) -> xr.DataArray:
    """Which entities the attention can see, `[batch, entity]`."""
    visible = visible_keys(policy, policy.coerce(obs), block)
    everything = np.ones(obs.shape[:2], dtype=bool)
    return xr.DataArray(everything if visible is None else visible.cpu().numpy() & everything, dims=("batch", "entity"))
