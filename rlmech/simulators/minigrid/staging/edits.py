"""Edits of a grid's scene: functions of a scene that give another, and say whether an episode could come to its state.

An object is named by its number (`scene.entities` shows it) or by its cell, `at=(x, y)`, which names walls too. Cells
count from the left and from the top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from rlmech.errors import SceneError, nearest
from rlmech.simulators.minigrid.objects import AGENT, DIRECTIONS, cell_of
from rlmech.simulators.minigrid.staging.reachable import obstructions
from rlmech.simulators.minigrid.staging.stage import Cell, GridStage

if TYPE_CHECKING:
    from minigrid.core.world_object import WorldObj

Named = int | Literal["agent"] | None
Changed = tuple[int | None, tuple[str, ...]]
TYPES = ("wall", "floor", "door", "key", "ball", "box", "goal", "lava")


class Editable(Protocol):
    """What an edit needs of a scene."""

    @property
    def stage(self) -> GridStage:
        """The copied environment."""
        ...

    def changed(self, kind: str, what: str, change: Callable[[GridStage], Changed]) -> Self:
        """The scene after a change of a copy of its stage."""
        ...


S = TypeVar("S", bound=Editable)


def remove(scene: S, object: Named = None, *, at: Cell | None = None) -> S:
    """Take an object, or the wall in a cell, out of the grid or out of the agent's hand.

    Raises:
        SceneError: No such object, the agent, or a wall at the grid's edge.
    """
    place = _named(scene.stage, object, at)
    thing = place(scene.stage)
    _check_edge(scene.stage, thing)
    return _edited(scene, "remove", f"{scene.stage.name(thing)} removed", place, lambda stage, one: stage.take(one))


def move(scene: S, object: Named = None, *, at: Cell | None = None, x: int | None = None, y: int | None = None) -> S:
    """Put an object, or the agent, into another cell; what is carried is put down there.

    Args:
        scene: The scene; it stays as it is.
        object: Its number, or "agent".
        at: Its cell, instead.
        x: The new column; what is not given stays.
        y: The new row.

    Raises:
        SceneError: No such object or cell, or the cell is taken.
    """
    if object in (AGENT, "agent") and at is None:
        here = cell_of(scene.stage.base.agent_pos)
        return place_agent(scene, here[0] if x is None else x, here[1] if y is None else y)
    place = _named(scene.stage, object, at)
    thing = place(scene.stage)
    _check_edge(scene.stage, thing)
    before = scene.stage.cell(thing) or (None, None)
    to: Any = tuple(old if new is None else new for old, new in zip(before, (x, y), strict=True))
    if to == before or None in to:
        raise SceneError(
            "An object is moved to a cell.",
            given=f"x={x!r}, y={y!r}",
            expected="another column or row; both for what is carried",
            fix="e.g. scene.move(2, x=1, y=3)",
        )
    cell = scene.stage.checked(to)
    _check_free(scene.stage.taken(cell, by=thing))
    what = f"{scene.stage.name(thing)} moved to {cell}"
    return _edited(scene, "move", what, place, lambda stage, one: stage.put(one, cell))


def add(scene: S, type: str, *, x: int, y: int, color: str | None = None, state: str = "closed") -> S:
    """Put a new object into a free cell; it takes the next number.

    Args:
        scene: The scene; it stays as it is.
        type: wall, floor, door, key, ball, box, goal or lava.
        x: Its column.
        y: Its row.
        color: Its colour; grey by default, a goal green, lava red.
        state: Of a door: open, closed or locked.

    Raises:
        SceneError: No such type, colour or state, or the cell is taken.
    """
    thing = _made(type, color, state)
    cell = scene.stage.checked((x, y))
    _check_free(scene.stage.taken(cell, by=thing))

    def change(stage: GridStage) -> Changed:
        before = obstructions(stage.base)
        stage.put(_made(type, color, state), cell)
        new = [one for one in stage.numbers if one not in scene.stage.numbers]
        return (new[0] if new else None), _since(before, stage)

    return scene.changed("add", f"{thing.color} {thing.type} added at {cell}", change)


def open(scene: S, object: Named = None, *, at: Cell | None = None) -> S:
    """Open a door.

    Raises:
        SceneError: No such object, or no door.
    """
    return _door(scene, object, at, "open")


def close(scene: S, object: Named = None, *, at: Cell | None = None) -> S:
    """Close a door, and unlock it.

    Raises:
        SceneError: No such object, no door, or the agent stands in it.
    """
    return _door(scene, object, at, "closed")


def lock(scene: S, object: Named = None, *, at: Cell | None = None) -> S:
    """Close a door and lock it.

    Raises:
        SceneError: No such object, no door, or the agent stands in it.
    """
    return _door(scene, object, at, "locked")


def recolour(scene: S, object: Named = None, color: str = "", *, at: Cell | None = None) -> S:
    """Give an object another colour; a locked door is opened by a key of its own.

    Args:
        scene: The scene; it stays as it is.
        object: Its number.
        color: red, green, blue, purple, yellow or grey.
        at: Its cell, instead of its number.

    Raises:
        SceneError: No such object or colour.
    """
    _check_color(color)
    place = _named(scene.stage, object, at)
    what = f"{scene.stage.name(place(scene.stage))} made {color}"

    def paint(stage: GridStage, one: WorldObj) -> None:
        one.color = color
        stage.look()

    return _edited(scene, "recolour", what, place, paint)


def place_agent(scene: S, x: int, y: int, *, direction: str | None = None) -> S:
    """Put the agent into a cell.

    Args:
        scene: The scene; it stays as it is.
        x: Its column.
        y: Its row.
        direction: Where it looks then: right, down, left or up; as before by default.

    Raises:
        SceneError: No such cell or direction, or it cannot stand there.
    """
    cell = scene.stage.checked((x, y))
    _check_free(scene.stage.barred(cell))
    turned = int(scene.stage.base.agent_dir) if direction is None else _direction(direction)

    def change(stage: GridStage) -> Changed:
        before = obstructions(stage.base)
        stage.place(cell, turned)
        stage.look()
        return AGENT, _since(before, stage)

    looking = "" if direction is None else f", looking {direction}"
    return scene.changed("place_agent", f"the agent placed at {cell}{looking}", change)


def turn(scene: S, direction: str) -> S:
    """Let the agent look another way: right, down, left or up in the grid.

    Raises:
        SceneError: No such direction.
    """
    turned = _direction(direction)

    def change(stage: GridStage) -> Changed:
        stage.place(cell_of(stage.base.agent_pos), turned)
        stage.look()
        return AGENT, ()

    return scene.changed("turn", f"the agent looks {direction}", change)


def carry(scene: S, object: Named = None, *, at: Cell | None = None) -> S:
    """Put an object into the agent's hand.

    Raises:
        SceneError: No such object, one that cannot be picked up, or the hand is full.
    """
    place = _named(scene.stage, object, at)
    thing, held = place(scene.stage), scene.stage.base.carrying
    if not thing.can_pickup() or held is not None:
        raise SceneError(
            f"The agent carries {scene.stage.name(held)} already."
            if held is not None
            else f"A {thing.type} cannot be picked up.",
            given=scene.stage.name(thing),
            expected="a key, a ball or a box, and an empty hand",
            fix="scene.move(object, x=..., y=...) puts down what is carried" if held is not None else "scene.entities",
        )
    what = f"{scene.stage.name(thing)} carried"
    return _edited(scene, "carry", what, place, lambda stage, one: stage.take(one, into_hand=True))


EDITS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "remove": remove,
        "add": add,
        "move": move,
        "open": open,
        "close": close,
        "lock": lock,
        "recolour": recolour,
        "place_agent": place_agent,
        "turn": turn,
        "carry": carry,
    }
)
"""All edits of a grid's scene, by name."""


