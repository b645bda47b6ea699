"""A grid at one step, drawn from a recording: walls, objects, the agent, and what of it all is seen.

Cells are squares, x across and y down, as in MiniGrid's own window. The agent's own view is shaded; an object that
the observation does not show has a dashed outline. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmech.errors import RecordingError
from rlmech.plot.style import FONT, INK, MUTED, ROAD, RULE
from rlmech.plot.svg import SvgFigure, tag, text

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording

CELL = 64.0  # pixels
WIDEST = 900.0
BAND = 64.0  # pixels above the grid, for the title and the legend
WALL = "#8d99a6"
AGENT = "#c8322b"
COLOURS = {
    "red": "#d1403a",
    "green": "#2f9e57",
    "blue": "#2f6fd0",
    "purple": "#7b4fb5",
    "yellow": "#d9a400",
    "grey": "#7c8894",
}
_TURNS = {"right": 0, "down": 90, "left": 180, "up": 270}
_LAVA = "#f08a3c"
_VIEW = "#e6eefb"


def grid_scene(recording: Recording, *, episode: int, step: int, title: str = "") -> SvgFigure:
    """Draw the grid at one step of a recording of MiniGrid.

    Args:
        recording: The recording.
        episode: Number of the episode in it.
        step: Step in the episode; one more than its last for the scene after it.
        title: One line above the grid.

    Raises:
        RecordingError: The recording has no such step.
    """
    table: Any = recording.entities
    here = table[(table["episode"] == episode) & (table["step"] == step)].to_dict("records")
    if not here:
        raise RecordingError(
            "The recording has no such step.",
            given=f"episode {episode}, step {step}",
            expected=f"one of its {len(recording.steps)} steps",
            fix="recording.steps lists them all",
        )
    episodes: Any = recording.episodes
    layout = str(episodes[episodes["episode"] == episode]["layout"].iloc[0])
    return draw_grid(here, layout, title=title, label=f"the grid at step {step} of episode {episode}")


def draw_grid(here: Sequence[Mapping[Any, Any]], layout: str, *, title: str, label: str) -> SvgFigure:
    """Draw a grid.

    Args:
        here: Who is there, the agent first.
        layout: The walls, a row of letters for each row of cells.
        title: One line above the grid.
        label: What it shows, where there is no title.
    """
    rows = layout.split("/")
    agent, objects = here[0], here[1:]
    n_across, n_down = len(rows[0]), len(rows)
    cell = min(CELL, WIDEST / n_across)
    content = _floor(rows) + _view(agent, n_across, n_down) + _walls(rows)
    content += "".join(_object(one) for one in objects if not one["carried"])
    content += _agent(agent, [one for one in objects if one["carried"]])
    content += "".join(tag("path", d=f"M{x} 0V{n_down}", stroke=RULE, stroke_width=0.015) for x in range(n_across + 1))
    content += "".join(tag("path", d=f"M0 {y}H{n_across}", stroke=RULE, stroke_width=0.015) for y in range(n_down + 1))
    width, height = n_across * cell, n_down * cell
    page = max(width, 460.0)
    header = text(title, x=0, y=18, font_size=16, font_weight="600", fill=INK) if title else ""
    grid = tag(
        "svg", content, x=0, y=BAND, width=width, height=height, viewBox=f"0 0 {n_across} {n_down}", overflow="hidden"
    )
    return SvgFigure(
        svg=tag(
            "svg",
            header + _legend() + grid,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {page:.0f} {BAND + height:.1f}",
            width=page,
            height=BAND + height,
            font_family=FONT,
            role="img",
            aria_label=title or label,
        )
    )


def _floor(rows: list[str]) -> str:
    """The ground, with coloured floor where there is some."""
    by_letter = {name[0]: colour for name, colour in COLOURS.items() if name != "green" and name != "grey"}
    by_letter["g"] = COLOURS["green"]
    parts = tag("rect", x=0, y=0, width=len(rows[0]), height=len(rows), fill="#ffffff")
    for y, row in enumerate(rows):
        for x, letter in enumerate(row):
            if letter not in "#.":
                parts += tag("rect", x=x, y=y, width=1, height=1, fill=by_letter.get(letter, ROAD), fill_opacity=0.25)
    return parts


def _walls(rows: list[str]) -> str:
    return "".join(
        tag("rect", x=x, y=y, width=1, height=1, fill=WALL, class_="wall")
        for y, row in enumerate(rows)
        for x, letter in enumerate(row)
        if letter == "#"
    )


def _view(agent: Mapping[str, Any], n_across: int, n_down: int) -> str:
    """The cells that the agent's own view reaches over; nothing where the whole grid is seen."""
    if bool(agent["seen"]):  # a full view shows the agent itself
        return ""
    size = int(agent["view_y"]) + 1
    half = size // 2
    x, y = int(agent["x"]), int(agent["y"])
    left, top = {
        "right": (x, y - half),
        "left": (x - size + 1, y - half),
        "down": (x - half, y),
        "up": (x - half, y - size + 1),
    }[str(agent["direction"])]
    low, high = np.maximum([left, top], 0), np.minimum([left + size, top + size], [n_across, n_down])
    across, down = (float(one) for one in high - low)
    return tag("rect", x=float(low[0]), y=float(low[1]), width=across, height=down, fill=_VIEW, class_="view")


