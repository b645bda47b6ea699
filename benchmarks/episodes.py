"""Episodes: what recording and intervening cost beside the environment's own stepping, workers, and large recordings.

`driving`: the same episodes stepped bare with the actions known, driven by the policy in a plain loop, recorded, and
recorded with an edit and every activation kept; CPU time of one thread, interleaved, 20 seeds a round. `sharing`: nine
conditions together against one after the other. `workers`: wall time of one process, two, and two of a local Ray
cluster, once their pools are warm. `store`: a recording of a million steps, opened and filtered in a process of its
own.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rlmech as rlm
from benchmarks.clock import summary
from rlmech.episodes import manifest as manifests
from rlmech.episodes import recording as store
from rlmech.episodes.driving import Driver
from rlmech.episodes.episode_tables import FINAL, Episodes
from rlmech.episodes.shards import Writer
from rlmech.episodes.simulation import Runner

POLICY, ENV = "zoo:intersection-ego-attention", "intersection-v2"
BLOCK = 20  # seeds of a call
N_STEPS, STEPS_AN_EPISODE, EPISODES_A_SHARD = 1_000_000, 10, 500


def _edit(policy: rlm.HookedPolicy, head: int) -> rlm.Edit:
    (path,) = policy.attention
    return rlm.zero_ablation(rlm.Site(f"{path}.hook_z", head=head))


def driving(*, rounds: int) -> Iterator[dict[str, object]]:
    """What `rlm.record` adds, with all that it writes, to a plain loop of the same policy and to bare stepping."""
    for policy_name, env_id in ((POLICY, ENV), ("zoo:highway-dqn-mlp", "highway-fast-v0")):
        policy, env, bare = rlm.load(policy_name), rlm.make_env(env_id), rlm.make_env(env_id)
        calls: dict[str, dict[str, Any]] = {"recorded": {}}
        if policy.attention:
            calls["edited, all activations kept, recorded"] = {"names": None, "edits": [_edit(policy, 1)]}
        seconds: dict[str, list[float]] = {}
        for turn in range(-1, rounds):  # the first round warms up
            seeds = range((turn + 1) * BLOCK, (turn + 2) * BLOCK)
            found = {"plain loop": _timed(lambda p=policy, s=seeds, e=bare: _plain_loop(p, e, s))[0]}
            for name, options in calls.items():
                found[name], recording = _timed(
                    lambda p=policy, e=env, s=seeds, o=options: rlm.record(p, e, seeds=s, progress=False, **o)
                )
                found[f"bare, {name}"] = _timed(lambda r=recording, e=bare, s=seeds: _bare(r, e, s))[0]
            if turn >= 0:
                for name, value in found.items():
                    seconds.setdefault(name, []).append(value)
        plain = seconds["plain loop"]
        yield _quotient(f"{env_id}: recorded / plain loop", seconds["recorded"], plain, aim="<= 1.25")
        for name in calls:
            yield _quotient(f"{env_id}: bare stepping / {name}", seconds[f"bare, {name}"], seconds[name], aim="")


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.thread_time()
    found = call()
    return time.thread_time() - start, found


def _plain_loop(policy: Any, env: Any, seeds: range) -> None:
    for seed in seeds:
        observation, done = env.reset(seed=seed)[0], False
        while not done:
            observation, _, terminated, truncated, _ = env.step(int(policy.predict(observation)[0]))
            done = terminated or truncated


def _bare(recording: Any, env: Any, seeds: range) -> None:
    """The same steps, the actions known."""
    steps = recording.steps
    for seed in seeds:
        env.reset(seed=seed)
        for action in steps["action"][steps["seed"] == seed].tolist():
            env.step(action)


def _one(runner: Runner, seed: int) -> dict[str, Episodes]:
    (found,) = runner.run([(seed, seed)])
    return found


def sharing(*, rounds: int) -> Iterator[dict[str, object]]:
    """Nine conditions that share their simulation, against the same nine one after the other."""
    policy = rlm.load(POLICY)
    drivers = {f"head {h} {k}": Driver(policy=policy, edits=(e,)) for h in range(4) for k, e in _ablations(policy, h)}
    drivers["baseline"] = Driver(policy=policy)
    together, apart = Runner(rlm.make_env(ENV), drivers), Runner(rlm.make_env(ENV), drivers)
    _one(together, 1000)
    apart.sharing = "no: measured apart"
    before, seconds = together.n_simulated, {"together": list[float](), "apart": list[float]()}
    for seed in range(rounds):
        for name, simulator in (("together", together), ("apart", apart))[:: 1 if seed % 2 else -1]:
            start = time.thread_time()
            _one(simulator, seed)
            seconds[name].append(time.thread_time() - start)
    yield _quotient("nine conditions together / one after the other", seconds["together"], seconds["apart"], aim="")
    share = (together.n_simulated - before) / apart.n_simulated
    yield {
        "measured": "environment steps simulated, together / apart",
        "median": share,
        "quartiles": "",
        "aim": "",
        "n": rounds,
    }


def _ablations(policy: rlm.HookedPolicy, head: int) -> Iterator[tuple[str, rlm.Edit]]:
    (path,) = policy.attention
    _, reference = policy.run_with_cache(np.random.default_rng(0).random((64, 15, 7), dtype=np.float32), "*.hook_z")
    yield "zero", _edit(policy, head)
    yield "mean", rlm.mean_ablation(rlm.Site(f"{path}.hook_z", head=head), reference=reference)


def workers(*, rounds: int, n_seeds: int = 32) -> Iterator[dict[str, object]]:
    """Wall time of the same episodes in one process, in two, and in two of a local Ray cluster."""
    policy, env = rlm.load(POLICY), rlm.make_env(ENV)
    ways: dict[str, dict[str, Any]] = {"one": {"workers": 1}, "two": {"workers": 2}}
    try:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        ways["ray"] = {"workers": 2, "backend": "ray"}
    except ImportError:
        print("ray is not installed and is skipped")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms the pools
        for name, options in ways.items():
            start = time.perf_counter()
            rlm.record(policy, env, seeds=range(n_seeds if turn else 4), progress=False, **options)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    yield _quotient("one process / two", seconds["one"], seconds["two"], aim=">= 1.8")
    if "ray" in ways:
        yield _quotient("two of Ray / two processes", seconds["ray"], seconds["two"], aim="<= 1.15")


def writing(*, n_episodes: int = 1500) -> Iterator[dict[str, object]]:
    """What the one process that writes can take: episodes a second, merging included, and bytes that come to it."""
    policy = rlm.load(POLICY)
    simulator = Runner(rlm.make_env(ENV), {"": Driver(policy=policy)})
    made = [_one(simulator, seed)[""] for seed in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        manifests.create(Path(folder) / "r", {})
        writer = Writer(Path(folder) / "r")
        start = time.thread_time()
        for number in range(n_episodes):
            writer.add(made[number % len(made)].numbered([number]))
        writer.close()
        rate = n_episodes / (time.thread_time() - start)
    yield {"measured": "episodes that one process writes a second", "value": rate, "aim": ""}
    size = sum(len(pickle.dumps(episode)) for episode in made) / len(made)
    yield {"measured": "bytes that an episode sends to it", "value": size, "aim": ""}


def large_store() -> Iterator[dict[str, object]]:
    """A recording of a million steps: bytes, seconds to open and to filter, and the memory that takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million"
        start = time.perf_counter()
        _write_million(path)
        written = time.perf_counter() - start
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        measured = json.loads(subprocess.check_output([sys.executable, "-c", _READ, str(path)], text=True))
    yield {"measured": "steps", "value": N_STEPS, "aim": ""}
    yield {"measured": "bytes on disk", "value": size, "aim": ""}
    yield {"measured": "seconds to write", "value": written, "aim": ""}
    for name, aim in (("open", "< 1"), ("filter", "< 2"), ("read what was filtered", ""), ("DuckDB counts", "")):
        yield {
            "measured": f"seconds to {name}" if "DuckDB" not in name else f"seconds until {name}",
            "value": measured[name],
            "aim": aim,
        }
    yield {"measured": "rows that the filter found", "value": measured["rows"], "aim": ""}
    yield {"measured": "MB of memory that all of this took", "value": measured["megabytes"], "aim": ""}


