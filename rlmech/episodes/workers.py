"""Episodes in many processes: on this machine through joblib, on a cluster through Ray or Dask.

Each task is a few seeds; what it returns goes to the one process that writes, in whatever order tasks finish. Tasks of
a worker that died are given to another. A worker builds its environment and policy once. Cost: a second or two for the
start of each process, about a millisecond a task.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import gymnasium as gym
import torch

from rlmech.episodes.simulation import Runner
from rlmech.errors import ConfigError, MissingPackageError, WorkerError
from rlmech.simulators.choice import simulator_of

if TYPE_CHECKING:
    from rlmech.episodes.driving import Driver
    from rlmech.episodes.shards import Episodes

Backend = Literal["processes", "ray", "dask"]
Numbered = tuple[int, int]  # an episode's number and seed
Result = tuple[list["dict[str, Episodes]"], str, int]  # episodes by driver, why they share, steps simulated

MOST_LOSSES = 3
MOST_SEEDS = 16  # in a task: what a lost worker loses
_LOST = {
    *("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "CommClosedError"),
    *("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError", "LocalRayletDiedError"),
}
_READY: dict[str, Runner] = {}  # in a worker: the one runner that it keeps


def simulate_here(
    env: gym.Env,
    drivers: Mapping[str, Driver],
    numbered: list[Numbered],
    *,
    frames: bool,
    deliver: Callable[[Result], None],
) -> None:
    """Run episodes in this process; arguments as for `simulate_in_processes`."""
    runner = Runner(env, drivers, frames=frames)
    for number, seed in numbered:
        deliver(_simulated(runner, [(number, seed)]))


def simulate_in_processes(
    env: gym.Env,
    drivers: Mapping[str, Driver],
    numbered: list[Numbered],
    *,
    frames: bool,
    workers: int,
    backend: Backend,
    deliver: Callable[[Result], None],
) -> None:
    """Run episodes in workers, and hand over what they return as it comes.

    Args:
        env: An environment that Gymnasium can make again.
        drivers: By name.
        numbered: Numbers and seeds of the episodes.
        frames: Whether to keep pictures.
        workers: Processes.
        backend: `processes` of this machine, or those of a `ray` or `dask` cluster.
        deliver: Called in this process with the results of a task.

    Raises:
        ConfigError: The environment or a driver cannot be sent to a worker.
        WorkerError: Workers died several times without a task finished in between.
        MissingPackageError: The backend is not installed.
    """
    job = _packed(env, drivers, frames=frames)
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


def _packed(env: gym.Env, drivers: Mapping[str, Driver], *, frames: bool) -> bytes:
    """What a worker needs, after trying that it can be sent and that the environment can be made again from it."""
    if any(driver.policy.has_hooks for driver in drivers.values()):
        raise ConfigError(
            "The policy's hooks would stay behind: a policy is sent to workers without them.",
            given="a policy with functions attached to its hook points",
            expected="one without, so that episodes are the same in one process or many",
            fix="give what acts as edits=..., or set workers=1",
        )
    try:
        config = getattr(env.unwrapped, "config", None)
        job = cloudpickle.dumps((env.spec, config, bool(simulator_of(env).acceleration(env)), dict(drivers), frames))
        gym.make(cloudpickle.loads(job)[0]).close()
    except Exception as error:
        raise ConfigError(
            "The environment or the policy cannot be sent to workers.",
            given=f"{type(error).__name__}: {error}",
            expected="an environment that gymnasium.make can make again with its wrappers, and edits, conditions and "
            "policies without open files, locks and the like",
            fix="set workers=1; a wrapper of your own can be made again when it inherits "
            "gymnasium.utils.RecordConstructorArgs, too",
        ) from error
    return job


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
        options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "2*n_jobs"}
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


def _import_backend(module: str, extra: str) -> Any:
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
    episodes = [runner.run(number, seed) for number, seed in numbered]
    return episodes, runner.sharing, runner.n_simulated - before


def _runner(job: bytes) -> Runner:
    key = hashlib.sha256(job).hexdigest()
    if key not in _READY:
        _READY.clear()
        made, config, accelerated, drivers, frames = cloudpickle.loads(job)
        env: Any = gym.make(made)
        if config is not None and hasattr(env.unwrapped, "configure"):  # highway-env's
            env.unwrapped.configure(dict(config))
        if accelerated:
            simulator_of(env).accelerate(env)
        _READY[key] = Runner(env, drivers, frames=frames)
    return _READY[key]
