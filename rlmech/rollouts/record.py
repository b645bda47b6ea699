"""Run a policy's episodes and write down what it saw, computed and did.

Episodes are the same, bit for bit, recorded or not, with one worker or many: each begins with `reset(seed=...)`,
nothing is observed twice, and one thread does the arithmetic. Cost: the environment's stepping, a forward pass a step.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from rich.progress import track

from rlmech.errors import ConfigError
from rlmech.rollouts import recording as store
from rlmech.rollouts.env import check_fit, spec_of
from rlmech.rollouts.episode import Step, run_episode
from rlmech.rollouts.recording import Recording
from rlmech.rollouts.traffic import VEHICLE_COLUMNS, World, lanes_of

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy

Names = None | str | Sequence[str] | Callable[[str], bool]
PACKAGES = ("rlmech", "torch", "numpy", "gymnasium", "highway-env")
CHUNKS_PER_WORKER = 4


def record(
    policy: HookedPolicy,
    env: gym.Env,
    *,
    seeds: Iterable[int],
    names: Names = (),
    edits: Sequence[Edit] = (),
    frames: bool = False,
    workers: int = 1,
    path: str | Path | None = None,
    progress: bool = True,
) -> Recording:
    """Record one episode for each seed, driven by the policy's best action.

    Args:
        policy: The policy.
        env: An environment that fits it.
        seeds: Seeds of the episodes, each once.
        names: Hook points to record: names, globs, a function of the name; None for all, `()` for none.
        edits: Edits that act at every step.
        frames: Whether to keep a picture of every scene decided in; needs `render_mode="rgb_array"`.
        workers: Processes to run in.
        path: Directory to write; None for a temporary one that goes when the recording does.
        progress: Whether to draw a progress bar.

    Returns:
        The recording, on disk at `path`.

    Raises:
        EnvironmentFitError: The environment's spaces do not fit the policy.
        RecordingError: The path is taken, or could not be written to; finished episodes are kept.
        ConfigError: No seeds, one twice, frames of an environment that makes none, or no worker.
        SiteError: A name that no hook point has.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=[7], names="hook_obs", progress=False)
        >>> recording.axes("hook_obs"), len(recording.steps) == len(recording.activation("hook_obs"))
        (('step', 'feature'), True)
    """
    seeds = _checked(seeds, env, frames=frames, workers=workers)
    check_fit(policy, env)
    job = _Job(policy=policy, names=names, edits=tuple(edits), frames=frames)
    with _one_thread():
        manifest = _manifest(job, env, seeds)
        folder = store.TemporaryFolder() if path is None else None
        path = folder.path / "recording" if folder else Path(path or "")
        store.create(path, manifest)
        try:
            if workers == 1:
                numbered = track(list(enumerate(seeds)), "recording", disable=not progress)
                _run(job, env, path, numbered)
            else:
                _run_in_processes(job, env, path, seeds, workers=workers, progress=progress)
        except BaseException:
            store.abandon(path)
            raise
    recording = Recording.load(path)
    return recording if folder is None else recording.hold(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    policy: HookedPolicy
    names: Names
    edits: tuple[Edit, ...]
    frames: bool

    def score(self, observation: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scores `[1, action]` of one observation, and the activations asked for."""
        batch = _batched(observation)
        if self.names is not None and not callable(self.names) and len(self.names) == 0:
            return self.policy(batch), {}
        scores, cache = self.policy.run_with_cache(batch, self.names)
        return scores, dict(cache)

    def choose(self, scores: torch.Tensor, observation: Any) -> Any:
        """The action that the policy takes."""
        if self.policy.output_kind == "mean_action":
            return self.policy.predict(observation, deterministic=True)[0]
        return int(scores[0].argmax())


class _Notes:
    """What one episode leaves behind, in the order of its decisions."""

    def __init__(self, job: _Job, world: World) -> None:
        self.job, self.world = job, world
        self.scores: list[np.ndarray] = []
        self.activations: list[dict[str, np.ndarray]] = []
        self.frames: list[np.ndarray] = []
        self.scenes: list[list[tuple[Any, ...]]] = []

    def decide(self, observation: Any) -> Any:
        self.scenes.append(self.world.vehicles)
        if self.job.frames:
            self.frames.append(_picture(self.world.env))
        scores, activations = self.job.score(observation)
        self.scores.append(scores[0].cpu().numpy())
        self.activations.append({name: value[0].cpu().numpy() for name, value in activations.items()})
        return self.job.choose(scores, observation)

    def write(self, path: Path, number: int, seed: int, steps: list[Step]) -> None:
        self.scenes.append(self.world.vehicles)  # what the last action led to
        arrays = _stacked(store.OBSERVATION, [step.observation for step in steps])
        arrays |= _stacked(store.FINAL, [steps[-1].next_observation])
        arrays[store.ACTION] = np.stack([np.asarray(step.action) for step in steps])
        arrays[store.SCORES] = np.stack(self.scores)
        for name in self.activations[0]:
            arrays[store.ACTIVATION + name] = np.stack([values[name] for values in self.activations])
        if self.frames:
            arrays[store.FRAMES] = np.stack(self.frames)
        head = {"episode": number, "seed": seed}
        vehicles = [(number, seed, t, *vehicle) for t, scene in enumerate(self.scenes) for vehicle in scene]
        store.append(
            path,
            number,
            steps=pd.DataFrame([head | _row(t, step) for t, step in enumerate(steps)]),
            vehicles=pd.DataFrame(vehicles, columns=["episode", "seed", "step", *VEHICLE_COLUMNS]),
            arrays=arrays,
        )


