"""What a probe is asked for: one value for each recorded step, or one for each entity of it.

A target is a column of `recording.steps`, a function of the recording, or what `within`, `of_entity` and `entities`
make. Numbers are predicted as numbers, truth values, texts and integers of few values as classes. Rows where there is
nothing to say (NaN, an infinite time to collision) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from rlmech.arguments import explain_misuse
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, nearest

Kind = Literal["number", "class"]
MOST_CLASSES = 20
"""Integers of more values than this are numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """A target's values for the steps of one recording.

    Attributes:
        name: What the results call it.
        kind: `number` or `class`.
        values: By step, or by step and entity; of classes their number. NaN: nothing to say.
        classes: Names of the classes.
        unit: Of numbers.

    Example:
        >>> import numpy as np, rlmech as rlm
        >>> rlm.probes.Labels(name="angle", kind="number", values=np.zeros(3), unit="rad").unit
        'rad'
    """

    name: str
    kind: Kind
    values: Float[np.ndarray, "step ..."]
    classes: tuple[str, ...] = ()
    unit: str = ""


TargetFunction = Callable[[Recording], Any]
Target = str | TargetFunction


@dataclass(frozen=True, slots=True)
class _Named:
    """A function of a recording, with a name and a unit."""

    name: str
    function: TargetFunction
    unit: str = ""

    def __call__(self, recording: Recording) -> Any:
        return self.function(recording)


@explain_misuse
def within(column: str, n_steps: int) -> TargetFunction:
    """Whether something becomes true in this step or in one of the next few: `within("crashed", 5)`.

    Args:
        column: A column of truth values of `recording.steps`.
        n_steps: How many steps, this one counted.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(2), progress=False)
        >>> ends = rlm.probes.within("terminated", 3)(recording)
        >>> int(ends.sum())  # the last three steps of both episodes
        6
    """
    if n_steps < 1:
        raise ConfigError(
            "A window holds at least this step.", given=f"n_steps={n_steps}", expected="1 or more", fix="n_steps=1"
        )

    def values(recording: Recording) -> np.ndarray:
        steps = _with_column(recording.steps, column, "steps")
        true = steps[column].astype(bool)
        ahead = [true.groupby(steps["episode"]).shift(-k, fill_value=False) for k in range(n_steps)]
        return np.any(ahead, axis=0)

    return _Named(f"{column} within {n_steps} steps", values)


@explain_misuse
def of_entity(column: str, row: int = 1) -> TargetFunction:
    """A column of the table of vehicles, for the one that stands in a row of the observation.

    Args:
        column: A column of `recording.vehicles`, such as `distance`, `ttc` or `turn`.
        row: Its row in the observation; 0 is the ego. Steps in which nobody stands there have no value.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> env = rlm.make_env(policy.spec.env_id, config=policy.spec.env_config)
        >>> recording = rlm.record(policy, env, seeds=[0], progress=False)
        >>> rlm.probes.of_entity("distance", row=1)(recording).shape == (len(recording.steps),)
        True
    """

    def values(recording: Recording) -> np.ndarray:
        return _by_row(recording, column).get(row, np.full(len(recording.steps), np.nan))

    return _Named(f"{column} of row {row}", values)


@explain_misuse
def entities(column: str) -> TargetFunction:
    """A column of the table of vehicles, for every row of the observation: one value for each step and entity.

    Args:
        column: A column of `recording.vehicles`.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> env = rlm.make_env(policy.spec.env_id, config=policy.spec.env_config)
        >>> recording = rlm.record(policy, env, seeds=[0], progress=False)
        >>> len(rlm.probes.entities("distance")(recording)) == len(recording.steps)
        True
    """

    def values(recording: Recording) -> np.ndarray:
        by_row, observed = _by_row(recording, column), recording.observations
        n_rows = 1 + max(by_row, default=0) if isinstance(observed, dict) or observed.ndim != 3 else observed.shape[1]
        return np.stack([by_row.get(row, np.full(len(recording.steps), np.nan)) for row in range(n_rows)], axis=1)

    return _Named(f"{column} of each entity", values)


def read_targets(
    recording: Recording, target: Target | Iterable[Target] | Mapping[str, Target], *, step_offset: int
) -> list[Labels]:
    """The values of some targets.

    Args:
        recording: The recording.
        target: One or several; a mapping gives them names.
        step_offset: Take the value that many steps later in the same episode (earlier where negative).

    Raises:
        ConfigError: There is no such column, or a function gives something else than one value for each step.
    """
    if isinstance(target, Mapping):
        given = [(str(name), one) for name, one in target.items()]
    else:
        several = list(target) if isinstance(target, Iterable) and not isinstance(target, str) else [target]
        given = [(_name(one), one) for one in several]
    found = [_labels(recording, name, one, step_offset) for name, one in given]
    names = [labels.name for labels in found]
    if not found or len(set(names)) < len(names):
        raise ConfigError(
            "Targets need names that differ.",
            given=f"targets named {names}",
            expected="at least one, none twice",
            fix="name them: target={'short': fn, 'long': other_fn}",
        )
    return found


