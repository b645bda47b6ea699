"""Gymnasium spaces as JSON, and observations drawn from them.

A Dict space keeps the order of its keys: Gymnasium sorts a plain dict's and keeps that of pairs, and a network that
puts the parts side by side was trained in one order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlmech.errors import ConfigError
from rlmech.untyped import JsonObject, Settings

Observation = Tensor | dict[str, Tensor]
MODERATE = 1e4


def space_to_json(space: spaces.Space) -> JsonObject:
    """A space as JSON values; `space_from_json` reads them back.

    Raises:
        ConfigError: The space is of a kind that SB3 does not support.
    """
    match space:
        case spaces.Box():
            return {
                "type": "Box",
                "low": _bound_to_json(space.low),
                "high": _bound_to_json(space.high),
                "shape": list(space.shape),
                "dtype": str(space.dtype),
            }
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": list(space.shape)}
        case spaces.Dict():
            return {"type": "Dict", "spaces": {key: space_to_json(sub) for key, sub in space.spaces.items()}}
        case _:
            raise ConfigError(
                f"A space of type {type(space).__name__} cannot be written down.",
                given=repr(space),
                expected="Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them",
                fix="wrap the environment so that it has one of these spaces",
            )


def _bound_to_json(bound: np.ndarray) -> object:
    """One number where all are equal; infinities as text, for JSON has none."""
    flat = bound.ravel()
    values = [float(flat[0])] if flat.size and bool((flat == flat[0]).all()) else [float(value) for value in flat]
    texts = [value if np.isfinite(value) else str(value) for value in values]
    return texts[0] if len(texts) == 1 else texts


def space_from_json(values: Settings) -> spaces.Space:
    """Read a space from the values that `space_to_json` wrote."""
    match values["type"]:
        case "Box":
            shape, dtype = tuple(values["shape"]), np.dtype(values["dtype"])
            return box(_bound_from_json(values["low"], shape), _bound_from_json(values["high"], shape), dtype)
        case "Discrete":
            return spaces.Discrete(values["n"], start=values["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(values["nvec"])
        case "MultiBinary":
            return multi_binary(tuple(values["shape"]))
        case "Dict":
            return ordered_dict({key: space_from_json(sub) for key, sub in values["spaces"].items()})
        case kind:
            raise ConfigError(
                f"There is no space of type {kind!r}.",
                given=repr(kind),
                expected="Box, Discrete, MultiDiscrete, MultiBinary or Dict",
                fix="write the file again with save_policy",
            )


def ordered_dict(parts: Mapping[str, spaces.Space]) -> spaces.Dict:
    """A Dict space whose keys stay in the order given."""
    return spaces.Dict(list(parts.items()))


def multi_binary(shape: tuple[int, ...]) -> spaces.MultiBinary:
    """A MultiBinary space of a shape."""
    return spaces.MultiBinary(shape[0] if len(shape) == 1 else list(shape))


def _bound_from_json(bound: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.array([float(value) for value in bound] if isinstance(bound, list) else float(bound))
    return values.reshape(shape) if values.size > 1 else np.full(shape, values)


def box(low: np.ndarray, high: np.ndarray, dtype: np.dtype[Any]) -> spaces.Box:
    """A Box of bounds and dtype."""
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _of_moderate_size(space: Any) -> Any:
    """Bounds like 3e38 stand for none: a uniform draw between them would overflow the network."""
    if isinstance(space, spaces.Dict):
        return ordered_dict({key: _of_moderate_size(sub) for key, sub in space.spaces.items()})
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return space
    low = np.where(space.low < -MODERATE, -np.inf, space.low)
    return box(low, np.where(space.high > MODERATE, np.inf, space.high), np.dtype(space.dtype))


def draw_observations(space: spaces.Space, n: int, *, seed: int = 0) -> Observation:
    """Draw a batch of observations from a space, leaving its own generator alone.

    Args:
        space: The observation space.
        n: Number of observations.
        seed: Seed of the draws.

    Returns:
        A tensor `[batch, ...]`, or a dict of them.
    """
    space = _of_moderate_size(copy.deepcopy(space))
    space.seed(seed)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: torch.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    return torch.as_tensor(np.stack([np.asarray(sample) for sample in samples]))
