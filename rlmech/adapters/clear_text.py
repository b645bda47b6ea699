"""Gymnasium spaces out of an SB3 zip: what stands in clear, and what its pickle holds as data.

A zip holds its spaces pickled; beside the pickle stand type, shape, dtype, counts and, as numpy prints them, bounds. A
Dict space stands there as printed text, in the order that it was trained in. Bounds are printed: rounded where the
trainer had set numpy's print options, and cut above 1,000 numbers. So the numbers themselves are taken out of the
pickle, read as inert data (see `inert_pickle`), wherever they fit what is printed.
"""

from __future__ import annotations

import ast
import base64
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from rlmech.adapters.inert_pickle import Stub, read_inert
from rlmech.adapters.spaces import box, multi_binary, ordered_dict
from rlmech.errors import CheckpointError
from rlmech.untyped import Settings

_NUMBER = re.compile(r"[-+]?(?:inf|nan|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)", re.IGNORECASE)
_KEY = re.compile(r"""[\[(){,\s]*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*[,:]\s*""")
_BOUND = r"(\[.*?\]+|[^\[\],]+)"
_BOX = re.compile(rf"Box\({_BOUND}, {_BOUND}, (\([\d, ]*\)), (\w+)\)", re.DOTALL)
_DISCRETE = re.compile(r"Discrete\((\d+)(?:, start=(-?\d+))?\)")
_MULTI_DISCRETE = re.compile(r"MultiDiscrete\((\[[\d\s]*\])(?:, start=\[[\s0]*\])?\)")
_MULTI_BINARY = re.compile(r"MultiBinary\(([\d(), \[\]]+?)\)(?=\)|\}|, |$)")


def space_from_clear_text(entry: Any, *, argument: str) -> spaces.Space:
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
                return multi_binary(_shape(entry))
            case "Dict":
                return _dict_from_text(str(entry["spaces"]))
            case _:
                raise KeyError(":type:")
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        shown = entry.get("spaces", entry.get("_shape")) if isinstance(entry, Mapping) else entry
        raise CheckpointError(
            f"The zip does not say its {argument} in clear, and as a pickle it is never opened.",
            given=f"{kind or 'no'} space{f', shown as {shown}' if shown else ''}",
            expected="a space whose type, shape and bounds stand in clear",
            fix=f"give it: load(..., {argument}=env.{argument}), or load(..., env=env)",
        ) from error


def _shape(entry: Mapping[str, object]) -> tuple[int, ...]:
    """A list, or its text where one of its numbers was numpy's; gym before 0.22 calls it `shape`."""
    shape = entry["_shape"] if "_shape" in entry else entry["shape"]
    return tuple(int(n) for n in (shape if isinstance(shape, list) else re.findall(r"\d+", str(shape))))


def _counts(text: str) -> list[int]:
    if "..." in text:
        raise ValueError("not all counts are printed")
    return [int(n) for n in re.findall(r"\d+", text)]


def _box_from_clear_text(entry: Mapping[str, object], *, exact: bool) -> spaces.Box:
    """Bounds matter where actions are clipped or scaled and where they make an image; elsewhere they may be unknown."""
    shape, dtype = _shape(entry), np.dtype(str(entry["dtype"]))
    printed = [_bound_from_clear_text(str(entry.get(side, "")), shape) for side in ("low", "high")]
    stored = _stored_bounds(entry, shape, dtype)
    low, high = [
        bound if bound is not None and _agree(bound, shown) else shown
        for bound, shown in zip(stored, printed, strict=True)
    ]
    if (low is None or high is None) and (exact or dtype == np.uint8):
        raise ValueError("not all bounds are printed")
    if exact and (low is not stored[0] or high is not stored[1]):
        warnings.warn(
            f"The bounds of actions are taken as they are printed in the zip, {low} to {high}, where numpy may have "
            "rounded them; give the environment's: load(..., action_space=env.action_space)",
            stacklevel=2,
        )
    low = np.full(shape, -np.inf) if low is None else low
    high = np.full(shape, np.inf) if high is None else high
    return box(low, high, dtype)


def _stored_bounds(entry: Settings, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[np.ndarray | None]:
    """The bounds in the pickle beside the clear text, read as data; None where it has none of this shape and dtype."""
    try:
        space = read_inert(base64.b64decode(str(entry[":serialized:"]), validate=True), name="a space")
    except (KeyError, ValueError, CheckpointError):
        return [None, None]
    state = space.state if isinstance(space, Stub) else {}
    bounds = [state.get(side) for side in ("low", "high")]
    fits = [isinstance(bound, np.ndarray) and bound.shape == shape and bound.dtype == dtype for bound in bounds]
    return [bound if fit else None for bound, fit in zip(bounds, fits, strict=True)]


def _agree(stored: np.ndarray, printed: np.ndarray | None) -> bool:
    """Whether printed numbers can be the stored ones, rounded to a digit or more; cut ones say nothing."""
    if printed is None:
        return True
    with np.errstate(invalid="ignore"):
        near = np.isclose(stored.astype(np.float64), printed, rtol=0.06, atol=0.06)
    return bool(near.all())


def _bound_from_clear_text(text: str, shape: tuple[int, ...]) -> np.ndarray | None:
    values = np.array([float(number) for number in _NUMBER.findall(text)])
    if values.size == int(np.prod(shape)) and "..." not in text:
        return values.reshape(shape)
    return np.full(shape, values[0]) if values.size and bool((values == values[0]).all()) else None


def _dict_from_text(text: str) -> spaces.Dict:
    """A Dict space as gym or Gymnasium printed it: `OrderedDict([('a', Box(...)), ...])` or `{'a': Box(...), ...}`."""
    rest = text.removeprefix("OrderedDict(")
    parts: dict[str, spaces.Space] = {}
    while key := _KEY.match(rest):
        parts[str(ast.literal_eval(key[1]))], rest = _space_from_text(rest[key.end() :])
    if not parts or rest.strip("])} \n"):
        raise ValueError(f"text of a Dict space that is not understood: {rest[:60]!r}")
    return ordered_dict(parts)


def _space_from_text(text: str) -> tuple[spaces.Space, str]:
    """The space that a text begins with, and the text after it."""
    if found := _BOX.match(text):
        shape, dtype = tuple(int(n) for n in re.findall(r"\d+", found[3])), np.dtype(found[4])
        low, high = (_bound_from_clear_text(found[side], shape) for side in (1, 2))
        if dtype == np.uint8 and (low is None or high is None):
            raise ValueError("not all bounds are printed")
        low = np.full(shape, -np.inf) if low is None else low
        made: spaces.Space = box(low, np.full(shape, np.inf) if high is None else high, dtype)
    elif found := _DISCRETE.match(text):
        made = spaces.Discrete(int(found[1]), start=int(found[2] or 0))
    elif found := _MULTI_DISCRETE.match(text):
        made = spaces.MultiDiscrete(_counts(found[1]))
    elif found := _MULTI_BINARY.match(text):
        made = multi_binary(tuple(int(n) for n in re.findall(r"\d+", found[1])))
    else:
        raise ValueError(f"text of a space that is not understood: {text[:60]!r}")
    return made, text[found.end() :]
