"""Results that any file can hold: what every analysis does with its dataset before it hands it out.

netCDF knows numbers and texts: no booleans, None, lists or dicts as attributes, no text of mixed type, no slash in a
name; zarr and its readers differ in the rest. What stands in a result is therefore a number or a text from the start,
and comes back from each of them as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from rlmech.untyped import JsonObject

Result = TypeVar("Result", xr.Dataset, xr.DataArray)


def storable(result: Result, attrs: Mapping[str, object] | None = None) -> Result:
    """A result as files can hold it, with more attributes.

    Args:
        result: A dataset or an array.
        attrs: Attributes to add. Truth values become 0 and 1; None, lists and dicts become JSON.

    Returns:
        The same with attributes that are numbers or texts, texts of one dtype (empty where nothing stood), 16-bit
        numbers as 32-bit ones, and a dot for each slash in a name.

    Example:
        >>> import xarray as xr
        >>> from rlmech.results import storable
        >>> result = storable(xr.Dataset({"a/b": ("site", [1.0])}), {"trusted": True, "left_out": ["x"]})
        >>> list(result), result.attrs
        (['a.b'], {'trusted': 1, 'left_out': '["x"]'})
    """
    result = result.copy(deep=False)
    result.attrs = plain_attrs({**result.attrs, **(attrs or {})})
    slashed = {name for name in [*_variables(result), *result.dims] if "/" in str(name)}
    if slashed:
        result = result.rename({name: str(name).replace("/", ".") for name in slashed})  # pyright: ignore[reportArgumentType]
    changed = {name: new for name, old in _variables(result).items() if (new := _variable(old)) is not old}
    coords = {name: new for name, new in changed.items() if name in result.coords}
    result = result.assign_coords(coords) if coords else result
    if isinstance(result, xr.DataArray):
        own = _variable(result.variable)
        return result if own is result.variable else result.copy(deep=False, data=own.data).assign_attrs(own.attrs)
    data = {name: new for name, new in changed.items() if name not in coords}
    return result.assign(data) if data else result


def _variables(result: xr.Dataset | xr.DataArray) -> dict[object, xr.Variable]:
    held = result.variables if isinstance(result, xr.Dataset) else {n: c.variable for n, c in result.coords.items()}
    return dict(held)


def _variable(variable: xr.Variable) -> xr.Variable:
    """The variable, or, where something in it cannot be stored, another."""
    attrs = plain_attrs(variable.attrs)
    if variable.dtype.kind == "O" or variable.dtype.kind == "T":
        values = np.asarray(variable.values, dtype=object)
        texts = ["" if value is None or value != value else str(value) for value in values.ravel()]  # NaN
        return xr.Variable(variable.dims, np.array(texts, dtype=str).reshape(values.shape), attrs)
    if variable.dtype == np.float16:
        return xr.Variable(variable.dims, variable.values.astype(np.float32), attrs)
    return variable if attrs == variable.attrs else xr.Variable(variable.dims, variable.data, attrs)


def plain_attrs(attrs: Mapping[Any, Any]) -> JsonObject:
    """Attributes as `storable` makes them, for a dataset whose variables are plain numbers and texts from the start.

    Example:
        >>> plain_attrs({"trusted": True, "names": ["a"]})
        {'trusted': 1, 'names': '["a"]'}
    """
    return {str(name): _number_or_text(value) for name, value in attrs.items()}


def _number_or_text(value: object) -> int | float | str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float, str)):
        return value
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, default=str)
