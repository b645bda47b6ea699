"""The road at one step, drawn to scale from a recording, with the ego's attention to each vehicle.

A line runs from the ego to a vehicle for each head, as wide as its weight; a ring around the ego is the attention that
it pays to itself. Vehicles are matched by their recorded observation row, never by distance. Weights below `SMALLEST`
and absent rows are not drawn. The y axis points down, as in highway-env's own window. Metres throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rlmech.errors import ConfigError, RecordingError
from rlmech.plot.style import CRASHED, EGO, FONT, INK, MUTED, ROAD, RULE, VEHICLE, head_colour
from rlmech.plot.svg import SvgFigure, tag, text

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording

SMALLEST = 0.03
PIXELS = 900
BAND = 64  # pixels above the road, for the title and the legend
MARGIN = 24.0  # metres shown around the ego's way
ASPECT = 1.4  # width by height, at least
WIDEST = 130.0  # metres; on a longer way the window goes along with the ego
RING = 1.45  # metres between the rings of two heads
_AHEAD, _BEHIND = 45.0, 20.0  # metres of a window that goes along
_EDGE = "#c5ccd4"
_MARKED_FROM = 40.0  # metres; shorter straight lanes lie within a junction, where no lines are painted
_KEY = 48.0  # pixels of a key of the legend, beside its label


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnVehicle:
    """What is drawn of a vehicle or an obstacle."""

    row: int
    x: float
    y: float
    heading: float
    speed: float
    length: float
    width: float
    crashed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """The part of the road that is shown, in metres."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """A lane's centre line `[point, xy]` and its width, in metres."""

    points: np.ndarray
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """Attention `[head, key]` of the ego, with the heads' names."""

    heads: tuple[str, ...]
    values: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """The heads' weights of an observation row; zeros for rows that are not keys."""
        return self.values[:, row] if 0 <= row < self.values.shape[1] else np.zeros(len(self.heads))


def road_scene(
    recording: Recording,
    *,
    episode: int,
    step: int,
    pattern: xr.DataArray | None,
    title: str,
    way: np.ndarray | None,
) -> SvgFigure:
    """Draw the road at one step of a recording; arguments as for `rlm.plot.scene`."""
    return draw_road(
        _vehicles(recording, episode, step),
        recording.manifest.get("lanes", []),
        way=ego_way(recording, episode) if way is None else way,
        entities=recording.spec.entities,
        pattern=pattern,
        title=title,
        label=f"the road at step {step} of episode {episode}",
    )


def draw_road(
    vehicles: Sequence[DrawnVehicle],
    lanes_told: Sequence[Mapping[str, Any]],
    *,
    way: np.ndarray | None,
    entities: Sequence[str],
    pattern: xr.DataArray | None,
    title: str,
    label: str,
) -> SvgFigure:
    """Draw a road.

    Args:
        vehicles: Who is there, the ego in row 0.
        lanes_told: The lanes, as the simulator's map tells them.
        way: Positions that the window lies around; None for the ego's own.
        entities: Names of the observation's rows.
        pattern: Attention, or None.
        title: One line above the drawing.
        label: What it shows, where there is no title.
    """
    ego = next(vehicle for vehicle in vehicles if vehicle.row == 0)
    weights = None if pattern is None else _weights(pattern)
    lanes = [_Lane(points=np.asarray(lane["points"], dtype=float), width=float(lane["width"])) for lane in lanes_told]
    window = _window(np.array([[ego.x, ego.y]]) if way is None else way, ego, lanes)
    content = _road(lanes)
    if weights is not None:
        content += _attention(ego, vehicles, weights)
    content += "".join(_drawn(vehicle, entities, weights) for vehicle in vehicles)
    if weights is not None:
        content += _beyond(ego, vehicles, weights, window)
    content += _scale_bar(window)
    header = text(title, x=0, y=18, font_size=16, font_weight="600", fill=INK) if title else ""
    header += _legend(() if weights is None else weights.heads)
    height = window.height * PIXELS / window.width
    view = f"{window.left:.2f} {window.top:.2f} {window.width:.2f} {window.height:.2f}"
    road = tag("svg", content, x=0, y=BAND, width=PIXELS, height=height, viewBox=view)
    frame = tag("rect", x=0.5, y=BAND + 0.5, width=PIXELS - 1, height=height - 1, fill="none", stroke=RULE)
    return SvgFigure(
        svg=tag(
            "svg",
            header + road + frame,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {PIXELS} {BAND + height:.1f}",
            width=PIXELS,
            height=BAND + height,
            font_family=FONT,
            role="img",
            aria_label=title or label,
        )
    )


