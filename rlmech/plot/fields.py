"""Fields as figures: an action, a gap or an activation over two quantities of an entity's state.

Before, after and their difference stand side by side on the same axes; grey veils the states that the simulator does
not come to, a ring marks where the vehicle is. Nothing is computed here.
"""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.saving import PlotFigure, subplots
from rlmech.plot.style import CELLS, INK, MUTED, PAPER, TEMPLATE, action_colour, colour_axis
from rlmech.untyped import JsonObject

_PANEL = 330  # pixels across
_HEIGHT = 300
_VEIL = "rgba(216,221,227,0.72)"
_MOST_WORDS = 90


@explain_misuse
def field(result: xr.Dataset, *, title: str | None = None, limit: float | None = None) -> PlotFigure:
    """Draw what `scene_field` measured: before, and with an edited scene after and the difference.

    Args:
        result: The field.
        title: Title of the figure; what was measured by default.
        limit: Value of full colour before and after; the largest magnitude by default.

    Returns:
        A plotly figure: numbers on one colour scale with a line where they change sign, actions in colours of their
        own; the difference on a scale of its own, or where the action changes.

    Raises:
        ConfigError: It is not a field.

    Example:
        >>> import numpy as np, xarray as xr
        >>> dims = ("condition", "speed", "along")
        >>> data = {"value": (dims, np.ones((1, 2, 2))), "reachable": (dims, np.ones((1, 2, 2), dtype=bool))}
        >>> speed, along = ("speed", [0.0, 9.0], {"here": 4.0}), ("along", [-1.0, 1.0], {"here": 0.0})
        >>> coords = {"condition": ["before"], "speed": speed, "along": along}
        >>> attrs = {"kind": "gap", "measure": "FASTER - SLOWER", "vehicle": 0}
        >>> len(field(xr.Dataset(data, coords=coords, attrs=attrs)).data)
        3
    """
    _check(result)
    conditions = [str(name) for name in result["condition"].values]
    panels = [*conditions, *(["difference"] if "difference" in result else [])]
    figure = subplots(
        rows=1,
        cols=len(panels),
        subplot_titles=[_panel_title(result, panel) for panel in panels],
        shared_yaxes=True,
        horizontal_spacing=0.035,
    )
    for column, panel in enumerate(panels, start=1):
        for trace in _traces(result, panel):
            figure.add_trace(trace, row=1, col=column)
    _dress(figure, result, n_panels=len(panels), title=title)
    finite = result["value"].values
    figure.update_layout(coloraxis=_scale(finite, limit, ("", result.attrs["measure"]), top="difference" in result))
    if "difference" in result:
        bar = _scale(result["difference"].values, None, ("difference", ""), top=False)
        figure.update_layout(coloraxis2=bar)
    if result.attrs["kind"] == "action":
        figure.update_coloraxes(showscale=False)
    return figure


def _check(result: xr.Dataset) -> None:
    if not {"value", "reachable"} <= set(result.data_vars) or "measure" not in result.attrs:
        raise ConfigError(
            "This is not a field.",
            given=f"variables {sorted(map(str, result.data_vars))}",
            expected="'value' and 'reachable' over condition and two quantities",
            fix="give the result of rlm.scenes.scene_field; rlm.plot.heatmap draws any array",
        )


def _axes(result: xr.Dataset) -> tuple[str, str]:
    """The quantities down the rows and across."""
    rows, columns = (str(dim) for dim in result["value"].dims[1:])
    return rows, columns


def _panel_title(result: xr.Dataset, panel: str) -> str:
    if panel == "difference":
        return "where the action changes" if result.attrs["kind"] == "action" else "after \u2212 before"
    words = str(result.attrs.get(panel, "")).replace("\n", "; ")
    words = words.removesuffix(" (reachable)")
    short = words if len(words) <= _MOST_WORDS // 2 else words[: _MOST_WORDS // 2 - 1] + "…"
    return f"{panel}: {short}" if short else panel


def _traces(result: xr.Dataset, panel: str) -> list[object]:
    rows, columns = _axes(result)
    across, down = result[columns].values, result[rows].values
    at = {"condition": panel} if panel != "difference" else {}
    values = np.asarray(result["difference" if panel == "difference" else "value"].sel(at).values, dtype=float)
    possible = result["reachable"].sel(at).values if at else result["reachable"].all("condition").values
    discrete = result.attrs["kind"] == "action"
    names = _action_names(result)
    hover = f"{columns} %{{x:.3~g}}<br>{rows} %{{y:.3~g}}<br>%{{text}}"
    text = [
        [_word(value, names if at else [], reachable=bool(ok)) for value, ok in zip(line, oks, strict=True)]
        for line, oks in zip(values, possible, strict=True)
    ]
    traces: list[object] = [
        go.Heatmap(
            z=values,
            x=across,
            y=down,
            text=text,
            hovertemplate=hover + "<extra></extra>",
            hoverongaps=False,
            **_colours(discrete=discrete, panel=panel, n=len(names)),
        )
    ]
    if result.attrs["kind"] == "gap" and at and np.nanmin(values) < 0 < np.nanmax(values):
        line = {"start": 0, "end": 0, "size": 1, "coloring": "none"}
        style: dict[str, object] = {"line": {"color": INK, "width": 1.5}, "showscale": False, "showlegend": False}
        traces.append(go.Contour(z=values, x=across, y=down, contours=line, hoverinfo="skip", **style))
    veil = np.where(possible, np.nan, 1.0)
    traces.append(
        go.Heatmap(z=veil, x=across, y=down, colorscale=[[0, _VEIL], [1, _VEIL]], showscale=False, hoverinfo="skip")
    )
    y, x = (result[name].attrs["here"] for name in (rows, columns))
    mark = {"size": 10, "symbol": "circle-open", "color": INK, "line": {"width": 2}}
    traces.append(go.Scatter(x=[x], y=[y], mode="markers", marker=mark, showlegend=False, hoverinfo="skip"))
    return traces


