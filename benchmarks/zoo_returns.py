"""Published agents of the RL Zoo drive as they did when they were trained: returns against their evaluation curves.

Each agent is opened with what lies beside its zip, its environment is made from what its run says (`rlm.make_env` of
its spec), and it is recorded over some seeds. The truth is the run's `evaluations.npz`: the range of its last five
evaluations, each with twice its standard error.

    python -m benchmarks.zoo_returns FOLDER [--seeds 100] [--only cartpole]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import rlmech as rlm
from rlmech.errors import RlmechError

LAST = 5


def published(folder: Path) -> tuple[float, float]:
    """Lowest and highest return of the last evaluations of a run, with two standard errors each."""
    with np.load(folder / "evaluations.npz") as curve:
        results = curve["results"][-LAST:]
    error = 2 * results.std(axis=1, ddof=1) / np.sqrt(results.shape[1])
    return float((results.mean(axis=1) - error).min()), float((results.mean(axis=1) + error).max())


def measured(path: Path, *, n_seeds: int) -> dict[str, Any]:
    """The returns of an agent over some seeds, beside what was published.

    Returns:
        `mean`, `low` and `high` (two standard errors), `published` and `fits`: whether the intervals meet.
    """
    policy = rlm.load(path)
    recording = rlm.record(policy, rlm.make_env(policy.spec), seeds=range(n_seeds), names=(), progress=False)
    returns = recording.episodes["return"].to_numpy()
    mean, error = float(returns.mean()), 2 * float(returns.std(ddof=1)) / len(returns) ** 0.5
    low, high = published(path.parent)
    return {
        "mean": mean,
        "low": mean - error,
        "high": mean + error,
        "published": (low, high),
        "fits": mean + error >= low and mean - error <= high,
    }


def main() -> None:
    """Measure every agent in a folder and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    print(f"| agent | return over {given.seeds} seeds | last {LAST} evaluations | |\n|---|---|---|---|")
    for path in sorted(given.folder.glob("*/*/*.zip")):
        name = f"{path.parents[1].name} {path.stem}"
        if given.only.lower() not in name.lower():
            continue
        try:
            found = measured(path, n_seeds=given.seeds)
        except RlmechError as error:
            print(f"| {name} | {error.problem} | | not run |", flush=True)
            continue
        own, low, high = f"{found['mean']:.1f} ± {found['high'] - found['mean']:.1f}", *found["published"]
        print(f"| {name} | {own} | {low:.1f} to {high:.1f} | {'fits' if found['fits'] else 'DIFFERS'} |", flush=True)


if __name__ == "__main__":
    main()