def _vehicles(recording: Recording, episode: int, step: int) -> list[DrawnVehicle]:
    table = recording.vehicles
    if len(table) == 0:
        raise RecordingError(
            "The recording holds no vehicles, so the road cannot be drawn.",
            given=f"an environment without a road: {recording.spec.env_id!r}",
            expected="a recording of a highway-env environment",
            fix="rlm.plot.q_values draws any recording",
        )
    here: Any = table[(table["episode"] == episode) & (table["step"] == step)]
    vehicles = vehicles_of(here)
    if not any(vehicle.row == 0 for vehicle in vehicles):
        raise RecordingError(
            "The recording has no such step.",
            given=f"episode {episode}, step {step}",
            expected=f"one of its {len(recording.steps)} steps",
            fix="recording.steps lists them all",
        )
    return vehicles


def vehicles_of(table: Any) -> list[DrawnVehicle]:
    """The vehicles of a table, a line each."""
    return [
        DrawnVehicle(
            row=int(one["row"]),
            x=float(one["x"]),
            y=float(one["y"]),
            heading=float(one["heading"]),
            speed=float(one["speed"]),
            length=float(one["length"]),
            width=float(one["width"]),
            crashed=bool(one["crashed"]),
        )
        for one in table.to_dict("records")
    ]


def ego_way(recording: Recording, episode: int) -> np.ndarray:
    """The ego's positions in an episode, `[step, xy]`, in m."""
    table: Any = recording.vehicles
    own = table[(table["episode"] == episode) & (table["row"] == 0)]
    return np.asarray(own[["x", "y"]], dtype=float)


def _weights(pattern: xr.DataArray) -> _Weights:
    if "query" in pattern.dims and pattern.sizes["query"] == 1:
        pattern = pattern.isel(query=0)
    if set(pattern.dims) != {"head", "key"}:
        raise ConfigError(
            "This is not one state's attention from one query.",
            given=f"dimensions {dict(pattern.sizes)}",
            expected="head and key, or also query of size 1",
            fix="choose the state and the ego's query, e.g. pattern.isel(step=0, query=0)",
        )
    pattern = pattern.transpose("head", "key")
    heads = pattern.coords["head"].values if "head" in pattern.coords else range(pattern.sizes["head"])
    return _Weights(heads=tuple(str(head) for head in heads), values=np.asarray(pattern.values, dtype=float))


def _window(way: np.ndarray, ego: DrawnVehicle, lanes: Sequence[_Lane]) -> _Window:
    """Around the ego's whole way where it is short, so that the view stands still; else around the ego."""
    low, high = way.min(axis=0), way.max(axis=0)
    if (high - low).max() > WIDEST - 2 * MARGIN:
        low, high = np.array([ego.x - _BEHIND, ego.y]), np.array([ego.x + _AHEAD, ego.y])
    low, high = low - MARGIN, high + MARGIN
    if lanes:  # no more grass than needed
        points = np.concatenate([lane.points for lane in lanes])
        low = np.maximum(low, np.minimum(points.min(axis=0) - 8.0, low + MARGIN))
        high = np.minimum(high, np.maximum(points.max(axis=0) + 8.0, high - MARGIN))
    width, height = (float(size) for size in high - low)
    width, height = max(width, height * ASPECT), max(height, width / 4)
    middle_x, middle_y = (float(middle) for middle in (low + high) / 2)
    return _Window(left=middle_x - width / 2, top=middle_y - height / 2, width=width, height=height)


