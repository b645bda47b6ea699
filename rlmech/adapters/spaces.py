"""Gymnasium spaces as JSON, out of the clear text of an SB3 zip, and observations drawn from them.

A zip holds its spaces pickled; beside the pickle stand their type, shape, dtype, counts and, as numpy prints them,
their bounds. Those are read here, the pickle never. Bounds of more than 1,000 numbers are printed in part: they are
taken where all that is shown is one number. Dict spaces are not in clear.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlmech.errors import CheckpointError, ConfigError

Observation = Tensor | dict[str, Tensor]
MODERATE = 1e4
_NUMBER = re.compile(r"[-+]?(?:inf|nan|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)", re.IGNORECASE)


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
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


def _bound_to_json(bound: np.ndarray) -> Any:
    """One number where all are equal; infinities as text, for JSON has none."""
    flat = bound.ravel()
    values = [float(flat[0])] if flat.size and bool((flat == flat[0]).all()) else [float(value) for value in flat]
    texts = [value if np.isfinite(value) else str(value) for value in values]
    return texts[0] if len(texts) == 1 else texts


def space_from_json(values: Mapping[str, Any]) -> spaces.Space[Any]:
    """Read a space from the values that `space_to_json` wrote."""
    match values["type"]:
        case "Box":
            shape, dtype = tuple(values["shape"]), np.dtype(values["dtype"])
            return _box(_bound_from_json(values["low"], shape), _bound_from_json(values["high"], shape), dtype)
        case "Discrete":
            return spaces.Discrete(values["n"], start=values["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(values["nvec"])
        case "MultiBinary":
            return _multi_binary(tuple(values["shape"]))
        case "Dict":
            return spaces.Dict({key: space_from_json(sub) for key, sub in values["spaces"].items()})
        case kind:
            raise ConfigError(
                f"There is no space of type {kind!r}.",
                given=repr(kind),
                expected="Box, Discrete, MultiDiscrete, MultiBinary or Dict",
                fix="write the file again with save_policy",
            )


def _multi_binary(shape: tuple[int, ...]) -> spaces.MultiBinary:
    return spaces.MultiBinary(shape[0] if len(shape) == 1 else list(shape))


def _bound_from_json(bound: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.array([float(value) for value in bound] if isinstance(bound, list) else float(bound))
    return values.reshape(shape) if values.size > 1 else np.full(shape, values)


def _box(low: np.ndarray, high: np.ndarray, dtype: np.dtype[Any]) -> spaces.Box:
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def space_from_clear_text(entry: Any, *, argument: str) -> spaces.Space[Any]:
    """Read a space from what stands in clear in an SB3 zip.

    Args:
        entry: The JSON entry of the space in the zip's `data`.
        argument: The name of the space, which is also the argument of `load` that gives it instead.

    Raises:
        CheckpointError: The space is not in clear; the error says what is.
    """
    kind = str(entry.get(":type:", "")).rstrip("'>").rsplit(".", 1)[-1] if isinstance(entry, Mapping) else ""
    try:
        match kind:
            case "Box":
                return _box_from_clear_text(entry, exact=argument == "action_space")
            case "Discrete":
                return spaces.Discrete(int(entry["n"]), start=int(entry.get("start", 0)))
            case "MultiDiscrete":
                return spaces.MultiDiscrete(_counts(str(entry["nvec"])))
            case "MultiBinary":
                return _multi_binary(_shape(entry))
            case _:
                raise KeyError(":type:")
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        shown = entry.get("spaces", entry.get("_shape")) if isinstance(entry, Mapping) else entry
        raise CheckpointError(
            f"The zip holds its {argument} only as a pickle, which is never opened.",
            given=f"{kind or 'no'} space{f', shown as {shown}' if shown else ''}",
            expected="a space whose type, shape and bounds stand in clear",
            fix=f"give it: load(..., {argument}=env.{argument}), or load(..., env=env)",
        ) from error


def _shape(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """`_shape` is a list, or its text where one of its numbers was numpy's."""
    shape = entry["_shape"]
    return tuple(int(n) for n in (shape if isinstance(shape, list) else re.findall(r"\d+", str(shape))))


def _counts(text: str) -> list[int]:
    if "..." in text:
        raise ValueError("not all counts are printed")
    return [int(n) for n in re.findall(r"\d+", text)]


def _box_from_clear_text(entry: Mapping[str, Any], *, exact: bool) -> spaces.Box:
    """Bounds matter where actions are clipped and where they make an image; elsewhere unknown ones are infinite."""
    shape, dtype = _shape(entry), np.dtype(str(entry["dtype"]))
    low, high = (_bound_from_clear_text(str(entry.get(side, "")), shape) for side in ("low", "high"))
    if (low is None or high is None) and (exact or dtype == np.uint8):
        raise ValueError("not all bounds are printed")
    low = np.full(shape, -np.inf) if low is None else low
    high = np.full(shape, np.inf) if high is None else high
    return _box(low, high, dtype)


def _bound_from_clear_text(text: str, shape: tuple[int, ...]) -> np.ndarray | None:
    values = np.array([float(number) for number in _NUMBER.findall(text)])
    if values.size == int(np.prod(shape)):
        return values.reshape(shape)
    return np.full(shape, values[0]) if values.size and bool((values == values[0]).all()) else None


def _of_moderate_size(space: Any) -> Any:
    """Bounds like 3e38 stand for none: a uniform draw between them would overflow the network."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _of_moderate_size(sub) for key, sub in space.spaces.items()})
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return space
    low = np.where(space.low < -MODERATE, -np.inf, space.low)
    return _box(low, np.where(space.high > MODERATE, np.inf, space.high), np.dtype(space.dtype))


def draw_observations(space: spaces.Space[Any], n: int, *, seed: int = 0) -> Observation:
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
