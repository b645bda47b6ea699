"""What is told of a grid at each observation: the agent and the objects, row by row, and what follows from these.

Walls and floor stand still: they are an episode's `layout`. Cells count from the left and from the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlmech.simulators.minigrid.view import Seen
from rlmech.simulators.protocol import Column, Value
from rlmech.untyped import Row

if TYPE_CHECKING:
    from minigrid.core.world_object import WorldObj
    from minigrid.minigrid_env import MiniGridEnv

AGENT = 0
DIRECTIONS = ("right", "down", "left", "up")
"""Names of the agent's directions, as MiniGrid numbers them."""
DOOR_STATES = ("open", "closed", "locked")
STANDING = ("wall", "floor")
_COLUMNS: tuple[tuple[str, Literal["int64", "bool", "str"], str, str], ...] = (
    ("object", "int64", "", "number that it keeps for the episode; 0 is the agent"),
    ("type", "str", "", "agent, key, door, ball, box, goal, lava"),
    ("color", "str", "", "its colour, by MiniGrid's name"),
    ("state", "str", "", "open, closed or locked, of a door; empty for others"),
    ("direction", "str", "", "where the agent looks: right, down, left, up; empty for others"),
    ("x", "int64", "cell", "its column, from the left; -1 while it is carried"),
    ("y", "int64", "cell", "its row, from the top; -1 while it is carried"),
    ("carried", "bool", "", "whether the agent carries it"),
    ("distance", "int64", "cell", "cells to the agent, across and down added; 0 while it is carried"),
    ("seen", "bool", "", "whether the observation shows it"),
    ("view_x", "int64", "cell", "its place along the observed image's first axis; -1 where it is not seen"),
    ("view_y", "int64", "cell", "its place along the observed image's second axis; -1 where it is not seen"),
)
OBJECT_COLUMNS: Mapping[str, Column] = {
    name: Column(dtype=dtype, unit=unit, meaning=meaning) for name, dtype, unit, meaning in _COLUMNS
}


def objects_of(base: MiniGridEnv) -> list[Any]:
    """The objects of a grid, row by row from its top left cell, then what is carried."""
    here = [one for one in base.grid.grid if one is not None and one.type not in STANDING]
    return here if base.carrying is None else [*here, base.carrying]


def places_of(base: MiniGridEnv) -> dict[int, tuple[int, int]]:
    """The cell of each object of a grid, by the object's id()."""
    width = base.grid.width
    return {id(one): (i % width, i // width) for i, one in enumerate(base.grid.grid) if one is not None}


def table(base: MiniGridEnv, numbers: Mapping[int, int], seen: Seen) -> list[Row]:
    """Rows of `OBJECT_COLUMNS`: the agent, then the objects by their numbers.

    Args:
        base: The environment without its wrappers.
        numbers: The number of each object, by its id().
        seen: What its observation shows.
    """
    agent, places = cell_of(base.agent_pos), places_of(base)
    rows = [(AGENT, "agent", "red", "", DIRECTIONS[int(base.agent_dir)], *agent, False, 0, *seen.agent())]
    for one in sorted(objects_of(base), key=lambda one: numbers[id(one)]):
        carried = one is base.carrying
        x, y = (-1, -1) if carried else places[id(one)]
        distance = 0 if carried else abs(x - agent[0]) + abs(y - agent[1])
        shown = seen.carried() if carried else seen.at(x, y)
        state = DOOR_STATES[one.encode()[2]] if one.type == "door" else ""
        rows.append((numbers[id(one)], str(one.type), str(one.color), state, "", x, y, carried, distance, *shown))
    return rows


def step_values(rows: Sequence[Row]) -> dict[str, Value | str]:
    """What the step table tells of a scene: where the agent is, what it carries, how far the nearest goal is."""
    if not rows:
        return {"x": -1, "y": -1, "direction": "", "carrying": "", "goal_distance": np.nan}
    named = [dict(zip(OBJECT_COLUMNS, row, strict=True)) for row in rows]
    agent = named[0]
    carried = [f"{one['color']} {one['type']}" for one in named if one["carried"]]
    goals = [one["distance"] for one in named if one["type"] == "goal"]
    return {
        "x": agent["x"],
        "y": agent["y"],
        "direction": agent["direction"],
        "carrying": carried[0] if carried else "",
        "goal_distance": float(min(goals)) if goals else np.nan,
    }


def layout(base: MiniGridEnv) -> str:
    """What stands still, row by row from the top, parted by `/`: `#` wall, a colour's letter floor, `.` nothing."""
    grid = base.grid
    rows = (grid.grid[y * grid.width : (y + 1) * grid.width] for y in range(grid.height))
    return "/".join("".join(map(_letter, row)) for row in rows)


def cell_of(position: Any) -> tuple[int, int]:
    """A position as plain numbers."""
    x, y = position
    return int(x), int(y)


def _letter(one: WorldObj | None) -> str:
    if one is None or one.type not in STANDING:
        return "."
    return "#" if one.type == "wall" else str(one.color)[0]