def _edited(
    scene: S,
    kind: str,
    what: str,
    place: Callable[[GridStage], Any],
    change: Callable[[GridStage, Any], None],
) -> S:
    def changed(stage: GridStage) -> Changed:
        before, thing = obstructions(stage.base), place(stage)
        number = stage.number_of(thing)
        moved_wall = thing.type == "wall"
        change(stage, thing)
        return number, (*(("walls do not change in an episode",) if moved_wall else ()), *_since(before, stage))

    return scene.changed(kind, what, changed)


def _named(stage: GridStage, object: Named, at: Cell | None) -> Callable[[GridStage], Any]:
    """Who is meant, to be found in any copy of a stage."""
    if (object is None) == (at is None):
        raise SceneError(
            "An object is named by its number or by its cell.",
            given=f"object={object!r}, at={at!r}",
            expected="one of the two",
            fix="e.g. scene.remove(2) or scene.remove(at=(1, 3)); scene.entities shows both",
        )
    if at is None:
        stage.thing(AGENT if object == "agent" else object)  # raises where there is none
        return lambda one: one.thing(object)
    cell = stage.checked(at)
    if stage.at(cell) is None:
        raise SceneError(
            f"There is nothing in the cell {cell}.",
            given=f"at={at!r}",
            expected="the cell of an object or of a wall",
            fix="scene.entities shows where everything is",
        )
    return lambda one: one.at(cell)