def _object(one: Mapping[str, Any]) -> str:
    colour = COLOURS.get(str(one["color"]), INK)
    state = f"{one['state']} " if one["state"] else ""
    said = f"{state}{one['color']} {one['type']} ({one['object']})" + ("" if one["seen"] else ", not seen")
    shape = _shape(str(one["type"]), str(one["state"]), colour)
    if not one["seen"]:
        shape += tag(
            "rect", x=0.06, y=0.06, width=0.88, height=0.88, fill="#ffffff", fill_opacity=0.55, stroke=MUTED,
            stroke_width=0.03, stroke_dasharray="0.08 0.06",
        )  # fmt: skip
    return tag("g", text(said, element="title") + shape, transform=f"translate({one['x']} {one['y']})", class_="object")


def _shape(kind: str, state: str, colour: str) -> str:
    """An object in a cell of size 1."""
    match kind:
        case "goal":
            return tag("rect", x=0.08, y=0.08, width=0.84, height=0.84, rx=0.06, fill=colour)
        case "lava":
            waves = "".join(f"M0.12 {y}q0.19 -0.16 0.38 0t0.38 0" for y in (0.34, 0.54, 0.74))
            return tag("rect", x=0.02, y=0.02, width=0.96, height=0.96, fill=_LAVA) + tag(
                "path", d=waves, fill="none", stroke="#8a3b0a", stroke_width=0.05
            )
        case "door":
            return _door(state, colour)
        case "key":
            ring = tag("circle", cx=0.5, cy=0.3, r=0.16, fill="none", stroke=colour, stroke_width=0.09)
            return ring + tag(
                "path", d="M0.5 0.46V0.86M0.5 0.84H0.33M0.5 0.68H0.36", fill="none", stroke=colour, stroke_width=0.09
            )
        case "ball":
            return tag("circle", cx=0.5, cy=0.5, r=0.3, fill=colour)
        case "box":
            lid = tag("path", d="M0.17 0.5H0.83", stroke=colour, stroke_width=0.07)
            frame = {"fill": "#ffffff", "stroke": colour, "stroke_width": 0.07}
            return tag("rect", x=0.17, y=0.17, width=0.66, height=0.66, rx=0.04, **frame) + lid
        case _:
            return tag("rect", x=0.2, y=0.2, width=0.6, height=0.6, fill=colour)


def _door(state: str, colour: str) -> str:
    if state == "open":
        return tag("rect", x=0.84, y=0.02, width=0.12, height=0.96, fill=colour)
    leaf = tag(
        "rect", x=0.06, y=0.06, width=0.88, height=0.88, fill=colour, fill_opacity=0.85 if state == "locked" else 0.25,
        stroke=colour, stroke_width=0.08,
    )  # fmt: skip
    if state == "locked":
        return leaf + tag("path", d="M0.5 0.42a0.08 0.08 0 1 1 0.01 0M0.5 0.42V0.66", fill=INK, stroke=INK,
                          stroke_width=0.07)  # fmt: skip
    return leaf + tag("circle", cx=0.76, cy=0.5, r=0.07, fill=colour)


def _agent(agent: Mapping[str, Any], carried: list[Mapping[str, Any]]) -> str:
    x, y = int(agent["x"]), int(agent["y"])
    said = f"the agent, looking {agent['direction']}" + "".join(
        f", carrying the {one['color']} {one['type']}" for one in carried
    )
    body = tag("path", d="M0.14 0.2L0.88 0.5L0.14 0.8Z", fill=AGENT, stroke="#ffffff", stroke_width=0.03)
    body = tag("g", body, transform=f"rotate({_TURNS[str(agent['direction'])]} 0.5 0.5)")
    hand = "".join(
        tag("g", _shape(str(one["type"]), "", COLOURS.get(str(one["color"]), INK)),
            transform="translate(0.56 0.54) scale(0.44)") for one in carried
    )  # fmt: skip
    disc = tag("circle", cx=0.78, cy=0.76, r=0.23, fill="#ffffff", stroke=RULE, stroke_width=0.02) if carried else ""
    return tag("g", text(said, element="title") + body + disc + hand, transform=f"translate({x} {y})", class_="agent")


def _legend() -> str:
    parts, x = "", 0.0
    for label, drawn in (
        ("agent", tag("path", d="M0 -11L18 -5L0 1Z", fill=AGENT)),
        ("its view", tag("rect", y=-12, width=20, height=13, fill=_VIEW, stroke=RULE)),
        ("wall", tag("rect", y=-12, width=20, height=13, fill=WALL)),
        ("not seen", tag("rect", y=-12, width=20, height=13, fill="#ffffff", stroke=MUTED, stroke_dasharray="3 2")),
    ):
        parts += tag("g", drawn + text(label, x=27, y=0, font_size=13, fill=INK), transform=f"translate({x} 44)")
        x += 46 + 7.6 * len(label)
    return parts