def _run(job: _Job, env: gym.Env, path: Path, numbered: Iterable[tuple[int, int]]) -> None:
    world = World(env)
    with torch.no_grad(), job.policy.edited(job.edits):
        for number, seed in numbered:
            notes = _Notes(job, world)
            steps = list(run_episode(world, notes.decide, seed=seed))
            notes.write(path, number, seed, steps)


def _run_in_processes(job: _Job, env: gym.Env, path: Path, seeds: list[int], *, workers: int, progress: bool) -> None:
    from joblib import Parallel, delayed

    config = getattr(env.unwrapped, "config", None)
    chunks = np.array_split(np.arange(len(seeds)), min(len(seeds), workers * CHUNKS_PER_WORKER))
    jobs = [delayed(_run_elsewhere)(job, env.spec, config, path, [(int(i), seeds[i]) for i in c]) for c in chunks]
    done = Parallel(n_jobs=workers, return_as="generator_unordered")(jobs)
    for _ in track(done, "recording", total=len(jobs), disable=not progress):
        pass


def _run_elsewhere(job: _Job, made: Any, config: Any, path: Path, numbered: list[tuple[int, int]]) -> None:
    """Run episodes in a worker, in an environment made anew."""
    with _one_thread():
        env: Any = gym.make(made)
        if config is not None:
            env.unwrapped.configure(dict(config))
        _run(job, env, path, numbered)
        env.close()


def _checked(seeds: Iterable[int], env: gym.Env, *, frames: bool, workers: int) -> list[int]:
    checked = [int(seed) for seed in seeds]
    if not checked or len(set(checked)) < len(checked) or min(checked) < 0:
        raise ConfigError(
            "Each episode needs a seed of its own.",
            given=checked[:20],
            expected="at least one seed, none below 0, none twice",
            fix="give e.g. seeds=range(20)",
        )
    if frames and env.render_mode != "rgb_array":
        raise ConfigError(
            "The environment makes no pictures.",
            given=f"render_mode={env.render_mode!r}",
            expected="render_mode='rgb_array'",
            fix="make_env(..., render_mode='rgb_array'), or record without frames",
        )
    if workers < 1 or (workers > 1 and env.spec is None):
        raise ConfigError(
            "The episodes cannot be given to that many workers.",
            given=f"workers={workers}, an environment {'without' if env.spec is None else 'with'} a Gymnasium spec",
            expected="at least one worker; for several, an environment that gymnasium.make can make again",
            fix="set workers=1, or make the environment with rlm.make_env",
        )
    return checked


def _manifest(job: _Job, env: gym.Env, seeds: list[int]) -> dict[str, Any]:
    """What a reader needs to know, found out on the first scene."""
    observation, _ = env.reset(seed=seeds[0])
    with torch.no_grad():
        _, activations = job.score(observation)
    policy, spec = job.policy, spec_of(env)
    axes = {name: ["step", *policy.hook_dict[name].axes[1:]] for name in activations}
    return {
        "format": store.FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "policy": {"fingerprint": policy.fingerprint, "output_kind": policy.output_kind},
        "spec": (spec if spec.features or spec.actions else policy.spec).to_json(),
        "env": {"id": spec.env_id, "config": spec.env_config},
        "seeds": seeds,
        "activations": axes,
        "observation_keys": list(observation) if isinstance(observation, dict) else [],
        "edits": [str(edit) for edit in job.edits],
        "frames": job.frames,
        "lanes": lanes_of(env),
    }


def _row(t: int, step: Step) -> dict[str, Any]:
    action = {"action": int(step.action)} if np.ndim(step.action) == 0 else {}
    return {
        "step": t,
        **action,
        "reward": step.reward,
        "terminated": step.terminated,
        "truncated": step.truncated,
        **step.outcome,
    }


def _stacked(name: str, observations: list[Any]) -> dict[str, np.ndarray]:
    if isinstance(observations[0], dict):
        return {f"{name}/{key}": np.stack([o[key] for o in observations]) for key in observations[0]}
    return {name: np.stack([np.asarray(o) for o in observations])}


def _batched(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def _picture(env: gym.Env) -> np.ndarray:
    picture = np.asarray(env.render())
    if hasattr(env.unwrapped, "enable_auto_render"):  # else highway-env draws every frame in between, too
        setattr(env.unwrapped, "enable_auto_render", False)  # noqa: B010
    return picture


@contextmanager
def _one_thread() -> Generator[None]:
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
