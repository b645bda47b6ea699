"""Activations as affine functions of their own entity's features, on the linear region that a state lies in.

    q, k, v of entity i  =  [x_i; 1] M_i,      scores  =  attn_out G + rest

A ReLU embedding is linear wherever its gates stand still, so its Jacobian there is the exact map and what remains is
its bias. Both premises are checked on the given states: no other entity enters, and the second derivative vanishes.
Cost: one backward pass per column of the activation, all states and entities at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from rlmech.core.hold import hold
from rlmech.core.hook_point import HookPoint
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError

_CHECK_SEED = 0
_TOLERANCE = 1e-4


def gated_maps(
    policy: HookedPolicy, obs: Float[Tensor, "batch entity feature"], names: Sequence[str]
) -> dict[str, Float[Tensor, "batch position feature_and_bias head d_head"]]:
    """The maps from each entity's features, and a last row of ones, to queries, keys or values, on given states.

    Args:
        policy: The policy.
        obs: States; each has its own gates.
        names: Hook points with axes `batch entity|query head d_head`.

    Returns:
        By name, M with value[b, i] = [x[b, i]; 1] M[b, i]. A single query is the ego's, entity 0.

    Raises:
        AttentionError: An activation depends on other entities too, or not piecewise linearly.

    Exact on the given states, for piecewise linear embeddings.
    """
    states = obs.detach().clone().requires_grad_()
    with torch.enable_grad():
        activations = _capture(policy, states, names)
        return {name: _own_map(policy, name, states, value) for name, value in activations.items()}


def downstream_maps(
    policy: HookedPolicy, obs: Float[Tensor, "batch entity feature"], name: str
) -> Float[Tensor, "batch query d_model action"]:
    """The gradient of each action's score with respect to an activation, on given states.

    Raises:
        AttentionError: The scores do not depend on the activation piecewise linearly.

    Exact on the given states where everything after the activation is piecewise linear, which is checked.
    """
    with torch.enable_grad():
        states = obs.detach().clone().requires_grad_()
        held: dict[str, Tensor] = {}
        scores = policy.run_with_hooks(states, fwd_hooks=[(name, _keep_in(held))])
        value = held[name]
        columns = [
            torch.autograd.grad(scores[:, action].sum(), value, create_graph=True, materialize_grads=True)[0]
            for action in range(scores.shape[-1])
        ]
        gradient = torch.stack(columns, dim=-1)
        if not _is_constant(gradient, value):
            raise _not_piecewise_linear(policy, f"the scores as functions of {name!r}")
        return gradient.detach()


def ungated_maps(
    policy: HookedPolicy, names: Sequence[str]
) -> dict[str, Float[Tensor, "1 position feature_and_bias head d_head"]]:
    """The same maps with every gate held open: the plain product of the weights, which is no state's own map.

    Raises:
        AttentionError: Other entities enter, or something that is not a gate bends the activation.
    """
    observation = policy.hook_dict["hook_obs"]
    n_entities, n_features = observation.size("entity"), observation.size("feature")
    probes = repeat(_probes(policy, n_features), "probe feature -> probe entity feature", entity=n_entities)
    random = torch.randn(n_entities, n_features, generator=torch.Generator().manual_seed(_CHECK_SEED)).to(probes)
    with torch.no_grad(), hold(policy, gates="open").acting():
        activations = _capture(policy, torch.cat((probes, random[None])), names)
    maps: dict[str, Tensor] = {}
    for name, value in activations.items():
        slope, offset = rearrange(value[:-2] - value[-2], "feature position ... -> position feature ..."), value[-2]
        own = random[: slope.shape[0]]
        again = offset + einsum(own, slope, "position feature, position feature head d_head -> position head d_head")
        _check_affine(policy, name, value[-1], again)
        maps[name] = torch.cat((slope, offset[:, None]), dim=1)[None]
    return maps


def ungated_downstream(policy: HookedPolicy, name: str) -> Float[Tensor, "1 query d_model action"]:
    """The same gradient with every gate held open: the plain product of the output layers' weights.

    Raises:
        AttentionError: Something that is not a gate bends the scores.
    """
    point, observation = policy.hook_dict[name], policy.hook_dict["hook_obs"]
    n_queries, size = point.size("query"), point.size("query") * point.size("d_model")
    probes = _probes(policy, size)
    random = torch.randn(size, generator=torch.Generator().manual_seed(_CHECK_SEED)).to(probes)
    values = rearrange([*probes, random], "probe (query d_model) -> probe query d_model", query=n_queries)
    states = torch.zeros(size + 2, observation.size("entity"), observation.size("feature")).to(probes)
    with torch.no_grad(), hold(policy, gates="open").acting():
        scores = policy.run_with_hooks(states, fwd_hooks=[(name, lambda value, hook: values)])
    slope = scores[:-2] - scores[-2]
    _check_affine(policy, name, scores[-1], scores[-2] + random @ slope)
    return rearrange(slope, "(query d_model) action -> 1 query d_model action", query=n_queries)


def _probes(policy: HookedPolicy, size: int) -> Float[Tensor, "probe size"]:
    """Each input alone, and at last none of them."""
    return torch.eye(size + 1)[:, :size].to(next(policy.module.parameters()))


def _check_affine(policy: HookedPolicy, name: str, value: Tensor, predicted: Tensor) -> None:
    if bool((value - predicted).abs().amax() > _TOLERANCE * (1 + value.abs().amax())):
        raise AttentionError(
            f"There is no product of weights at {name!r}: more than gates stands in the way, or entities mix.",
            given=type(policy.module).__name__,
            expected="linear layers and ReLU-like activations only, each entity for itself",
            fix="take space='model'",
        )


def _own_map(policy: HookedPolicy, name: str, states: Tensor, value: Tensor) -> Tensor:
    n_positions, n_heads = value.shape[1:3]
    if not _reads(states, value):
        raise AttentionError(
            f"{name!r} does not depend on the observation: it is the same in every state.",
            given=f"{type(policy.module).__name__}, {name!r}, which is learned or of no entity",
            expected="an activation that each entity's own features determine",
            fix="take space='model'",
        )
    flat = rearrange(value, "batch position head d_head -> batch position (head d_head)")
    columns = reduce(flat, "batch position column -> column", "sum")
    rows = [torch.autograd.grad(column, states, retain_graph=True)[0] for column in columns]
    slope = torch.stack(rows, dim=-1)
    _check_piecewise_linear(policy, name, states, columns)
    if n_positions == 1:
        others = slope[:, 1:].abs().sum()
        slope = slope[:, :1]
        mixes = bool(others > 0)
    else:
        mixes = n_positions != states.shape[1] or _mixes_entities(states, flat, slope)
    if mixes:
        raise AttentionError(
            f"{name!r} does not belong to one entity: features of other entities enter it.",
            given=f"{type(policy.module).__name__}, {name!r}",
            expected="an activation that each entity's own features determine",
            fix="take space='model', or a block before which entities do not mix",
        )
    own = states[:, :n_positions].detach()
    offset = flat.detach() - einsum(
        own, slope, "batch position feature, batch position feature column -> batch position column"
    )
    return rearrange(
        torch.cat((slope, offset[:, :, None, :]), dim=2),
        "batch position feature (head d_head) -> batch position feature head d_head",
        head=n_heads,
    )


def _reads(states: Tensor, value: Tensor) -> bool:
    """Whether an activation is computed from the states."""
    if not value.requires_grad:
        return False
    (slope,) = cast(
        "tuple[Tensor | None]", torch.autograd.grad(value.sum(), states, retain_graph=True, allow_unused=True)
    )
    return slope is not None


def _mixes_entities(states: Tensor, flat: Tensor, slope: Tensor) -> bool:
    """Whether entity j enters entity i's activation, from one backward pass with a random weight for each entity."""
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    weight = torch.randn(flat.shape[1], generator=generator).to(flat)
    column = torch.randn(flat.shape[2], generator=generator).to(flat)
    mixed = einsum(flat, weight, column, "batch entity column, entity, column ->")
    (gradient,) = torch.autograd.grad(mixed, states, retain_graph=True)
    own = einsum(slope, weight, column, "batch entity feature column, entity, column -> batch entity feature")
    return bool((gradient - own).abs().amax() > _TOLERANCE * own.abs().amax())


