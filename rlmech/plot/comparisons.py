"""Conditions against the baseline as a forest plot, and what a growing dose does.

One panel a variable, one row a condition: its mean difference from the baseline of the same seeds, with the interval.
Filled: Holm's corrected p-value is below 0.05. Small and grey: a control, below the condition that it belongs to.
Figures take what `compare_rollouts` and `dose_response` return; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError, nearest
from rlmech.plot.saving import PlotFigure, subplots
from rlmech.plot.style import INK, MINUS, MUTED, POSITIVE, RULE, TEMPLATE

BASELINE = "baseline"
SIGNIFICANT = 0.05
_ROW, _TOP, _BOTTOM = 34, 96, 62  # pixels
_BAND = "rgba(31, 95, 191, 0.16)"
_CONTROL = "#9aa5b1"


@explain_misuse
def comparison(result: xr.Dataset, *, variables: Sequence[str] | None = None, title: str | None = None) -> PlotFigure:
    """Draw each condition's difference from the baseline, with its interval.

    Args:
        result: What `compare_rollouts` or `compare_recordings` returned.
        variables: Of `return`, `crashed`, `arrived`, `length` and `speed`; by default all that it has.
        title: Title of the figure.

    Returns:
        A plotly figure: one panel a variable, in its own unit, the baseline's mean in the panel's title. A marker is
        filled where Holm's corrected p-value is below 0.05; controls are small and grey. A condition whose edits were
        never at work says so beside its name.

    Raises:
        ConfigError: That is no comparison, or it has no such variable.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> push = rlm.steer("hook_q_values", torch.tensor([1.0, 0.0]), 100.0)
        >>> result = rlm.compare_rollouts(
        ...     policy, rlm.make_env("CartPole-v1"), conditions={"left": [push]}, seeds=range(3), progress=False
        ... )
        >>> figure = rlm.plot.comparison(result, variables=["return"])
        >>> float(figure.data[0].x[0]) == float(result["delta_return"].sel(condition="left"))
        True
    """
    chosen = _chosen(result, variables)
    order = _order(result)
    places = {name: place for place, name in enumerate(order)}
    figure = subplots(rows=1, cols=len(chosen), shared_yaxes=True, horizontal_spacing=0.025)
    for column, variable in enumerate(chosen, start=1):
        for kind in ("condition", "control"):
            names = [name for name in order if bool(_owner(result, name)) == (kind == "control")]
            if names:
                trace = _estimates(result.sel(condition=names), variable, kind, [places[name] for name in names])
                figure.add_trace(trace, row=1, col=column)
        figure.add_vline(x=0, line={"color": MUTED, "width": 1}, row=1, col=column)  # type: ignore[arg-type]
        figure.update_xaxes(
            title_text=f"difference<br>[{_unit(result, variable)}]", title_standoff=6, row=1, col=column
        )
    _label_panels(figure, [_heading(result, variable) for variable in chosen])
    names = [_row_name(result, name) for name in order]
    figure.update_yaxes(
        range=[len(order) - 0.4, -0.6], tickvals=list(range(len(order))), ticktext=names, zeroline=False
    )
    figure.update_layout(
        template=TEMPLATE,
        title_text=title,
        height=_TOP + 34 * bool(title) + _BOTTOM + _ROW * max(len(order), 2),
        margin={"t": _TOP + 34 * bool(title), "b": _BOTTOM, "l": 60, "r": 20},
        showlegend=False,
    )
    _note(figure, _reading(result))
    return figure


@explain_misuse
def dose_response(
    result: xr.Dataset, *, variables: Sequence[str] | None = None, title: str | None = None
) -> PlotFigure:
    """Draw the means of episodes against the coefficient of what is added to the policy.

    Args:
        result: What `rlm.episodes.dose_response` returned.
        variables: Of `return`, `crashed`, `arrived`, `length` and `speed`; by default all that it has.
        title: Title of the figure.

    Returns:
        A plotly figure: one panel a variable, its mean over the coefficient with the band of its interval; a diamond at
        0 is the baseline, whose mean goes through the panel as a dotted line; controls are small and grey, at the
        coefficient of the condition that they belong to.

    Raises:
        ConfigError: The comparison has no coefficients, or no such variable.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy, env = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4)), rlm.make_env("CartPole-v1")
        >>> steering = dict(site="hook_q_values", vector=torch.tensor([1.0, 0.0]), coefficients=(-1, 1))
        >>> result = rlm.episodes.dose_response(policy, env, **steering, seeds=range(3), progress=False)
        >>> [float(x) for x in rlm.plot.dose_response(result, variables=["return"]).data[1].x]
        [-1.0, 0.0, 1.0]
    """
    if "coefficient" not in result.coords:
        raise ConfigError(
            "This comparison has no doses.",
            given=f"coordinates {sorted(map(str, result.coords))}",
            expected="the coordinate 'coefficient' over conditions",
            fix="give the result of rlm.episodes.dose_response; rlm.plot.comparison draws any comparison",
        )
    chosen = _chosen(result, variables)
    doses = {str(name): float(dose) for name, dose in zip(_names(result), result["coefficient"].values, strict=True)}
    given = sorted((name for name in doses if np.isfinite(doses[name])), key=lambda name: doses[name])
    controls = [name for name in doses if _owner(result, name) in given]
    figure = subplots(rows=1, cols=len(chosen), horizontal_spacing=0.06)
    for column, variable in enumerate(chosen, start=1):
        for trace in _curve(result.sel(condition=given), variable, [doses[name] for name in given]):
            figure.add_trace(trace, row=1, col=column)
        if controls:
            at = [doses[_owner(result, name)] for name in controls]
            figure.add_trace(_grey(result.sel(condition=controls), variable, at), row=1, col=column)
        baseline = float(result[f"mean_{variable}"].sel(condition=BASELINE))
        figure.add_hline(y=baseline, line={"color": MUTED, "width": 1, "dash": "dot"}, row=1, col=column)  # type: ignore[arg-type]
        figure.add_trace(_diamond(baseline), row=1, col=column)
        figure.update_xaxes(title_text="coefficient", title_standoff=6, zeroline=False, row=1, col=column)
        figure.update_yaxes(title_text=f"[{_unit(result, variable)}]", title_standoff=4, row=1, col=column)
    _label_panels(figure, [f"<b>{variable}</b>" for variable in chosen])
    top = 76 + 34 * bool(title)
    figure.update_layout(
        template=TEMPLATE, title_text=title, height=280 + top, margin={"t": top, "b": 56, "l": 60, "r": 20}
    )
    figure.update_layout(showlegend=False)
    _note(figure, f"band: {_confidence(result)} interval over {result.sizes['seed']} seeds; diamond: the baseline")
    return figure


def _chosen(result: xr.Dataset, variables: Sequence[str] | None) -> list[str]:
    known = [str(name).removeprefix("delta_") for name in result.data_vars if f"{name}_p_holm" in result]
    if not known or "condition" not in result.dims:
        raise ConfigError(
            "This is not a comparison.",
            given=f"variables {sorted(map(str, result.data_vars))}",
            expected="differences from the baseline over the dimension 'condition'",
            fix="give the result of rlm.compare_rollouts, or of compare_recordings or dose_response in rlm.episodes",
        )
    chosen = known if variables is None else [variables] if isinstance(variables, str) else list(variables)
    for name in chosen or [""]:
        if name not in known:
            close = nearest(name, known)
            raise ConfigError(
                f"The comparison has no variable {name!r}.",
                given=f"variables={variables!r}",
                expected=f"one or more of {known}",
                fix=f"did you mean {close[0]!r}?" if close else f"e.g. variables={known[:2]}",
            )
    return chosen


def _names(result: xr.Dataset) -> list[str]:
    return [str(name) for name in result["condition"].values]


def _owner(result: xr.Dataset, name: str) -> str:
    """The condition that a control belongs to; nothing for conditions."""
    return str(result["control_of"].sel(condition=name).item()) if "control_of" in result.coords else ""


def _order(result: xr.Dataset) -> list[str]:
    """The conditions, each with its controls below it; the baseline is the line at zero."""
    names = [name for name in _names(result) if name != BASELINE]
    return [
        one
        for name in names
        if not _owner(result, name)
        for one in (name, *(other for other in names if _owner(result, other) == name))
    ]


def _row_name(result: xr.Dataset, name: str) -> str:
    owner = _owner(result, name)
    idle = f"<br><span style='font-size:10px;color:{MUTED}'>its edits were never at work</span>"
    said = idle if result["never_active"].sel(condition=name) else ""
    if owner:
        short = name.removeprefix(f"{owner}, ")
        return f"<span style='font-size:11px;color:{MUTED}'>{short}</span>{said}"
    return f"{name}{said}"


def _estimates(chosen: xr.Dataset, variable: str, kind: str, places: list[int]) -> go.Scatter:
    name = f"delta_{variable}"
    value, low, high, p = (chosen[name + end].values.astype(float) for end in ("", "_low", "_high", "_p_holm"))
    control = kind == "control"
    colour = _CONTROL if control else POSITIVE
    filled = p < SIGNIFICANT
    conditions = _names(chosen)
    return go.Scatter(
        x=value,
        y=places,
        mode="markers",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.nan_to_num(high - value),
            "arrayminus": np.nan_to_num(value - low),
            "color": colour,
            "thickness": 1.2 if control else 2,
            "width": 0,
        },
        marker={
            "color": [colour if sure else "#ffffff" for sure in filled],
            "size": 7 if control else 11,
            "line": {"color": colour, "width": 1.5 if control else 2},
        },
        customdata=np.array([conditions, low, high, p], dtype=object).T,
        hovertemplate="<b>%{customdata[0]}</b><br>difference %{x:+.3~g}, interval %{customdata[1]:+.3~g} to "
        "%{customdata[2]:+.3~g}<br>Holm's p %{customdata[3]:.3~g}<extra></extra>",
    )


def _curve(chosen: xr.Dataset, variable: str, doses: list[float]) -> list[go.Scatter]:
    name = f"mean_{variable}"
    value, low, high = (chosen[name + end].values.astype(float) for end in ("", "_low", "_high"))
    band = go.Scatter(
        x=[*doses, *doses[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=_BAND,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    line = go.Scatter(
        x=doses,
        y=value,
        mode="lines+markers",
        line={"color": POSITIVE, "width": 2},
        marker={"color": POSITIVE, "size": 8},
        customdata=np.stack([low, high], axis=-1),
        hovertemplate="coefficient %{x:+g}: %{y:.3~g}, interval %{customdata[0]:.3~g} to %{customdata[1]:.3~g}"
        "<extra></extra>",
    )
    return [band, line]


def _grey(chosen: xr.Dataset, variable: str, doses: list[float]) -> go.Scatter:
    return go.Scatter(
        x=doses,
        y=chosen[f"mean_{variable}"].values.astype(float),
        mode="markers",
        marker={"color": _CONTROL, "size": 6},
        text=_names(chosen),
        hovertemplate="%{text}: %{y:.3~g}<extra></extra>",
    )


def _diamond(baseline: float) -> go.Scatter:
    return go.Scatter(
        x=[0.0],
        y=[baseline],
        mode="markers",
        marker={"symbol": "diamond", "size": 13, "color": "#ffffff", "line": {"color": INK, "width": 2}},
        hovertemplate="baseline: %{y:.3~g}<extra></extra>",
    )


def _unit(result: xr.Dataset, variable: str) -> str:
    return str(result[variable].attrs.get("units", ""))


def _heading(result: xr.Dataset, variable: str) -> str:
    """A panel's title: the variable, and the baseline's mean of it with its unit."""
    one = result.sel(condition=BASELINE)
    mean = f"{float(one[f'mean_{variable}']):.2f}".replace("-", MINUS)
    unit = {"share of episodes": "of episodes", "return": ""}.get(_unit(result, variable), _unit(result, variable))
    return f"<b>{variable}</b><br><span style='font-size:11px;color:{MUTED}'>baseline {mean} {unit}</span>"


def _label_panels(figure: go.Figure, headings: Sequence[str]) -> None:
    for column, heading in enumerate(headings, start=1):
        axis: Any = figure.layout[f"xaxis{'' if column == 1 else column}"]
        figure.add_annotation(
            text=heading,
            x=axis.domain[0],
            y=1.0,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=4,
            align="left",
            showarrow=False,
            font={"size": 14, "color": INK},
        )
    figure.update_xaxes(showline=True, linecolor=RULE)


def _confidence(result: xr.Dataset) -> str:
    return f"{100 * float(result.attrs.get('confidence', 0.95)):g} %"


def _reading(result: xr.Dataset) -> str:
    n = result.sizes["seed"]
    controls = " · grey: controls" if any(_owner(result, name) for name in _names(result)) else ""
    return (
        f"mean difference from the baseline over the same {n} seeds, {_confidence(result)} interval · "
        f"filled: Holm's p < {SIGNIFICANT:g}{controls}"
    )


def _note(figure: go.Figure, said: str) -> None:
    """A line above the panels that says how to read them."""
    figure.add_annotation(
        text=said,
        x=0.0,
        y=1.0,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        yshift=50,
        align="left",
        showarrow=False,
        font={"size": 12, "color": MUTED},
    )
