"""The figures that are this experiment's own; heat maps and circuits are `rlm.plot`'s."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from subjects import BETTER, WORSE

INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def spectra(found: dict[str, xr.Dataset]) -> go.Figure:
    """Singular values of each head's QK and OV, and the range of those of untrained networks."""
    figure = _figure(width=980, height=420)
    figure.set_subplots(1, 2, subplot_titles=["QK: W_Q W_K^T / sqrt(d_head)", "OV: W_V W_O"], horizontal_spacing=0.08)
    for column, circuit in enumerate(("qk", "ov"), start=1):
        trained = found["trained"].singular_value.sel(circuit=circuit).dropna("rank")
        fresh = found["untrained"].singular_value.sel(circuit=circuit).dropna("rank").stack(draw=("seed", "head"))
        rank = np.arange(trained.sizes["rank"]) + 1
        low, high = fresh.min("draw").values, fresh.max("draw").values
        edge = {"x": np.concatenate([rank, rank[::-1]]), "y": np.concatenate([low, high[::-1]])}
        figure.add_scatter(
            **edge,
            fill="toself",
            mode="none",
            fillcolor=RULE,
            name="untrained",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        for head in range(trained.sizes["head"]):
            figure.add_scatter(
                x=rank,
                y=trained.isel(head=head).values,
                mode="lines+markers",
                name=f"head {head}",
                legendgroup=f"head {head}",
                showlegend=column == 1,
                line={"color": COLOURS[head % len(COLOURS)], "width": 1.5},
                row=1,
                col=column,
            )
    figure.update_xaxes(title="rank", gridcolor=RULE)
    figure.update_yaxes(gridcolor=RULE, type="log", range=[-3, 2], dtick=1)
    return figure.update_yaxes(title="singular value", col=1)


def paths(rows: list[dict[str, Any]]) -> go.Figure:
    """Each path's mean contribution to the gap in SLOWER and in FASTER states, and its share of the variance."""
    figure = _figure(width=980, height=400)
    titles = ["mean contribution to the gap [return]", "share of the gap's variance"]
    figure.set_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    names = [row["path"] for row in rows]
    drawn = [(f"mean in {WORSE} states", 1, COLOURS[0]), (f"mean in {BETTER} states", 1, COLOURS[1])]
    drawn.append(("share of the gap's variance", 2, COLOURS[2]))
    for number, (what, column, colour) in enumerate(drawn):
        value, low, high = np.array([row[what] for row in rows], dtype=float).T
        figure.add_scatter(
            x=value,
            y=np.arange(len(rows)) + (0.2 * number - 0.1 if column == 1 else 0),
            mode="markers",
            name=what,
            marker={"size": 9, "color": colour},
            error_x={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low},
            row=1,
            col=column,
        )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, range=[len(rows) - 0.5, -0.5], zeroline=False)
    return figure.update_xaxes(zeroline=True, zerolinecolor=MUTED, gridcolor=RULE)


def table(entries: dict[str, dict[str, Any]], *, first: str) -> go.Figure:
    """Named numbers, a line for each."""
    lines = [(name, key, written(value)) for name, found in entries.items() for key, value in flat(found)]
    named = [name if i == 0 or lines[i - 1][0] != name else "" for i, (name, _, _) in enumerate(lines)]
    cells = [named, [key for _, key, _ in lines], [value for _, _, value in lines]]
    figure = go.Figure(
        go.Table(
            columnwidth=[3, 4, 4],
            header={"values": [first, "what", "measured"], "align": "left", "fill_color": RULE},
            cells={"values": cells, "align": "left", "fill_color": "#ffffff", "height": 24},
        )
    )
    return figure.update_layout(
        width=1080,
        height=60 + 24 * sum(1 + len(value) // 60 for _, _, value in lines),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
    )


def flat(found: dict[str, Any], within: str = "") -> list[tuple[str, Any]]:
    """Nested numbers, the names joined."""
    lines: list[tuple[str, Any]] = []
    for key, value in found.items():
        name = f"{within}: {key}" if within else key
        lines += flat(value, name) if isinstance(value, dict) else [(name, value)]
    return lines


def written(value: Any) -> str:
    """A number, or one with its interval, as the page shows it."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, float) for v in value):
        return f"{value[0]:.3g} [{value[1]:.3g}, {value[2]:.3g}]"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figure(*, width: int, height: int) -> go.Figure:
    font = "Inter, 'Segoe UI', system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
    return go.Figure().update_layout(
        font={"size": 13, "color": INK, "family": font},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        width=width,
        height=height,
        margin={"l": 60, "r": 24, "t": 84, "b": 52},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.12, "x": 0.0},
    )