def _road(lanes: Sequence[_Lane]) -> str:
    """The lanes as one grey surface with an edge, and dashed lines between lanes that run side by side."""

    def surface(extra: float, stroke: str) -> str:
        return "".join(
            tag(
                "polyline",
                points=" ".join(f"{x:.1f},{y:.1f}" for x, y in lane.points),
                fill="none",
                stroke=stroke,
                stroke_width=lane.width + extra,
                stroke_linejoin="round",
            )
            for lane in lanes
        )

    lines = ""
    for lane in lanes:
        along = lane.points[-1] - lane.points[0]
        length = float(np.hypot(*along))
        if len(lane.points) > 2 or length < _MARKED_FROM:
            continue
        aside = np.array([-along[1], along[0]]) / length * lane.width / 2
        for side in (aside, -aside):
            (x1, y1), (x2, y2) = lane.points[0] + side, lane.points[-1] + side
            lines += tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=_EDGE, stroke_width=0.18, stroke_dasharray="2 2.6")
    return surface(0.5, _EDGE) + surface(0.0, ROAD) + lines


def _attention(ego: DrawnVehicle, vehicles: Sequence[DrawnVehicle], weights: _Weights) -> str:
    n_heads = len(weights.heads)
    drawn: list[str] = []
    for head in range(n_heads):
        shapes = ""
        for vehicle in vehicles:
            weight = float(weights.of(vehicle.row)[head])
            if weight < SMALLEST:
                continue
            style: dict[str, str | float] = {
                "stroke": head_colour(head),
                "stroke_width": 0.25 + (1.0 if vehicle is ego else 1.5) * weight,
                "stroke_opacity": 0.35 + 0.6 * weight,
            }
            if vehicle is ego:
                shapes += tag("circle", "", cx=ego.x, cy=ego.y, r=3.4 + RING * head, fill="none", **style)
            else:
                shapes += _line(ego, vehicle, shift=(head - (n_heads - 1) / 2) * 1.15, style=style)
        drawn.append(tag("g", shapes or " ", class_=f"head-{head}"))
    return "".join(drawn)


def _line(ego: DrawnVehicle, vehicle: DrawnVehicle, *, shift: float, style: dict[str, str | float]) -> str:
    """A line beside the straight way, so that the heads' lines to one vehicle lie next to each other."""
    dx, dy = vehicle.x - ego.x, vehicle.y - ego.y
    length = math.hypot(dx, dy) or 1.0
    sx, sy = -dy / length * shift, dx / length * shift
    ends = {"x1": ego.x + sx, "y1": ego.y + sy, "x2": vehicle.x + sx, "y2": vehicle.y + sy}
    return tag("line", "", stroke_linecap="round", **ends, **style)


def _drawn(vehicle: DrawnVehicle, names: Sequence[str], weights: _Weights | None) -> str:
    row, seen = vehicle.row, vehicle.row >= 0
    fill = CRASHED if vehicle.crashed else EGO if row == 0 else VEHICLE
    body = tag(
        "rect",
        x=-vehicle.length / 2,
        y=-vehicle.width / 2,
        width=vehicle.length,
        height=vehicle.width,
        rx=0.5,
        fill=fill if seen else "#ffffff",
        stroke="#ffffff" if seen else fill,
        stroke_width=0.25,
        stroke_dasharray="none" if seen else "0.8 0.5",
    )
    if seen:  # the windscreen, so that one sees where it is heading
        body += tag(
            "rect", x=vehicle.length / 2 - 1.5, y=-vehicle.width / 2 + 0.3, width=0.6, height=vehicle.width - 0.6,
            rx=0.2, fill="#ffffff", fill_opacity=0.75,
        )  # fmt: skip
    name = names[row] if 0 <= row < len(names) else f"row {row}" if seen else "not in the observation"
    hover = f"{name}: {vehicle.speed:.1f} m/s{', crashed' if vehicle.crashed else ''}"
    if weights is not None and seen:
        hover += "".join(
            f"\nhead {head}: {value:.2f}" for head, value in zip(weights.heads, weights.of(row), strict=True)
        )
    label = _label(str(row), vehicle.x, vehicle.y - 1.9) if row > 0 else ""
    turn = f"translate({vehicle.x:.2f} {vehicle.y:.2f}) rotate({math.degrees(vehicle.heading):.1f})"
    return tag("g", text(hover, element="title") + tag("g", body, transform=turn) + label, class_="vehicle")


