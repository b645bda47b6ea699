"""Kinematics observations without data frames: the same numbers, from arrays.

highway-env builds two pandas frames for each observation, which costs about 6 ms, ten times the frames of a decision.
Its own `normalize_obs` is used as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from highway_env.envs.common.observation import (
    KinematicObservation,
    MultiAgentObservation,
    ObservationType,
    TupleObservation,
)
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.controller import MDPVehicle
from highway_env.vehicle.kinematics import Vehicle
from highway_env.vehicle.objects import Obstacle

FEATURES = frozenset({"presence", "x", "y", "vx", "vy", "heading", "cos_h", "sin_h"})
"""Those that are read off a vehicle's body; others are of its route and lane, and highway-env's to compute."""
RELATIVE = ("x", "y", "vx", "vy")
BODIES = frozenset({IDMVehicle, MDPVehicle, Vehicle, Obstacle})


class Columns:
    """As much of a data frame as `KinematicObservation.normalize_obs` uses."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self._values = columns

    @property
    def columns(self) -> list[str]:
        """Their names."""
        return list(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> np.ndarray:
        return self._values[name]

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        self._values[name] = values

    def to_numpy(self, dtype: Any = np.float64) -> np.ndarray:
        """`[row, column]`."""
        return np.array(list(self._values.values()), dtype=dtype).T


class AcceleratedKinematics(KinematicObservation):
    """A Kinematics observation made of arrays."""

    repeats = KinematicObservation

    def observe(self) -> np.ndarray:
        """As `KinematicObservation.observe`."""
        road, features = self.env.road, self.features
        if not road or not FEATURES.issuperset(features) or len(set(features)) != len(features):
            return super().observe()
        ego = self.observer_vehicle
        close: Any = road.close_objects_to(
            ego,
            self.env.PERCEPTION_DISTANCE,
            count=self.vehicles_count - 1,
            see_behind=self.see_behind,
            sort=self.order == "sorted",
            vehicles_only=not self.include_obstacles,
        )
        seen = [ego, *close[-self.vehicles_count + 1 :]] if close else [ego]
        columns = _columns(seen, features, absolute=self.absolute)
        if columns is None:
            return super().observe()
        frame: Any = Columns(columns)
        if self.normalize:
            frame = self.normalize_obs(frame)
        observed = np.zeros((max(self.vehicles_count, len(seen)), len(features)))
        observed[: len(seen)] = frame.to_numpy()
        if self.order == "shuffled":
            self.env.np_random.shuffle(observed[1:])
        return observed.astype(np.float32)


def _columns(seen: list[Any], features: list[str], *, absolute: bool) -> dict[str, np.ndarray] | None:
    """Each feature of the vehicles, the ego's first; None where a body is not highway-env's own."""
    if not BODIES.issuperset(map(type, seen)):
        return None
    if "heading" in features and any(type(one) is Obstacle for one in seen):
        return None
    position = np.array([one.position for one in seen], dtype=np.float64)
    heading = np.array([one.heading for one in seen], dtype=np.float64)
    speed = np.array([one.speed for one in seen], dtype=np.float64)
    cos, sin = np.cos(heading), np.sin(heading)
    every = {
        "presence": np.ones(len(seen)),
        "x": position[:, 0],
        "y": position[:, 1],
        "vx": speed * cos,
        "vy": speed * sin,
        "heading": heading,
        "cos_h": cos,
        "sin_h": sin,
    }
    if not absolute:
        for name in RELATIVE:
            every[name][1:] -= every[name][0]
    return {name: every[name] for name in features}


def accelerate_observation(kind: object) -> None:
    """Make Kinematics observations of arrays, also those of several agents."""
    if type(kind) is KinematicObservation:
        kind.__class__ = AcceleratedKinematics
    elif type(kind) is MultiAgentObservation:
        parts: list[ObservationType] = kind.agents_observation_types
        for part in parts:
            accelerate_observation(part)
    elif type(kind) is TupleObservation:
        for part in kind.observation_types:
            accelerate_observation(part)
