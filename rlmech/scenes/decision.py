"""What a policy makes of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy makes of a scene.

    Attributes:
        action: The action, as the environment takes it.
        name: Its name; its number where actions have no names, empty for a continuous one.
        scores: Dimension `action`: Q-values, logits or the mean action.
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
