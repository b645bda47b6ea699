"""A grid's part in scenes: see `rlmech.simulators.staging.Staging`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import pandas as pd

from rlmech.errors import SceneError
from rlmech.simulators.minigrid.objects import AGENT, OBJECT_COLUMNS, cell_of, step_values
from rlmech.simulators.minigrid.staging.edits import EDITS
from rlmech.simulators.minigrid.staging.reachable import obstructions
from rlmech.simulators.minigrid.staging.stage import GridStage
from rlmech.simulators.staging import Features, Quantity, Rows, through_wrappers
from rlmech.simulators.values import told
from rlmech.simulators.world import World
from rlmech.untyped import JsonObject


class GridStaging:
    """A grid held still."""

    edits: Mapping[str, Callable[..., Any]] = EDITS
    quantities: Mapping[str, Quantity] = {
        "x": Quantity(unit="cell", meaning="column", reach=32, tolerance=1, whole=True),
        "y": Quantity(unit="cell", meaning="row", reach=32, tolerance=1, whole=True),
        "direction": Quantity(unit="quarter turn", meaning="direction", reach=2, tolerance=1, whole=True),
    }
    searched: tuple[str, ...] = ("x", "y", "direction")
    apart: tuple[frozenset[str], ...] = ()
    agent = "agent"

    def stage(self, source: gym.Env | World, observation: Any) -> GridStage:
        """A copy of an environment."""
        stage = GridStage.of(source)
        if observation is not None and told([observation]) != told([self.observed(stage, {}, {})]):
            raise SceneError(
                "The observation is not one of this state.",
                given="another than the environment's own, through its wrappers",
                expected="what the environment last returned",
                fix="leave observation out: a grid is observed anew",
            )
        return stage

    def is_peopled(self, stage: GridStage) -> bool:
        """It always is."""
        return True

    def check_editable(self, stage: GridStage) -> None:
        """It always is."""

    def has_rows(self, stage: GridStage) -> bool:
        """The rows of its observations are cells."""
        return False

    def n_rows(self, stage: GridStage) -> int:
        """None."""
        return 0

    def own_rows(self, stage: GridStage) -> dict[int, int]:
        """None."""
        return {}

    def observed(self, stage: GridStage, rows: Rows, features: Features) -> Any:
        """The environment's own observation, through its wrappers."""
        return through_wrappers(stage.env, stage.base.gen_obs())

    def table(self, stage: GridStage) -> pd.DataFrame:
        """The agent and the objects."""
        return pd.DataFrame(stage.entities, columns=list(OBJECT_COLUMNS))

    def number(self, scene: Any, entity: Any, row: int | None) -> int:
        """The number of an object."""
        if row is not None or entity is None:
            raise SceneError(
                "An object is named by its number: the rows of a grid's observation are cells.",
                given=f"{entity!r}, row={row!r}",
                expected=f"one of {scene.stage.numbers}, or 'agent'",
                fix="scene.entities shows the numbers",
            )
        if entity in ("agent", AGENT):
            return AGENT
        scene.stage.thing(entity)  # raises where there is none
        return int(entity)

    def situation(self, stage: GridStage) -> JsonObject:
        """The agent's cell and direction, what it is carrying, and the cells to the nearest goal."""
        return dict(step_values(stage.entities))

    def state(self, stage: GridStage, number: int) -> dict[str, float]:
        """An object's cell, and the agent's direction; nothing of what is carried."""
        if number == AGENT:
            x, y = cell_of(stage.base.agent_pos)
            return {"x": x, "y": y, "direction": int(stage.base.agent_dir)}
        cell = stage.cell(stage.thing(number))
        return {} if cell is None else {"x": cell[0], "y": cell[1]}

    def blocked(self, stage: GridStage, number: int, changes: Mapping[str, float]) -> str:
        """What is in the cell, or that there is none."""
        here = self.state(stage, number)
        cell = (changes.get("x", here.get("x", -1)), changes.get("y", here.get("y", -1)))
        grid = stage.base.grid
        if not (0 <= cell[0] < grid.width and 0 <= cell[1] < grid.height):
            return "the grid has no such cell"
        if number == AGENT:
            return stage.barred(stage.checked(cell))
        return stage.taken(stage.checked(cell), by=stage.thing(number))

    @contextmanager
    def varied(self, stage: GridStage, number: int, changes: Mapping[str, float]) -> Generator[tuple[str, ...]]:
        """While it is entered, an object or the agent is elsewhere; gives what spoke against the state before."""
        before, here = obstructions(stage.base), self.state(stage, number)
        self._set(stage, number, {**here, **changes})
        try:
            yield before
        finally:
            self._set(stage, number, here)

    def obstructions(self, stage: GridStage, number: int, before: tuple[str, ...]) -> tuple[str, ...]:
        """What speaks against the state now, and did not before."""
        return tuple(reason for reason in obstructions(stage.base) if reason not in before)

    def _set(self, stage: GridStage, number: int, state: Mapping[str, float]) -> None:
        cell = stage.checked((state["x"], state["y"]))
        if number == AGENT:
            stage.place(cell, int(state["direction"]) % 4)
            return
        thing = stage.thing(number)
        if stage.cell(thing) != cell:
            stage.put(thing, cell)


GRID = GridStaging()
