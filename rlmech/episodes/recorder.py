"""Run a policy's episodes and write down what it saw, computed and did.

Episodes are the same, bit for bit, recorded or not, with one worker or many: each begins with `reset(seed=...)`,
nothing is observed twice, and one thread does the arithmetic. Cost: the environment's stepping, a forward pass a step.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import cache
from operator import index, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from rlmech.arguments import explain_misuse
from rlmech.core.modes import evaluating
from rlmech.episodes import recording as store
from rlmech.episodes.driving import Condition, Driver, Hook, Names, hook_names
from rlmech.episodes.manifest import FORMAT, MANIFEST, create, read_manifest, write_manifest
from rlmech.episodes.recording import Recording
from rlmech.episodes.shards import MOST_BYTES, MOST_EPISODES, SHARDS, Episodes, Writer, joined, sole_writer
from rlmech.episodes.simulation import checked_outcomes
from rlmech.episodes.when import Moment, When
from rlmech.episodes.workers import Backend, Result, Work, one_thread, simulate_here, simulate_in_processes
from rlmech.errors import ConfigError, EnvironmentFitError, RecordingError
from rlmech.progress import progress_bar, remark
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.env import acting_in, environment, spec_of
from rlmech.simulators.identity import differences, listed
from rlmech.untyped import JsonObject, Settings

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy
    from rlmech.simulators.protocol import Outcome

_TOLD_ELSEWHERE = ("config", "render_mode")
PATIENCE = 20.0
"""Between two times of writing, so many times what the last one took: writing takes a twentieth of the time."""
SHARD_SECONDS = 0.005
"""What a shard takes to write, until one has been written."""
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
        logs = {name: _Log(Path(path), manifests[name], while_driving) for name, path in (paths or {}).items()}
        cost = _simulate(env, work, logs, seeds, workers=workers, backend=backend, progress=progress)
    recordings = {name: Recording.load(log.path).of_seeds(seeds) for name, log in logs.items()}
    if folder is not None:
        recordings = {name: recording.hold(folder) for name, recording in recordings.items()}
    return recordings, cost


def _simulate(
    env: gym.Env,
    work: Work,
    logs: Mapping[str, _Log],
    seeds: list[int],
    *,
    workers: int,
    backend: Backend,
    progress: bool,
) -> JsonObject:
    cost: JsonObject = {"sharing": "nothing was left to simulate", "n_simulated": 0}
    lacking, flush = _lacking(logs, seeds), _Flush(logs)
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


class _Flush:
    """Writes what was delivered: at once where that is quick, else so that writing takes a small part of the time.

    Args:
        logs: Where it is written.
    """

    def __init__(self, logs: Mapping[str, _Log]) -> None:
        self._logs = logs
        self._due = time.monotonic() + PATIENCE * SHARD_SECONDS * len(logs)

    def if_due(self) -> None:
        """Write, unless that was done a short while ago."""
        if time.monotonic() >= self._due or sum(log.n_bytes for log in self._logs.values()) >= MOST_BYTES:
            self.now()

    def now(self) -> None:
        """Write."""
        began = time.monotonic()
        for log in self._logs.values():
            log.flush()
        ended = time.monotonic()
        self._due = ended + PATIENCE * (ended - began)


def _lacking(logs: Mapping[str, _Log], seeds: list[int]) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Numbers and seeds of the episodes to run, by the conditions that lack them."""
    number_of = next(iter(logs.values())).number_of
    lacking: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for seed in seeds:
        if names := tuple(name for name, log in logs.items() if log.lacks(seed)):
            lacking.setdefault(names, []).append((number_of[seed], seed))
    return lacking


class _Log:
    """Where a condition's episodes are written: a new recording, or one to go on with.

    Args:
        path: Its directory.
        manifest: How the episodes are made.
        while_writing: Keeps other processes out until it closes.
    """

    def __init__(self, path: Path, manifest: Settings, while_writing: ExitStack) -> None:
        self.path = path
        seeds = list(manifest["seeds"])
        if (path / MANIFEST).exists():
            while_writing.enter_context(sole_writer(path))
            there = read_manifest(path)
            _check_same(path, there, manifest)
            seeds = there["seeds"] + [seed for seed in seeds if seed not in set(there["seeds"])]
            if seeds != there["seeds"]:
                write_manifest(path, {**there, "seeds": seeds})
        else:
            _remove_unbegun(path)
            create(path, manifest)
            while_writing.enter_context(sole_writer(path))
        self.number_of = {seed: number for number, seed in enumerate(seeds)}
        self.writer = Writer(path)
        self.n_bytes = 0
        self._left: list[tuple[int, Episodes]] = []  # by their first numbers, episodes with consecutive numbers

    def lacks(self, seed: int) -> bool:
        return self.number_of[seed] not in self.writer.finished

    def add(self, part: Episodes) -> None:
        """Take episodes to be written, under their numbers here, where seeds may have come in another order."""
        numbers = [self.number_of[seed] for seed in part.episodes["seed"].to_pylist()]
        own = part if part.numbers == numbers else part.numbered(numbers)
        start = 0
        for place in range(1, len(numbers) + 1):
            if place == len(numbers) or numbers[place] != numbers[place - 1] + 1 or place - start == MOST_EPISODES:
                whole = start == 0 and place == len(numbers)
                self._left.append((numbers[start], own if whole else own.part(start, place)))
                start = place
        self.n_bytes += sum(array.nbytes for array in part.arrays.values())

    def flush(self) -> None:
        """Write what was taken, as few shards.

        Raises:
            RecordingError: There is no room for it.
        """
        left, self._left, self.n_bytes = sorted(self._left, key=itemgetter(0)), [], 0
        while left:
            run = [left.pop(0)[1]]
            n_episodes = len(run[0].numbers)
            while left and left[0][0] == run[-1].numbers[-1] + 1 and n_episodes < MOST_EPISODES:
                run.append(left.pop(0)[1])
                n_episodes += len(run[-1].numbers)
            self.writer.add(joined(run) if len(run) > 1 else run[0])


def _remove_unbegun(path: Path) -> None:
    """Remove what a kill left of a recording before it had a manifest: an empty directory, or one of empty shards."""
    for folder in (path / SHARDS, path):
        with suppress(OSError):  # not there, or not empty: then it is something else
            folder.rmdir()


def _check_same(path: Path, there: Settings, ours: Settings) -> None:
    """Check that a recording can be gone on with."""
    if different := differences(there["identity"], ours["identity"]):
        raise RecordingError(
            "The recording at this path is of another environment.",
            given=f"{path}, which differs in {listed(different)} (there, here)",
            expected="the environment that was recorded, with its keywords, configuration, wrappers and attributes",
            fix="choose another path, or make the environment as it was",
        )
    there = {"pass_rows": 1, **there}  # as all were before it was told
    keys = [key for key in ours if key not in ("seeds", "lanes", "identity", "acceleration") and key in there]
    differ = [key for key in keys if there[key] != ours[key]]
    if differ or None in ours["edits_digest"] or not ours["when_told"]:
        untold = "its edits are functions" if None in ours["edits_digest"] else "its condition is a function"
        what = ", ".join(differ) or f"nothing that can be told, but {untold}"
        raise RecordingError(
            "There is another recording at this path.",
            given=f"{path}, which differs in {what}: { ({key: there.get(key) for key in differ[:2]}) }",
            expected=f"a recording of { ({key: ours[key] for key in differ[:2]}) }",
            fix="choose another path, or remove that recording",
        )


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
