"""A road's part in scenes: see `rlmech.simulators.staging.Staging`. It holds environments without a road still, too."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import pandas as pd

from rlmech.simulators.highway.staging import rows as observing
from rlmech.simulators.highway.staging.changes import drive, place
from rlmech.simulators.highway.staging.editable import number_of
from rlmech.simulators.highway.staging.edits import EDITS
from rlmech.simulators.highway.staging.reachable import obstructions
from rlmech.simulators.highway.staging.stage import Stage
from rlmech.simulators.highway.staging.table import vehicle_table
from rlmech.simulators.highway.staging.watching import rows_of
from rlmech.simulators.staging import Features, Quantity, Rows, through_wrappers
from rlmech.simulators.world import World
from rlmech.untyped import JsonObject


class RoadStaging:
    """A road held still."""

    edits: Mapping[str, Callable[..., Any]] = EDITS
    quantities: Mapping[str, Quantity] = {
        "along": Quantity(unit="m", meaning="metres further on its way", reach=30.0, tolerance=0.01),
        "sideways": Quantity(unit="m", meaning="metres to the right", reach=4.0, tolerance=0.01),
        "speed": Quantity(unit="m/s", meaning="speed", reach=10.0, tolerance=0.01),
        "heading": Quantity(unit="rad", meaning="heading", reach=0.5, tolerance=0.001),
        "x": Quantity(unit="m", meaning="x", reach=30.0, tolerance=0.01),
        "y": Quantity(unit="m", meaning="y", reach=30.0, tolerance=0.01),
    }
    searched: tuple[str, ...] = ("along", "sideways", "speed", "heading")
    apart = (frozenset({"along", "sideways"}), frozenset({"x", "y"}))
    agent = "ego"

    def stage(self, source: gym.Env | World, observation: Any) -> Stage:
        """A copy of an environment, with the rows of its last observation."""
        stage = Stage.of(source)
        if self.has_rows(stage) and not stage.watched:
            stage.in_sight = self.own_rows(stage) if observation is None else rows_of(stage, observation)
        return stage

    def is_peopled(self, stage: Stage) -> bool:
        """Whether there is a road."""
        return stage.has_road

    def check_editable(self, stage: Stage) -> None:
        """Raises a SceneError where there is no road."""
        stage.road  # noqa: B018

    def has_rows(self, stage: Stage) -> bool:
        """Whether the rows of an observation are the ego and its neighbours."""
        return observing.has_rows(stage)

    def n_rows(self, stage: Stage) -> int:
        """Rows of an observation, the ego's included."""
        return observing.n_rows(stage)

    def own_rows(self, stage: Stage) -> dict[int, int]:
        """The rows that the environment's own observation gives to the vehicles in sight."""
        return observing.own_rows(stage)

    def observed(self, stage: Stage, rows: Rows, features: Features) -> Any:
        """The observation with vehicles in the rows given, and features laid over it."""
        if not self.has_rows(stage):
            return observing.observe(stage, rows)
        seen = observing.observe_rows(stage, rows)
        for number, values in features.items():
            for column, value in values.items():
                if rows.get(number, -1) >= 0:
                    seen[rows[number], column] = value
        return through_wrappers(stage.env, seen)

    def table(self, stage: Stage) -> pd.DataFrame:
        """The vehicles."""
        return vehicle_table(stage)

    def number(self, scene: Any, entity: Any, row: int | None) -> int:
        """The number of a vehicle."""
        return number_of(scene, entity, row=row)

    def situation(self, stage: Stage) -> JsonObject:
        """The ego's position in m, heading in rad and speed in m/s."""
        if not stage.has_road:
            return {}
        x, y = stage.ego.position
        return {"x": float(x), "y": float(y), "heading": float(stage.ego.heading), "speed": float(stage.ego.speed)}

    def state(self, stage: Stage, number: int) -> dict[str, float]:
        """A vehicle's state; `along` and `sideways` count from it."""
        vehicle = stage.vehicle(number)
        x, y = map(float, vehicle.position)
        speed, heading = float(vehicle.speed), float(vehicle.heading)
        return {"along": 0.0, "sideways": 0.0, "x": x, "y": y, "speed": speed, "heading": heading}

    def blocked(self, stage: Stage, number: int, changes: Mapping[str, float]) -> str:
        """Nothing is: vehicles may overlap, and leave the road."""
        return ""

    @contextmanager
    def varied(self, stage: Stage, number: int, changes: Mapping[str, float]) -> Generator[float]:
        """While it is entered, a vehicle is elsewhere or at another speed; gives its speed before."""
        vehicle = stage.vehicle(number)
        kept = dict(vars(vehicle))
        try:
            if "along" in changes or "sideways" in changes:
                drive(stage, vehicle, along=changes.get("along", 0.0), sideways=changes.get("sideways", 0.0))
            if {"x", "y", "heading"} & set(changes):
                old = dict(zip(("x", "y", "heading"), (*vehicle.position, vehicle.heading), strict=True))
                place(stage, vehicle, **{name: float(changes.get(name, value)) for name, value in old.items()})
            vehicle.speed = changes.get("speed", vehicle.speed)
            yield float(kept["speed"])
        finally:
            vars(vehicle).clear()
            vars(vehicle).update(kept)

    def obstructions(self, stage: Stage, number: int, before: float) -> tuple[str, ...]:
        """What speaks against a vehicle's state, its speed having been another."""
        return obstructions(stage, number, speed_before=before)


ROAD = RoadStaging()
