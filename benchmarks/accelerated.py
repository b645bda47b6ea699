"""`python -m benchmarks.accelerated [--old PATH] [--rounds 12]`: the compiled traffic against highway-env's own.

`same`: whole episodes, stock and accelerated side by side, compared after every step in every bit and type: what is
returned, every attribute of every vehicle, the lanes, the generator. `speed`: CPU time of resets and steps of both, a
seed a round, interleaved. `record`: `rlm.record` with everything that it writes, against another checkout of rlmech
(`--old`) that runs in a process of its own and takes turns with this one, episode by episode.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gymnasium as gym
import highway_env  # noqa: F401  # registers
import numpy as np
import torch

import rlmech as rlm
from benchmarks import tables
from rlmech.simulators import acceleration
from tests.simulators.stepping import at_random, pair, step_alike

CROWDED = {"vehicles_count": 50, "lanes_count": 3}
EPISODES: dict[str, tuple[str, dict[str, Any], int]] = {
    "intersection-v2": ("intersection-v2", {}, 150),
    "highway-fast-v0": ("highway-fast-v0", {}, 60),
    "highway-v0, 50 vehicles, 3 lanes": ("highway-v0", CROWDED, 50),
    "merge-v1": ("merge-v1", {}, 30),
    "roundabout-v1": ("roundabout-v1", {}, 30),
    "exit-v1": ("exit-v1", {}, 30),
    "racetrack-v1": ("racetrack-v1", {}, 30),
    "two-way-v0": ("two-way-v0", {}, 30),
    "u-turn-v1": ("u-turn-v1", {}, 10),
    "intersection-multi-agent-v2": ("intersection-multi-agent-v2", {}, 10),
}
POLICIES = {"intersection-v2": "zoo:intersection-ego-attention", "highway-fast-v0": "zoo:highway-dqn-mlp"}
MOST_STEPS = 60
RECORDED = {
    "intersection-v2": ("intersection-v2", {}, POLICIES["intersection-v2"], 25.0),
    "highway-fast-v0": ("highway-fast-v0", {}, POLICIES["highway-fast-v0"], 15.0),
    "highway-v0, 50 vehicles, 3 lanes": ("highway-v0", CROWDED, POLICIES["highway-fast-v0"], 60.0),
}


def same(*, share: float) -> Iterator[dict[str, object]]:
    """Episodes compared step by step, two of three driven by a policy where one is at hand."""
    for name, (env_id, config, n) in EPISODES.items():
        stock, fast = pair(lambda: gym.make(env_id, config=config))  # noqa: B023
        policy = rlm.load(POLICIES[name]) if name in POLICIES else None
        n, steps = max(1, round(n * share)), 0
        for seed in range(n):

            def choose(observation: Any, space: Any, draw: Any) -> Any:
                by_policy = policy is not None and seed % 3  # noqa: B023
                return int(policy.predict(observation)[0]) if by_policy else at_random(observation, space, draw)  # noqa: B023

            steps += step_alike(stock, fast, seeds=[seed], choose=choose, most=MOST_STEPS)
        found = acceleration(fast)
        yield {
            "environment": name,
            "episodes": n,
            "steps": steps,
            "different": 0,
            "frames": "compiled" if found.frames else "stock",
            "observations": "from arrays" if found.observations else "stock",
            "why": found.why,
        }


def speed(*, rounds: int) -> Iterator[dict[str, object]]:
    """Milliseconds of stock and accelerated resets and steps, and their ratio, a seed a round."""
    for name, (env_id, config, _) in EPISODES.items():
        envs = dict(zip(("stock", "accelerated"), pair(lambda: gym.make(env_id, config=config)), strict=True))  # noqa: B023
        found: list[dict[str, tuple[float, float]]] = []
        for seed in range(-1, rounds):  # the first warms up
            order = list(envs) if seed % 2 else list(reversed(envs))
            found.append({who: _episode(envs[who], seed % 1000) for who in order})
        for part, what in enumerate(("reset", "step")):
            ratios = [one["stock"][part] / one["accelerated"][part] for one in found[1:]]
            own = [1e3 * median(one[who][part] for one in found[1:]) for who in envs]
            yield {
                "environment": name,
                "measured": what,
                "stock, ms": round(own[0], 3),
                "accelerated, ms": round(own[1], 3),
                **_quartiles(ratios),
            }


def _episode(env: Any, seed: int) -> tuple[float, float]:
    draw = np.random.default_rng(seed)
    start = time.thread_time()
    env.reset(seed=seed)
    reset, stepping, steps, done = time.thread_time() - start, 0.0, 0, False
    while not done and steps < MOST_STEPS:
        action = at_random(None, env.action_space, draw)
        start = time.thread_time()
        _, _, terminated, truncated, _ = env.step(action)
        stepping += time.thread_time() - start
        done, steps = bool(np.all(terminated)) or truncated, steps + 1
    return reset, stepping / steps


def recorded(*, old: Path, rounds: int) -> Iterator[dict[str, object]]:
    """`rlm.record` here and in another checkout; the tables of both recordings are the same."""
    for name, (env_id, config, policy, aim) in RECORDED.items():
        n = 1 if config else 4  # episodes a round
        runs = {"old": _Checkout(old, env_id, config, policy), "new": _Checkout(Path.cwd(), env_id, config, policy)}
        found: list[dict[str, dict[str, Any]]] = []
        for i in range(-1, rounds):
            order = list(runs) if i % 2 else list(reversed(runs))
            found.append({who: runs[who].record(range(1000 + n * i, 1000 + n * i + n)) for who in order})
            if found[-1]["old"]["returns"] != found[-1]["new"]["returns"]:
                raise SystemExit(f"{name}: other episodes than those of {old}")
        for run in runs.values():
            run.close()
        per = {who: 1e3 * median(one[who]["seconds"] / one[who]["steps"] for one in found[1:]) for who in runs}
        yield {
            "environment": name,
            "old, ms a step": round(per["old"], 3),
            "new, ms a step": round(per["new"], 3),
            **_quartiles([one["old"]["seconds"] / one["new"]["seconds"] for one in found[1:]]),
            "aim": f">= {aim:g}",
        }


class _Checkout:
    """A process that records with the rlmech of one directory, when it is told to."""

    def __init__(self, folder: Path, env_id: str, config: dict[str, Any], policy: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        told = json.dumps([str(folder), env_id, config, policy])
        script = [sys.executable, str(Path(__file__).with_name("recording_process.py")), told]
        self._process = subprocess.Popen(
            script, env=environment, cwd=tempfile.gettempdir(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stdin: Any = self._process.stdin
        self._stdout: Any = self._process.stdout

    def record(self, seeds: range) -> dict[str, Any]:
        """CPU seconds, steps and returns of a recording of these seeds."""
        print(json.dumps([seeds.start, seeds.stop]), file=self._stdin, flush=True)
        return json.loads(self._stdout.readline())

    def close(self) -> None:
        """Let it end."""
        self._stdin.close()
        self._process.wait()


def _quartiles(ratios: list[float]) -> dict[str, object]:
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return {"times as fast": round(middle, 1), "quartiles": f"{low:.1f} to {high:.1f}", "rounds": len(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerated", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", default=["same", "speed"], help="same, speed, record; the first two by default"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--share", type=float, default=1.0, help="of the episodes of `same`")
    parser.add_argument("--old", type=Path, help="a checkout to record against")
    parser.add_argument("--out", type=Path, default=tables.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    rows: dict[str, Any] = {
        "same": lambda: same(share=arguments.share),
        "speed": lambda: speed(rounds=arguments.rounds),
        "record": lambda: recorded(old=arguments.old.resolve(), rounds=arguments.rounds),
    }
    for suite in arguments.suites:
        found = list(rows[suite]())
        table = tables.plain_table(found)
        print(f"\n{table}\n")
        tables.save(f"accelerated_{suite}", rows=found, table=table, where=arguments.out)


if __name__ == "__main__":
    main()
