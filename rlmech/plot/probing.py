"""Probes beside their controls: one panel a target, one row a site, the policy's score beside all others."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.saving import PlotFigure, subplots
from rlmech.plot.style import INK, MUTED, POSITIVE, TEMPLATE

_SYMBOLS = {
    "trained": ("circle", POSITIVE, "the policy"),
    "observation": ("diamond", INK, "the observation"),
    "untrained": ("x", MUTED, "untrained networks"),
    "shuffled": ("line-ns-open", MUTED, "shuffled labels"),
    "episode_mean": ("square-open", MUTED, "each episode's mean"),
}
_ROW, _TOP, _BOTTOM, _LOWEST = 30, 110, 60, -0.25


@explain_misuse
def probe_scores(scores: xr.Dataset, *, title: str | None = None) -> PlotFigure:
    """Draw what a probe reads at each site, with the same probe's scores where it should find nothing, or everything.

    Args:
        scores: `rlm.probes.fit_probe(...).scores`.
        title: Title of the figure.

    Returns:
        A plotly figure: one panel a target, R2 of numbers or balanced accuracy of classes from left to right; the
        policy's score with its 95 % interval. A score below -0.25 is drawn at the edge.

    Raises:
        ConfigError: These are no scores of probes.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(6), progress=False)
        >>> found = rlm.probes.fit_probe(policy, recording, target={"angle": lambda r: r.observations[:, 2]})
        >>> len(rlm.plot.probe_scores(found.scores).data)
        5
    """
    if not {"score", "score_low", "advantage"} <= set(scores):
        raise ConfigError(
            "These are no scores of probes.",
            given=f"a dataset with {', '.join(map(str, scores)) or 'nothing in it'}",
            expected="score, score_low, score_high and advantage",
            fix="rlm.plot.probe_scores(rlm.probes.fit_probe(...).scores)",
        )
    targets, labels = scores["target"].values.tolist(), _labels(scores)
    names = [f"{one}, {_measured(scores, one)}" for one in targets]
    figure = subplots(rows=1, cols=len(targets), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.03)
    for column, target in enumerate(targets, start=1):
        for control, (symbol, colour, name) in _SYMBOLS.items():
            one = scores.sel(target=target, control=control)
            at = one["score"].values
            marker: dict[str, object] = {
                "symbol": symbol,
                "color": colour,
                "size": 10,
                "line": {"color": colour, "width": 2},
            }
            errors = None
            if control == "trained":
                errors = {
                    "type": "data",
                    "symmetric": False,
                    "array": one["score_high"].values - at,
                    "arrayminus": at - one["score_low"].values,
                    "color": colour,
                }
            figure.add_trace(
                go.Scatter(
                    x=np.maximum(at, _LOWEST),
                    y=labels,
                    mode="markers",
                    marker=marker,
                    error_x=errors,
                    name=name,
                    legendgroup=control,
                    showlegend=column == 1,
                    hovertemplate=f"{name}: %{{x:.3f}}<extra>%{{y}}</extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(range=[_LOWEST - 0.05, 1.05], zeroline=True)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template=TEMPLATE,
        title=title,
        height=_TOP + _BOTTOM + _ROW * len(labels),
        margin={"t": _TOP, "b": _BOTTOM},
        legend={"orientation": "h", "y": -0.15},
    )
    return figure


def _measured(scores: xr.Dataset, target: str) -> str:
    return "R²" if str(scores["kind"].sel(target=target).values) == "number" else "balanced accuracy"


def _labels(scores: xr.Dataset) -> list[str]:
    axes = [name for name in scores.coords if scores[name].dims == ("site",) and name not in ("site", "hook")]
    labels: list[str] = []
    for place, hook in enumerate(scores["hook"].values):
        chosen = [
            f"{name} {scores[name].values[place]}" for name in axes if str(scores[name].values[place]) not in ("", "-1")
        ]
        labels.append(", ".join([str(hook), *map(str, chosen)]))
    return labels
