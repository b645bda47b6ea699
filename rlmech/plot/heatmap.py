"""Results as labelled heat maps: sweeps, circuits, and any named array of one to three dimensions.

Rows, columns and panels take their names from the array's coordinates, the colour bar its unit from `attrs`. All
panels of a figure share one diverging colour scale, white at zero. Nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rlmech.errors import ConfigError
from rlmech.plot.style import CELLS, INK, MINUS, MUTED, TEMPLATE, colour_axis

MAX_PANELS_PER_ROW = 4
CELLS_PER_ROW = 28  # panels go side by side up to this many cells
CELLS_WITH_TEXT = 32  # more cells than this across the page leave no room for their values
CELL = 44  # pixels, the height of a row
_NOT_AN_AXIS = ("hook", "site", "kind", "n_pairs", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One grid of cells with the names of its rows and columns."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_axis: str
    column_axis: str
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    spread: np.ndarray | None = None


def heatmap(
    array: xr.DataArray,
    *,
    rows: str | None = None,
    columns: str | None = None,
    panels: str | None = None,
    spread: xr.DataArray | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> go.Figure:
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
    panel_dim, row_dim, column_dim = _roles(array, rows, columns, panels)
    grids: list[_Panel] = []
    for position in range(array.sizes[panel_dim] if panel_dim else 1):
        where = {panel_dim: position} if panel_dim else {}
        values = _cells(array.isel(where), row_dim, column_dim)
        deviation = None if spread is None else _cells(spread.squeeze().isel(where), row_dim, column_dim)
        grids.append(
            _Panel(
                title=f"{panel_dim} {_names(array, panel_dim)[position]}" if panel_dim else "",
                rows=_names(array, row_dim) if row_dim else ("",),
                columns=_names(array, column_dim),
                row_axis=_axis_title(row_dim),
                column_axis=_axis_title(column_dim),
                values=values,
                spread=deviation,
            )
        )
    return _draw(grids, colour_title=_unit(array), title=title, limit=limit)


def sweep(
    result: xr.Dataset | Mapping[str, xr.Dataset], *, title: str | None = None, limit: float | None = None
) -> go.Figure:
    """Draw a sweep's effect of every site, with its interval, as heat maps on one colour scale.

    Sites that select the same axes (say, a head, or a head and an entity) share a panel; a site that selects one axis
    stands in the row of its hook point.

    Args:
        result: What `activation_patching` or `ablation_sweep` returned, or several of them by name, in one unit: the
            names then stand before the hook points.
        title: Title of the figure.
        limit: Value of full colour; the largest magnitude by default.

    Returns:
        A plotly figure; hovering shows the effect and its 95 % interval.

    Raises:
        ConfigError: The dataset has no `effect` over `site`.
    """
    named = {"": result} if isinstance(result, xr.Dataset) else result
    grids: list[_Panel] = []
    for one in named.values():
        _check_sweep(one)
    module = _common_module([str(hook) for one in named.values() for hook in one.coords["hook"].values])
    for axes in dict.fromkeys(tuple(selected) for one in named.values() for selected in _selections(one)):
        grids += _sweep_grids(named, axes, module)
    legend = _effect_title(next(iter(named.values()))) + (f"<br>hook points in {module}" if module else "")
    return _draw(grids, colour_title=legend, title=title, limit=limit)


def _check_sweep(result: xr.Dataset) -> None:
    if "effect" not in result or "site" not in result["effect"].dims:
        raise ConfigError(
            "This is not the result of a sweep.",
            given=f"variables {sorted(map(str, result.data_vars))}",
            expected="a Dataset with 'effect' over the dimension 'site'",
            fix="give the result of rlm.activation_patching or rlm.ablation_sweep; rlm.plot.heatmap draws any array",
        )


def circuit(
    result: xr.Dataset | xr.DataArray,
    *,
    entity: str | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Draw a QK or OV circuit, one panel per head on one colour scale.

    Args:
        result: What `qk_circuit` or `ov_circuit` returned, or an array of `head` and two more dimensions made from it.
        entity: Which entity's circuit, where it has one for each.
        title: Title of the figure.
        limit: Value of full colour; the largest magnitude by default.

    Returns:
        A plotly figure; hovering shows the value and, where the result has it, the spread over states.

    Raises:
        ConfigError: The circuit has one form per entity and none is named.
    """
    array = result["circuit"] if isinstance(result, xr.Dataset) else result
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
    panels = "head" if "head" in array.dims else None
    return heatmap(array, panels=panels, spread=spread, title=title, limit=limit)


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
        chosen.append({axis: _number_or_name(value) for axis, value in values.items() if not _missing(value)})
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


def _sweep_grids(results: Mapping[str, xr.Dataset], axes: tuple[str, ...], module: str) -> list[_Panel]:
    """Lay the sites that select the given axes out on grids."""
    panels: dict[str, list[_Cell]] = {}
    for name, result in results.items():
        for site, selected in enumerate(_selections(result)):
            if tuple(selected) != axes:
                continue
            hook = str(result.coords["hook"].values[site]).removeprefix(f"{module}.")
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


def _grid(cells: Sequence[_Cell], title: str, *, row_axis: str, column_axis: str) -> _Panel:
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column for cell in cells))
    values = np.full((3, len(rows), len(columns)), np.nan)
    for cell in cells:
        values[:, rows.index(cell.row), columns.index(cell.column)] = (cell.effect, cell.low, cell.high)
    known = bool(np.isfinite(values[1:]).any())
    return _Panel(
        title=title,
        rows=tuple(rows),
        columns=tuple(columns),
        row_axis=row_axis,
        column_axis=column_axis,
        values=values[0],
        low=values[1] if known else None,
        high=values[2] if known else None,
    )


