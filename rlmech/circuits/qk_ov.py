"""What each attention head looks for (QK) and what it then says (OV).

    score_h(q, i) = scale (x_q W_Q + b_Q) (x_i W_K + b_K)^T,      result_h = sum_i A_h,i (x_i W_V + b_V) W_O

`space="model"`: products of the weights, between embeddings. `space="feature"`: through the ReLU embeddings as they are
gated on given states, between features, biases a row of their own, and on to the actions through the output layers'
gates. A product of weights across a ReLU is no circuit: it needs `gated=False`, and its attributes say what it is.
"""

from __future__ import annotations

from typing import Literal

import torch
import xarray as xr
from einops import einsum

from rlmech.arguments import explain_misuse
from rlmech.circuits.factored_matrix import FactoredMatrix
from rlmech.circuits.feature_space import Readout, States, mean_ov, mean_qk, ungated_ov, ungated_qk
from rlmech.circuits.labels import Action, block_attrs, choose_block, labelled
from rlmech.core.attention import AttentionBlock
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError
from rlmech.results import storable

Space = Literal["model", "feature"]


@explain_misuse
def qk_factored(policy: HookedPolicy, block: str | None = None) -> FactoredMatrix:
    """W_Q W_K^T per head, with the scale in it, factored; query side left, key side right, biases left out.

    Args:
        policy: The policy.
        block: Path of the attention block; None where there is one.

    Returns:
        `[head d_model d_model]`, a copy of the weights as they are now.

    Raises:
        AttentionError: No such block, or several and none named.

    Example:
        >>> import torch
        >>> import rlmech as rlm
        >>> from rlmech.circuits import qk_factored
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> qk_factored(policy)
        FactoredMatrix(shape=[4, 64, 64], mdim=16)
    """
    found = choose_block(policy, block)
    return FactoredMatrix(found.scale * found.W_Q.detach(), found.W_K.detach().transpose(-1, -2))


@explain_misuse
def ov_factored(policy: HookedPolicy, block: str | None = None) -> FactoredMatrix:
    """W_V W_O per head, factored; what is attended to left, output right, biases left out.

    Args:
        policy: The policy.
        block: Path of the attention block; None where there is one.

    Returns:
        `[head d_model d_model]`, a copy of the weights as they are now.

    Raises:
        AttentionError: No such block, or several and none named.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> rlm.circuits.ov_factored(policy).shape
        torch.Size([4, 64, 64])
    """
    found = choose_block(policy, block)
    return FactoredMatrix(found.W_V.detach(), found.W_O.detach())


@explain_misuse
def qk_circuit(
    policy: HookedPolicy,
    block: str | None = None,
    *,
    space: Space = "feature",
    obs: States | None = None,
    gated: bool | None = None,
) -> xr.Dataset:
    """What each head looks for: the bilinear form from a query's and a key's embedding, or features, to their score.

    Args:
        policy: The policy.
        block: Path of the attention block; None where there is one.
        space: `feature` for the form through the embeddings' gates, `model` for the product of the weights.
        obs: States whose gates are taken, in feature space.
        gated: False for the product with every gate held open, which is no state's own form and says so in `attrs`;
            None for what `obs` allows: gated with states, open gates without.

    Returns:
        Scores before mask and softmax: dimensionless, positive attracts attention, the factor 1/sqrt(d_head) included.
        In model space `circuit[head, d_model_query, d_model_key]`, `query_bias`, `key_bias` and `constant`:
        score = x C y + query_bias x + key_bias y + constant. In feature space the mean over the states in which the
        entity is there, `circuit[head, query, entity, feature_query, feature_key]`; the last feature is `bias`, a
        constant 1. Where gated, also its standard deviation over states, `spread`; `sign_share`, the share of states in
        which an entry has the mean's sign; `form_share[query, entity]`, the share with the commonest gates, of
        `n_forms` that act differently; and `n_states[entity]`. `qk_forms` gives each state's own.

    Raises:
        AttentionError: No such block, entities mix before it, or an embedding is not piecewise linear.
        ObservationError: Feature space without states, or without entities.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*.

    Example:
        >>> import torch
        >>> import rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> states = torch.rand(20, 15, 7)
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), states[:2])
        >>> circuit = rlm.circuits.qk_circuit(policy, space="feature", obs=states).circuit
        >>> circuit.sizes["feature_key"]  # seven, and the bias
        8
    """
    policy = policy.fitting(obs)
    found = choose_block(policy, block)
    if _in_model_space(space):
        return _qk_weights(policy, found)
    gated = obs is not None if gated is None else gated
    return mean_qk(policy, obs, block=found) if gated else ungated_qk(policy, block=found)


