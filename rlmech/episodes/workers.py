"""Episodes in many processes: on this machine through joblib, on a cluster through Ray or Dask.

Each task is a few seeds; what it returns goes to the one process that writes, in whatever order tasks finish. Tasks of
a worker that died are given to another, and workers end when the process that started them does. A worker builds its
environment and policy once, and checks that it is the environment that was given. Cost: a second or two for the start
of each process, about a millisecond a task.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import gymnasium as gym
import torch

from rlmech.episodes.sending import made, sent
from rlmech.episodes.simulation import Numbered, Runner
from rlmech.errors import ConfigError, MissingPackageError, WorkerError
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.identity import differences, listed
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    from rlmech.episodes.driving import Driver
    from rlmech.episodes.episode_tables import Episodes
    from rlmech.simulators.protocol import Outcome

Backend = Literal["processes", "ray", "dask"]
Result = tuple[list["dict[str, Episodes]"], str, int]  # episodes by driver, why those share, steps simulated

MOST_LOSSES = 3
MOST_SEEDS = 16  # in a task: what a lost worker loses
PARENT_EVERY = 0.5  # seconds between two looks at whether the process that started a worker is there
_LOST = {
    *("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "CommClosedError"),
    *("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError", "LocalRayletDiedError"),
}
_READY: dict[str, Runner] = {}  # in a worker: the one runner that it keeps
_WATCHING: set[int] = set()  # in a worker: processes at whose end it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What episodes are made of.

    Attributes:
        drivers: By name.
        frames: Whether to keep pictures.
        outcomes: What to tell of each episode beside what the simulator tells.
        identity: The environment's, by which a worker knows that its own is the same.
    """

    drivers: Mapping[str, Driver]
    frames: bool
    outcomes: Sequence[Outcome]
    identity: Mapping[str, str]

    def runner(self, env: gym.Env) -> Runner:
        """What runs them in an environment."""
        return Runner(env, self.drivers, frames=self.frames, outcomes=self.outcomes, identity=self.identity)


def simulate_here(env: gym.Env, work: Work, numbered: list[Numbered], *, deliver: Callable[[Result], None]) -> None:
    """Run episodes in this process; arguments as for `simulate_in_processes`."""
    runner = work.runner(env)
    before = 0
    for episodes in runner.run(numbered):
        deliver(([episodes], runner.sharing, runner.n_simulated - before))
        before = runner.n_simulated


