"""The figures that are this experiment's own: where the vehicles are, and how good the attributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

import rlmech as rlm

INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee4"
ACTION_COLOURS = {"SLOWER": "#c3cad3", "IDLE": "#e69f00", "FASTER": "#c8322b"}
MEANING = {"SLOWER": "still SLOWER without it", "IDLE": "IDLE without it", "FASTER": "FASTER without it"}
WORDS = {"enough": "enough (denoise)", "needed": "needed (noise)"}
RANDOM = {
    "random faithfulness": "random paths, quartiles",
    "random, of the same rows": "random paths from the same rows",
}
HEADS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
REACH = 16.0  # return; how far the axes of estimates go


def around_the_ego(policy: rlm.HookedPolicy, observations: np.ndarray, row: np.ndarray) -> dict[str, np.ndarray]:
    """Where one vehicle of each observation is, seen from the ego: metres ahead and to the left, speeds in m/s.

    `heading` is in degrees, 0 the ego's own, 90 to its left.
    """
    place = {f.name: (number, f) for number, f in enumerate(policy.spec.features)}

    def physical(name: str, rows: np.ndarray) -> np.ndarray:
        number, feature = place[name]
        return np.asarray(feature.physical(rows[:, number]))

    ego, other = observations[:, 0], observations[np.arange(len(row)), row]
    dx, dy = (physical(name, other) - physical(name, ego) for name in ("x", "y"))
    cos, sin = physical("cos_h", ego), physical("sin_h", ego)
    speed, own = (np.hypot(physical("vx", rows), physical("vy", rows)) for rows in (other, ego))
    # y points down the page in highway-env, so that left of the heading (cos, sin) is (sin, -cos).
    turned = np.arctan2(physical("sin_h", other), physical("cos_h", other)) - np.arctan2(sin, cos)
    return {
        "ahead": dx * cos + dy * sin,
        "left": dx * sin - dy * cos,
        "speed": speed,
        "own speed": own,
        "heading": -np.degrees(turned) % 360,
    }


def vehicles(policy: rlm.HookedPolicy, observations: np.ndarray, candidates: np.ndarray) -> go.Figure:
    """Every vehicle of the states in which the policy chooses SLOWER, by what it would choose without that one."""
    figure = _figure("to the right of the ego [m]", "ahead of the ego [m]", width=620, height=560)
    for number, action in enumerate(policy.spec.actions):
        mine = candidates[candidates[:, 2] == number]
        at = around_the_ego(policy, observations[mine[:, 0]], mine[:, 1])
        figure.add_scatter(
            x=-at["left"],
            y=at["ahead"],
            mode="markers",
            name=f"{MEANING[action]} ({len(mine)})",
            marker={"size": 6, "color": ACTION_COLOURS[action], "opacity": 0.75},
            customdata=np.stack([at["speed"], at["own speed"]], axis=1),
            hovertemplate="%{y:.0f} m ahead, %{x:.0f} m to the right<br>"
            "%{customdata[0]:.1f} m/s, ego %{customdata[1]:.1f} m/s",
        )
    figure.add_scatter(
        x=[0], y=[0], mode="markers", name="ego", marker={"symbol": "triangle-up", "size": 14, "color": "#1b8a4b"}
    )
    figure.update_xaxes(range=[-40, 40])
    figure.update_yaxes(range=[-30, 40], scaleanchor="x")
    return figure


def attributions(drawn: dict[str, dict[str, xr.Dataset]], base: str) -> go.Figure:
    """Each site's estimate against its exact patch, pair by pair, one panel for each kind of estimate."""
    figure = _figure("exact effect of the patch [return]", "estimate [return]", width=980, height=520)
    figure.set_subplots(1, 2, subplot_titles=list(drawn), horizontal_spacing=0.06)
    for column, estimates in enumerate(drawn.values(), start=1):
        for colour, (name, result) in zip(HEADS, estimates.items(), strict=False):
            exact = (result["patched"] - result[base]).values.ravel()
            estimate = result["estimate"].values.ravel().clip(-REACH, REACH)
            figure.add_scatter(
                x=exact[exact != 0],
                y=estimate[exact != 0],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"size": 5, "color": colour, "opacity": 0.5},
                row=1,
                col=column,
            )
        line = {"color": INK, "width": 1, "dash": "dot"}
        ends = [-REACH, REACH]
        figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="equal", showlegend=False, row=1, col=column)
    axis = {"gridcolor": RULE, "zerolinecolor": RULE, "range": [-REACH - 0.5, REACH + 0.5]}
    figure.update_xaxes(title="exact effect of the patch [return]", **axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(margin={"t": 90}, legend={"y": 1.1})


def faithfulness_by_size(rows: list[dict[str, Any]]) -> go.Figure:
    """Faithfulness of circuits of growing size, beside random circuits of those sizes."""
    figure = _figure("edges", "faithfulness, held-out episodes", width=680, height=420)
    most = max(row["edges"] for row in rows)
    for kind, symbol, aside in (
        ("random faithfulness", "diamond-open", -0.012),
        ("random, of the same rows", "x-thin-open", 0.012),
    ):
        mine = [row for row in rows if row["method"] == "acdc"]
        low, middle, high = np.array([row[kind] for row in mine]).T
        figure.add_scatter(
            x=[row["edges"] + aside * most for row in mine],
            y=middle,
            mode="markers",
            name=RANDOM[kind],
            marker={"symbol": symbol, "size": 10, "color": MUTED},
            error_y={"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low},
        )
    for colour, method, aside in ((HEADS[0], "acdc", 0.0), (HEADS[1], "eap-ig", 0.006)):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["edges"])
        value, low, high = np.array([row["faithfulness"] for row in mine]).T
        figure.add_scatter(
            x=[row["edges"] + aside * most for row in mine],
            y=value,
            mode="markers+lines",
            name={"acdc": "ACDC", "eap-ig": "EAP-IG, as many edges"}[method],
            marker={"size": 8, "color": colour},
            line={"color": colour, "width": 1.5},
            error_y={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low},
        )
    figure.add_hline(y=1, line={"color": RULE, "width": 1})
    return figure


def bars(rows: list[dict[str, Any]], *, unit: str = "share of the gap") -> go.Figure:
    """Rows of numbers with intervals, both directions side by side, as points."""
    figure = _figure(unit, "", width=760, height=140 + 34 * len(rows))
    names = [str(row.get("site", row.get("edge"))) for row in rows]
    kinds = [kind for kind in ("enough", "needed") if kind in rows[0]]
    for number, kind in enumerate(kinds):
        value, low, high = np.array([row[kind] for row in rows]).T
        figure.add_scatter(
            x=value,
            y=np.arange(len(rows)) + 0.24 * (number - (len(kinds) - 1) / 2),
            mode="markers",
            name=WORDS[kind],
            showlegend=True,
            marker={"size": 9, "color": HEADS[number]},
            error_x={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low},
            customdata=names,
            hovertemplate="%{customdata}: %{x:.3f}",
        )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, range=[len(rows) - 0.4, -0.6], zeroline=False)
    figure.update_xaxes(zeroline=True, zerolinecolor=MUTED, rangemode="tozero")
    return figure


def _figure(x: str, y: str, *, width: int, height: int) -> go.Figure:
    figure = go.Figure()
    axis = {"gridcolor": RULE, "zerolinecolor": RULE, "linecolor": RULE, "automargin": True}
    font = "Inter, 'Segoe UI', system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
    figure.update_layout(
        font={"size": 13, "color": INK, "family": font},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        width=width,
        height=height,
        margin={"l": 60, "r": 24, "t": 60, "b": 52},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0.0},
        xaxis=axis | {"title": x},
        yaxis=axis | {"title": y},
    )
    return figure
