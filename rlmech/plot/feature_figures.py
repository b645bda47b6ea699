"""Dictionaries and their features: what each keeps of the decisions, a sortable table, the strongest scenes of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.drawn_scene import is_drawable, scene
from rlmech.plot.episode import SCORES, action_names, scores
from rlmech.plot.report_page import Figure, Frame, Steps
from rlmech.plot.style import CELLS, INK, MUTED, NEGATIVE, POSITIVE, TEMPLATE

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording

_ROW, _TOP, _BOTTOM = 34, 90, 60
_MEASURES = {
    "agreement": "decisions kept",
    "kept": "divergence kept",
    "explained": "variance explained",
    "stability": "found again",
}
_DIM = "rgba(97, 110, 124, 0.35)"


@explain_misuse
def dictionary_scores(result: xr.Dataset, *, title: str | None = None) -> go.Figure:
    """Draw what each dictionary keeps, beside principal and independent components, neurons, and nothing.

    Args:
        result: `rlm.features.compare_dictionaries(...).result`.
        title: Title of the figure.

    Returns:
        A plotly figure, one row a dictionary: share of decisions kept with its reconstruction in the value's place
        (95 %), share of the divergence, share of the variance, and how much of its directions another fit finds again.
        Learned ones are blue. Values below -0.1 are drawn at the edge.

    Raises:
        ConfigError: These are no such scores.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = rlm.features.compare_dictionaries(
        ...     policy, torch.randn(200, 4), site="hook_obs", n_features=8, k=2, n_steps=20, n_fits=2
        ... )
        >>> len(rlm.plot.dictionary_scores(found.result).data)
        4
    """
    _check(result, {"agreement", "explained", "stability", "kept"}, "rlm.features.compare_dictionaries(...).result")
    names = [str(name) for name in result["dictionary"].values]
    place = np.arange(len(names))
    colours = [MUTED if name in ("pca", "ica", "neurons", "nothing") else POSITIVE for name in names]
    figure = make_subplots(
        rows=1, cols=len(_MEASURES), shared_yaxes=True, subplot_titles=list(_MEASURES.values()), horizontal_spacing=0.03
    )
    for column, name in enumerate(_MEASURES, start=1):
        chosen = result.sel(splice="reconstruction") if name == "agreement" else result
        value = chosen[name].values.astype(float)
        bars: dict[str, Any] = {}
        if name == "agreement":
            low, high = (chosen[f"agreement_{end}"].values for end in ("low", "high"))
            known = np.isfinite(low) & np.isfinite(high)
            bars["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": np.where(known, high - value, 0.0),
                "arrayminus": np.where(known, value - low, 0.0),
                "color": MUTED,
            }
        figure.add_trace(
            go.Scatter(
                x=np.clip(value, -0.1, None),
                y=place,
                mode="markers",
                marker={"size": 10, "color": colours},
                customdata=value,
                showlegend=False,
                hovertemplate="%{customdata:.3f}<extra></extra>",
                **bars,
            ),
            row=1,
            col=column,
        )
    figure.update_xaxes(range=[-0.13, 1.05], tickvals=[0, 0.5, 1], zeroline=False)
    figure.update_yaxes(range=[len(names) - 0.4, -0.6], tickvals=place, ticktext=names, zeroline=False)
    figure.update_layout(template=TEMPLATE, title_text=title, height=_TOP + _BOTTOM + _ROW * len(names))
    figure.update_annotations(font={"size": 13, "color": INK})
    return figure


@explain_misuse
def feature_table(effects: xr.Dataset, *, title: str | None = None) -> go.Figure:
    """Draw features as a table that sorts: by effect, by how often they are active, by decisions that depend on them.

    Args:
        effects: What `rlm.features.feature_effects` gives.
        title: Title of the figure.

    Returns:
        A plotly table, one row a feature that is active in some state, with a menu of orders. Effects are those in the
        states in which the feature is active; those whose interval over all states leaves zero out are blue or red.

    Raises:
        ConfigError: These are no effects of features.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> obs = torch.randn(100, 4)
        >>> found = rlm.features.fit_dictionary(policy, obs, site="hook_obs", n_features=8, k=2, n_steps=20)
        >>> figure = rlm.plot.feature_table(rlm.features.feature_effects(policy, found, obs))
        >>> figure.data[0].header["values"][0]
        'feature'
    """
    _check(effects, {"effect", "density", "flips", "effect_active"}, "rlm.features.feature_effects(...)")
    chosen = effects.isel(feature=effects["n_active"].values > 0)
    if not chosen.sizes["feature"]:
        raise ConfigError(
            "No feature is active in the states that were drawn.",
            given=f"{effects.sizes['feature']} features",
            expected="one that is active somewhere",
            fix="compute the effects in more states: n_states=1000",
        )
    actions = [str(name) for name in chosen["action"].values]
    strength = np.abs(chosen["effect"].values).max(1)
    orders = {"largest mean effect": -strength, "most often active": -chosen["density"].values}
    orders["most decisions"] = -np.nan_to_num(chosen["flips"].values)
    orders |= {f"most for {name}": -chosen["effect"].values[:, place] for place, name in enumerate(actions)}
    made = {name: _cells(chosen, np.argsort(key, kind="stable"), actions) for name, key in orders.items()}
    values, colours = next(iter(made.values()))
    unit = chosen["effect"].attrs.get("units", "")
    headers = ["feature", "active in", "decisions that change", *(f"{name} [{unit}]" for name in actions)]
    figure = go.Figure(
        go.Table(
            header={"values": headers, "fill": {"color": CELLS}, "font": {"color": INK}, "align": "right"},
            cells={"values": values, "font": {"color": colours}, "align": "right", "height": 24},
        )
    )
    buttons = [
        {"label": name, "method": "restyle", "args": [{"cells.values": [cells], "cells.font.color": [fonts]}]}
        for name, (cells, fonts) in made.items()
    ]
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": True}
    figure.update_layout(template=TEMPLATE, title_text=title, updatemenus=[menu], height=620, margin={"t": 70, "b": 10})
    return figure


@explain_misuse
def feature_scenes(
    recording: Recording, effects: xr.Dataset, *, only: Sequence[int] | None = None, n_scenes: int = 4
) -> Steps:
    """Lay the scenes in which features are strongest out as steps of a page, a feature a group.

    Args:
        recording: The recording that the effects were computed on.
        effects: What `rlm.features.feature_effects` gives.
        only: Features; None for the twelve with the largest mean effect.
        n_scenes: Scenes of each.

    Returns:
        For each scene the road or grid, where there is one, and the action scores; for each feature its effect on each
        action, in all states and where it is active.

    Raises:
        ConfigError: These are no effects of features, or those asked for are active nowhere.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(4), progress=False)
        >>> found = rlm.features.fit_dictionary(policy, recording, site="hook_obs", kind="pca", k=2)
        >>> effects = rlm.features.feature_effects(policy, found, recording)
        >>> len(rlm.plot.feature_scenes(recording, effects, only=[0], n_scenes=2).frames)
        2
    """
    _check(effects, {"effect", "top_state", "top_code"}, "rlm.features.feature_effects(...)")
    strength = np.abs(effects["effect"].values).max(1)
    best = effects["feature"].values[np.argsort(-strength, kind="stable")[:12]]
    names = action_names(recording, recording.scores.shape[1])
    label = SCORES.get(recording.manifest["policy"]["output_kind"], "score")
    drawn = is_drawable(recording)
    frames: list[Frame] = []
    overviews: dict[str, Figure] = {}
    for feature in best.tolist() if only is None else only:
        one = effects.sel(feature=feature)
        rows = [int(row) for row in one["top_state"].values[:n_scenes] if row >= 0]
        group = f"feature {feature} · active in {float(one['density']):.1%}"
        if rows:
            overviews[group] = _effect_bars(one)
        for rank, row in enumerate(rows):
            step = recording.steps.iloc[row]
            taken = int(recording.actions[row])
            title = f"Seed {step['seed']}, step {step['step']}: feature {feature} is {float(one['top_code'][rank]):.2f}"
            bars = scores(recording.scores[row], names=names, taken=taken, label=label)
            figures: tuple[Figure, ...] = (bars,)
            if drawn:
                road = scene(recording, episode=int(step["episode"]), step=int(step["step"]), title=title)
                figures = (road, bars)
            frames.append(Frame(group=group, label=f"{title}; it does {names[taken]}", figures=figures))
    if not frames:
        raise ConfigError(
            "None of the features is active in these states.",
            given=f"features {list(best.tolist() if only is None else only)}",
            expected="features that are active somewhere",
            fix="leave only= out",
        )
    return Steps(frames=tuple(frames), overviews=overviews)


def _effect_bars(one: xr.Dataset) -> go.Figure:
    """The effect of a feature on each action."""
    value, low, high = (one[f"effect{end}"].values for end in ("", "_low", "_high"))
    known = np.isfinite(low) & np.isfinite(high)
    actions = [str(name) for name in one["action"].values]
    figure = go.Figure()
    figure.add_trace(
        go.Bar(x=actions, y=one["effect_active"].values, name="where it is active", marker={"color": _DIM})
    )
    figure.add_trace(
        go.Bar(
            x=actions,
            y=value,
            name="in all states, 95 %",
            marker={"color": [POSITIVE if part > 0 else NEGATIVE for part in value]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.where(known, high - value, 0.0),
                "arrayminus": np.where(known, value - low, 0.0),
                "color": INK,
            },
        )
    )
    unit = one["effect"].attrs.get("units", "")
    figure.update_layout(template=TEMPLATE, height=260, yaxis_title=f"what it adds [{unit}]", barmode="group")
    return figure


def _cells(chosen: xr.Dataset, order: np.ndarray, actions: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    sorted_ = chosen.isel(feature=order)
    n = sorted_.sizes["feature"]
    values = [
        [str(number) for number in sorted_["feature"].values],
        [f"{part:.1%}" for part in sorted_["density"].values],
        ["" if np.isnan(part) else f"{part:.0%}" for part in sorted_["flips"].values],
    ]
    colours = [[INK] * n for _ in values]
    for place in range(len(actions)):
        low, high = (sorted_[f"effect_{end}"].values[:, place] for end in ("low", "high"))
        values.append([f"{part:+.3f}" for part in sorted_["effect_active"].values[:, place]])
        colours.append([POSITIVE if a > 0 else NEGATIVE if b < 0 else MUTED for a, b in zip(low, high, strict=True)])
    return values, colours


def _check(result: xr.Dataset, wanted: set[str], made_by: str) -> None:
    if not wanted <= set(result):
        raise ConfigError(
            "That is another result.",
            given=f"a dataset with {', '.join(map(str, result)) or 'nothing in it'}",
            expected=f"one with {', '.join(sorted(wanted))}",
            fix=f"give what {made_by} gives",
        )
