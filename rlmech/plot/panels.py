"""Grids of labelled cells on one diverging colour scale, white at zero: what all heat maps are drawn from.

Panels stand side by side where they have the same rows and columns. Nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rlmech.plot.saving import PlotFigure, subplots
from rlmech.plot.style import CELLS, INK, MINUS, MUTED, TEMPLATE, colour_axis

MAX_PANELS_PER_ROW = 4
CELLS_PER_ROW = 28  # panels go side by side up to this many cells
CELLS_WITH_TEXT = 32  # more cells than this across the page leave no room for their values
CELL = 44  # pixels, the height of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
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


def draw(
    grids: list[Panel], *, colour_title: str, title: str | None, limit: float | None, group: int = 1
) -> PlotFigure:
    """Draw panels on one colour axis, side by side where they are alike; `group` of them always stay together."""
    alike = len({(grid.rows, grid.columns) for grid in grids}) == 1
    fitting = min(MAX_PANELS_PER_ROW, max(1, CELLS_PER_ROW // len(grids[0].columns))) if alike else 1
    n_rows = math.ceil(len(grids) / fitting)
    n_columns = math.ceil(len(grids) / n_rows)
    if alike and group > 1:
        n_columns = max(group, n_columns // group * group)
        n_rows = math.ceil(len(grids) / n_columns)
    tallest = [max(len(grid.rows) for grid in grids[row * n_columns : (row + 1) * n_columns]) for row in range(n_rows)]
    heights = [max(size * CELL, 56) if size < 12 else size * 26 for size in tallest]
    inner = sum(heights) + 104 * (n_rows - 1)
    figure = subplots(
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
        title={"text": title, "yref": "container", "y": 1.0, "yanchor": "top", "pad": {"t": 12}},  # above the legend
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


def _trace(grid: Panel, *, across: int) -> go.Heatmap:
    """The cells of one panel, with their values written in them where a row of `across` cells leaves room."""
    written = across <= CELLS_WITH_TEXT
    interval = grid.low is not None and grid.high is not None
    small = len(grid.columns) <= 8
    text = [
        [_cell(grid, row, column, interval=interval and small) for column in range(len(grid.columns))]
        for row in range(len(grid.rows))
    ]
    hover = f"{grid.row_axis or 'row'} <b>%{{y}}</b><br>{grid.column_axis or 'column'} <b>%{{x}}</b><br>%{{z:.4~g}}"
    extra: dict[str, object] = {}
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


def _cell(grid: Panel, row: int, column: int, *, interval: bool) -> str:
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
