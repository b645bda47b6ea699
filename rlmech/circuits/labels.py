"""Names for the axes of a circuit, and the attributes that say how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.core.attention import AttentionBlock
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.errors import AttentionError, ConfigError

Action = int | str
BIAS = "bias"
"""Label of the feature that is 1 in every state: its row or column of a circuit is the biases'."""


def choose_block(policy: HookedPolicy, path: str | None) -> AttentionBlock:
    """The attention block at a path, or the only one.

    Raises:
        AttentionError: No such block, none at all, or several and none named.
    """
    if path is not None and not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            "A block is named by its module path.",
            given=f"a {type(path).__name__}",
            expected=f"one of {list(policy.attention)}, or none",
            fix="observations go by name: obs=...",
        )
    if path is not None:
        return policy.attention[path]
    paths = list(policy.attention)
    if len(paths) == 1:
        return policy.attention[paths[0]]
    raise AttentionError(
        f"{type(policy.module).__name__} has {len(paths)} attention blocks."
        if paths
        else "The policy has no attention.",
        given="block=None",
        expected=f"one of {paths}" if paths else "a policy with attention",
        fix=f"name one: block={paths[0]!r}" if paths else "patch or ablate its layers instead: rlm.ablation_sweep",
    )


def labelled(policy: HookedPolicy, values: Float[Tensor, "*axes"], dims: Sequence[str], *, units: str) -> xr.DataArray:
    """A tensor with named dimensions and the spec's names as coordinates; `feature_<side>` takes the features'."""
    coords: dict[str, Any] = {}
    for dim, size in zip(dims, values.shape, strict=True):
        axis = dim.partition("_")[0] if dim.startswith("feature_") else dim
        names = _names(policy, axis)
        if axis == "feature" and len(names) + 1 == size:
            coords[dim] = [*names, BIAS]
        elif axis == "query" and size <= len(names):
            coords[dim] = list(names[:size])
        elif len(names) == size:
            coords[dim] = list(names)
        elif dim != "batch":
            coords[dim] = np.arange(size)
    return xr.DataArray(values.detach().cpu().numpy(), dims=tuple(dims), coords=coords, attrs={"units": units})


def score_units(policy: HookedPolicy) -> str:
    """Unit of the policy's action scores."""
    return {"q_values": "return", "logits": "nat", "mean_action": "action"}[policy.output_kind]


def block_attrs(policy: HookedPolicy, block: AttentionBlock, **more: Any) -> dict[str, Any]:
    """What is needed to read a block's result and to make it again."""
    return {"block": block.path, "scale": block.scale, **policy_attrs(policy, **more)}


def policy_attrs(policy: HookedPolicy, **more: Any) -> dict[str, Any]:
    """What is needed to read a result and to make it again."""
    return {
        "output_kind": policy.output_kind,
        **provenance(policy),
        **more,
    }


def action_weights(
    policy: HookedPolicy, better: Action | None, worse: Action | None
) -> tuple[Float[Tensor, "term action"], Sequence[Action]]:
    """Which actions' scores a result explains: each of them, or one's lead over another.

    Returns:
        A row of weights on the scores for each, and their names.

    Raises:
        ConfigError: Only one of the two is given, or they are the same.
        MetricError: The policy has no such action, or makes several choices at once.
    """
    point = next(point for point in policy.hook_dict.values() if point.kind == "output")
    if policy.choices is not None:
        raise policy.choices.several("An explanation of scores", policy.spec.choices)
    n_actions = point.size("action")
    names: Sequence[Action] = policy.spec.names("action") or tuple(range(n_actions))
    every = torch.eye(n_actions, dtype=torch.float64)
    if better is None and worse is None:
        return every, names
    places = [
        policy.spec.action_number(action, n_actions=n_actions) for action in (better, worse) if action is not None
    ]
    if len(set(places)) < 2:
        raise ConfigError(
            "An action gap is between two actions.",
            given=f"better={better!r}, worse={worse!r}",
            expected="two of " + ", ".join(map(repr, names)),
            fix="give both, or neither for each action's own score",
        )
    return (every[places[0]] - every[places[1]])[None], [f"{names[places[0]]} - {names[places[1]]}"]


def _names(policy: HookedPolicy, axis: str) -> tuple[str, ...]:
    if axis == "query":
        return policy.spec.names("entity")
    names = policy.spec.names(axis)
    if axis == "feature" and not names:
        n_features = policy.hook_dict["hook_obs"].shape[-1] or 0
        return tuple(f"feature_{place}" for place in range(n_features))
    return names
