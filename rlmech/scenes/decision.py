"""What a policy makes of a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy makes of a scene.

    Attributes:
        action: The action, as the environment takes it.
        name: Its name; its number where actions have no names, empty for a continuous one; of several choices each of
            them with its number, `steer 2, speed 0`.
        scores: Dimension `action`: Q-values, logits or the mean action; of several choices `choice` and `action`, -inf
            where a choice has fewer actions than another.
        state: Of a recurrent policy, its state after this step, by hook name; else empty.

    Example:
        >>> import rlmech as rlm
        >>> scene = rlm.Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> decision = scene.decide(rlm.load("zoo:highway-dqn-mlp"))
        >>> decision.name == str(decision.scores.idxmax().item())
        True
    """

    action: Any
    name: str
    scores: xr.DataArray
    state: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor], repr=False)


def decision_of(
    policy: HookedPolicy, scores: np.ndarray, action: Any, state: Mapping[str, torch.Tensor], *, names: Sequence[str]
) -> Decision:
    """What a policy decided, with the names of its actions and choices.

    Args:
        policy: The policy.
        scores: `[action]`, or of several choices `[choice action]`.
        action: What it chose.
        state: Its state afterwards.
        names: Names that the environment has for its actions.
    """
    n_actions = scores.shape[-1]
    names = policy.spec.actions or names
    labels: list[Any] = list(names) if len(names) == n_actions and scores.ndim == 1 else list(range(n_actions))
    coords: dict[str, Any] = {"action": labels}
    if policy.choices is not None:
        own = policy.spec.choices
        coords["choice"] = list(own) if len(own) == len(scores) else list(range(len(scores)))
        numbers = np.asarray(action).reshape(-1)
        name = ", ".join(f"{choice} {number}" for choice, number in zip(coords["choice"], numbers, strict=True))
    elif policy.output_kind == "mean_action":
        name = ""
    else:
        action = int(action)
        name = str(labels[action])
    dims = ("choice", "action")[-scores.ndim :]
    return Decision(
        action=action,
        name=name,
        scores=xr.DataArray(scores, dims=dims, coords=coords, attrs={"long_name": policy.output_kind}),
        state=state,
    )
