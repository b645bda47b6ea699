"""The atlas's figures; they compute nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd

import rlmech as rlm

INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee4"
TANH, RELU, OTHER = "#0072b2", "#d55e00", "#009e73"


def worst(loops: pd.DataFrame) -> rlm.plot.PlotFigure:
    """What the worst unit costs where it was chosen, and on seeds that chose nothing."""
    rows = loops.dropna(subset=["worst_share"]).sort_values("worst_share")
    figure = rlm.plot.PlotFigure()
    for kind, colour in (("tanh", TANH), ("relu", RELU)):
        own = rows[rows["activation"].str.contains(kind)]
        error = {
            "type": "data",
            "array": (own["worst_share_high"] - own["worst_share"]).clip(0, 2),
            "arrayminus": (own["worst_share"] - own["worst_share_low"]).clip(0, 2),
            "thickness": 1.2,
        }
        marker = {"color": colour, "size": 10, "symbol": "circle" if kind == "tanh" else "square"}
        figure.add_scatter(
            x=own["worst_share"],
            y=own["policy"],
            error_x=error,
            mode="markers",
            marker=marker,
            name=kind,
            showlegend=True,
        )
    figure.update_xaxes(title="share of the way down to a random policy", range=[-0.5, 1.6], tickformat=".0%")
    figure.update_yaxes(categoryorder="array", categoryarray=rows["policy"].tolist())
    for at in (0, 1):
        figure.add_vline(x=at, line={"color": MUTED, "width": 1, "dash": "dot"})
    return styled(figure, width=760, height=160 + 26 * len(rows))


def linear(methods: pd.DataFrame) -> rlm.plot.PlotFigure:
    """How faithful a linear imitation is, and how it drives, a line a policy."""
    rows = methods.dropna(subset=["linear_share"])
    told = rows["linear_accuracy"] if "linear_accuracy" in rows else pd.Series(np.nan, rows.index)
    fidelity = told.fillna(rows["linear_r2"]) if "linear_r2" in rows else told
    rows = rows.assign(fidelity=fidelity).sort_values("linear_share")
    figure = rlm.plot.PlotFigure()
    error = {
        "type": "data",
        "array": (rows["linear_share_high"] - rows["linear_share"]).clip(0, 2),
        "arrayminus": (rows["linear_share"] - rows["linear_share_low"]).clip(0, 2),
        "thickness": 1.2,
    }
    figure.add_scatter(
        x=rows["linear_share"],
        y=rows["policy"],
        error_x=error,
        mode="markers",
        marker={"color": TANH, "size": 10},
        name="return, share of the way from random to the agent",
    )
    figure.add_scatter(
        x=rows["fidelity"],
        y=rows["policy"],
        mode="markers",
        marker={"color": RELU, "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
        name="fidelity: accuracy, or R² of continuous actions",
    )
    for at in (0, 1):
        figure.add_vline(x=at, line={"color": MUTED, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="a linear map of the observation in the agent's place", range=[-0.3, 1.6])
    return styled(figure, width=820, height=180 + 26 * len(rows))


def flips_and_loss(neurons: pd.DataFrame, policies: list[str]) -> rlm.plot.PlotFigure:
    """Every unit of some policies: what its removal flips, and what it costs."""
    figure = rlm.plot.PlotFigure()
    for policy, colour in zip(policies, (RELU, TANH, OTHER, INK, MUTED), strict=False):
        own = neurons[(neurons["policy"] == policy) & neurons["loss_share"].notna()]
        figure.add_scatter(
            x=own["change_mean"],
            y=own["loss_share"],
            mode="markers",
            marker={"color": colour, "size": 6, "opacity": 0.7},
            name=policy,
        )
    figure.update_xaxes(title="share of greedy actions that change without the unit", tickformat=".0%")
    figure.update_yaxes(title="loss of return, share of the way to random", tickformat=".0%")
    return styled(figure, width=760, height=480)


def students(table: pd.DataFrame) -> rlm.plot.PlotFigure:
    """The worst unit of each student, by activation and target."""
    figure = rlm.plot.PlotFigure()
    jitter = np.random.default_rng(0)
    kinds = [(a, t) for t in ("actions", "values") for a in ("tanh", "relu")]
    for teacher, symbol in zip(table["teacher"].unique(), ("circle", "square", "diamond"), strict=False):
        for place, (activation, target) in enumerate(kinds):
            own = table[
                (table["teacher"] == teacher) & (table["activation"] == activation) & (table["target"] == target)
            ]
            figure.add_scatter(
                x=place + jitter.uniform(-0.15, 0.15, len(own)),
                y=own["worst_share"],
                mode="markers",
                marker={"color": TANH if activation == "tanh" else RELU, "size": 9, "symbol": symbol},
                name=f"student of {teacher}",
                showlegend=place == 0,
            )
    figure.update_xaxes(tickvals=[*range(4)], ticktext=[f"{a}, fitted to {t}" for a, t in kinds])
    figure.update_yaxes(title="cost of the worst unit,<br>share of the way to random", tickformat=".0%")
    return styled(figure, width=760, height=440)


def doses(opened: pd.DataFrame) -> rlm.plot.PlotFigure:
    """Return against the constant that the unit is set to."""
    own = opened.dropna(subset=["dose"]).sort_values("dose")
    figure = rlm.plot.PlotFigure()
    figure.add_scatter(
        x=own["dose"],
        y=own["change"],
        error_y={
            "type": "data",
            "array": own["change_high"] - own["change"],
            "arrayminus": own["change"] - own["change_low"],
        },
        mode="lines+markers",
        marker={"color": TANH},
        showlegend=False,
    )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="the unit is set to its mean and so many standard deviations")
    figure.update_yaxes(title="change of return")
    return styled(figure, width=700, height=420)


def styled(figure: rlm.plot.PlotFigure, *, width: int, height: int) -> rlm.plot.PlotFigure:
    """One look for all."""
    figure.update_xaxes(gridcolor=RULE, linecolor=RULE, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=RULE, linecolor=RULE, zeroline=False, automargin=True)
    figure.update_layout(
        width=width,
        height=height,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "Inter, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 70, "r": 30, "t": 50, "b": 70},
    )
    return figure
