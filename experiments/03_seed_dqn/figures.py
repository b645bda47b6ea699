"""The figures that are this experiment's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee4"
POSITIVE, NEGATIVE = "#1f5fbf", "#c8322b"
ACTIONS = {
    "LANE_LEFT": "#b5452c",
    "IDLE": "#7a869a",
    "LANE_RIGHT": "#2c7fb8",
    "FASTER": "#e0a100",
    "SLOWER": "#7b5ea7",
}
SCALE = [[0.0, "#8e1b16"], [0.25, "#e08a80"], [0.5, "#ffffff"], [0.75, "#86ade3"], [1.0, "#123f86"]]
FEW_CELLS = 60
FONT = "Inter, 'Segoe UI', system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def grid(
    values: np.ndarray,
    *,
    x: Sequence[str],
    y: Sequence[str],
    titles: tuple[str, str],
    unit: str,
    height: int,
    limit: float | None = None,
) -> go.Figure:
    """A labelled matrix, white at zero, blue positive; few cells show values. `titles` of the x and the y axis."""
    figure = _figure(*titles, width=1000, height=height)
    most = float(np.abs(values).max()) if limit is None else limit
    signless = float(values.min()) >= 0
    figure.add_heatmap(
        z=values,
        x=list(x),
        y=list(y),
        zmin=0 if signless else -most,
        zmax=most,
        colorscale=[[0.0, "#ffffff"], [0.5, "#86ade3"], [1.0, "#123f86"]] if signless else SCALE,
        colorbar={"title": {"text": unit, "side": "right"}, "thickness": 14},
        hovertemplate="%{y}<br>%{x}: %{z:.3g}<extra></extra>",
    )
    if values.size <= FEW_CELLS:
        figure.update_traces(texttemplate="%{z:.2~f}")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_xaxes(showgrid=False, type="category", nticks=26)


def bars(values: dict[str, np.ndarray], *, titles: tuple[str, str], height: int = 320) -> go.Figure:
    """One bar a neuron, a colour each series, in the neurons' own order."""
    figure = _figure(*titles, width=1000, height=height)
    for colour, (name, series) in zip((POSITIVE, "#e0a100", NEGATIVE), values.items(), strict=False):
        figure.add_bar(x=np.arange(len(series)), y=series, name=name, marker={"color": colour, "line": {"width": 0}})
    return figure.update_layout(bargap=0.1, showlegend=len(values) > 1)


def comparison(rows: dict[str, dict[str, float]], *, unit: str) -> go.Figure:
    """Named numbers side by side, a colour each series; rows may lack some of the series of the first one."""
    figure = _figure(unit, "", width=820, height=150 + 40 * len(rows))
    for colour, series in zip((POSITIVE, "#e0a100", NEGATIVE, MUTED), next(iter(rows.values())), strict=False):
        figure.add_bar(
            y=list(rows),
            x=[row.get(series) for row in rows.values()],
            name=series,
            orientation="h",
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.3f}",
        )
    figure.update_xaxes(zeroline=True, zerolinecolor=MUTED)
    return figure.update_yaxes(autorange="reversed").update_layout(showlegend=True)


def shares(at: np.ndarray, chosen: np.ndarray, actions: Sequence[str], *, titles: tuple[str, str]) -> go.Figure:
    """The share of states `chosen[at, state]` in which each action is best, one line an action."""
    figure = _figure(*titles, width=820, height=420)
    for number, action in enumerate(actions):
        line = {"color": ACTIONS[action], "width": 2.5}
        figure.add_scatter(x=at, y=(chosen == number).mean(1), mode="lines+markers", name=action, line=line)
    figure.update_yaxes(range=[0, 1])
    return figure.update_xaxes(showgrid=True)


def along(
    steps: np.ndarray, values: dict[str, np.ndarray], *, taken: Sequence[str], titles: tuple[str, str]
) -> go.Figure:
    """Numbers along an episode, with the action of each step below them."""
    figure = _figure(*titles, width=1000, height=380)
    for name, series in values.items():
        figure.add_scatter(x=steps, y=series, mode="lines+markers", name=name)
    low = min(float(np.nanmin(series)) for series in values.values())
    high = max(float(np.nanmax(series)) for series in values.values())
    for action in dict.fromkeys(taken):
        at = [step for step, name in zip(steps, taken, strict=True) if name == action]
        marker = {"symbol": "square", "size": 10, "color": ACTIONS[action]}
        floor = [low - 0.1 * (high - low or 1.0)] * len(at)
        figure.add_scatter(x=at, y=floor, mode="markers", name=action, marker=marker)
    return figure


def points(
    x: np.ndarray, y: np.ndarray, taken: Sequence[str], *, titles: tuple[str, str], names: Sequence[str]
) -> go.Figure:
    """One point a state, coloured by the action chosen there."""
    figure = _figure(*titles, width=820, height=420)
    for action in names:
        mine = np.array([name == action for name in taken])
        if mine.any():
            marker = {"size": 7, "color": ACTIONS[action], "opacity": 0.8}
            figure.add_scatter(x=x[mine], y=y[mine], mode="markers", name=f"{action} ({mine.sum()})", marker=marker)
    return figure


def _figure(x: str, y: str, *, width: int, height: int) -> go.Figure:
    axis = {"gridcolor": RULE, "zerolinecolor": RULE, "linecolor": RULE, "automargin": True}
    return go.Figure().update_layout(
        font={"size": 13, "color": INK, "family": FONT},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        width=width,
        height=height,
        margin={"l": 60, "r": 24, "t": 56, "b": 52},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0.0},
        xaxis=axis | {"title": x},
        yaxis=axis | {"title": y},
    )