def _door(scene: S, object: Named, at: Cell | None, state: str) -> S:
    place = _named(scene.stage, object, at)
    thing = place(scene.stage)
    if thing.type != "door":
        raise SceneError(
            f"A {thing.type} is no door.",
            given=scene.stage.name(thing),
            expected="a door",
            fix="scene.entities shows the doors and their states",
        )
    inside = scene.stage.cell(thing) == cell_of(scene.stage.base.agent_pos)
    _check_free(f"the agent stands in {scene.stage.name(thing)}" if inside and state != "open" else "")

    def hang(stage: GridStage, door: Any) -> None:
        door.is_open, door.is_locked = state == "open", state == "locked"
        stage.look()

    kind = {"open": "open", "closed": "close", "locked": "lock"}[state]
    return _edited(scene, kind, f"{scene.stage.name(thing)} {state}", place, hang)


def _made(kind: str, color: str | None, state: str) -> Any:
    from minigrid.core import world_object

    if kind not in TYPES or state not in ("open", "closed", "locked"):
        close = nearest(kind, TYPES)
        raise SceneError(
            f"There is no object of type {kind!r}." if kind not in TYPES else f"A door is not {state!r}.",
            given=f"type={kind!r}, state={state!r}",
            expected=f"one of {', '.join(TYPES)}; open, closed or locked",
            fix=f"did you mean {close[0]!r}?" if close and kind not in TYPES else "name one of them",
        )
    if kind == "lava":
        return world_object.Lava()
    painted = color or ("green" if kind == "goal" else "grey")
    _check_color(painted)
    if kind == "door":
        return world_object.Door(painted, is_open=state == "open", is_locked=state == "locked")
    return getattr(world_object, kind.capitalize())(painted)


def _check_color(color: str) -> None:
    from minigrid.core.constants import COLOR_NAMES

    if color not in COLOR_NAMES:
        close = nearest(str(color), COLOR_NAMES)
        raise SceneError(
            f"MiniGrid has no colour {color!r}.",
            given=repr(color),
            expected=f"one of {', '.join(COLOR_NAMES)}",
            fix=f"did you mean {close[0]!r}?" if close else "name one of them",
        )


def _direction(direction: Any) -> int:
    if direction in DIRECTIONS:
        return DIRECTIONS.index(direction)
    raise SceneError(
        "There is no such direction.",
        given=repr(direction),
        expected=f"one of {', '.join(DIRECTIONS)}, as seen in the grid",
        fix="e.g. scene.turn('up')",
    )


def _check_free(reason: str) -> None:
    if reason:
        raise SceneError(
            "The grid cannot be in such a state.",
            given=reason,
            expected="a cell that is free; for the agent also a goal, floor, lava or an open door",
            fix="choose another cell, or move what is there away first",
        )


def _check_edge(stage: GridStage, thing: WorldObj) -> None:
    """Check that what is taken from its place is no wall at the grid's edge, past which nothing is defined."""
    cell, grid = stage.cell(thing), stage.base.grid
    if cell is not None and (cell[0] in (0, grid.width - 1) or cell[1] in (0, grid.height - 1)):
        raise SceneError(
            "What stands at the edge of the grid stays there: beyond it is nothing.",
            given=f"{stage.name(thing)} at {cell}",
            expected="an object or a wall inside",
            fix="scene.entities shows them",
        )


def _since(before: tuple[str, ...], stage: GridStage) -> tuple[str, ...]:
    """What speaks against the state now, and did not before."""
    return tuple(reason for reason in obstructions(stage.base) if reason not in before)
