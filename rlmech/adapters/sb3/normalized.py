"""VecNormalize's statistics as a policy's first layer.

Stable-Baselines3 trains behind `VecNormalize` and keeps the statistics apart from the policy. Here they stand before
it: `hook_obs_raw` is what the environment gives, `hook_obs` what the network is fed, in SB3's own arithmetic (float64,
then rounded to float32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlmech.core.points import NORMALIZATION
from rlmech.errors import EnvironmentFitError
from rlmech.untyped import JsonObject

SKIP = "or vecnormalize=False, for observations that are normalised already"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Running mean and variance of observations.

    Attributes:
        mean: By key of a Dict observation; `""` for a single array.
        var: Likewise.
        clip: Largest absolute value after normalisation.
        epsilon: Added to the variance.
    """

    mean: Mapping[str, np.ndarray]
    var: Mapping[str, np.ndarray]
    clip: float = 10.0
    epsilon: float = 1e-8

    def under(self, key: str) -> Statistics:
        """Statistics of a single array, as those of a Dict observation's part."""
        return replace(self, mean={key: self.mean[""]}, var={key: self.var[""]})

    def check(self, space: spaces.Space) -> None:
        """Check that these are statistics of a space's observations.

        Raises:
            EnvironmentFitError: Keys or shapes are others, or the numbers are no means and variances.
        """
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for key, mean in self.mean.items():
            var, where = self.var[key], f" of {key!r}" if key else ""
            shape = parts[key].shape if key in parts else None
            finite = bool(np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all())
            if shape != mean.shape or var.shape != mean.shape or not finite or not self.clip > 0:
                raise EnvironmentFitError(
                    "The statistics of VecNormalize are not those of this policy's observations.",
                    given=f"mean{where} of shape {list(mean.shape)}, variance of {list(var.shape)}, clip {self.clip}"
                    f"{'' if finite else ', not all of them numbers that can be'}",
                    expected=f"shape {list(shape)}" if shape is not None else f"keys {list(parts)}",
                    fix=f"give those of its own run: vecnormalize='path/to/vecnormalize.pkl'; {SKIP}",
                )

    def observations(self, drawn: Any, space: spaces.Space) -> Any:
        """Observations as the environment gives them: standard normal draws of these means and variances."""
        generator = torch.Generator().manual_seed(0)

        def near(key: str, value: Tensor) -> Tensor:
            if key not in self.mean:
                return value
            mean, scale = torch.as_tensor(self.mean[key]), torch.as_tensor(np.sqrt(self.var[key]))
            return (mean + scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)).to(value.dtype)

        return {key: near(key, value) for key, value in drawn.items()} if isinstance(drawn, dict) else near("", drawn)


class Normalization(nn.Module):
    """One array's statistics: clip((x - mean) / sqrt(var + epsilon)).

    Args:
        mean: `[...]`, as one observation.
        var: Likewise.
        clip: Largest absolute value.
        epsilon: Added to the variance.
    """

    mean: Tensor
    var: Tensor
    like: Tensor

    def __init__(self, mean: np.ndarray, var: np.ndarray, *, clip: float, epsilon: float) -> None:
        super().__init__()
        self.clip, self.epsilon = float(clip), float(epsilon)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64).clone())
        self.register_buffer("var", torch.as_tensor(var, dtype=torch.float64).clone())
        self.register_buffer("like", torch.zeros((), dtype=torch.float32), persistent=False)

    def forward(self, obs: Tensor) -> Tensor:
        """Normalise a batch of observations."""
        scaled = (obs.to(torch.float64) - self.mean) / torch.sqrt(self.var + self.epsilon)
        return torch.clamp(scaled, -self.clip, self.clip).to(self.like.dtype)


class NormalizedScores(nn.Module):
    """A module of scores behind its statistics.

    Args:
        statistics: Of the observations.
        scores: The module that takes them normalised.
    """

    def __init__(self, statistics: Statistics, scores: nn.Module) -> None:
        super().__init__()
        layers = {
            key: Normalization(mean, statistics.var[key], clip=statistics.clip, epsilon=statistics.epsilon)
            for key, mean in statistics.mean.items()
        }
        self.add_module(NORMALIZATION, layers[""] if "" in layers else nn.ModuleDict(layers))
        self.scores = scores

    def normalize(self, obs: Any) -> Any:
        """Observations as the policy behind takes them."""
        layers: Any = self.get_submodule(NORMALIZATION)
        if isinstance(obs, dict):
            return {key: layers[key](value) if key in layers else value for key, value in obs.items()}
        return layers(obs)

    def forward(self, obs: object, *state: object) -> Any:
        """What the policy gives for observations as they come from the environment, in its state where it has one."""
        return self.scores(self.normalize(obs), *state)

    def statistics(self) -> Statistics:
        """The statistics, read off the layers."""
        layers: Any = self.get_submodule(NORMALIZATION)
        parts: JsonObject = dict(layers.items()) if isinstance(layers, nn.ModuleDict) else {"": layers}
        first = next(iter(parts.values()))
        return Statistics(
            mean={key: layer.mean.cpu().numpy() for key, layer in parts.items()},
            var={key: layer.var.cpu().numpy() for key, layer in parts.items()},
            clip=first.clip,
            epsilon=first.epsilon,
        )
