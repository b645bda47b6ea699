"""A grid to experiment in: a copy of an environment whose objects can be taken hold of by number or by cell.

What MiniGrid's environments know of positions beside the grid follows a moved object: attributes that name its cell, a
list that it is in, the targets of a BabyAI instruction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import gymnasium as gym
import numpy as np

from rlmech.errors import SceneError
from rlmech.simulators.minigrid.grid_world import GridWorld
from rlmech.simulators.minigrid.objects import AGENT, cell_of, places_of
from rlmech.simulators.minigrid.view import layers
from rlmech.simulators.staging import check_capturable, forked
from rlmech.simulators.world import World

if TYPE_CHECKING:
    from minigrid.core.world_object import WorldObj

Cell = tuple[int, int]


class GridStage(GridWorld):
    """A copied environment; made by `GridStage.of`.

    Attributes:
        in_sight: Nothing: the rows of an observation are no objects.
    """

    in_sight: dict[int, int]

    @classmethod
    def of(cls, source: gym.Env | World) -> GridStage:
        """Copy an environment as it is now.

        Raises:
            SceneError: It has not been reset, or cannot be copied.
        """
        world = source if isinstance(source, GridWorld) else GridWorld(check_capturable(source))
        stage = cls.__new__(cls)
        vars(stage).update(vars(forked(world)))
        stage.in_sight = {}
        stage.look()
        return stage

    def copied(self) -> Self:
        """A copy as it is now."""
        twin = super().copied()
        twin.in_sight = {}
        return twin

    # ---- who is where

    @property
    def numbers(self) -> list[int]:
        """The agent's number and the objects'."""
        return [int(row[0]) for row in self.entities]

    def thing(self, number: Any) -> Any:
        """MiniGrid's own object.

        Raises:
            SceneError: No such object, or the agent.
        """
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if whole and number in self.numbers and number != AGENT:
            return self._known[int(number) - 1]
        if whole and number == AGENT:
            raise SceneError(
                "The agent is no object of the grid.",
                given="number 0, the agent",
                expected=f"one of {[one for one in self.numbers if one != AGENT]}",
                fix="scene.place_agent(x, y) and scene.turn(direction) move it",
            )
        raise SceneError(
            f"There is no object {number!r} in this scene.",
            given=repr(number),
            expected=f"one of {self.numbers} (0 is the agent)",
            fix="scene.entities shows them; walls and floor are named by their cell: at=(x, y)",
        )

    def number_of(self, thing: WorldObj) -> int | None:
        """The number of an object; None for walls and floor."""
        return self._numbers.get(id(thing))

    def name(self, thing: WorldObj) -> str:
        """An object in words."""
        number = self._numbers.get(id(thing))
        return f"{thing.color} {thing.type}" + ("" if number is None else f" ({number})")

    def cell(self, thing: WorldObj) -> Cell | None:
        """Where an object is; None while it is carried."""
        return places_of(self.base).get(id(thing))

    def at(self, cell: Cell) -> Any:
        """What is in a cell; None for nothing.

        Raises:
            SceneError: The grid has no such cell.
        """
        x, y = self.checked(cell)
        return self.base.grid.get(x, y)

    def checked(self, cell: Any) -> Cell:
        """A cell of the grid.

        Raises:
            SceneError: It is none.
        """
        width, height = self.base.grid.width, self.base.grid.height
        whole = np.shape(cell) == (2,) and all(float(one).is_integer() for one in cell)
        if whole and 0 <= cell[0] < width and 0 <= cell[1] < height:
            return cell_of(cell)
        raise SceneError(
            "The grid has no such cell.",
            given=repr(cell),
            expected=f"whole x from 0 to {width - 1} and y from 0 to {height - 1}, from the top left",
            fix="scene.entities shows where everything is",
        )

    def taken(self, cell: Cell, *, by: Any = None) -> str:
        """What keeps an object out of a cell; empty where it is free."""
        there = self.at(cell)
        if there is not None and there is not by:
            return f"the cell {cell} holds a {there.color} {there.type}"
        solid = by is not None and not by.can_overlap()
        return f"the agent stands in the cell {cell}" if solid and cell == cell_of(self.base.agent_pos) else ""

    def barred(self, cell: Cell) -> str:
        """What keeps the agent out of a cell; empty where it can stand there."""
        there = self.at(cell)
        if there is None or there.can_overlap():
            return ""
        state = f"{'locked' if there.is_locked else 'closed'} " if there.type == "door" else ""
        return f"the cell {cell} holds a {state}{there.color} {there.type}"

    # ---- changing it

    def put(self, thing: WorldObj, cell: Cell) -> None:
        """Put an object into a free cell, from where it was or from the agent's hand."""
        before = self.cell(thing)
        if before is not None:
            self.base.grid.set(*before, None)
        elif self.base.carrying is thing:
            self.base.carrying = None
        self.base.grid.set(*cell, thing)
        thing.cur_pos = cell
        if before is not None:
            for layer in (self.base, *layers(self.env)):
                _follow(layer, before, cell)
        self._settle()

    def take(self, thing: Any, *, into_hand: bool = False) -> None:
        """Take an object away, or into the agent's hand."""
        before = self.cell(thing)
        if before is not None:
            self.base.grid.set(*before, None)
        if self.base.carrying is thing:
            self.base.carrying = None
        if into_hand:
            self.base.carrying = thing
            thing.cur_pos = np.array([-1, -1])
        else:
            for name, value in list(vars(self.base).items()):
                if isinstance(value, list) and any(one is thing for one in value):
                    setattr(self.base, name, [one for one in value if one is not thing])
        self._settle()

    def place(self, cell: Cell, direction: int) -> None:
        """Put the agent into a cell."""
        self.base.agent_pos, self.base.agent_dir = cell, direction

    def _settle(self) -> None:
        if hasattr(self.base, "update_objs_poss"):  # BabyAI's instructions keep the places of their targets
            self.base.update_objs_poss()
        self.look()


def _follow(layer: object, before: Cell, after: Cell) -> None:
    """Let the positions that a layer keeps of a moved object go along."""
    for name, value in list(vars(layer).items()):
        named = name.endswith(("_pos", "_position")) and name not in ("agent_pos", "agent_start_pos")
        if named and np.shape(value) == (2,) and cell_of(value) == before:
            setattr(layer, name, np.array(after) if isinstance(value, np.ndarray) else after)
