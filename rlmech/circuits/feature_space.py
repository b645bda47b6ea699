"""QK and OV forms in feature space: state by state, and averaged over states.

    score_h(q, i) = [x_q; 1] F_h,i [x_i; 1]^T,      F = scale M_q M_k^T,   M from the gates of that state

Cost: the maps of `gated`, then one einsum. Memory of a form per state is its own size; averages run in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.circuits.gated import downstream_maps, gated_maps, ungated_downstream, ungated_maps
from rlmech.circuits.labels import Action, action_weights, block_attrs, choose_block, labelled, score_units
from rlmech.circuits.over_states import as_dataset, averaged
from rlmech.core.attention import AttentionBlock
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, ObservationError
from rlmech.results import storable

Readout = Literal["action", "d_model"]
States = Float[Tensor | np.ndarray, "batch entity feature"]
_QK_DIMS = ("batch", "head", "query", "entity", "feature_query", "feature_key")
_OV_MODEL_DIMS = ("batch", "head", "entity", "feature", "d_model")
_OV_ACTION_DIMS = ("batch", "head", "query", "entity", "feature", "action")
GATED, UNGATED = "as in each state", "all open: no state's own"
Terms = tuple[Float[Tensor, "term action"], Sequence[Action]]
"""Rows of weights on the scores, and their names."""


@explain_misuse
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

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> rlm.circuits.qk_forms(policy, torch.rand(2, 15, 7)).dims
        ('batch', 'head', 'query', 'entity', 'feature_query', 'feature_key')
    """
    policy = policy.fitting(obs)
    found = choose_block(policy, block)
    return _qk(policy, found, gated_maps(policy, as_states(policy, obs), _names(found, "q", "k")), gates=GATED)


@explain_misuse
def ov_forms(
    policy: HookedPolicy,
    obs: States,
    *,
    to: Readout = "action",
    block: str | None = None,
    better: Action | None = None,
    worse: Action | None = None,
) -> xr.DataArray:
    """Each state's own map from an entity's features to what full attention to it would add, exact.

    Args:
        policy: A policy that is piecewise linear up to the values and, for `to="action"`, after the attention.
        obs: States.
        to: `action` for the scores, `d_model` for the attention block's output before any residual.
        block: Path of the attention block; None where there is one.
        better: With `worse`, for `to="action"`: the action whose lead is mapped to, by name or number.
        worse: The action that it leads over.

    Returns:
        `[batch, head, query, entity, feature, action]` in the unit of the scores, with one action for a gap; or
        `[batch, head, entity, feature, d_model]`; the last feature is a constant 1. Weighted with the pattern and
        summed over heads and entities it gives the attention output without its bias, and what that contributes to the
        scores.

    Raises:
        AttentionError: No such block, entities mix before it, or something on the way is not piecewise linear.
        ConfigError: A gap of which one action is missing or unknown, or that `to="d_model"` has no use for.
        ObservationError: The observation is no table of entities.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> rlm.circuits.ov_forms(policy, torch.rand(2, 15, 7)).dims
        ('batch', 'head', 'query', 'entity', 'feature', 'action')
    """
    policy = policy.fitting(obs)
    found = choose_block(policy, block)
    obs = as_states(policy, obs)
    terms = check_readout(policy, to, better, worse)
    values = gated_maps(policy, obs, _names(found, "v"))
    onward = downstream_maps(policy, obs, _output_name(found)) if to == "action" else None
    return _ov(policy, found, values, onward, gates=GATED, terms=terms)


def mean_qk(policy: HookedPolicy, obs: States | None, *, block: AttentionBlock) -> xr.Dataset:
    """`qk_forms` averaged over the states in which the entity is there."""
    return averaged(
        as_states(policy, obs), lambda part: _seen(policy, qk_forms(policy, part, block=block.path), part, block)
    )


def mean_ov(
    policy: HookedPolicy,
    obs: States | None,
    *,
    to: Readout,
    block: AttentionBlock,
    better: Action | None,
    worse: Action | None,
) -> xr.Dataset:
    """`ov_forms` averaged over the states in which the entity is there."""

    def forms(part: States) -> tuple[xr.DataArray, xr.DataArray]:
        found = ov_forms(policy, part, to=to, block=block.path, better=better, worse=worse)
        return _seen(policy, found, part, block)

    return averaged(as_states(policy, obs), forms)


