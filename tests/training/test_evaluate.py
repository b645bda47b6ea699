"""Evaluation: rows, intervals, baselines, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rlmech.errors import ConfigError
from rlmech.simulators.env import make_env
from rlmech.statistics import bootstrap_mean
from rlmech.training.evaluate import (
    Actor,
    baseline_actors,
    constant_actor,
    evaluate,
    paired_difference,
    random_actor,
    summarise,
)

CROSSING = {"simulation_frequency": 5, "duration": 5}


def counting(actor: Actor, started: list[int]) -> Actor:
    def begin(seed: int) -> Any:
        started.append(seed)
        return actor(seed)

    return begin


def test_an_evaluation_tells_what_the_environment_tells() -> None:
    table = evaluate(constant_actor(0), make_env("intersection-v2", config=CROSSING), seeds=[5, 3])
    assert list(table["seed"]) == [5, 3]
    assert not table.isna().any(axis=None)
    assert (table["speed"] < 5).all(), "always braking"
    assert list(table["length"]) == [5, 5]
    summary = summarise(table)
    assert summary["n"] == 2
    assert set(summary) == {"n", "return", "length", "crashed", "arrived", "speed"}


def test_what_an_environment_does_not_tell_is_left_out() -> None:
    table = evaluate(constant_actor(0), make_env("CartPole-v1"), seeds=range(3))
    assert table["crashed"].isna().all()
    assert set(summarise(table)) == {"n", "return", "length"}


def test_random_driving_depends_on_the_seed_alone() -> None:
    env = make_env("CartPole-v1")
    one = evaluate(random_actor(2), env, seeds=range(6))
    other = evaluate(random_actor(2), env, seeds=reversed(range(6))).iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other)


def test_an_evaluation_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    env, path, started = make_env("CartPole-v1"), tmp_path / "folder" / "rows.csv", []
    whole = evaluate(random_actor(2), env, seeds=range(6))
    evaluate(random_actor(2), env, seeds=range(4), path=path)
    path.write_text(path.read_text()[:-7])  # a kill in the middle of the last line
    resumed = evaluate(counting(random_actor(2), started), env, seeds=range(6), path=path)
    assert started == [3, 4, 5]
    pd.testing.assert_frame_equal(resumed, whole)
    evaluate(counting(random_actor(2), started), env, seeds=range(6), path=path)
    assert started == [3, 4, 5]


def test_baselines_are_random_and_each_constant_action() -> None:
    env = make_env("intersection-v2", config=CROSSING)
    actors = baseline_actors(env, ("SLOWER", "IDLE", "FASTER"))
    assert list(actors) == ["random", "always SLOWER", "always IDLE", "always FASTER"]
    assert actors["always FASTER"](0)(None) == 2
    assert {actors["random"](0)(None) for _ in range(50)} <= {0, 1, 2}
    with pytest.raises(ConfigError, match="defined for discrete actions"):
        baseline_actors(make_env("Pendulum-v1"), ())


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 5, size=200)
    worse = pd.DataFrame({"seed": range(200), "return": luck})
    better = pd.DataFrame({"seed": range(200), "return": luck + 1 + generator.normal(0, 0.5, size=200)})
    paired = paired_difference(better.sample(frac=1, random_state=0), worse)
    assert paired["low"] < 1 < paired["high"]
    assert paired["high"] - paired["low"] < 0.2
    alone = bootstrap_mean(np.asarray(better["return"])[None])
    assert alone.high[0] - alone.low[0] > 1