def _label(content: str, x: float, y: float) -> str:
    """A small label with a halo, readable on anything."""
    return text(
        content, x=x, y=y, font_size=2.1, font_weight="600", text_anchor="middle", fill=INK, stroke="#ffffff",
        stroke_width=0.5, stroke_linejoin="round", paint_order="stroke",
    )  # fmt: skip


def _beyond(ego: DrawnVehicle, vehicles: Sequence[DrawnVehicle], weights: _Weights, window: _Window) -> str:
    """At the window's edge: which vehicle a line leads to that ends outside, and how far away that is."""
    labels = ""
    middle = np.array([ego.x, ego.y])
    inset = np.array([3.0, 1.8])
    low = np.array([window.left, window.top]) + inset
    high = np.array([window.left + window.width, window.top + window.height]) - inset
    taken: list[tuple[float, float]] = []
    for vehicle in vehicles:
        place = np.array([vehicle.x, vehicle.y])
        if bool(((place > low) & (place < high)).all()) or float(weights.of(vehicle.row).max()) < SMALLEST:
            continue
        away = place - middle
        reaches = [
            float(((high if one > 0 else low) - middle)[axis] / one) for axis, one in enumerate(away) if one != 0
        ]
        x, y = middle + away * min(max(min(reaches), 0.0), 1.0)
        content = f"{vehicle.row}: {math.hypot(*away):.0f} m"
        width = 1.25 * len(content)
        x = min(max(float(x), window.left + width / 2 + 0.5), window.left + window.width - width / 2 - 0.5)
        while any(abs(x - other_x) < 9 and abs(float(y) - other_y) < 3.0 for other_x, other_y in taken):
            y += 3.1 if y < window.top + window.height / 2 else -3.1
        taken.append((x, float(y)))
        labels += tag(
            "rect", x=x - width / 2, y=y - 1.4, width=width, height=2.8, rx=0.7, fill="#ffffff", stroke=_EDGE,
            stroke_width=0.15,
        )  # fmt: skip
        labels += text(content, x=x, y=y + 0.7, font_size=1.9, text_anchor="middle", fill=INK)
    return labels


def _scale_bar(window: _Window) -> str:
    left, y = window.left + 2.5, window.top + window.height - 2.5
    path = f"M{left:.2f} {y - 1:.2f}v1h10v-1"
    return tag("path", d=path, fill="none", stroke=MUTED, stroke_width=0.25) + text(
        "10 m", x=left + 5, y=y - 0.8, font_size=2.1, text_anchor="middle", fill=MUTED
    )


def _legend(heads: Sequence[str]) -> str:
    """What colours and lines mean; in a page its head keys can be clicked."""
    y, x, parts = 44.0, 0.0, ""
    for head, name in enumerate(heads):
        area = tag("rect", x=x - 4, y=y - 16, width=86, height=22, fill="#ffffff", fill_opacity=0)
        line = tag("line", x1=x + 3, y1=y - 4, x2=x + 22, y2=y - 4, stroke=head_colour(head), stroke_width=5)
        parts += tag(
            "g", area + line + text(f"head {name}", x=x + 30, y=y, font_size=13, fill=INK), data_toggle_head=str(head)
        )
        x += 92
    keys = (
        ("ego", EGO, True),
        ("vehicle", VEHICLE, True),
        ("crashed", CRASHED, True),
        ("not observed", VEHICLE, False),
    )
    x = PIXELS - sum(_KEY + 7.2 * len(label) for label, _, _ in keys) + 18 if heads else 0.0
    for label, colour, full in keys:
        parts += tag(
            "rect", x=x, y=y - 11, width=20, height=10, rx=2.5, stroke=colour, stroke_width=1.3,
            fill=colour if full else "#ffffff", stroke_dasharray="none" if full else "3 2",
        )  # fmt: skip
        parts += text(label, x=x + 27, y=y - 1, font_size=13, fill=INK)
        x += _KEY + 7.2 * len(label)
    return parts
