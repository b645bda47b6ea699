"""The figures that are this experiment's own; they compute nothing."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee4"
COLOURS = {"mean": "#0072b2", "zero": "#d55e00", "pair": "#009e73"}
NAMES = {"mean": "one head, set to its mean", "zero": "one head, set to zero", "pair": "two heads, set to their means"}
DELTAS = {"delta_return": "change of return", "delta_crashed": "change of crash rate"}
SHARES = {
    "offline_flip": "share of the unedited policy's states<br>in which the action differs",
    "net_bolder": "share of states in which the car is told to go<br>faster, less those in which slower",
}


def against(rows: list[dict[str, Any]]) -> go.Figure:
    """Offline shares (columns) against closed-loop effects (rows), a point a condition."""
    figure = go.Figure()
    figure.set_subplots(2, 2, horizontal_spacing=0.09, vertical_spacing=0.12)
    for i, (delta, effect) in enumerate(DELTAS.items(), start=1):
        for j, (offline, what) in enumerate(SHARES.items(), start=1):
            for kind, name in NAMES.items():
                own = [row for row in rows if row["kind"] == kind]
                figure.add_scatter(
                    x=[row[offline][0] for row in own],
                    y=[row[delta][0] for row in own],
                    error_x=_bars(own, offline),
                    error_y=_bars(own, delta),
                    mode="markers+text",
                    text=[row["heads"] for row in own],
                    textposition="top right",
                    textfont={"size": 11, "color": MUTED},
                    marker={"size": 8, "color": COLOURS[kind]},
                    name=name,
                    legendgroup=kind,
                    showlegend=i == j == 1,
                    row=i,
                    col=j,
                )
            figure.add_hline(y=0, line={"color": MUTED, "width": 1}, row=i, col=j)  # pyright: ignore[reportArgumentType]
            figure.update_xaxes(title=what if i == 2 else None, row=i, col=j)
        figure.update_yaxes(title=effect, row=i, col=1)
    figure.add_vline(x=0, line={"color": MUTED, "width": 1}, row=1, col=2)  # pyright: ignore[reportArgumentType]
    figure.add_vline(x=0, line={"color": MUTED, "width": 1}, row=2, col=2)  # pyright: ignore[reportArgumentType]
    return _styled(figure, width=900, height=760)


def felt(rows: list[dict[str, Any]]) -> go.Figure:
    """Of each condition's offline flips: nothing commanded, bolder, more timid."""
    figure = go.Figure()
    names = [row["condition"] for row in rows]
    parts = {
        "the same speed is commanded": [row["offline_flip"][0] - row["offline_felt"][0] for row in rows],
        "a higher speed": [row["bolder"][0] for row in rows],
        "a lower speed": [row["timid"][0] for row in rows],
    }
    for (name, values), colour in zip(parts.items(), (RULE, "#d55e00", "#0072b2"), strict=True):
        figure.add_bar(y=names, x=values, orientation="h", name=name, marker={"color": colour})
    figure.update_layout(barmode="stack")
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="share of the unedited policy's states in which the action differs")
    return _styled(figure, width=900, height=480)


def _bars(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    above, below = ([abs(row[name][end] - row[name][0]) for row in rows] for end in (2, 1))
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 2}


def _styled(figure: go.Figure, *, width: int, height: int) -> go.Figure:
    figure.update_xaxes(gridcolor=RULE, linecolor=RULE, zeroline=False)
    figure.update_yaxes(gridcolor=RULE, linecolor=RULE, zeroline=False, automargin=True)
    return figure.update_layout(
        width=width,
        height=height,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "Inter, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 70, "r": 30, "t": 50, "b": 70},
    )
