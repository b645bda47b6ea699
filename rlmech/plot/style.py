"""How figures look: one template, one diverging scale around zero, one colour per head and per action.

Blue is positive, red is negative and white is zero everywhere, as in CircuitsVis. Colours of heads and actions are
those of Okabe and Ito, which people with a colour vision deficiency tell apart. Nothing here is registered globally.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rlmech.untyped import JsonObject

FONT = "Inter, 'Segoe UI', system-ui, -apple-system, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "'JetBrains Mono', ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
CELLS = "#e8ecf0"  # behind the cells of a heat map: their borders, and cells without a value
MINUS = "\u2212"
INK, MUTED, RULE, PAPER = "#1f2933", "#616e7c", "#d9dee4", "#ffffff"
EGO, VEHICLE, CRASHED, ROAD = "#1b8a4b", "#8794a3", "#c8322b", "#eceff2"
POSITIVE, NEGATIVE = "#1f5fbf", "#c8322b"
DIVERGING: tuple[tuple[float, str], ...] = (
    (0.0, "#8e1b16"),
    (0.2, "#d05a4e"),
    (0.4, "#f3c3bb"),
    (0.5, "#ffffff"),
    (0.6, "#bcd2f0"),
    (0.8, "#4f86d6"),
    (1.0, "#123f86"),
)
_HEADS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5b3a", "#4d4d9f")
_ACTIONS = ("#b5452c", "#7a869a", "#2c7fb8", "#e0a100", "#7b5ea7", "#3c9a74", "#d16ba5", "#8c6d31")

_AXIS: dict[str, object] = {
    "gridcolor": RULE,
    "linecolor": RULE,
    "zerolinecolor": RULE,
    "automargin": True,
    "ticks": "outside",
    "ticklen": 5,
    "tickcolor": "rgba(0,0,0,0)",
    "title": {"font": {"size": 13, "color": MUTED}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "title": {"font": {"size": 16}, "x": 0.0, "xanchor": "left"},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "margin": {"l": 60, "r": 24, "t": 40, "b": 52},
        "colorway": list(_HEADS),
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0.0},
    }
)


def head_colour(head: int) -> str:
    """The colour that stands for an attention head in every figure."""
    return _HEADS[head % len(_HEADS)]


def action_colour(action: int) -> str:
    """The colour that stands for an action in every figure."""
    return _ACTIONS[action % len(_ACTIONS)]


def colour_axis(values: Sequence[float] | np.ndarray, *, limit: float | None = None) -> JsonObject:
    """A plotly colour axis on the diverging scale, white at zero and as strong on both sides.

    Args:
        values: All values that share the axis; NaN is left out. Where none is negative, the axis shows its upper half.
        limit: The value of full colour; the largest magnitude by default.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    reach = (float(np.abs(finite).max()) if finite.size else 0.0) if limit is None else limit
    reach = reach or 1.0
    signed = bool((finite < 0).any())
    scale = DIVERGING if signed else [(2 * place - 1, colour) for place, colour in DIVERGING if place >= 0.5]
    return {
        "colorscale": [list(stop) for stop in scale],
        "cmin": -reach if signed else 0.0,
        "cmax": reach,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "tickformat": ".3~g", "nticks": 7, "xpad": 8, "ypad": 0},
    }
