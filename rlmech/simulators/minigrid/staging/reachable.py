"""Whether an episode of MiniGrid could have come to a state, and what speaks against it.

Checked: the episode would be over there; a locked door without a key; a door without walls beside it; a goal that walls
or lava part from the agent. Not checked: whether the environment draws such a grid, or a past leads there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlmech.simulators.minigrid.objects import cell_of

if TYPE_CHECKING:
    from minigrid.core.grid import Grid
    from minigrid.minigrid_env import MiniGridEnv

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def obstructions(base: MiniGridEnv) -> tuple[str, ...]:
    """What speaks against the state of a grid; empty where nothing does."""
    return (*_over(base), *_keyless(base), *_unhung(base), *_parted(base))


def _over(base: MiniGridEnv) -> list[str]:
    under: Any = base.grid.get(*cell_of(base.agent_pos))
    kind = "" if under is None else str(under.type)
    return [f"the agent stands on {kind}, where the episode is over"] if kind in ("goal", "lava") else []


def _keyless(base: MiniGridEnv) -> list[str]:
    here = [one for one in (*base.grid.grid, base.carrying) if one is not None]
    here += [one.contains for one in here if one.contains is not None]
    keys = {one.color for one in here if one.type == "key"}
    locked = {one.color for one in here if one.type == "door" and one.is_locked}
    return [f"no key opens the locked {color} door" for color in sorted(locked - keys)]


def _unhung(base: MiniGridEnv) -> list[str]:
    """Doors that do not stand between two walls."""
    grid, found = base.grid, list[str]()
    for i, one in enumerate(grid.grid):
        if one is None or one.type != "door":
            continue
        x, y = i % grid.width, i // grid.width
        beside = [_is_wall(grid, x + dx, y + dy) for dx, dy in _STEPS]
        if not (beside[0] and beside[2]) and not (beside[1] and beside[3]):
            found.append(f"the {one.color} door at {(x, y)} does not stand between two walls")
    return found


def _is_wall(grid: Grid, x: int, y: int) -> bool:
    inside = 0 <= x < grid.width and 0 <= y < grid.height
    there = grid.get(x, y) if inside else None
    return not inside or (there is not None and there.type in ("wall", "door"))


def _parted(base: MiniGridEnv) -> list[str]:
    """Whether no goal can be come to, were all doors open and all objects out of the way."""
    grid = base.grid
    goals = {(i % grid.width, i // grid.width) for i, one in enumerate(grid.grid) if one and one.type == "goal"}
    start = cell_of(base.agent_pos)
    reached, waiting = {start}, [start]
    while waiting:
        x, y = waiting.pop()
        for dx, dy in _STEPS:
            cell = (x + dx, y + dy)
            inside = 0 <= cell[0] < grid.width and 0 <= cell[1] < grid.height
            if cell in reached or not inside:
                continue
            there = grid.get(*cell)
            if there is None or there.type not in ("wall", "lava"):
                reached.add(cell)
                waiting.append(cell)
    return ["walls or lava part the agent from every goal"] if goals and not goals & reached else []