def _name(target: Target) -> str:
    if isinstance(target, str):
        return target
    return str(getattr(target, "name", None) or getattr(target, "__name__", "target"))


def _labels(recording: Recording, name: str, target: Target, step_offset: int) -> Labels:
    steps = recording.steps
    if isinstance(target, str):
        values: Any = _with_column(steps, target, "steps")[target].to_numpy()
        unit = ""
    elif callable(target):
        values, unit = np.asarray(target(recording)), str(getattr(target, "unit", ""))
    else:
        raise ConfigError(
            "A target is a column of the steps or a function of the recording.",
            given=f"a {type(target).__name__}",
            expected=f"one of {', '.join(map(str, steps.columns))}, or fn(recording) -> one value a step",
            fix='e.g. target="ttc"',
        )
    if values.ndim not in (1, 2) or len(values) != len(steps):
        raise ConfigError(
            f"The target {name!r} has not one value for each step.",
            given=f"an array of shape {list(values.shape)} for {len(steps)} steps",
            expected=f"shape [{len(steps)}], or [{len(steps)} entity]",
            fix="give one value for each row of recording.steps, in that order",
        )
    values = _later(values, steps["episode"].to_numpy(), step_offset)
    label = name + (f" {step_offset:+d} steps" if step_offset else "")
    numbers, kind, classes = _as_numbers(values)
    finite = numbers[np.isfinite(numbers)]
    if len(finite) == 0 or (finite == finite[0]).all():
        raise ConfigError(
            f"There is nothing to probe for: the target {label!r} is constant.",
            given=f"{len(finite)} values" + (f", all of them {finite[0]:g}" if len(finite) else ""),
            expected="at least two different values",
            fix="record more episodes, or choose another target",
        )
    return Labels(name=label, kind=kind, values=numbers, classes=classes, unit=unit)


def _as_numbers(values: np.ndarray) -> tuple[np.ndarray, Kind, tuple[str, ...]]:
    missing = np.asarray(pd.isna(values))
    present = values[~missing]
    if present.dtype == object:
        present = np.array(present.tolist())
    kind: Kind = "number"
    if present.dtype.kind in "bUS" or (present.dtype.kind in "iu" and len(np.unique(present)) <= MOST_CLASSES):
        kind = "class"
    if kind == "number" and present.dtype.kind not in "iuf":
        raise ConfigError(
            "A target is numbers, truth values or texts.",
            given=f"values of type {present.dtype}",
            expected="numbers, truth values or texts",
            fix="turn them into one of these",
        )
    numbers = np.full(values.shape, np.nan)
    if kind == "number":
        numbers[~missing] = present
        return np.where(np.isfinite(numbers), numbers, np.nan), kind, ()
    names, numbers[~missing] = np.unique(present, return_inverse=True)
    return numbers, kind, tuple(str(name) for name in names)


def _later(values: np.ndarray, episode: np.ndarray, step_offset: int) -> np.ndarray:
    if step_offset == 0:
        return values
    frame = pd.DataFrame(values.reshape(len(values), -1).astype(object))
    return frame.groupby(episode).shift(-step_offset).to_numpy().reshape(values.shape)


def _by_row(recording: Recording, column: str) -> dict[int, np.ndarray]:
    """By row of the observation, the column's value at each step."""
    vehicles = recording.vehicles
    if "row" not in vehicles:
        raise ConfigError(
            "The recording has no table of vehicles.",
            given=f"a recording of {recording.manifest['env']['id']}",
            expected="an environment whose simulator tells who is there, such as highway-env's",
            fix="use a column of recording.steps, or a function of the recording",
        )
    _with_column(vehicles, column, "vehicles")
    index = pd.MultiIndex.from_frame(recording.steps[["episode", "step"]])
    seen = vehicles[vehicles["row"] >= 0]
    return {
        int(str(row)): part.set_index(["episode", "step"])[column].reindex(index).to_numpy()
        for row, part in seen.groupby("row")
    }


def _with_column(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    if column in table:
        return table
    close = nearest(column, [str(known) for known in table.columns])
    raise ConfigError(
        f"The table of {name} has no column {column!r}.",
        given=repr(column),
        expected=f"one of {', '.join(map(str, table.columns))}",
        fix=f"did you mean {close[0]!r}?" if close else "give a function of the recording",
    )
