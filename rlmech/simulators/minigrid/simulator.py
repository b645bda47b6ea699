"""MiniGrid's environments behind the simulators' seam: objects in cells, success, names of what is seen and done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.identity import identity_of
from rlmech.simulators.minigrid import objects
from rlmech.simulators.minigrid.grid_world import SUCCESS, GridWorld
from rlmech.simulators.minigrid.making import keywords_of, wrappers_of
from rlmech.simulators.minigrid.staging.grid import GRID
from rlmech.simulators.minigrid.view import View, cell_names, channels_of, labels_of, layers, view_of
from rlmech.simulators.protocol import Column, Outcome, Value
from rlmech.simulators.staging import Staging
from rlmech.simulators.values import told
from rlmech.simulators.world import World
from rlmech.spec import FeatureSpec, PolicySpec

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,"
"""Of a mission, as MiniGrid's FlatObsWrapper encodes it."""


class MiniGrid:
    """The simulator of MiniGrid's environments; see `rlmech.simulators.Simulator`."""

    name = "minigrid"
    can_accelerate = False
    side_by_side = True
    entity = "object"
    entity_columns: Mapping[str, Column] = objects.OBJECT_COLUMNS
    outcomes: Sequence[Outcome] = (
        Outcome(
            name=SUCCESS, kind="share", unit="share of episodes", meaning="the episode ended with MiniGrid's own reward"
        ),
    )
    staging: Staging | None = GRID

    def supports(self, env: gym.Env) -> bool:
        """Whether it is one of MiniGrid's, or of a class that inherits from them."""
        return any(
            cls.__module__ == "minigrid.minigrid_env" and cls.__name__ == "MiniGridEnv"
            for cls in type(env.unwrapped).__mro__
        )

    def spec(self, env: gym.Env) -> PolicySpec:
        """Names of the actions, and of what stands where in an image or in MiniGrid's flat observation."""
        view, space = view_of(env), env.observation_space
        is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
        return PolicySpec(
            env_id=None if env.spec is None else env.spec.id,
            env_kwargs=keywords_of(env),
            env_wrappers=wrappers_of(env),
            actions=_actions(env),
            labels=labels_of(view) if is_image or isinstance(space, spaces.Dict) else {},
            features=_flat_features(env, view) if view.flat else (),
        )

    def world(self, env: gym.Env) -> World:
        """The environment, and who is where in its grid."""
        return GridWorld(env)

    def step_values(self, entities: Sequence[tuple[Any, ...]]) -> Mapping[str, Value | str]:
        """Where the agent is and looks, what it carries, and the cells to the nearest goal."""
        return objects.step_values(entities)

    def episode_values(self, world: World) -> Mapping[str, Value | str]:
        """`layout`: the walls of this episode."""
        return {"layout": objects.layout(world.env.unwrapped)}

    def map(self, env: gym.Env) -> list[dict[str, Any]]:
        """Nothing: each episode has walls of its own."""
        return []

    def identity(self, env: gym.Env) -> dict[str, str]:
        """What its layers hold, the constants of their classes and of MiniGrid's encoding, and its first steps."""

        def constants() -> Mapping[str, str]:
            from minigrid.core import constants as own

            names = ("OBJECT_TO_IDX", "COLOR_TO_IDX", "STATE_TO_IDX", "DIR_TO_VEC", "COLORS")
            return {f"{own.__name__}.{name}": told(getattr(own, name)) for name in names}

        return identity_of(GridWorld(env), constants=constants)

    def accelerate(self, env: gym.Env) -> None:
        """Nothing is known that would be faster."""

    def acceleration(self, env: gym.Env) -> Acceleration:
        """None."""
        why = f"nothing is known that would be faster than {type(env.unwrapped).__name__}"
        return Acceleration(frames=False, observations=False, why=why)

    def maker(self, env: gym.Env) -> Callable[[], gym.Env] | None:
        """Gymnasium, from its spec."""
        return None if env.spec is None else partial(gym.make, env.spec)


def _actions(env: gym.Env) -> tuple[str, ...]:
    """Names of the actions; none where a wrapper gives them another meaning."""
    base: Any = env.unwrapped
    if any(isinstance(layer, gym.ActionWrapper) for layer in layers(env)) or env.action_space != base.action_space:
        return ()
    return tuple(action.name for action in base.actions)[: int(base.action_space.n)]


def _flat_features(env: gym.Env, view: View) -> tuple[FeatureSpec, ...]:
    """Names along MiniGrid's flat observation: the image's cells, then the mission's letters."""
    across, down = cell_names(view)
    cells = [f"{channel}, {x}, {y}" for x in across for y in down for channel in channels_of(view)]
    n_rest = int((env.observation_space.shape or (0,))[0]) - len(cells)
    letters = [f"letter {i + 1} is {letter!r}" for i in range(n_rest // len(CHARACTERS)) for letter in CHARACTERS]
    if view.shows == "pixels" or len(letters) != n_rest:
        return ()
    return tuple(FeatureSpec(name=name) for name in (*cells, *letters))