def _action_names(result: xr.Dataset) -> list[str]:
    """Names of the actions that a field of actions shows; of another field, none."""
    return json.loads(result["action"].attrs["names"]) if result.attrs["kind"] == "action" else []


def _word(value: float, names: list[str], *, reachable: bool) -> str:
    said = "not observed" if np.isnan(value) else names[int(value)] if names else f"{value:.4g}"
    return said if reachable else f"{said}<br>not reachable"


def _colours(*, discrete: bool, panel: str, n: int) -> dict[str, object]:
    if not discrete:
        return {"coloraxis": "coloraxis2" if panel == "difference" else "coloraxis"}
    if panel == "difference":
        return {"colorscale": [[0, PAPER], [1, INK]], "zmin": 0, "zmax": 1, "showscale": False}
    steps = [[place / n, action_colour(action)] for action in range(n) for place in (action, action + 1)]
    return {"colorscale": steps, "zmin": -0.5, "zmax": n - 0.5, "showscale": False}


def _scale(values: np.ndarray, limit: float | None, words: tuple[str, str], *, top: bool) -> JsonObject:
    """A colour axis; the upper half of the bars' place where another stands below."""
    axis = colour_axis(values, limit=limit)
    part = {"len": 0.46, "y": 1.0, "yanchor": "top"} if top else {"len": 0.46, "y": 0.0, "yanchor": "bottom"}
    whole = {"len": 1.0, "y": 0.5, "yanchor": "middle"}
    alone = not top and not words[0]
    axis["colorbar"] |= (whole if alone else part) | {
        "title": {"text": words[0] or "value", "font": {"size": 12, "color": MUTED}, "side": "top"},
        "x": 1.01,
    }
    return axis


def _dress(figure: go.Figure, result: xr.Dataset, *, n_panels: int, title: str | None) -> None:
    rows, columns = _axes(result)
    entity, agent = ("vehicle", "ego") if "vehicle" in result.attrs else ("object", "agent")
    whom = f"the {agent}" if result.attrs[entity] == 0 else f"{entity} {result.attrs[entity]}"
    figure.update_xaxes(title_text=_axis_title(result, columns), title_standoff=8, showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False, ticks="outside")
    figure.update_yaxes(title_text=_axis_title(result, rows), title_standoff=10, col=1, row=1)
    if {rows, columns} == {"x", "y"}:  # as on the road: y points down in highway-env, and a metre is a metre
        figure.update_yaxes(autorange="reversed" if rows == "y" else True, scaleanchor="x", constrain="domain")
        figure.update_xaxes(autorange="reversed" if columns == "y" else True, constrain="domain")
    keys = [(name, action_colour(one)) for one, name in enumerate(_action_names(result))]
    if not bool(result["reachable"].all()):
        keys.append(("not reachable", "#d8dde3"))
    if any(isinstance(trace, go.Contour) for trace in figure.data):
        line = {"color": INK, "width": 1.5}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", line=line, name="equal scores", showlegend=True))
    for name, colour in keys:
        mark = {"size": 12, "symbol": "square", "color": colour}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=mark, name=name, showlegend=True))
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title or f"{_short(result)}, over the state of {whom}", "y": 0.985, "yanchor": "top"},
        width=max(130 + _PANEL * n_panels, 720),
        height=_HEIGHT + 150,
        margin={"t": 74, "b": 92, "l": 70, "r": 90},
        plot_bgcolor=CELLS,
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0.0},
    )
    figure.update_annotations(font={"size": 12, "color": INK})


def _short(result: xr.Dataset) -> str:
    """What was measured, without the path of the module where it is a hook point."""
    words = str(result.attrs["measure"])
    if result.attrs["kind"] != "site":
        return words
    name, *rest = words.split(" ", 1)
    return " ".join([".".join(name.split(".")[-2:]), *rest])


def _axis_title(result: xr.Dataset, name: str) -> str:
    attrs = result[name].attrs
    said, unit = str(attrs.get("long_name", name)), str(attrs.get("units", ""))
    return f"{said} [{unit}]" if unit else said
