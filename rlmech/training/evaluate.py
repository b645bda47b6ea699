"""How well a policy drives, on seeds it was not trained on, beside what any driver must beat.

Rates carry Wilson's 95 % interval, differences of rates Tango's, means a studentised bootstrap over episodes; policies
are compared on the same seeds.
Cost: the environment's stepping; rows are appended as they come, so that a killed evaluation goes on where it stopped.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium import spaces
from rich.progress import track

from rlmech.episodes.episode import Decide, run_episode, summary
from rlmech.errors import ConfigError
from rlmech.simulators import simulator_of
from rlmech.statistics import Interval, Shares, bootstrap_mean

COLUMNS: tuple[str, ...] = ("seed", "return", "length", "crashed", "arrived", "speed")
"""Of an environment whose simulator tells of nothing else."""
RATES = ("crashed", "arrived", "success")

Actor = Callable[[int], Decide]
"""From an episode's seed to the function that drives it."""


@runtime_checkable
class Predicts(Protocol):
    """A policy with Stable-Baselines3's `predict`."""

    def predict(self, observation: Any, /, state: Any = ..., *, deterministic: bool = ...) -> tuple[Any, Any]:
        """Choose an action; the second value is a recurrent policy's state."""
        ...


def policy_actor(policy: Predicts) -> Actor:
    """Drive by a policy's best action; a recurrent one begins each episode in its initial state."""

    def begin(_: int) -> Decide:
        state: Any = None

        def decide(observation: object) -> object:
            nonlocal state
            action, state = policy.predict(observation, state, deterministic=True)
            return action

        return decide

    return begin


def constant_actor(action: int) -> Actor:
    """Always do the same."""
    return lambda _: lambda _: action


def random_actor(n_actions: int) -> Actor:
    """Do anything, each action as likely as another; an episode's actions follow from its seed."""

    def begin(seed: int) -> Decide:
        generator = np.random.default_rng([seed, 1])
        return lambda _: int(generator.integers(n_actions))

    return begin


def baseline_actors(env: gym.Env, action_names: Iterable[str]) -> dict[str, Actor]:
    """Random and each constant action, by name."""
    if not isinstance(env.action_space, spaces.Discrete):
        raise ConfigError(
            "Baselines are defined for discrete actions.",
            given=env.action_space,
            expected="a Discrete action space",
            fix="evaluate the policy alone",
        )
    n = int(env.action_space.n)
    names = list(action_names) or [str(i) for i in range(n)]
    return {"random": random_actor(n)} | {f"always {name}": constant_actor(i) for i, name in enumerate(names)}


def evaluate(
    actor: Actor | Predicts,
    env: gym.Env,
    *,
    seeds: Iterable[int],
    path: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run one episode for each seed.

    Args:
        actor: A policy, or a function from a seed to the function that drives its episode.
        env: The environment.
        seeds: Seeds of the episodes.
        path: CSV file to append rows to; seeds already in it are not run again.
        progress: Whether to draw a progress bar.

    Returns:
        One row a seed, in the order of `seeds`: return, length in steps and the simulator's outcomes, e.g. crashed,
        arrived and mean speed in m/s; what the environment does not tell is NaN.
    """
    begin = policy_actor(cast(Predicts, actor)) if hasattr(actor, "predict") else cast(Actor, actor)
    simulator, wanted = simulator_of(env), list(seeds)
    world, outcomes = simulator.world(env), simulator.outcomes
    columns = (*COLUMNS[:3], *(outcome.name for outcome in outcomes)) if outcomes else COLUMNS
    rows = {} if path is None else _rows_in(Path(path), columns)
    for seed in track([s for s in wanted if s not in rows], "episodes", disable=not progress):
        row = {"seed": seed, **summary(list(run_episode(world, begin(seed), seed=seed)), outcomes)}
        rows[seed] = {name: float(row.get(name, math.nan)) for name in columns}
        if path is not None:
            _append(Path(path), rows[seed])
    frame = pd.DataFrame([rows[seed] for seed in wanted], columns=list(columns))
    return frame.astype({"seed": int, "length": int})


def summarise(frame: pd.DataFrame) -> dict[str, dict[str, float] | int]:
    """Mean and 95 % interval of every column of an evaluation that the environment tells.

    Returns:
        `n` and, for each of return, length and the outcomes: `mean`, `low`, `high`.
    """
    result: dict[str, dict[str, float] | int] = {"n": len(frame)}
    for name in map(str, frame.columns.drop("seed")):
        values = frame[name].to_numpy(dtype=float)
        if not np.isnan(values).any():
            result[name] = _ends(bootstrap_mean(values[None], shares="shares" if name in RATES else None))
    return result


def paired_difference(better: pd.DataFrame, worse: pd.DataFrame, column: str = "return") -> dict[str, float]:
    """Mean difference of a column over the seeds that both evaluations have, with its 95 % interval."""
    both = better.merge(worse, on="seed", suffixes=("_a", "_b"))
    values = (both[f"{column}_a"] - both[f"{column}_b"]).to_numpy(dtype=float)
    scale = float(np.abs(both[[f"{column}_a", f"{column}_b"]].to_numpy(dtype=float)).max())
    shares: Shares | None = "differences" if column in RATES else None
    return {"n": len(values), **_ends(bootstrap_mean(values[None], scale=scale, shares=shares))}


def _ends(interval: Interval) -> dict[str, float]:
    return {
        name: float(getattr(interval, of)[0]) for name, of in (("mean", "estimate"), ("low", "low"), ("high", "high"))
    }


def _rows_in(path: Path, columns: Iterable[str]) -> dict[int, dict[str, float]]:
    """Rows of finished episodes; a last line that a kill cut short is cut off."""
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    rows = list(csv.DictReader(whole.splitlines()))
    return {int(float(row["seed"])): {name: float(row[name]) for name in columns} for row in rows}


def _append(path: Path, row: Mapping[str, float]) -> None:
    new = not path.exists() or path.stat().st_size == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
