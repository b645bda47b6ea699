"""Any Gymnasium environment: episodes with observations, actions and rewards, and nobody in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.identity import identity_of
from rlmech.simulators.protocol import Column, Outcome, Value
from rlmech.simulators.staging import Staging
from rlmech.simulators.world import World
from rlmech.spec import PolicySpec


class Plain:
    """The simulator of an environment that no other knows; see `rlmech.simulators.Simulator`."""

    name = "plain"
    can_accelerate = False
    side_by_side = True
    entity = "entity"
    entity_columns: Mapping[str, Column] = {}
    outcomes: Sequence[Outcome] = ()
    staging: Staging | None = None

    def supports(self, env: gym.Env) -> bool:
        """Every environment."""
        return True

    def spec(self, env: gym.Env) -> PolicySpec:
        """Its id; names and units are not known."""
        return PolicySpec(env_id=None if env.spec is None else env.spec.id)

    def world(self, env: gym.Env) -> World:
        """The environment, which `copy.deepcopy` copies."""
        return World(env)

    def step_values(self, entities: Sequence[tuple[Any, ...]]) -> Mapping[str, Value | str]:
        """Nothing."""
        return {}

    def episode_values(self, world: World) -> Mapping[str, Value | str]:
        """Nothing."""
        return {}

    def map(self, env: gym.Env) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def identity(self, env: gym.Env) -> dict[str, str]:
        """What its layers hold, the constants of their classes, and its first steps."""
        return identity_of(World(env))

    def accelerate(self, env: gym.Env) -> None:
        """Nothing is known that would be faster."""

    def acceleration(self, env: gym.Env) -> Acceleration:
        """None."""
        why = f"nothing is known that would be faster than {type(env.unwrapped).__name__}"
        return Acceleration(frames=False, observations=False, why=why)

    def maker(self, env: gym.Env) -> Callable[[], gym.Env] | None:
        """Gymnasium, from its spec."""
        return None if env.spec is None else partial(gym.make, env.spec)
