"""A circuit as a drawing: units in columns by depth, edges as wide as their scores.

Blue edges hold the metric up, ablating them lowers it; red ones work against it. Labels come from the circuit, which
has them from the policy's spec. Hovering tells names, score and effect. Only places on the page are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rlmech.arguments import explain_misuse
from rlmech.edges.circuit import Circuit
from rlmech.plot.saving import PlotFigure
from rlmech.plot.style import INK, MUTED, NEGATIVE, PAPER, POSITIVE, TEMPLATE

_WIDTHS = (0.7, 1.4, 2.4, 3.8, 5.6, 8.0)
"""Line widths in pixels: a line has one width for all of it, so that scores are drawn in classes."""
_ROW, _COLUMN = 25, 190
_GAP = 1.6
Places = dict[int, tuple[float, float]]


@explain_misuse
def circuit_graph(circuit: Circuit, *, title: str | None = None) -> PlotFigure:
    """Draw a circuit's units and edges.

    Args:
        circuit: What `discover_circuit` found.
        title: Title of the figure; by default the number of edges and the faithfulness, or, where a ratio of means
            says nothing, the error.

    Returns:
        A plotly figure: observation on the left, scores on the right; edge width by the magnitude of the score.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.discover import discover_circuit
        >>> from rlmech.plot.circuit_drawing import circuit_graph
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> found = discover_circuit(policy, clean=torch.rand(16, 4), corrupt=torch.rand(16, 4))
        >>> type(circuit_graph(found)).__name__
        'PlotFigure'
    """
    names = _names(circuit)
    columns = _columns(circuit, names)
    places, headings = _places(circuit, columns)
    figure = PlotFigure(layout={"template": TEMPLATE})
    _draw_edges(figure, circuit, names, places)
    _draw_units(figure, names, places)
    for x, y, text in headings:
        figure.add_annotation(
            x=x,
            y=y,
            text=f"<b>{text}</b>",
            showarrow=False,
            font={"size": 11, "color": MUTED},
            yshift=4,
            xanchor="center",
        )
    n_rows = max((-y for _, y in places.values()), default=1.0)
    figure.update_layout(
        title={"text": title or _title(circuit)},
        height=int(110 + _ROW * (n_rows + 2)),
        width=int(200 + _COLUMN * max(1, len(columns))),
        hovermode="closest",
        plot_bgcolor=PAPER,
        xaxis={"visible": False, "range": [-0.6, len(columns) - 0.3]},
        yaxis={"visible": False, "range": [-n_rows - 1, 1.6]},
        legend={"y": 1.0},
        margin={"t": 84, "b": 16},
    )
    return figure


def _title(circuit: Circuit) -> str:
    text = f"{len(circuit.kept)} of {len(circuit.candidates)} edges"
    return f"{text}, {circuit.headline}" if circuit.headline else text


def _names(circuit: Circuit) -> dict[int, str]:
    """The names of units that edges begin or end at."""
    senders, receivers = (circuit.dataset.coords[key].values for key in ("sender", "receiver"))
    names: dict[int, str] = {}
    for number in circuit.kept:
        a, b = circuit.candidates[number]
        names[a], names[b] = str(senders[number]), str(receivers[number])
    return names


def _columns(circuit: Circuit, names: dict[int, str]) -> list[list[list[int]]]:
    """The units by depth, and there by hook point."""
    depth = dict.fromkeys(range(len(circuit.units)), 0)
    for sender, receiver in sorted(circuit.candidates, key=lambda edge: edge[1]):
        depth[receiver] = max(depth[receiver], depth[sender] + 1)
    columns: list[list[list[int]]] = []
    for level in sorted({depth[unit] for unit in names}):
        by_hook: dict[str, list[int]] = {}
        for unit in sorted(names):
            if depth[unit] == level:
                by_hook.setdefault(circuit.units[unit].name, []).append(unit)
        columns.append(list(by_hook.values()))
    return columns


def _places(
    circuit: Circuit, columns: Sequence[Sequence[Sequence[int]]]
) -> tuple[Places, list[tuple[float, float, str]]]:
    """Where units and the names of hook points stand: columns one apart, rows one apart, each column centred."""
    heights = [sum(len(group) for group in column) + _GAP * len(column) for column in columns]
    tallest = max(heights, default=0.0)
    places: Places = {}
    headings: list[tuple[float, float, str]] = []
    for x, (column, height) in enumerate(zip(columns, heights, strict=True)):
        y = -(tallest - height) / 2
        for group in column:
            headings.append((x, y, _short(circuit.units[group[0]].name)))
            for unit in group:
                y -= 1
                places[unit] = (x, y)
            y -= _GAP
    return places, headings


def _short(name: str) -> str:
    parts = name.removesuffix(".hook_out").split(".")
    return ".".join(parts[-2:])


def _label(name: str) -> str:
    """What a unit selects: `head=1 entity=vehicle_3` as `head 1, vehicle_3`."""
    chosen = [part.split("=", 1) for part in name.split(" ")[1:]]
    return ", ".join(value if not value.isdigit() else f"{axis} {value}" for axis, value in chosen)


def _draw_edges(figure: go.Figure, circuit: Circuit, names: dict[int, str], places: Places) -> None:
    kept = list(circuit.kept)
    score = np.abs(circuit.dataset["score"].values)
    effect = circuit.dataset["effect"].values
    unit = circuit.dataset["effect"].attrs.get("units", "")
    largest = max((score[number] for number in kept), default=0.0) or 1.0
    classes = {number: min(int(len(_WIDTHS) * score[number] / largest), len(_WIDTHS) - 1) for number in kept}
    for supports, colour, text in ((True, POSITIVE, "holds the metric up"), (False, NEGATIVE, "works against it")):
        if any(bool(effect[number] <= 0) == supports for number in kept):
            legend = {"color": colour, "width": 4}
            figure.add_scatter(x=[None], y=[None], mode="lines", line=legend, name=text, legendgroup=text)
        for size, width in enumerate(_WIDTHS):
            mine = [number for number in kept if classes[number] == size and bool(effect[number] <= 0) == supports]
            if not mine:
                continue
            x, y = _curves([(places[a], places[b]) for a, b in (circuit.candidates[number] for number in mine)])
            line = {"color": colour, "width": width}
            options = {"mode": "lines", "hoverinfo": "skip", "opacity": 0.3 + 0.1 * size}
            figure.add_scatter(x=x, y=y, line=line, legendgroup=text, showlegend=False, **options)
    ends = [circuit.candidates[number] for number in kept]
    figure.add_scatter(
        x=[(places[a][0] + places[b][0]) / 2 for a, b in ends],
        y=[(places[a][1] + places[b][1]) / 2 for a, b in ends],
        mode="markers",
        marker={"size": 9, "color": "rgba(0,0,0,0)"},
        hovertext=[
            f"{names[a]}<br>→ {names[b]}<br>score {score[number]:.3g}, effect of ablation {effect[number]:+.3g} {unit}"
            for number, (a, b) in zip(kept, ends, strict=True)
        ],
        hoverinfo="text",
        showlegend=False,
    )


def _curves(
    ends: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> tuple[list[float | None], list[float | None]]:
    """One polyline for many edges: S-shaped, level at both ends, None between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    share = np.linspace(0, 1, 17)
    rise = share * share * (3 - 2 * share)
    for (x0, y0), (x1, y1) in ends:
        x += [*(x0 + (x1 - x0) * share).tolist(), None]
        y += [*(y0 + (y1 - y0) * rise).tolist(), None]
    return x, y


def _draw_units(figure: go.Figure, names: dict[int, str], places: Places) -> None:
    units = list(places)
    first = min((x for x, _ in places.values()), default=0.0)
    figure.add_scatter(
        x=[places[unit][0] for unit in units],
        y=[places[unit][1] for unit in units],
        mode="markers+text",
        marker={"size": 8, "color": INK, "line": {"color": PAPER, "width": 1.5}},
        text=[_label(names[unit]) for unit in units],
        textposition=["middle left" if places[unit][0] == first else "top center" for unit in units],
        textfont={"size": 10, "color": INK},
        hovertext=[names[unit] for unit in units],
        hoverinfo="text",
        showlegend=False,
    )
