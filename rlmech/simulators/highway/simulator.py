"""highway-env's environments behind the simulators' seam: vehicles, outcomes, lanes, names and units."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.highway.constants import vehicle_constants
from rlmech.simulators.highway.measures import VEHICLE_COLUMNS, scene_summary
from rlmech.simulators.highway.staging.road import ROAD
from rlmech.simulators.highway.traffic import HighwayWorld, lanes_of
from rlmech.simulators.identity import identity_of
from rlmech.simulators.protocol import Column, Outcome, Value
from rlmech.simulators.staging import Staging
from rlmech.simulators.world import World
from rlmech.spec import PolicySpec, spec_from_config

RATE = "share of episodes"


def _arrived(info: Mapping[str, Any]) -> Any:
    return info.get("rewards", {}).get("arrived_reward")


class Highway:
    """The simulator of highway-env's environments; see `rlmech.simulators.Simulator`."""

    name = "highway"
    can_accelerate = True
    side_by_side = False
    entity = "vehicle"
    entity_columns: Mapping[str, Column] = VEHICLE_COLUMNS
    staging: Staging | None = ROAD
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

    def step_values(self, entities: Sequence[tuple[Any, ...]]) -> Mapping[str, Value | str]:
        """`distance` in m to the nearest vehicle, `ttc` in s."""
        return scene_summary(entities)

    def episode_values(self, world: World) -> Mapping[str, Value | str]:
        """Nothing."""
        return {}

    def map(self, env: gym.Env) -> list[dict[str, Any]]:
        """The road's lanes."""
        return lanes_of(env)

    def identity(self, env: gym.Env) -> dict[str, str]:
        """What its layers hold, the constants of their classes and of the vehicles', and its first steps."""

        def constants() -> Mapping[str, str]:
            road: Any = getattr(env.unwrapped, "road", None)
            return vehicle_constants([] if road is None else road.vehicles)

        return identity_of(HighwayWorld(env), constants=constants)

    def accelerate(self, env: gym.Env) -> None:
        """Move its traffic and make its observations in compiled code; see `rlmech.simulators.highway.fast`."""
        from rlmech.simulators.highway import fast  # imports highway-env, which not everybody has use for

        fast.accelerate(env)

    def acceleration(self, env: gym.Env) -> Acceleration:
        """Whether it does."""
        from rlmech.simulators.highway import fast

        return fast.acceleration(env)

    def maker(self, env: gym.Env) -> Callable[[], gym.Env] | None:
        """Gymnasium, from its spec; then it is configured alike, and accelerated where it is."""
        base: Any = env.unwrapped
        if env.spec is None:
            return None
        return partial(_made, env.spec, dict(base.config), accelerated=bool(self.acceleration(env)))


def _made(spec: Any, config: Mapping[str, Any], *, accelerated: bool) -> gym.Env:
    env = gym.make(spec)
    base: Any = env.unwrapped
    base.configure(dict(config))  # `env.unwrapped.configure(...)` may have been called since it was made
    if accelerated:
        Highway().accelerate(env)
    return env


def _n_lanes(base: Any) -> int | None:
    """Lanes of the ego's road, as highway-env counts them for its default range of y."""
    if getattr(base, "road", None) is None or base.vehicle is None:
        return None
    return len(base.road.network.all_side_lanes(base.vehicle.lane_index))


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