def _draw(grids: list[_Panel], *, colour_title: str, title: str | None, limit: float | None) -> go.Figure:
    """Draw panels on one colour axis, side by side where they are alike."""
    alike = len({(grid.rows, grid.columns) for grid in grids}) == 1
    fitting = min(MAX_PANELS_PER_ROW, max(1, CELLS_PER_ROW // len(grids[0].columns))) if alike else 1
    n_rows = math.ceil(len(grids) / fitting)
    n_columns = math.ceil(len(grids) / n_rows)
    tallest = [max(len(grid.rows) for grid in grids[row * n_columns : (row + 1) * n_columns]) for row in range(n_rows)]
    heights = [max(size * CELL, 56) if size < 12 else size * 26 for size in tallest]
    inner = sum(heights) + 104 * (n_rows - 1)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=[grid.title for grid in grids],
        row_heights=heights,
        vertical_spacing=104 / inner if n_rows > 1 else 0.0,
        horizontal_spacing=0.03,
    )
    for number, grid in enumerate(grids):
        row, column = divmod(number, n_columns)
        figure.add_trace(_trace(grid, across=n_columns * len(grid.columns)), row=row + 1, col=column + 1)
        first, last = column == 0 or not alike, row == n_rows - 1 or number + n_columns >= len(grids) or not alike
        figure.update_xaxes(
            row=row + 1,
            col=column + 1,
            title_text=grid.column_axis if last else None,
            title_standoff=8,
            zeroline=False,
            showline=True,
            mirror=True,
            linecolor=CELLS,
            showticklabels=True,
            type="category",
            showgrid=False,
            tickangle=-45 if _long(grid.columns) else 0,
        )
        figure.update_yaxes(
            row=row + 1,
            col=column + 1,
            title_text=grid.row_axis if first else None,
            title_standoff=10,
            zeroline=False,
            showline=True,
            mirror=True,
            linecolor=CELLS,
            showticklabels=first,
            type="category",
            showgrid=False,
            autorange="reversed",
        )
    values = np.concatenate([grid.values.ravel() for grid in grids])
    named = any(grid.title for grid in grids)
    top, bottom = (
        40 + 20 * named + 34 * bool(title) + 15 * colour_title.count("<br>"),
        96 if any(_long(grid.columns) for grid in grids) else 58,
    )
    axis = colour_axis(values, limit=limit)
    axis["colorbar"] |= {"lenmode": "pixels", "len": max(min(inner, 260), 100), "y": 1.0, "yanchor": "top"}
    figure.update_layout(
        template=TEMPLATE,
        title_text=title,
        height=max(inner, 100) + top + bottom,
        margin={"t": top, "b": bottom, "l": 70, "r": 20},
        coloraxis=axis,
        plot_bgcolor=CELLS,
    )
    figure.update_annotations(font={"size": 13, "color": INK})
    figure.add_annotation(
        text=f"colour and numbers: {colour_title}" if colour_title else "",
        align="left",
        x=0.0,
        xref="paper",
        xanchor="left",
        y=1.0,
        yref="paper",
        yanchor="bottom",
        yshift=8 + 20 * named,
        showarrow=False,
        font={"size": 12, "color": MUTED},
    )
    return figure


def _long(names: Sequence[str]) -> bool:
    return len(names) > 4 and max((len(name) for name in names), default=0) > 3


def _trace(grid: _Panel, *, across: int) -> go.Heatmap:
    """The cells of one panel, with their values written in them where a row of `across` cells leaves room."""
    written = across <= CELLS_WITH_TEXT
    interval = grid.low is not None and grid.high is not None
    small = len(grid.columns) <= 8
    text = [
        [_cell(grid, row, column, interval=interval and small) for column in range(len(grid.columns))]
        for row in range(len(grid.rows))
    ]
    hover = f"{grid.row_axis or 'row'} <b>%{{y}}</b><br>{grid.column_axis or 'column'} <b>%{{x}}</b><br>%{{z:.4~g}}"
    extra: dict[str, Any] = {}
    if grid.low is not None and grid.high is not None:
        extra["customdata"] = np.stack([grid.low, grid.high], axis=-1)
        hover += "<br>95 % interval %{customdata[0]:.3~g} to %{customdata[1]:.3~g}"
    elif grid.spread is not None:
        extra["customdata"] = grid.spread[..., None]
        hover += "<br>sd over states %{customdata[0]:.3~g}"
    return go.Heatmap(
        z=grid.values,
        x=list(grid.columns),
        y=list(grid.rows),
        coloraxis="coloraxis",
        xgap=1.5,
        ygap=1.5,
        text=text if written else None,
        texttemplate="%{text}" if written else None,
        textfont={"size": 11 if across <= 20 else 9},
        hovertemplate=hover + "<extra></extra>",
        hoverongaps=False,
        **extra,
    )


def _cell(grid: _Panel, row: int, column: int, *, interval: bool) -> str:
    value = float(grid.values[row, column])
    if math.isnan(value):
        return ""
    text = _short(value)
    if interval and grid.low is not None and grid.high is not None:
        low, high = float(grid.low[row, column]), float(grid.high[row, column])
        text += f"<br><span style='font-size:9px'>{_short(low)} … {_short(high)}</span>"
    return text


def _short(value: float) -> str:
    if value.is_integer():
        return f"{abs(value):.0f}" if value >= 0 else f"{MINUS}{-value:.0f}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    written = f"{value:.{digits}f}"
    return written.replace("-", MINUS) if float(written) else "0.00"  # small, but not exactly zero
