"""highway-env's environments behind the simulators' seam: vehicles, outcomes, lanes, names and units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.highway.measures import VEHICLE_COLUMNS, scene_summary
from rlmech.simulators.highway.traffic import HighwayWorld, lanes_of
from rlmech.simulators.protocol import Column, Outcome
from rlmech.simulators.world import World
from rlmech.spec import PolicySpec, spec_from_config

RATE = "share of episodes"


def _arrived(info: Mapping[str, Any]) -> Any:
    return info.get("rewards", {}).get("arrived_reward")


class Highway:
    """The simulator of highway-env's environments; see `rlmech.simulators.Simulator`."""

    name = "highway"
    can_accelerate = True
    entity_columns: Mapping[str, Column] = VEHICLE_COLUMNS
    outcomes: Sequence[Outcome] = (
        Outcome(name="crashed", kind="share", unit=RATE, meaning="the episode ended in a crash"),
        Outcome(name="arrived", kind="share", unit=RATE, meaning="the goal was reached", read=_arrived),
        Outcome(name="speed", kind="mean", unit="m/s", meaning="mean over the episode"),
    )

    def supports(self, env: gym.Env) -> bool:
        """Whether it has highway-env's configuration and observation type."""
        base: Any = env.unwrapped
        return isinstance(getattr(base, "config", None), dict) and hasattr(base, "observation_type")

    def spec(self, env: gym.Env) -> PolicySpec:
        """Names, units and ranges of its features, read from its configuration."""
        base: Any = env.unwrapped
        config = {key: value for key, value in base.config.items() if key != "offscreen_rendering"}
        config = json.loads(json.dumps(config, default=_as_json))
        return spec_from_config({**config, "id": None if env.spec is None else env.spec.id}, n_lanes=_n_lanes(base))

    def world(self, env: gym.Env) -> World:
        """The environment and who is who on its road."""
        return HighwayWorld(env)

    def step_values(self, entities: Sequence[tuple[Any, ...]]) -> dict[str, float]:
        """`distance` in m to the nearest vehicle, `ttc` in s."""
        return scene_summary(entities)

    def map(self, env: gym.Env) -> list[dict[str, Any]]:
        """The road's lanes."""
        return lanes_of(env)

    def accelerate(self, env: gym.Env) -> None:
        """Move its traffic and make its observations in compiled code; see `rlmech.simulators.highway.fast`."""
        from rlmech.simulators.highway import fast  # imports highway-env, which not everybody has use for

        fast.accelerate(env)

    def acceleration(self, env: gym.Env) -> Acceleration:
        """Whether it does."""
        from rlmech.simulators.highway import fast

        return fast.acceleration(env)

    def remade(self, env: gym.Env, made: gym.Env) -> None:
        """Configure it alike: `env.unwrapped.configure(...)` may have been called since it was made."""
        base: Any = made.unwrapped
        live: Any = env.unwrapped
        base.configure(dict(live.config))


def _n_lanes(base: Any) -> int | None:
    """Lanes of the ego's road, as highway-env counts them for its default range of y."""
    if getattr(base, "road", None) is None or base.vehicle is None:
        return None
    return len(base.road.network.all_side_lanes(base.vehicle.lane_index))


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