def _check_piecewise_linear(policy: HookedPolicy, name: str, states: Tensor, columns: Tensor) -> None:
    weight = torch.randn(columns.shape[0], generator=torch.Generator().manual_seed(_CHECK_SEED)).to(columns)
    (gradient,) = torch.autograd.grad((columns * weight).sum(), states, create_graph=True)
    if not _is_constant(gradient, states):
        raise _not_piecewise_linear(policy, repr(name))


def _is_constant(gradient: Tensor, variable: Tensor) -> bool:
    """Whether a gradient's own derivative vanishes, in one random direction."""
    if not gradient.requires_grad:
        return True
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(_CHECK_SEED)).to(gradient)
    along = (gradient * direction).sum()
    (curvature,) = torch.autograd.grad(along, variable, materialize_grads=True, retain_graph=True)
    return not bool(curvature.any())


def _not_piecewise_linear(policy: HookedPolicy, what: str) -> AttentionError:
    return AttentionError(
        f"There are no gates to fix: {what} bend between them (tanh, a softmax, a norm).",
        given=type(policy.module).__name__,
        expected="linear layers and ReLU-like activations only",
        fix="take space='model', or a local linear approximation from autograd, and call it one",
    )


def _keep_in(held: dict[str, Tensor]) -> Any:
    def keep(tensor: Tensor, hook: HookPoint) -> Tensor:
        held[hook.name] = tensor
        return tensor

    return keep


def _capture(policy: HookedPolicy, states: Tensor, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Activations that are still attached to the autograd graph; a cache's need not be."""
    held: dict[str, Tensor] = {}
    policy.run_with_hooks(states, fwd_hooks=[(name, _keep_in(held)) for name in names])
    return held
