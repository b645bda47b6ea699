"""Certified action maps as figures: proved cells in the actions' colours, the others hatched or paled.

Where the two features are x and y it is the road: a metre is a metre, y points down as in highway-env, and the other
vehicles stand where they are. Nothing is computed here.
"""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.saving import PlotFigure
from rlmech.plot.style import CELLS, INK, TEMPLATE, VEHICLE, action_colour

_CHANGES, _UNKNOWN = "rgba(255,255,255,0.55)", "rgba(120,128,138,0.85)"
_WORDS = {1: "proved for the whole cell", -1: "changes within the cell", 0: "unknown"}


@explain_misuse
def certified_map(result: xr.Dataset, *, title: str | None = None) -> PlotFigure:
    """Draw a certified action map.

    Args:
        result: The result of `rlm.certify.certified_map`.
        title: Title of the figure; what was asked by default.

    Returns:
        A plotly figure: full colour where the action is proved for the whole cell, paled where another was found in
        it, grey where neither is known. A ring marks the state itself; where the features are x and y, squares mark
        the other vehicles.

    Raises:
        ConfigError: It is no certified map.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> states = rlm.record(policy, rlm.make_env(policy.spec), seeds=[0], progress=False).observations[:1]
        >>> cells = {"y": [-1.0, 0.0, 1.0], "x": [20.0, 21.0]}
        >>> found = rlm.certify.certified_map(policy, states, over=cells, entity="vehicle_1", n_boxes=4)
        >>> len(rlm.plot.certified_map(found).data) > 3
        True
    """
    if not {"action", "state"} <= set(result.data_vars) or "action_names" not in result.attrs:
        raise ConfigError(
            "This is no certified map.",
            given=f"variables {sorted(map(str, result.data_vars))}",
            expected="'action' and 'state' over two features",
            fix="give the result of rlm.certify.certified_map",
        )
    rows, columns = (str(dim) for dim in result["action"].dims)
    names = json.loads(result.attrs["action_names"])
    across, down = result[f"edges_{columns}"].values, result[f"edges_{rows}"].values
    action, state = result["action"].values, result["state"].values
    n = len(names)
    steps = [[place / n, action_colour(one)] for one in range(n) for place in (one, one + 1)]
    text = [
        [f"{names[a]}<br>{_WORDS[int(s)]}" for a, s in zip(line, kinds, strict=True)]
        for line, kinds in zip(action, state, strict=True)
    ]
    hover = f"{columns} %{{x:.3~g}}<br>{rows} %{{y:.3~g}}<br>%{{text}}<extra></extra>"
    figure = PlotFigure(
        go.Heatmap(
            z=action,
            x=across,
            y=down,
            colorscale=steps,
            zmin=-0.5,
            zmax=n - 0.5,
            text=text,
            hovertemplate=hover,
            showscale=False,
        )
    )
    for kind, colour in ((-1, _CHANGES), (0, _UNKNOWN)):
        veil = np.where(state == kind, 1.0, np.nan)
        if np.isfinite(veil).any():
            figure.add_trace(
                go.Heatmap(
                    z=veil, x=across, y=down, colorscale=[[0, colour], [1, colour]], showscale=False, hoverinfo="skip"
                )
            )
    on_road = {rows, columns} == {"x", "y"}
    if on_road:
        _add_vehicles(figure, result, rows, columns)
    here = [result[name].attrs["here"] for name in (columns, rows)]
    ring = {"size": 12, "symbol": "circle-open", "color": INK, "line": {"width": 2}}
    figure.add_trace(go.Scatter(x=[here[0]], y=[here[1]], mode="markers", marker=ring, name="the state"))
    shown = [(names[a], action_colour(int(a))) for a in np.unique(action)]
    shown += [(_WORDS[-1], "#eef0f2")] * bool((state == -1).any()) + [(_WORDS[0], "#868d96")] * bool((state == 0).any())
    for name, colour in shown:
        mark = {"size": 12, "symbol": "square", "color": colour, "line": {"color": INK, "width": 0.5}}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=mark, name=name))
    whom = f" of {result.attrs['entity']}" if result.attrs["entity"] else ""
    figure.update_xaxes(title_text=_label(result, columns), showgrid=False, zeroline=False)
    figure.update_yaxes(title_text=_label(result, rows), showgrid=False, zeroline=False)
    if on_road:  # y points down in highway-env, and a metre is a metre
        figure.update_yaxes(scaleanchor="x", constrain="domain", autorange="reversed" if rows == "y" else True)
        figure.update_xaxes(constrain="domain", autorange="reversed" if columns == "y" else True)
    proved = float(result.attrs["proved"])
    figure.update_layout(
        template=TEMPLATE,
        title=title or f"Action over {columns} and {rows}{whom}: {proved:.0%} of the cells proved",
        width=760,
        height=560,
        plot_bgcolor=CELLS,
        legend={"orientation": "h", "yanchor": "top", "y": -0.14, "x": 0.0},
    )
    return figure


def _add_vehicles(figure: go.Figure, result: xr.Dataset, rows: str, columns: str) -> None:
    """The vehicles of the state that lie within the map, but for the one that moves."""
    names = [str(name) for name in result["entity"].values] if "entity" in result.coords else []
    moved, kept = result.attrs["entity"], list[tuple[float, float, str]]()
    for place, name in enumerate(names):
        at = [float(result[f"entity_{axis}"].values[place]) for axis in (columns, rows)]
        ends = [result[f"edges_{axis}"].values for axis in (columns, rows)]
        inside = all(end[0] <= value <= end[-1] for value, end in zip(at, ends, strict=True))
        if inside and moved not in (name, str(place)):
            kept.append((at[0], at[1], name))
    mark: dict[str, object] = {"size": 11, "symbol": "square", "color": VEHICLE, "line": {"color": INK, "width": 1}}
    if kept:
        x, y, text = (list(each) for each in zip(*kept, strict=True))
        figure.add_trace(
            go.Scatter(
                x=x, y=y, text=text, mode="markers+text", textposition="top center", marker=mark, name="vehicles"
            )
        )


def _label(result: xr.Dataset, name: str) -> str:
    unit = str(result[name].attrs.get("units", ""))
    return f"{name} [{unit}]" if unit and unit != "1" else name
