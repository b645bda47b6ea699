"""Scores along an episode: what the policy thought of each action at every step, and what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import torch

from rlmech.arguments import explain_misuse
from rlmech.core.masked import is_masked
from rlmech.errors import ConfigError, RecordingError
from rlmech.plot.actions_taken import action_names
from rlmech.plot.saving import PlotFigure
from rlmech.plot.style import CRASHED, FONT, INK, MINUS, MUTED, RULE, TEMPLATE, action_colour
from rlmech.plot.svg import SvgFigure, tag, text

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording

FEW_STEPS = 16
_MANY_STEPS = 150
_MOST_LINES = 60  # of changes of the action; more would be a curtain, and the markers tell them
SCORES = {"q_values": "Q-value [return]", "logits": "logit [nat]", "mean_action": "mean action"}


@explain_misuse
def q_values(
    recording: Recording, *, episode: int, output_kind: str = "q_values", title: str | None = None
) -> PlotFigure:
    """Draw the action scores along one episode.

    A marker stands on the action that was taken; a vertical line where it differs from the step before, unless it
    differs all the time. Where an action is masked its line is broken. Continuous actions are their own scores: a line
    for each dimension.

    Args:
        recording: Any recording.
        episode: Number of the episode in it.
        output_kind: What the scores are: `q_values`, `logits` or `mean_action`.
        title: Title of the figure.

    Returns:
        A plotly figure, scores over steps.

    Raises:
        RecordingError: No such episode.
        ConfigError: The policy makes several choices at once.

    Example:
        >>> import gymnasium as gym, torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> env = gym.make("CartPole-v1")
        >>> recording = rlm.record(policy, env, seeds=[0], progress=False)
        >>> type(rlm.plot.q_values(recording, episode=0)).__name__
        'PlotFigure'
    """
    rows = _rows(recording, episode)
    steps = recording.steps["step"].to_numpy()[rows]
    scores = _without_masks(np.asarray(recording.scores)[rows])
    if scores.ndim != 2:
        raise ConfigError(
            "The scores of several choices at once are not drawn in one figure.",
            given=f"scores of shape {scores.shape}",
            expected="scores [step action]",
            fix="record policy.choice(name), which is one of the choices alone",
        )
    continuous = output_kind == "mean_action"
    taken = np.full(len(rows), -1) if continuous else np.asarray(recording.actions)[rows].astype(int)
    names = action_names(recording, scores.shape[1])
    few = len(steps) <= FEW_STEPS
    figure = PlotFigure()
    changes = steps[np.flatnonzero(np.diff(taken)) + 1].astype(float)
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    lines = [
        {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        for at in (changes if len(changes) <= _MOST_LINES else ())
    ]
    for action, name in enumerate(names):
        chosen = taken == action
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=scores[:, action],
                mode="lines",
                name=name,
                legendgroup=name,
                line={"color": action_colour(action), "width": 2},
                hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=steps[chosen],
                y=scores[chosen, action],
                mode="markers",
                name=f"{name} taken",
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
                marker={
                    "color": action_colour(action),
                    "size": 11 if few else 7 if len(steps) <= _MANY_STEPS else 4,
                    "line": {"color": "#ffffff", "width": 2 if few else 1 if len(steps) <= _MANY_STEPS else 0},
                },
            )
        )
    figure.update_layout(shapes=lines)
    _mark_crash(figure, recording, episode)
    figure.update_layout(
        template=TEMPLATE,
        title_text=title,
        height=320,
        hovermode="x unified",
        margin={"t": 48 + (30 if title else 0), "b": 48, "l": 56, "r": 16},
        legend={"y": 1.02, "x": 0.0, "font": {"size": 12}},
    )
    figure.update_xaxes(title_text="step", dtick=1 if few else None, range=[steps[0] - 0.4, steps[-1] + 0.6])
    figure.update_yaxes(title_text=SCORES.get(output_kind, "score"), zeroline=False)
    return figure


@explain_misuse
def scores(
    values: np.ndarray, *, names: tuple[str, ...], taken: int | None = None, label: str = "Q-value"
) -> SvgFigure:
    """Draw one state's action scores as bars, the taken action in full colour; a masked action has none.

    Args:
        values: Scores `[action]`.
        names: Names of the actions.
        taken: Position of the action taken; None for a continuous action, of which every bar is a part.
        label: What the scores are.

    Example:
        >>> import numpy as np, rlmech as rlm
        >>> figure = rlm.plot.scores(np.array([1.0, 2.0]), names=("SLOWER", "FASTER"), taken=1)
        >>> figure.svg.startswith("<svg")
        True
    """
    shown = _without_masks(values)
    low, high = (float(end(shown, initial=0.0, where=~np.isnan(shown))) for end in (np.min, np.max))
    span, left, right, top = (high - low) or 1.0, 8.0, 58.0, 34.0
    width = 330.0
    reach = width - left - right

    def at(value: float) -> float:
        return left + (value - low) / span * reach

    parts = text(label, x=left, y=16, font_size=12, fill=MUTED)
    for action, name in enumerate(names):
        y, value, masked = top + action * 44, float(np.nan_to_num(shown[action])), bool(np.isnan(shown[action]))
        chosen = action == taken
        parts += text(
            f"{name}{'  ◀ taken' if chosen else ''}",
            x=left,
            y=y + 9,
            font_size=12,
            fill=INK,
            font_weight="700" if chosen else "400",
        )
        parts += tag(
            "rect",
            x=min(at(0.0), at(value)),
            y=y + 14,
            width=0.0 if masked else max(abs(at(value) - at(0.0)), 1.0),
            height=13,
            rx=2,
            fill=action_colour(action),
            fill_opacity=1.0 if chosen or taken is None else 0.45,
        )
        parts += text(
            "masked" if masked else _written(value), x=max(at(value), at(0.0)) + 6, y=y + 25, font_size=12, fill=INK
        )
    bottom = top + len(names) * 44
    parts += tag("line", x1=at(0.0), y1=top + 10, x2=at(0.0), y2=bottom - 10, stroke=RULE, stroke_width=1)
    return SvgFigure(
        svg=tag(
            "svg",
            parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {bottom:.0f}",
            width=width,
            height=bottom,
            font_family=FONT,
            role="img",
            aria_label=f"{label} of each action",
        )
    )


def _without_masks(scores: np.ndarray) -> np.ndarray:
    """Scores with NaN, which is drawn as nothing, where an action is masked."""
    return np.where(is_masked(torch.as_tensor(scores)).numpy(), np.nan, scores)


def _written(value: float) -> str:
    written = f"{value:.2f}"
    return "0.00" if float(written) == 0 else written.replace("-", MINUS)


def _rows(recording: Recording, episode: int) -> np.ndarray:
    rows = np.flatnonzero(recording.steps["episode"].to_numpy() == episode)
    if rows.size == 0:
        raise RecordingError(
            f"The recording has no episode {episode}.",
            given=episode,
            expected=f"one of {sorted(recording.steps['episode'].unique().tolist())}",
            fix="recording.steps lists them all",
        )
    return rows


def _mark_crash(figure: go.Figure, recording: Recording, episode: int) -> None:
    table: Any = recording.steps
    if "crashed" not in table:
        return
    crashed = np.asarray(table[(table["episode"] == episode) & table["crashed"].astype(bool)]["step"])
    if crashed.size:
        figure.add_vline(x=float(crashed.min()) + 0.5, line={"color": CRASHED, "width": 2})
        figure.add_annotation(
            x=float(crashed.min()) + 0.5,
            y=1.0,
            yref="paper",
            yanchor="top",
            xanchor="right",
            showarrow=False,
            text="crash ",
            font={"size": 11, "color": CRASHED},
        )