_READ = """
import json, re, sys, time
from pathlib import Path
import rlmech, pandas, pyarrow.dataset, duckdb
from rlmech.episodes.recording import Recording
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, found = peak(), {}
def timed(name, call):
    start = time.perf_counter(); value = call(); found[name] = time.perf_counter() - start
    return value
recording = timed("open", lambda: Recording.load(sys.argv[1]))
chosen = timed("filter", lambda: recording.where(action_changed=True, ttc_below=2.0))
rows = timed("read what was filtered", lambda: (chosen.steps, chosen.scores))
steps = recording.dataset()
timed("DuckDB counts", lambda: duckdb.sql("select action, count(*) from steps group by action").fetchall())
found["rows"], found["megabytes"] = len(rows[0]), (peak() - before) / 1024
print(json.dumps(found))
"""


def _write_million(path: Path) -> None:
    manifest = {
        "format": manifests.FORMAT,
        "policy": {"fingerprint": "made", "output_kind": "q_values"},
        "observation_keys": [],
    }
    manifest |= {"env": {"id": ENV}, "seeds": [], "activations": {}, "frames": False, "edits": [], "when": None}
    manifests.create(path, manifest)
    writer, rng = Writer(path), np.random.default_rng(0)
    for first in range(0, N_STEPS // STEPS_AN_EPISODE, EPISODES_A_SHARD):
        writer.add(_shard(first, rng))


def _shard(first: int, rng: np.random.Generator) -> Episodes:
    n = EPISODES_A_SHARD * STEPS_AN_EPISODE
    numbers = np.arange(first, first + EPISODES_A_SHARD)
    episode, step = np.repeat(numbers, STEPS_AN_EPISODE), np.tile(np.arange(STEPS_AN_EPISODE), EPISODES_A_SHARD)
    head = {"episode": episode, "seed": episode, "step": step}
    steps = head | {
        "action": rng.integers(0, 3, n),
        "edited": np.ones(n, bool),
        "action_changed": rng.random(n) < 0.2,
        **{name: rng.gamma(2, 3, n) for name in ("distance", "ttc", "reward", "speed")},
        **{name: rng.random(n) < 0.1 for name in ("terminated", "truncated", "crashed", "arrived")},
    }
    vehicles = {name: np.repeat(value, 8) for name, value in head.items()}
    vehicles |= {name: rng.normal(size=8 * n) for name in ("x", "y", "heading", "speed", "ttc")}
    summary = {"episode": numbers, "seed": numbers, "return": rng.normal(size=len(numbers))}
    arrays = {
        store.OBSERVATION: rng.random((n, 15, 7), dtype=np.float32),
        store.SCORES: rng.random((n, 3), dtype=np.float32),
        store.ACTION: steps["action"],
        FINAL: rng.random((EPISODES_A_SHARD, 15, 7), dtype=np.float32),
    }
    return Episodes(
        episodes=pa.table(summary | {"length": np.full(len(numbers), STEPS_AN_EPISODE)}),
        steps=pa.table(steps),
        entities=pa.table(vehicles),
        arrays=arrays,
    )


def _quotient(what: str, ours: list[float], theirs: list[float], *, aim: str) -> dict[str, object]:
    quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
    return summary(what, quotients, aim=aim, form=".3f")


SUITE: dict[str, Callable[..., Iterator[dict[str, object]]]] = {
    "episodes_driving": driving,
    "episodes_sharing": sharing,
    "episodes_workers": workers,
}
