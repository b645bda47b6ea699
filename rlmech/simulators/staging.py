"""What scenes need of a kind of environment: a copy held still, who is in it, and what can be changed and observed.

A `Staging` belongs to a simulator. Its stages are worlds of which a scene takes a copy before it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import gymnasium as gym
import pandas as pd

from rlmech.errors import CopyError, SceneError
from rlmech.simulators.world import World
from rlmech.untyped import JsonObject

StageT = TypeVar("StageT")
"""What a simulator holds still for a scene: its own class."""
OBSERVED_ONLY = "only the observation is edited: no state shows it"
Rows = Mapping[int, int]
"""Observation row by an entity's number; -1 is no row."""
Features = Mapping[int, Mapping[int, float]]
"""What is only observed: by an entity's number, the network's own value by feature number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEdit:
    """One edit of a scene, in words.

    Attributes:
        kind: The method that made it.
        entity: Number of who was changed; None for the rules of the environment.
        what: What was done, with units.
        reasons: What speaks against the simulator's coming to this state; empty where nothing was found.

    Example:
        >>> import rlmech as rlm
        >>> scene = rlm.Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> scene.remove(1).edits[0].what
        'vehicle 1 removed'
    """

    kind: str
    entity: int | None
    what: str
    reasons: tuple[str, ...] = ()

    @property
    def vehicle(self) -> int | None:
        """Of a road, the number of the vehicle."""
        return self.entity

    @property
    def reachable(self) -> bool:
        """Whether nothing speaks against the state."""
        return not self.reasons

    @property
    def off_manifold(self) -> bool:
        """Whether only the observation was edited, so that no state of the simulator looks like this."""
        return OBSERVED_ONLY in self.reasons

    def __str__(self) -> str:
        return f"{self.what} ({'reachable' if self.reachable else 'not reachable: ' + '; '.join(self.reasons)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number of an entity's state that can be varied.

    Attributes:
        unit: Its unit; empty for what has none.
        meaning: What it says, for an axis.
        reach: The largest change that a search tries, by default.
        tolerance: How near a search comes to it, by default.
        whole: Whether it is a whole number.
    """

    unit: str
    meaning: str
    reach: float
    tolerance: float
    whole: bool = False


class Staging(Protocol[StageT]):
    """What scenes do in environments of one kind.

    Attributes:
        edits: Functions of a scene that give another, by name.
        quantities: What can be varied of an entity, by name; those that a search takes by default come first.
        searched: The names of these.
        apart: Sets of quantities that fix the same thing, of which a field takes one.
        agent: What the entity of number 0 is called.
    """

    edits: Mapping[str, Callable[..., Any]]
    quantities: Mapping[str, Quantity]
    searched: tuple[str, ...]
    apart: tuple[frozenset[str], ...]
    agent: str

    def stage(self, source: gym.Env | World, observation: Any) -> StageT:
        """A copy of an environment as it is now, with who stands in which row of its last observation, if given.

        Raises:
            SceneError: Not started, not to be copied, or the observation is not of this state.
        """
        ...

    def is_peopled(self, stage: StageT) -> bool:
        """Whether it knows who is there, so that the state can be observed anew."""
        ...

    def check_editable(self, stage: StageT) -> None:
        """Raises a SceneError where there is nothing to change."""
        ...

    def has_rows(self, stage: StageT) -> bool:
        """Whether the rows of an observation are entities."""
        ...

    def n_rows(self, stage: StageT) -> int:
        """How many."""
        ...

    def own_rows(self, stage: StageT) -> dict[int, int]:
        """The rows that the environment itself would give them now."""
        ...

    def observed(self, stage: StageT, rows: Rows, features: Features) -> Any:
        """The observation with entities in given rows, where it has rows, and what is only observed laid over it."""
        ...

    def table(self, stage: StageT) -> pd.DataFrame:
        """Who is there: a line each."""
        ...

    def number(self, scene: Any, entity: Any, row: int | None) -> int:
        """The number of who is named by it, as the agent, or by the row in the observation.

        Raises:
            SceneError: Neither or both given, or nobody there.
        """
        ...

    def situation(self, stage: StageT) -> JsonObject:
        """Columns of a roll: where the agent is."""
        ...

    def state(self, stage: StageT, number: int) -> dict[str, float]:
        """The quantities of an entity as they are; those that it does not have are left out."""
        ...

    def blocked(self, stage: StageT, number: int, changes: Mapping[str, float]) -> str:
        """Why an entity cannot be in a state at all; empty where it can."""
        ...

    def varied(self, stage: StageT, number: int, changes: Mapping[str, float]) -> AbstractContextManager[Any]:
        """While it is entered, an entity is in another state; gives what `obstructions` needs of the one before."""
        ...

    def obstructions(self, stage: StageT, number: int, before: Any) -> tuple[str, ...]:
        """What speaks against the simulator's coming to the state of an entity; empty where nothing does."""
        ...


def forked(world: World) -> World:
    """A copy of a world that has been started.

    Raises:
        SceneError: It has not, or cannot be copied.
    """
    layer: Any = world.env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.OrderEnforcing) and not layer.has_reset:
            raise SceneError(
                "The environment has not been started, so there is no state to capture.",
                given=str(world.env),
                expected="an environment after reset()",
                fix="call env.reset(seed=0) first",
            )
        layer = layer.env
    try:
        return world.fork()
    except CopyError as error:
        raise SceneError(error.problem, given=error.given, expected=error.expected, fix=error.fix) from error


def check_capturable(source: object) -> gym.Env:
    """The environment of what is to be captured.

    Raises:
        SceneError: It is no single environment.
    """
    env = source.env if isinstance(source, World) else source
    if isinstance(env, gym.Env):
        return env
    raise SceneError(
        "Only a single Gymnasium environment can be captured.",
        given=type(env).__name__,
        expected="a gymnasium.Env, or the World around one",
        fix="take one environment out of a vector environment, e.g. vector.envs[0]",
    )


def through_wrappers(env: gym.Env, observation: Any) -> Any:
    """What the environment's wrappers make of an observation.

    Raises:
        SceneError: One of them changes observations in a way that depends on what it saw before.
    """
    if not isinstance(env, gym.Wrapper):
        return observation
    observation = through_wrappers(env.env, observation)
    if isinstance(env, gym.ObservationWrapper):
        return env.observation(observation)
    if env.observation_space != env.env.observation_space:
        raise SceneError(
            "An edited scene cannot be observed through a wrapper that remembers earlier observations.",
            given=type(env).__name__,
            expected="wrappers that leave observations alone, or gymnasium.ObservationWrapper",
            fix="capture the environment inside it: Scene.capture(env.unwrapped)",
        )
    return observation
