"""Results as labelled heat maps: sweeps, circuits, and any named array of one to three dimensions.

Rows, columns and panels take their names from the array's coordinates, the colour bar its unit from `attrs`. All
panels of a figure share one diverging colour scale, white at zero. Nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.panels import Panel, draw
from rlmech.plot.saving import PlotFigure

Circuit = xr.Dataset | xr.DataArray
_TOGETHER = " & "
_FAINTEST = 0.1
"""Recovery that has full colour at the least: less than that is nothing much, and should not look like it."""
_NOT_AN_AXIS = ("hook", "site", "kind", "n_pairs", "label")


@explain_misuse
def heatmap(
    array: xr.DataArray,
    *,
    rows: str | None = None,
    columns: str | None = None,
    panels: str | None = None,
    spread: xr.DataArray | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> PlotFigure:
    """Draw a named array of one, two or three dimensions as heat maps on one colour scale.

    Args:
        array: Any result; its coordinates name the cells, `attrs["units"]` or `attrs["unit"]` the colour bar.
        rows: Dimension along the rows; by default the last but one.
        columns: Dimension along the columns; by default the last.
        panels: Dimension spread over panels; by default the one that is left, `head` before others.
        spread: Standard deviation of each cell, shown on hovering.
        title: Title of the figure.
        limit: Value of full colour; the largest magnitude by default.

    Returns:
        A plotly figure.

    Raises:
        ConfigError: The array has no or more than three dimensions, or a named one is not there.

    Example:
        >>> import numpy as np, xarray as xr
        >>> ov = xr.DataArray(np.eye(3), dims=("feature", "action"), coords={"action": ["SLOWER", "IDLE", "FASTER"]})
        >>> heatmap(ov).data[0].z.shape
        (3, 3)
    """
    grids = _panels(array, rows=rows, columns=columns, panels=panels, spread=spread)
    return draw(grids, colour_title=_unit(array), title=title, limit=limit)


@explain_misuse
def sweep(
    result: xr.Dataset | Mapping[str, xr.Dataset], *, title: str | None = None, limit: float | None = None
) -> PlotFigure:
    """Draw a sweep's effect of every site, with its interval, as heat maps on one colour scale.

    Sites that select the same axes (say, a head, or a head and an entity) share a panel; a site that selects one axis
    stands in the row of its hook point.

    Args:
        result: What `activation_patching` or `ablation_sweep` returned, or several of them by name, in one unit: the
            names then stand before the hook points.
        title: Title of the figure.
        limit: Value of full colour; by default the largest magnitude, but at least a recovery of 0.1.

    Returns:
        A plotly figure; hovering shows the effect and its 95 % interval.

    Raises:
        ConfigError: The dataset has no `effect` over `site`.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> len(rlm.plot.sweep(rlm.ablation_sweep(policy, torch.rand(16, 4))).data)
        1
    """
    named = {"": result} if isinstance(result, xr.Dataset) else result
    grids: list[Panel] = []
    for one in named.values():
        _check_sweep(one)
    hooks = [str(hook) for one in named.values() for hook in one.coords["hook"].values]
    module = _common_module([part for hook in hooks for part in hook.split(_TOGETHER)])
    largest = max(float(np.nanmax(np.abs(one["effect"].values), initial=0)) for one in named.values())
    recoveries = all(one["effect"].attrs.get("units") == "1" for one in named.values())
    if limit is None and recoveries and largest < _FAINTEST:
        limit = _FAINTEST
    for axes in dict.fromkeys(tuple(selected) for one in named.values() for selected in _selections(one)):
        grids += _sweep_grids(named, axes, module)
    legend = _effect_title(next(iter(named.values()))) + (f"<br>hook points in {module}" if module else "")
    return draw(grids, colour_title=legend, title=title, limit=limit)


def _check_sweep(result: xr.Dataset) -> None:
    if "effect" not in result or "site" not in result["effect"].dims:
        raise ConfigError(
            "This is not the result of a sweep.",
            given=f"variables {sorted(map(str, result.data_vars))}",
            expected="a Dataset with 'effect' over the dimension 'site'",
            fix="give the result of rlm.activation_patching or rlm.ablation_sweep; rlm.plot.heatmap draws any array",
        )


@explain_misuse
def circuit(
    result: Circuit | Mapping[str, Circuit],
    *,
    entity: str | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> PlotFigure:
    """Draw a QK or OV circuit, one panel per head on one colour scale.

    Args:
        result: What `qk_circuit` or `ov_circuit` returned, or an array of `head` and two more dimensions made from it;
            or several of them by name, say of a trained and an untrained policy, which then stand side by side.
        entity: Which entity's circuit, where it has one for each.
        title: Title of the figure.
        limit: Value of full colour; the largest magnitude by default.

    Returns:
        A plotly figure; hovering shows the value and, where the result has it, the spread over states.

    Raises:
        ConfigError: The circuit has one form per entity and none is named, or circuits differ in their heads.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> len(rlm.plot.circuit(rlm.circuits.qk_circuit(policy, space="model")).data)
        4
    """
    named = {"": result} if isinstance(result, xr.Dataset | xr.DataArray) else dict(result)
    parts = {name: _circuit_panels(one, entity, name) for name, one in named.items()}
    numbers = {name: len(panels) for name, panels in parts.items()}
    if len(set(numbers.values())) != 1:
        raise ConfigError(
            "The circuits cannot stand side by side: they differ in their heads.",
            given=", ".join(f"{name}: {number}" for name, number in numbers.items()) or "no circuit",
            expected="as many heads in each",
            fix="select the heads to compare, e.g. result.sel(head=[0, 1])",
        )
    side_by_side = [panel for heads in zip(*parts.values(), strict=True) for panel in heads]
    return draw(
        side_by_side,
        colour_title=_unit(_circuit_of(next(iter(named.values())))),
        title=title,
        limit=limit,
        group=len(named),
    )


def _circuit_of(result: Circuit) -> xr.DataArray:
    return result["circuit"] if isinstance(result, xr.Dataset) else result


def _circuit_panels(result: Circuit, entity: str | None, name: str) -> list[Panel]:
    array = _circuit_of(result)
    spread = result["spread"] if isinstance(result, xr.Dataset) and "spread" in result else None
    if "entity" in array.dims and array.ndim > 3:
        if entity is None:
            raise ConfigError(
                "The circuit has a form of its own for each entity.",
                given="entity=None",
                expected=f"one of {_names(array, 'entity')}",
                fix=f"name one, e.g. entity={_names(array, 'entity')[-1]!r}",
            )
        array = array.sel(entity=entity)
        spread = None if spread is None else spread.sel(entity=entity)
    array = array.squeeze([dim for dim in array.dims if array.sizes[dim] == 1 and dim != "head"], drop=True)
    panels = _panels(array, panels="head" if "head" in array.dims else None, spread=spread)
    return [replace(panel, title=", ".join(part for part in (panel.title, name) if part)) for panel in panels]


def _panels(
    array: xr.DataArray,
    *,
    rows: str | None = None,
    columns: str | None = None,
    panels: str | None = None,
    spread: xr.DataArray | None = None,
) -> list[Panel]:
    panel_dim, row_dim, column_dim = _roles(array, rows, columns, panels)
    grids: list[Panel] = []
    for position in range(array.sizes[panel_dim] if panel_dim else 1):
        where = {panel_dim: position} if panel_dim else {}
        values = _cells(array.isel(where), row_dim, column_dim)
        deviation = None if spread is None else _cells(spread.squeeze().isel(where), row_dim, column_dim)
        grids.append(
            Panel(
                title=f"{panel_dim} {_names(array, panel_dim)[position]}" if panel_dim else "",
                rows=_names(array, row_dim) if row_dim else ("",),
                columns=_names(array, column_dim),
                row_axis=_axis_title(row_dim),
                column_axis=_axis_title(column_dim),
                values=values,
                spread=deviation,
            )
        )
    return grids


def _roles(
    array: xr.DataArray, rows: str | None, columns: str | None, panels: str | None
) -> tuple[str | None, str | None, str]:
    dims = [str(dim) for dim in array.dims]
    for name in (rows, columns, panels):
        if name is not None and name not in dims:
            raise ConfigError(
                f"The array has no dimension {name!r}.", given=repr(name), expected=f"one of {dims}", fix="name another"
            )
    if not 1 <= len(dims) <= 3:
        raise ConfigError(
            "A heat map draws one, two or three dimensions.",
            given=f"{len(dims)} dimensions {dims}",
            expected="1 to 3",
            fix="select or average the others first, e.g. array.mean('batch') or array.isel(batch=0)",
        )
    left = [dim for dim in dims if dim not in (rows, columns, panels)]
    if panels is None and len(dims) == 3:
        panels = "head" if "head" in left else left[0]
        left.remove(panels)
    column_dim = columns or left.pop()
    row_dim = rows or (left.pop() if left else None)
    return panels, row_dim, column_dim


def _cells(array: xr.DataArray, row_dim: str | None, column_dim: str) -> np.ndarray:
    ordered = array.expand_dims("row") if row_dim is None else array
    return np.asarray(ordered.transpose(row_dim or "row", column_dim).values, dtype=float)


def _names(array: xr.DataArray | xr.Dataset, dim: Hashable) -> tuple[str, ...]:
    if dim in array.coords:
        return tuple(str(value) for value in array.coords[dim].values)
    return tuple(str(index) for index in range(array.sizes[dim]))


def _axis_title(dim: str | None) -> str:
    return "" if dim is None else dim.replace("_", " ")


def _unit(array: xr.DataArray) -> str:
    unit = str(array.attrs.get("units", array.attrs.get("unit", ""))).removeprefix("1")  # "1" is dimensionless
    name = str(array.attrs.get("long_name", array.name or "")).replace("_", " ")
    return f"{name} [{unit}]" if unit and name else name or unit


def _effect_title(result: xr.Dataset) -> str:
    return _unit(result["effect"])


def _missing(value: object) -> bool:
    return value is None or value in ("", -1) or (isinstance(value, float) and math.isnan(value))


def _selections(result: xr.Dataset) -> list[dict[str, str]]:
    """For each site the axes that it selects and the names it selects there."""
    axes = [
        str(name)
        for name, coordinate in result.coords.items()
        if coordinate.dims == ("site",) and str(name) not in _NOT_AN_AXIS
    ]
    chosen: list[dict[str, str]] = []
    for site in range(result.sizes["site"]):
        values = {axis: result.coords[axis].values[site] for axis in axes}
        selected = {axis: _number_or_name(value) for axis, value in values.items() if not _missing(value)}
        together = _TOGETHER in str(result.coords["hook"].values[site])
        if together and len(set(selected.values())) == 1:  # a vehicle's embedding with its key: one vehicle
            selected = dict([next(iter(selected.items()))])
        chosen.append(selected)
    return chosen


def _number_or_name(value: object) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One site of a sweep: where it stands, and what it shows."""

    row: str
    column: str
    effect: float
    low: float
    high: float


