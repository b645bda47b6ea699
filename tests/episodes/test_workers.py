"""Episodes in many processes: the same recording as in one, whatever dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.episodes import Recording, record
from rlmech.episodes.simulation import Runner
from rlmech.errors import ConfigError, MissingPackageError, WorkerError
from rlmech.simulators import make_env, simulator_of

# third parties' own: sockets and processes that they leave to the garbage collector, and their deprecations
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:A worker stopped while some jobs were given:UserWarning"),
]


@pytest.fixture(scope="module")
def cartpole() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(2, 4))


@pytest.fixture(scope="module")
def alone(cartpole: rlm.HookedPolicy) -> Recording:
    return record(cartpole, make_env("CartPole-v1"), seeds=range(40), names="1.hook_out", progress=False)


def in_workers(policy: rlm.HookedPolicy, **options: Any) -> Recording:
    given: dict[str, Any] = {"seeds": range(40), "names": "1.hook_out", "workers": 2, "progress": False}
    return record(policy, make_env("CartPole-v1"), **(given | options))


def dying_once(marker: Path) -> tuple[str, Any]:
    """A hook that changes nothing, and kills the first process that gets into its twentieth call."""
    calls: list[int] = []

    def hook(tensor: Any, hook: Any) -> None:
        calls.append(1)
        if len(calls) == 20 and not marker.exists():
            marker.touch()
            os._exit(1)

    return "1.hook_out", hook


def same_rows(ours: Recording, theirs: Recording) -> bool:
    """All but the manifest and `edited`, which tell of the hook that killed."""
    return (
        ours.steps.drop(columns="edited").equals(theirs.steps.drop(columns="edited"))
        and bool((ours.observations == theirs.observations).all())
        and bool((ours.scores == theirs.scores).all())
    )


def test_processes_of_this_machine_record_what_one_does(cartpole: rlm.HookedPolicy, alone: Recording) -> None:
    assert in_workers(cartpole).equals(alone)


def test_the_episodes_of_a_lost_worker_are_redone(cartpole: rlm.HookedPolicy, alone: Recording, tmp_path: Path) -> None:
    survived = in_workers(cartpole, edits=[dying_once(tmp_path / "died")])
    assert (tmp_path / "died").exists()
    assert same_rows(survived, alone)


def test_workers_that_die_again_and_again_are_given_up(cartpole: rlm.HookedPolicy, tmp_path: Path) -> None:
    deadly = ("1.hook_out", lambda tensor, hook: os._exit(1))
    with pytest.raises(WorkerError, match="died 4 times in a row") as caught:
        in_workers(cartpole, edits=[deadly], path=tmp_path / "r")
    assert "seeds still to do [0, 1" in caught.value.given
    assert not (tmp_path / "r").exists()


def test_what_an_episode_raises_is_raised_here(cartpole: rlm.HookedPolicy) -> None:
    def failing(tensor: Any, hook: Any) -> None:
        raise ZeroDivisionError("in the hook")

    with pytest.raises(ZeroDivisionError, match="in the hook"):
        in_workers(cartpole, edits=[("1.hook_out", failing)])


@pytest.mark.skipif(sys.platform == "win32", reason="a process may stand between the two")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = """
import os, sys, time, torch, rlmech as rlm
policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
def slow(tensor, hook):
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(0.2)
if __name__ == "__main__":
    rlm.record(policy, "CartPole-v1", seeds=range(100000), edits=[("hook_obs", slow)], workers=2, progress=False)
"""
    script, seen = tmp_path / "run.py", tmp_path / "seen"
    script.write_text(code)
    seen.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(seen)])
    try:
        until(lambda: len(list(seen.iterdir())) == 2, seconds=240)
    finally:
        parent.kill()
        parent.wait()
    workers = [int(file.name) for file in seen.iterdir()]
    until(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers), seconds=60)


def until(holds: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_unknown_backend_and_a_missing_package_are_told(
    cartpole: rlm.HookedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no such backend"):
        in_workers(cartpole, backend="rye")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError) as caught:
        in_workers(cartpole, backend="ray")
    assert "pip install 'rlmech[ray]'" in caught.value.fix


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def test_ray_records_what_one_process_does_and_redoes_what_a_lost_worker_had(
    cartpole: rlm.HookedPolicy, alone: Recording, ray_cluster: None, tmp_path: Path
) -> None:
    assert in_workers(cartpole, backend="ray").equals(alone)
    survived = in_workers(cartpole, backend="ray", edits=[dying_once(tmp_path / "died")])
    assert (tmp_path / "died").exists()
    assert same_rows(survived, alone)

    def failing(tensor: Any, hook: Any) -> None:
        raise ZeroDivisionError("in the hook")

    with pytest.raises(ZeroDivisionError, match="in the hook"):
        in_workers(cartpole, backend="ray", edits=[("1.hook_out", failing)])


def test_dask_records_what_one_process_does(cartpole: rlm.HookedPolicy, alone: Recording) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        assert in_workers(cartpole, backend="dask").equals(alone)


def test_a_worker_builds_its_policy_once(cartpole: rlm.HookedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlmech.episodes import workers
    from rlmech.episodes.driving import Driver

    made: list[int] = []

    class Counted(Runner):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(workers, "Runner", Counted)
    env = make_env("CartPole-v1")
    work = workers.Work(
        drivers={"": Driver(policy=cartpole)}, frames=False, outcomes=(), identity=simulator_of(env).identity(env)
    )
    job = workers._packed(env, work, parent=None)
    for task in range(3):
        workers._work(job, task, [(task, task)])
    assert len(made) == 1
