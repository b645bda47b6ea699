"""When edits are at work: conditions on the moment in which a policy decides.

    when = rlm.episodes.when
    rlm.record(policy, env, seeds=range(100), edits=[edit], when=when.vehicle_within(20.0) & ~when.at_steps(0))

A condition is a frozen value with a description; `&`, `|` and `~` combine them, and any function of a `Moment` is one.
They read what the recorder knows anyway: nothing is observed twice. Cost: none but that of the test itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from rlmech.errors import ConfigError
from rlmech.simulators.env import action_number
from rlmech.simulators.protocol import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The state in which a policy decides.

    Attributes:
        seed: Of the episode.
        step: Decisions made before in this episode.
        observation: What the policy sees.
        scores: What the unedited policy thinks of each action; of several choices `[choice action]`.
        action: What the unedited policy would do.
        previous_action: What was done a step ago; None at first.
        action_names: Names of the actions, in their order; empty where they have none.
        entities: Who is there, a row of the simulator's `entity_columns` each (of highway-env's environments vehicles,
            the ego first); empty where the simulator tells of none.
        measured: What the simulator measures of them, by the name of its column in the steps.
    """

    seed: int
    step: int
    observation: Any
    scores: Float[np.ndarray, "*choice action"]
    action: Any
    previous_action: Any
    entities: list[tuple[Any, ...]]
    action_names: tuple[str, ...] = ()
    measured: Mapping[str, Value | str] = field(default_factory=dict[str, Value | str])

    @property
    def distance(self) -> float:
        """Distance from the ego to the nearest vehicle, in m; infinite where there is none."""
        return self._measured("distance")

    @property
    def ttc(self) -> float:
        """Shortest time to a collision of the ego with a vehicle, in s; infinite where none is ahead."""
        return self._measured("ttc")

    def _measured(self, name: str) -> float:
        value = float(self.measured.get(name, np.inf))
        return np.inf if np.isnan(value) else value


@dataclass(frozen=True, slots=True)
class When:
    """A condition on a moment.

    Args:
        test: Whether it holds.
        description: What it says, in words.
        told: Whether these words tell it from all others; a function's name does not.
    """

    test: Callable[[Moment], bool]
    description: str
    told: bool = True

    def __call__(self, moment: Moment) -> bool:
        """Whether it holds in a moment."""
        return bool(self.test(moment))

    def __str__(self) -> str:
        return self.description

    def __and__(self, other: When) -> When:
        return When(lambda moment: self(moment) and other(moment), f"({self} and {other})", self.told and other.told)

    def __or__(self, other: When) -> When:
        return When(lambda moment: self(moment) or other(moment), f"({self} or {other})", self.told and other.told)

    def __invert__(self) -> When:
        return When(lambda moment: not self(moment), f"not {self}", self.told)


def at_steps(*steps: int) -> When:
    """At some steps of an episode, counted from 0."""
    chosen = frozenset(steps)
    return When(lambda moment: moment.step in chosen, f"at steps {', '.join(map(str, sorted(chosen)))}")


def from_step(first: int, *, until: int | None = None) -> When:
    """From a step on, up to and without another one.

    Args:
        first: The first step, counted from 0.
        until: The first step that is out of the window; None for the episode's end.
    """
    last = "the end" if until is None else f"step {until}"
    return When(
        lambda moment: moment.step >= first and (until is None or moment.step < until), f"from step {first} to {last}"
    )


def vehicle_within(distance: float) -> When:
    """When a vehicle is closer to the ego than a distance in m, centre to centre."""
    return When(lambda moment: moment.distance < distance, f"a vehicle within {distance:g} m")


def ttc_below(seconds: float) -> When:
    """When the ego would collide with a vehicle in less than a time in s, were neither to change its velocity."""
    return When(lambda moment: moment.ttc < seconds, f"a collision within {seconds:g} s")


def action_about_to_change() -> When:
    """When the unedited policy would do something else than was done a step ago."""
    return When(
        lambda moment: moment.previous_action is not None and not np.array_equal(moment.action, moment.previous_action),
        "the action about to change",
    )


def action_is(action: int | str) -> When:
    """When the unedited policy would take an action, given by its number or its name.

    Args:
        action: e.g. `"SLOWER"`; a name that the environment does not have is told at the first decision.
    """
    return When(
        lambda moment: bool(np.array_equal(moment.action, action_number(action, moment.action_names))),
        f"the action {action}",
    )


def gap_below(gap: float) -> When:
    """When the unedited policy's best two actions are closer in score than a gap; of several choices, those of any."""

    def close(moment: Moment) -> bool:
        choices = np.sort(np.atleast_2d(moment.scores))[:, -2:].tolist()
        return any(len(two) == 2 and two[1] - two[0] < gap for two in choices)  # where both are -inf, NaN: no

    return When(close, f"the best two actions within {gap:g}")


def when_of(given: When | Callable[[Moment], bool] | int | Iterable[int] | None) -> When | None:
    """A condition from what a caller may give: one of these, a function of the moment, a step or several; None: always.

    Raises:
        ConfigError: None of those.
    """
    if given is None or isinstance(given, When):
        return given
    if isinstance(given, range) and given.step == 1:
        return from_step(given.start, until=given.stop)
    if callable(given):
        return When(given, getattr(given, "__name__", type(given).__name__), told=False)
    steps: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    if steps and all(isinstance(step, int | np.integer) and not isinstance(step, bool) for step in steps):
        return at_steps(*(int(step) for step in steps))
    raise ConfigError(
        "That is no condition on a moment.",
        given=f"when={given!r}",
        expected="None for always, a step, several steps, a range, one of rlm.episodes.when, or a function of a Moment",
        fix="e.g. when=rlm.episodes.when.vehicle_within(20.0), when=range(3, 8), when=lambda moment: moment.step > 2",
    )