def _common_module(hooks: Sequence[str]) -> str:
    """The path of the module that all hook points lie in, so that it need not be said of each."""
    paths = [hook.split(".")[:-1] for hook in hooks]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _sweep_grids(results: Mapping[str, xr.Dataset], axes: tuple[str, ...], module: str) -> list[Panel]:
    """Lay the sites that select the given axes out on grids."""
    panels: dict[str, list[_Cell]] = {}
    for name, result in results.items():
        for site, selected in enumerate(_selections(result)):
            if tuple(selected) != axes:
                continue
            parts = str(result.coords["hook"].values[site]).split(_TOGETHER)
            hook = _TOGETHER.join(part.removeprefix(f"{module}.") for part in parts)
            names = list(selected.values())
            single = len(axes) < 2
            where = " · ".join(part for part in (name, hook) if part)
            cell = _Cell(
                row=where if single else ", ".join(names[:-1]),
                column=names[-1] if names else "all of it",
                **{
                    key: float(result[variable].values[site]) if variable in result else math.nan
                    for key, variable in (("effect", "effect"), ("low", "effect_low"), ("high", "effect_high"))
                },
            )
            panels.setdefault("" if single else where, []).append(cell)
    row_axis = "hook point" if len(axes) < 2 else ", ".join(_axis_title(axis) for axis in axes[:-1])
    column_axis = _axis_title(axes[-1]) if axes else ""
    return [_grid(cells, title, row_axis=row_axis, column_axis=column_axis) for title, cells in panels.items()]


def _grid(cells: Sequence[_Cell], title: str, *, row_axis: str, column_axis: str) -> Panel:
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column for cell in cells))
    values = np.full((3, len(rows), len(columns)), np.nan)
    for cell in cells:
        values[:, rows.index(cell.row), columns.index(cell.column)] = (cell.effect, cell.low, cell.high)
    known = bool(np.isfinite(values[1:]).any())
    return Panel(
        title=title,
        rows=tuple(rows),
        columns=tuple(columns),
        row_axis=row_axis,
        column_axis=column_axis,
        values=values[0],
        low=values[1] if known else None,
        high=values[2] if known else None,
    )
