"""Run a policy's episodes and write down what it saw, computed and did.

Episodes are the same, bit for bit, recorded or not, with one worker or many: each begins with `reset(seed=...)`,
nothing is observed twice, and one thread does the arithmetic. Cost: the environment's stepping, a forward pass a step.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import cache
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from rlmech.arguments import explain_misuse
from rlmech.core.modes import evaluating
from rlmech.episodes import recording as store
from rlmech.episodes.driving import Condition, Driver, Hook, Names, hook_names
from rlmech.episodes.log import Flush, Log, lacking_of
from rlmech.episodes.manifest import FORMAT
from rlmech.episodes.recording import Recording
from rlmech.episodes.simulation import checked_outcomes
from rlmech.episodes.when import Moment, When
from rlmech.episodes.workers import Backend, Result, Work, one_thread, simulate_here, simulate_in_processes
from rlmech.errors import ConfigError, EnvironmentFitError, RecordingError
from rlmech.progress import progress_bar, remark
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.env import acting_in, environment, spec_of
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy
    from rlmech.simulators.protocol import Outcome

_TOLD_ELSEWHERE = ("config", "render_mode")
PACKAGES = ("rlmech", "torch", "numpy", "gymnasium", "highway-env")


@explain_misuse
def record(
    policy: HookedPolicy,
    env: gym.Env | str,
    *,
    seeds: Iterable[int],
    names: Names = (),
    edits: Sequence[Edit | Hook] = (),
    when: When | Callable[[Moment], bool] | int | Iterable[int] | None = None,
    deterministic: bool = True,
    frames: bool = False,
    outcomes: Sequence[Outcome] = (),
    workers: int = 1,
    backend: Backend = "processes",
    path: str | Path | None = None,
    progress: bool = True,
) -> Recording:
    """Record one episode for each seed, driven by the policy's best action.

    A recurrent policy begins each episode in its initial state; what it carries on is recorded at its state's points.

    Args:
        policy: The policy.
        env: An environment that fits it, or the id of one, which is made as the policy's own where it has that id.
        seeds: Seeds of the episodes, each once.
        names: Hook points to record: names, globs, a function of the name; None for all, `()` for none.
        edits: Edits, or pairs of a hook name and a function, that act while the policy drives.
        when: When they act: None for always, a step, several, a range, one of `rlm.episodes.when`, or a function
            of a `Moment`.
        deterministic: Whether the policy's best action is done; else logits are sampled, by numbers that follow from
            the episode's seed and the step alone: the same in every recording.
        frames: Whether to keep a picture of every scene decided in; needs `render_mode="rgb_array"`.
        outcomes: What to tell of each episode beside what the environment's simulator tells, read from `info`: e.g.
            `rlm.simulators.Outcome(name="is_success", kind="share")`. Columns of `steps` and `episodes`.
        workers: Processes to run in.
        backend: Where they run: `processes` of this machine, or those of a `ray` or `dask` cluster.
        path: Directory to write; of a recording made in the same way, only the seeds that it lacks are run. None for a
            temporary one that goes when the recording does.
        progress: Whether to draw a progress bar.

    Returns:
        The recording of these seeds, on disk at `path`.

    Raises:
        EnvironmentFitError: The environment's spaces do not fit the policy, it takes no seed, or it gives a reward or
            an observation that is infinite or NaN.
        RecordingError: The path is taken by something else, or could not be written to; finished episodes are kept.
        ConfigError: No seeds, one twice, frames of an environment that makes none, no worker, edits that are none, an
            outcome that the environment does not tell, or an environment that workers would not have as it is.
        SiteError: A name that no hook point has.
        WorkerError: Workers died again and again.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=[7], names="hook_obs", progress=False)
        >>> recording.axes("hook_obs"), len(recording.steps) == len(recording.activation("hook_obs"))
        (('step', 'feature'), True)
    """
    condition = Condition(edits=edits, when=when)
    recordings = record_conditions(
        policy,
        env,
        {"": condition},
        seeds=seeds,
        names=names,
        deterministic=deterministic,
        frames=frames,
        outcomes=outcomes,
        workers=workers,
        backend=backend,
        paths=None if path is None else {"": Path(path)},
        progress=progress,
    )[0]
    recording = recordings[""]
    if edits and not recording.steps["edited"].any():
        held = recording.manifest["when"]
        remark(
            f"The edits were never at work: in no step of the {len(recording)} episodes held: {held}.", enabled=progress
        )
    return recording


def record_conditions(
    policy: HookedPolicy,
    env: gym.Env | str,
    conditions: Mapping[str, Condition],
    *,
    seeds: Iterable[int],
    names: Names,
    deterministic: bool = True,
    frames: bool,
    outcomes: Sequence[Outcome],
    workers: int,
    backend: Backend,
    paths: Mapping[str, Path] | None,
    progress: bool,
) -> tuple[dict[str, Recording], JsonObject]:
    """Record one episode for each seed and condition; conditions share simulation for as long as they do the same.

    Args:
        policy: The policy of conditions that name none.
        env: An environment that fits all policies, or the id of one.
        conditions: By name.
        seeds: As for `record`, like the rest.
        names: Hook points to record.
        deterministic: Whether the best action is done, or one is drawn.
        frames: Whether to keep pictures.
        outcomes: What to tell of each episode beside what the simulator tells.
        workers: Processes.
        backend: Where they run.
        paths: A directory for each condition; None for temporary ones.
        progress: Whether to draw a progress bar.

    Returns:
        A recording for each condition, and what it took: `sharing`, `n_simulated` environment steps.
    """
    env = environment(env, policy=policy)
    outcomes = checked_outcomes(simulator_of(env), outcomes)
    seeds = _checked(seeds, env, frames=frames, workers=workers)
    with one_thread(), ExitStack() as while_driving:
        given: JsonObject = {"names": names, "deterministic": deterministic}
        policies = [one.policy or policy for one in conditions.values()]
        acting = {id(own): acting_in(own, env) for own in policies}
        drivers = {
            name: Driver.of(acting[id(one.policy or policy)], replace(one, policy=None), **given)
            for name, one in conditions.items()
        }
        for driver in {id(driver.policy): driver for driver in drivers.values()}.values():
            while_driving.enter_context(evaluating(driver.policy.module))  # dropout and the like at rest
            driver.policy.check_unchanged()
        work = Work(drivers=drivers, frames=frames, outcomes=outcomes, identity=simulator_of(env).identity(env))
        manifests = _manifests(work, env, seeds)
        folder = store.TemporaryFolder() if paths is None else None
        if folder is not None:
            paths = {name: folder.path / str(i) for i, name in enumerate(drivers)}
        logs = {name: Log(Path(path), manifests[name], while_driving) for name, path in (paths or {}).items()}
        cost = _simulate(env, work, logs, seeds, workers=workers, backend=backend, progress=progress)
    recordings = {name: Recording.load(log.path).of_seeds(seeds) for name, log in logs.items()}
    if folder is not None:
        recordings = {name: recording.hold(folder) for name, recording in recordings.items()}
    return recordings, cost


def _simulate(
    env: gym.Env,
    work: Work,
    logs: Mapping[str, Log],
    seeds: list[int],
    *,
    workers: int,
    backend: Backend,
    progress: bool,
) -> JsonObject:
    cost: JsonObject = {"sharing": "nothing was left to simulate", "n_simulated": 0}
    lacking, flush = lacking_of(logs, seeds), Flush(logs)
    try:
        with progress_bar("recording", sum(map(len, lacking.values())), enabled=progress) as advance:

            def deliver(result: Result) -> None:
                for episodes in result[0]:
                    for name, part in episodes.items():
                        logs[name].add(part)
                    advance(len(next(iter(episodes.values())).numbers))
                cost["sharing"], cost["n_simulated"] = result[1], cost["n_simulated"] + result[2]
                flush.if_due()

            for names, numbered in lacking.items():
                own = replace(work, drivers={name: work.drivers[name] for name in names})
                if workers == 1 and backend == "processes":
                    simulate_here(env, own, numbered, deliver=deliver)
                else:
                    simulate_in_processes(env, own, numbered, workers=workers, backend=backend, deliver=deliver)
        flush.now()
        for log in logs.values():
            log.writer.close()
    except BaseException:
        with suppress(RecordingError):  # what stopped it is raised, and may be this very error
            flush.now()
        for log in logs.values():
            log.writer.abandon()
        raise
    return cost


def _checked(seeds: Iterable[int], env: gym.Env, *, frames: bool, workers: int) -> list[int]:
    given: Any = seeds
    with suppress(TypeError):  # a number is no seeds
        given = list(given)
    try:
        checked = [index(seed) for seed in given]
    except TypeError:
        checked = []  # not whole numbers, or none at all
    if not checked or len(set(checked)) < len(checked) or min(checked) < 0 or max(checked) >= 2**63:
        raise ConfigError(
            "Each episode needs a seed of its own.",
            given=given[:20] if isinstance(given, list) else repr(given),
            expected="whole numbers: at least one, none below 0 or beyond 64 bits, none twice",
            fix="give e.g. seeds=range(20)",
        )
    if frames and env.render_mode != "rgb_array":
        raise ConfigError(
            "The environment makes no pictures.",
            given=f"render_mode={env.render_mode!r}",
            expected="render_mode='rgb_array'",
            fix="make_env(..., render_mode='rgb_array'), or record without frames",
        )
    if np.any(np.asarray(getattr(env.action_space, "start", 0)) != 0):
        raise EnvironmentFitError(
            "The environment counts its actions from elsewhere than 0.",
            given=f"actions in {env.action_space}",
            expected="a Discrete space that starts at 0, as policies' scores do",
            fix="wrap it in a gymnasium.Wrapper that shifts the actions",
        )
    if workers < 1:
        raise ConfigError(
            "The episodes cannot be given to that many workers.",
            given=f"workers={workers}",
            expected="at least one worker",
            fix="set workers=1",
        )
    return checked


def _manifests(work: Work, env: gym.Env, seeds: list[int]) -> dict[str, JsonObject]:
    """What a reader needs to know of each condition, found out on the first scene."""
    observation, spec, simulator = env.reset(seed=seeds[0])[0], spec_of(env), simulator_of(env)
    manifests: dict[str, JsonObject] = {}
    for name, driver in work.drivers.items():
        policy = driver.policy
        activations = hook_names(policy, driver.names)
        manifest = {
            "format": FORMAT,
            "versions": {package: _version(package) for package in PACKAGES},
            **driver.describe(),
            "spec": (spec if spec.features or spec.actions else policy.spec).to_json(),
            "env": {"id": spec.env_id, "config": spec.env_config, **_made(env)},
            "simulator": simulator.name,
            "acceleration": asdict(simulator.acceleration(env)),
            "identity": dict(work.identity),
            "outcomes": [outcome.to_json() for outcome in (*simulator.outcomes, *work.outcomes)],
            "seeds": seeds,
            "activations": {point: ["step", *policy.hook_dict[point].axes[1:]] for point in activations},
            "observation_keys": list(observation) if isinstance(observation, dict) else [],
            "pass_rows": policy.rows_at_once,
            "frames": work.frames,
            "lanes": simulator.map(env),
        }
        manifests[name] = json.loads(json.dumps(manifest, default=_as_json))  # as it will be read back
    return manifests


@cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _made(env: gym.Env) -> JsonObject:
    """How Gymnasium makes the environment: keywords, length of an episode, wrappers."""
    if env.spec is None:
        return {"keywords": {}, "max_episode_steps": None, "wrappers": []}
    return {
        "keywords": {key: value for key, value in env.spec.kwargs.items() if key not in _TOLD_ELSEWHERE},
        "max_episode_steps": env.spec.max_episode_steps,
        "wrappers": [{"entry_point": one.entry_point, "keywords": one.kwargs} for one in env.spec.additional_wrappers],
    }


def _as_json(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return getattr(value, "__qualname__", type(value).__qualname__)
