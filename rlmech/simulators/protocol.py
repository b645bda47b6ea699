"""The seam between episodes and what an environment is: one `Simulator` for each kind of environment.

To add one: a package here with a class that meets the protocol, and a line in `rlmech.simulators.choice`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np

from rlmech.errors import ConfigError
from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.staging import Staging
from rlmech.simulators.values import told
from rlmech.simulators.world import World
from rlmech.spec import PolicySpec

Value = bool | float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        dtype: What its values are, in every recording.
        unit: Their unit; empty for what has none.
        meaning: What they say, and what stands where there is nothing to say.
    """

    dtype: Literal["int64", "float64", "bool", "str"]
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is told of an episode beside its return and length, read from the `info` of its steps.

    Attributes:
        name: Of its column in `Recording.steps` and `Recording.episodes`.
        kind: `share`: true or false, as it was at the episode's last step; over episodes a rate with a rate's interval.
            `mean`: a number, averaged over the episode's steps.
        unit: Of its values; of a share, `share of episodes`.
        meaning: In words.
        read: From a step's `info` to its value, None where it is not told; None for `info[name]`.

    Example:
        >>> from rlmech.simulators import Outcome
        >>> Outcome(name="is_success", kind="share").of({"is_success": 1})
        True
    """

    name: str
    kind: Literal["share", "mean"]
    unit: str = ""
    meaning: str = ""
    read: Callable[[Mapping[str, Any]], Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("share", "mean"):
            raise ConfigError(
                "An outcome is a share of the episodes or a mean over their steps.",
                given=f"kind={self.kind!r}",
                expected="'share' or 'mean'",
                fix="kind='share' for what is true or false at the end of an episode",
            )

    def of(self, info: Mapping[str, Any]) -> Value | None:
        """Its value at a step; None where the environment does not tell it.

        Raises:
            ConfigError: It cannot be read, or is not of its kind.
        """
        try:
            value = info.get(self.name) if self.read is None else self.read(info)
        except Exception as error:  # of the user's own function
            raise ConfigError(
                f"The outcome {self.name!r} could not be read.",
                given=f"{type(error).__name__}: {error}, from an info with {sorted(map(str, info))}",
                expected="a function that takes the info of every step and returns None where nothing is told",
                fix="use info.get(...), e.g. read=lambda info: info.get('episode', {}).get('r')",
            ) from error
        if value is None:
            return None
        single = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"
        number = float(value) if single else math.nan
        if not math.isfinite(number) or (self.kind == "share" and number not in (0.0, 1.0)):
            raise ConfigError(
                f"The outcome {self.name!r} is not what was said.",
                given=f"{value!r} at a step, kind={self.kind!r}",
                expected="true or false" if self.kind == "share" else "a finite number",
                fix="give another kind, or a function: read=lambda info: ...",
            )
        return bool(number) if self.kind == "share" else number

    def to_json(self) -> dict[str, str | None]:
        """What a manifest keeps of it; a function by a digest of what it does."""
        read = None if self.read is None else told(self.read)
        return {"name": self.name, "kind": self.kind, "unit": self.unit, "meaning": self.meaning, "read": read}


class Simulator(Protocol):
    """What episodes and recordings know of a kind of environment.

    Attributes:
        name: In a manifest.
        entity: What one of those who are there is called, e.g. `vehicle`: the dimension and the words of scenes.
        entity_columns: Columns of the table of who is there, beside episode, seed and step; empty: there is no table.
        outcomes: What the environment tells of each episode.
        staging: What scenes need of it, with the edits that are a scene's methods; None where its state is not known.
        can_accelerate: Whether there is a faster way for environments of this kind, wherever it can be used.
        side_by_side: Whether its environments leave one another alone in one process, so that their episodes may be
            stepped in turn: highway-env's write into their classes.

    Example:
        >>> import rlmech as rlm
        >>> simulator = rlm.simulators.simulator_of(rlm.make_env("CartPole-v1"))
        >>> [outcome.name for outcome in simulator.outcomes]
        []
    """

    name: str
    can_accelerate: bool
    side_by_side: bool
    entity: str
    entity_columns: Mapping[str, Column]
    outcomes: Sequence[Outcome]
    staging: Staging | None

    def supports(self, env: gym.Env) -> bool:
        """Whether an environment is of this kind; imports nothing."""
        ...

    def spec(self, env: gym.Env) -> PolicySpec:
        """What its observations and actions mean."""
        ...

    def world(self, env: gym.Env) -> World:
        """The environment to run episodes in, with who stands behind which row; it can be copied."""
        ...

    def step_values(self, entities: Sequence[tuple[Any, ...]]) -> Mapping[str, Value | str]:
        """Columns of the step table that are read off who is there; of nobody, the columns with what stands for it."""
        ...

    def episode_values(self, world: World) -> Mapping[str, Value | str]:
        """Columns of the episode table that are read off an episode's beginning."""
        ...

    def map(self, env: gym.Env) -> list[dict[str, Any]]:
        """What stands still, for pictures, as JSON; empty where there is nothing to draw."""
        ...

    def maker(self, env: gym.Env) -> Callable[[], gym.Env] | None:
        """What makes it anew in another process, to be pickled; None where Gymnasium does not know how."""
        ...

    def identity(self, env: gym.Env) -> dict[str, str]:
        """All that makes an episode follow from its seed, part by part and by name; its episode is over afterwards."""
        ...

    def accelerate(self, env: gym.Env) -> None:
        """Have it compute faster from now on, copies too, where the same bits come of it; else leave it as it is."""
        ...

    def acceleration(self, env: gym.Env) -> Acceleration:
        """What is accelerated of it, as it is now, and why not the rest."""
        ...