@explain_misuse
def ov_circuit(
    policy: HookedPolicy,
    block: str | None = None,
    *,
    space: Space = "feature",
    obs: States | None = None,
    gated: bool | None = None,
    to: Readout = "action",
    better: Action | None = None,
    worse: Action | None = None,
) -> xr.Dataset:
    """What each head says of what it attends to: the map from an embedding, or features, to what full attention adds.

    Args:
        policy: The policy.
        block: Path of the attention block; None where there is one.
        space: `feature` for the map through the embeddings' gates, `model` for the product of the weights.
        obs: States whose gates are taken, in feature space.
        gated: False for the product with every gate held open, which is no state's own map and says so in `attrs`;
            None for what `obs` allows: gated with states, open gates without.
        to: In feature space: `action` for the scores, through the output layers' gates, or `d_model`.
        better: With `worse`, for `to="action"`: the action whose lead is mapped to, by name or number. A raw score
            holds what is common to all actions; a gap decides.
        worse: The action that it leads over.

    Returns:
        In model space `circuit[head, d_model_in, d_model_out]`, `bias[head, d_model_out]` and the block's
        `output_bias[d_model_out]`. In feature space the mean over the states in which the entity is there,
        `circuit[head, query, entity, feature, action]` in the unit of the scores (with a gap, it is the one action) or
        `circuit[head, entity, feature, d_model]`; the last feature is `bias`, a constant 1. Where gated, `spread`,
        `sign_share`, `form_share`, `n_forms` and `n_states` as in `qk_circuit`. `ov_forms` gives each state's own.

    Raises:
        AttentionError: No such block, entities mix before it, or something on the way is not piecewise linear.
        ConfigError: An unknown space or readout, or a gap of which one action is missing or unknown.
        ObservationError: Feature space without states, or without entities.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*.

    Example:
        >>> import torch
        >>> import rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> states = torch.rand(20, 15, 7)
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), states[:2])
        >>> rlm.circuits.ov_circuit(policy, space="feature", obs=states).circuit.dims
        ('head', 'query', 'entity', 'feature', 'action')
    """
    policy = policy.fitting(obs)
    found = choose_block(policy, block)
    if _in_model_space(space):
        return _ov_weights(policy, found)
    gated = obs is not None if gated is None else gated
    if gated:
        return mean_ov(policy, obs, to=to, block=found, better=better, worse=worse)
    return ungated_ov(policy, to=to, block=found, better=better, worse=worse)


def _in_model_space(space: str) -> bool:
    if space in ("model", "feature"):
        return space == "model"
    raise ConfigError(
        f"There is no space {space!r}.", given=repr(space), expected="'feature' or 'model'", fix="space='feature'"
    )


def _qk_weights(policy: HookedPolicy, block: AttentionBlock) -> xr.Dataset:
    q, k = block.scale * block.W_Q, block.W_K
    b_q = torch.zeros_like(q[:, 0]) if block.b_Q is None else block.scale * block.b_Q
    b_k = torch.zeros_like(k[:, 0]) if block.b_K is None else block.b_K
    of_query, of_key = ("head", "d_model_query"), ("head", "d_model_key")
    variables = {
        "circuit": (
            einsum(q, k, "head left d_head, head right d_head -> head left right"),
            ("head", "d_model_query", "d_model_key"),
        ),
        "query_bias": (einsum(q, b_k, "head d_model d_head, head d_head -> head d_model"), of_query),
        "key_bias": (einsum(k, b_q, "head d_model d_head, head d_head -> head d_model"), of_key),
        "constant": (einsum(b_q, b_k, "head d_head, head d_head -> head"), ("head",)),
    }
    labels = {name: labelled(policy, values, dims, units="1") for name, (values, dims) in variables.items()}
    return storable(xr.Dataset(labels), block_attrs(policy, block, space="model"))


def _ov_weights(policy: HookedPolicy, block: AttentionBlock) -> xr.Dataset:
    v, o = block.W_V, block.W_O
    b_v = torch.zeros_like(v[:, 0]) if block.b_V is None else block.b_V
    b_o = torch.zeros_like(o[0, 0]) if block.b_O is None else block.b_O
    variables = {
        "circuit": (
            einsum(v, o, "head left d_head, head d_head right -> head left right"),
            ("head", "d_model_in", "d_model_out"),
        ),
        "bias": (einsum(b_v, o, "head d_head, head d_head right -> head right"), ("head", "d_model_out")),
        "output_bias": (b_o, ("d_model_out",)),
    }
    labels = {name: labelled(policy, values, dims, units="1") for name, (values, dims) in variables.items()}
    return storable(xr.Dataset(labels), block_attrs(policy, block, space="model"))