def ungated_qk(policy: HookedPolicy, *, block: AttentionBlock) -> xr.Dataset:
    """The form of the weights alone, every gate open."""
    check_entities(policy)
    form = _qk(policy, block, ungated_maps(policy, _names(block, "q", "k")), gates=UNGATED)
    return as_dataset({"circuit": form.isel(batch=0)})


def ungated_ov(
    policy: HookedPolicy, *, to: Readout, block: AttentionBlock, better: Action | None, worse: Action | None
) -> xr.Dataset:
    """The map of the weights alone, every gate open."""
    check_entities(policy)
    terms = check_readout(policy, to, better, worse)
    values = ungated_maps(policy, _names(block, "v"))
    onward = ungated_downstream(policy, _output_name(block)) if to == "action" else None
    form = _ov(policy, block, values, onward, gates=UNGATED, terms=terms)
    return as_dataset({"circuit": form.isel(batch=0)})


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


def check_readout(policy: HookedPolicy, to: Readout, better: Action | None, worse: Action | None) -> Terms:
    """Which scores, or which gap, a map leads to.

    Raises:
        ConfigError: An unknown readout, half a gap, an unknown action, or a gap where the map ends before the actions.
    """
    if to not in ("action", "d_model"):
        raise ConfigError(
            f"There is no readout {to!r}.", given=repr(to), expected="'action' or 'd_model'", fix="to='action'"
        )
    if to == "d_model" and (better is not None or worse is not None):
        raise ConfigError(
            "An action gap lies behind the output layers.",
            given="to='d_model' with a gap",
            expected="to='action' with a gap, or to='d_model' without",
            fix="to='action'",
        )
    return action_weights(policy, better, worse)


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


def _output_name(block: AttentionBlock) -> str:
    """The hook name of a block's output; where heads have no output of their own, W_O says why."""
    _ = block.W_O
    return block.names["attn_out"]


def _qk(policy: HookedPolicy, block: AttentionBlock, maps: dict[str, Tensor], *, gates: str) -> xr.DataArray:
    q, k = maps[block.names["q"]], maps[block.names["k"]]
    form = block.scale * einsum(
        q, k, "batch query left head d_head, batch entity right head d_head -> batch head query entity left right"
    )
    attrs = block_attrs(policy, block, space="feature", gates=gates)
    return storable(labelled(policy, form, _QK_DIMS, units="1"), attrs)


def _ov(
    policy: HookedPolicy,
    block: AttentionBlock,
    maps: dict[str, Tensor],
    onward: Tensor | None,
    *,
    gates: str,
    terms: Terms,
) -> xr.DataArray:
    form = einsum(
        maps[block.names["v"]],
        block.W_O.detach(),
        "batch entity feature head d_head, head d_head d_model -> batch head entity feature d_model",
    )
    attrs = block_attrs(policy, block, space="feature", gates=gates)
    if onward is None:
        return storable(labelled(policy, form, _OV_MODEL_DIMS, units="1"), attrs)
    weights, names = terms
    to_action = "batch head entity feature d_model, batch query d_model action -> {}"
    form = einsum(form, onward @ weights.to(onward).T, to_action.format(" ".join(_OV_ACTION_DIMS)))
    found = labelled(policy, form, _OV_ACTION_DIMS, units=score_units(policy))
    return storable(found.assign_coords(action=list(names)), attrs)


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


def _seen(
    policy: HookedPolicy, forms: xr.DataArray, obs: States, block: AttentionBlock
) -> tuple[xr.DataArray, xr.DataArray]:
    """Forms, and which entities the attention can see in their states, `[batch, entity]`."""
    visible = visible_keys(policy, policy.coerce(obs), block)
    everything = np.ones((forms.sizes["batch"], forms.sizes["entity"]), dtype=bool)
    present = everything if visible is None else visible.cpu().numpy() & everything
    return forms, xr.DataArray(present, dims=("batch", "entity"), coords={"entity": forms.entity})