def simulate_in_processes(
    env: gym.Env,
    work: Work,
    numbered: list[Numbered],
    *,
    workers: int,
    backend: Backend,
    deliver: Callable[[Result], None],
) -> None:
    """Run episodes in workers, and hand over what they return as it comes.

    Args:
        env: An environment that can be pickled, or made again by Gymnasium, with all that makes its episodes.
        work: What episodes are made of.
        numbered: Numbers and seeds of the episodes.
        workers: Processes.
        backend: `processes` of this machine, or those of a `ray` or `dask` cluster.
        deliver: Called in this process with the results of a task.

    Raises:
        ConfigError: The environment or a driver cannot be sent to a worker.
        WorkerError: Workers died several times without a task finished in between.
        MissingPackageError: The backend is not installed.
    """
    job = _packed(env, work, parent=os.getpid() if backend == "processes" else None)
    size = max(1, min(MOST_SEEDS, -(-len(numbered) // (workers * 8))))
    waiting = {i: numbered[i : i + size] for i in range(0, len(numbered), size)}
    run = {"processes": _through_joblib, "ray": _through_ray, "dask": _through_joblib}[_known(backend)]
    losses = 0
    while waiting:
        try:
            for task, result in run(job, dict(waiting), workers, backend):
                del waiting[task]
                losses = 0
                deliver(result)
        except Exception as error:
            if not any(cls.__name__ in _LOST for cls in type(error).__mro__):
                raise
            losses += 1
            if losses > MOST_LOSSES:
                seeds = [seed for part in waiting.values() for _, seed in part]
                raise WorkerError(
                    f"Workers died {losses} times in a row without finishing an episode.",
                    given=f"{workers} workers, seeds still to do {seeds[:8]}{'...' if len(seeds) > 8 else ''}: {error}",
                    expected="workers that live as long as an episode",
                    fix="look for too little memory, set fewer workers, or run one seed with workers=1 to see it fail; "
                    "finished episodes are kept when a path is given",
                ) from error


def _packed(env: gym.Env, work: Work, *, parent: int | None) -> bytes:
    """What a worker needs, after trying that it can be sent and that the environment comes out of it the same."""
    if any(driver.policy.has_hooks for driver in work.drivers.values()):
        raise ConfigError(
            "The policy's hooks would stay behind: a policy is sent to workers without them.",
            given="a policy with functions attached to its hook points",
            expected="one without, so that episodes are the same in one process or many",
            fix="give what acts as edits=..., or set workers=1",
        )
    try:
        packed = cloudpickle.dumps(work)
    except Exception as error:
        raise ConfigError(
            "The policy, its edits or the outcomes cannot be sent to workers.",
            given=f"{type(error).__name__}: {error}",
            expected="edits, conditions, outcomes and policies without open files, locks and the like",
            fix="set workers=1",
        ) from error
    return cloudpickle.dumps((sent(env, work.identity), packed, parent))


@contextmanager
def one_thread() -> Generator[None]:
    """Compute on one thread: sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _known(backend: str) -> Backend:
    if backend not in ("processes", "ray", "dask"):
        raise ConfigError(
            "There is no such backend.",
            given=f"backend={backend!r}",
            expected="'processes', 'ray' or 'dask'",
            fix="backend='processes' runs on this machine",
        )
    return backend


def _through_joblib(
    job: bytes, tasks: dict[int, list[Numbered]], workers: int, backend: Backend
) -> Iterable[tuple[int, Result]]:
    from joblib import Parallel, delayed, parallel_config

    name = "loky" if backend == "processes" else "dask"
    if backend == "dask":
        _import_backend("distributed", "dask")
    with parallel_config(name, n_jobs=workers):
        calls = [delayed(_work)(job, task, seeds) for task, seeds in tasks.items()]
        options: JsonObject = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "2*n_jobs"}
        done: Any = Parallel(**options)(calls)
        yield from done


def _through_ray(
    job: bytes, tasks: dict[int, list[Numbered]], workers: int, backend: Backend
) -> Iterable[tuple[int, Result]]:
    ray = _import_backend("ray", backend)
    if not ray.is_initialized():
        here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **here)
    shared = ray.put(job)
    remote = ray.remote(max_retries=MOST_LOSSES, num_cpus=1)(_work)
    waiting, running = iter(tasks.items()), []
    for _ in range(2 * workers):
        running += [remote.remote(shared, *call) for call in [next(waiting, None)] if call is not None]
    try:
        while running:
            (done, *_), running = ray.wait(running, num_returns=1)
            running += [remote.remote(shared, *call) for call in [next(waiting, None)] if call is not None]
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:  # what an episode raised, as if it had been raised here
        raise error.cause from error
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _import_backend(module: str, extra: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise MissingPackageError(
            f"The backend {extra!r} needs a package that is not installed.",
            given=f"backend={extra!r}",
            expected=f"the package {module}",
            fix=f"pip install 'rlmech[{extra}]'",
        ) from None


def _work(job: bytes, task: int, numbered: list[Numbered]) -> tuple[int, Result]:
    """Run a task in a worker, in an environment made anew."""
    with one_thread():
        return task, _simulated(_runner(job), numbered)


def _simulated(runner: Runner, numbered: list[Numbered]) -> Result:
    before = runner.n_simulated
    episodes = list(runner.run(numbered))
    return episodes, runner.sharing, runner.n_simulated - before


def _runner(job: bytes) -> Runner:
    key = hashlib.sha256(job).hexdigest()
    if key not in _READY:
        _READY.clear()
        environment, packed, parent = cloudpickle.loads(job)
        if parent is not None and parent not in _WATCHING:
            _WATCHING.add(parent)
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        env, work = made(environment), cloudpickle.loads(packed)
        if different := differences(work.identity, simulator_of(env).identity(env)):
            raise ConfigError(
                "A worker's environment is not the one that was given.",
                given=f"a difference in {listed(different)} (here, there)",
                expected="classes and modules as they are when they are imported, in this process and in the worker",
                fix="set workers=1, or make the change in the environment itself, or as a keyword of gymnasium.make",
            )
        _READY[key] = work.runner(env)
    return _READY[key]


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, however it did: nobody waits for its episodes."""
    while os.getppid() == parent:
        time.sleep(PARENT_EVERY)
    if os.name == "posix":  # elsewhere another process may stand between the two
        os._exit(1)
