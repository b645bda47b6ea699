"""Train a policy with Stable-Baselines3 so that the run can be stopped at any moment and taken up again.

A run directory holds `config.json`, `curve.csv` (a row an episode), `checkpoints/step_N.zip` and `resume/step_N/`
(model and replay buffer, written beside and renamed). Resuming starts a new episode; the curve is cut back to step N.
Cost: the environment's stepping (84 % on highway-fast-v0).
"""

from __future__ import annotations

import csv
import inspect
import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlmech.errors import ConfigError, nearest
from rlmech.simulators.env import make_env
from rlmech.training.assess import assess
from rlmech.training.config import TrainConfig
from rlmech.untyped import JsonObject

RESUME_EVERY = 5000
CURVE_COLUMNS = ("step", "return", "length", "crashed", "arrived")


def train(config: TrainConfig | str | Path, run: str | Path | None = None, *, progress: bool = True) -> Path:
    """Train, evaluate and write a card; a run that was stopped, at whatever point, goes on from there.

    Args:
        config: The configuration, or the path of its TOML file.
        run: The run's directory; `runs/<name>` by default. One that holds a run of the same configuration is resumed.
        progress: Whether to draw a progress bar.

    Returns:
        The run's directory, with `card.json` in it: see `rlmech.training.assess`.

    Raises:
        ConfigError: The configuration is malformed, or the directory holds a run of another one.

    Example:
        >>> from rlmech.training import train
        >>> train("experiments/00_train_the_zoo/highway_dqn_mlp.toml", "runs/highway")  # doctest: +SKIP
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.load(config)
    run = Path("runs") / config.name.replace("-", "_") if run is None else Path(run)
    learn(config, run, progress=progress)
    assess(config, run, progress=progress)
    return run


def learn(config: TrainConfig, run: Path, *, progress: bool = True) -> None:
    """Train up to the last checkpoint; a run that has it is left as it is."""
    _check_claim(run, config)
    if (run / "checkpoints" / f"step_{config.total_steps:07d}.zip").exists():
        return
    torch.set_num_threads(1)
    model, step = _resumed_or_new(run, config)
    with _progress_bar(config, step, progress=progress) as bar:
        recorder = _RunRecorder(run, config, bar)
        model.learn(config.total_steps - step, callback=recorder, reset_num_timesteps=step == 0)
        recorder.save_resume()


def _check_claim(run: Path, config: TrainConfig) -> None:
    """Check that the run's directory, if it is there, is this configuration's."""
    if not (run / "config.json").exists():
        return
    ours, theirs = config.to_json(), TrainConfig.read_run(run).to_json()
    differ = [key for key in ours if ours[key] != theirs[key]]
    if differ:
        raise ConfigError(
            "The run's directory holds a run of another configuration.",
            given=f"{run}, where {', '.join(f'{key}={theirs[key]!r}' for key in differ)}",
            expected=", ".join(f"{key}={ours[key]!r}" for key in differ),
            fix="name another directory with --run, or remove this one",
        )


def _claim(run: Path, config: TrainConfig) -> None:
    """Make the run's directory."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    (run / "curve.csv").write_text(",".join(CURVE_COLUMNS) + "\n")


def _save_checkpoint(model: BaseAlgorithm, run: Path, step: int) -> None:
    """Keep a checkpoint; only a complete one takes its name."""
    path = run / "checkpoints" / f"step_{step:07d}.zip"
    partial = path.with_name(f".{path.name}")
    model.save(partial)
    partial.replace(path)


def _resumed_or_new(run: Path, config: TrainConfig) -> tuple[BaseAlgorithm, int]:
    env = make_env(config.env_id, config=config.env_config)
    algorithm: type[BaseAlgorithm] = getattr(stable_baselines3, config.algorithm)
    saved = _last_copy(run)
    if saved is not None:
        model = _opened(algorithm, saved, env)
        model.set_random_seed(config.seed + model.num_timesteps)
        _cut_curve(run / "curve.csv", model.num_timesteps)
        return model, model.num_timesteps
    kwargs = _algorithm_kwargs(config, algorithm)
    if config.continues is None:
        model = algorithm(env=env, seed=config.seed, policy_kwargs=_policy_kwargs(config), **kwargs)
    else:
        saved = _last_copy(Path(config.continues))
        if saved is None:
            raise ConfigError(
                "There is no run to continue.",
                given=f"continues = {config.continues!r}",
                expected="the directory of a run that was trained",
                fix="train that one first, or leave 'continues' out",
            )
        kwargs.pop("policy", None)
        model = _opened(algorithm, saved, env, seed=config.seed, **kwargs)
    _claim(run, config)
    _save_checkpoint(model, run, 0)
    return model, 0


def _last_copy(run: Path) -> Path | None:
    """Folder of the last complete copy of a run's model and replay buffer."""
    return max((run / "resume").glob("step_*"), default=None)


def _opened(algorithm: type[BaseAlgorithm], saved: Path, env: gym.Env, **changes: Any) -> BaseAlgorithm:
    model = algorithm.load(saved / "model.zip", env=env, **changes)
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(saved / "buffer.pkl")
    return model


def _algorithm_kwargs(config: TrainConfig, algorithm: type[BaseAlgorithm]) -> JsonObject:
    kwargs = dict(config.algorithm_kwargs)
    known = [name for name in inspect.signature(algorithm).parameters if name not in ("env", "seed", "policy_kwargs")]
    for key in kwargs:
        if key not in known:
            close = nearest(key, known)
            raise ConfigError(
                f"{config.algorithm} takes no argument {key!r}.",
                given=repr(key),
                expected=f"one of {known}",
                fix=f"did you mean {close[0]!r}?" if close else "take one of those expected",
            )
    rate = kwargs.get("learning_rate")
    if isinstance(rate, dict):
        start, end = float(rate["start"]), float(rate["end"])
        kwargs["learning_rate"] = lambda remaining: end + (start - end) * remaining
    return kwargs


def _policy_kwargs(config: TrainConfig) -> JsonObject:
    kwargs = dict(config.policy_kwargs)
    extractor = kwargs.get("features_extractor_class")
    if extractor is None:
        return kwargs
    if extractor != "EgoAttentionExtractor":
        raise ConfigError(
            f"There is no features extractor {extractor!r}.",
            given=repr(extractor),
            expected="'EgoAttentionExtractor'",
            fix="leave features_extractor_class out, or name that one",
        )
    from rlmech.nets import EgoAttentionExtractor

    return {**kwargs, "features_extractor_class": EgoAttentionExtractor}


def _cut_curve(path: Path, step: int) -> None:
    """Forget the episodes that ended after the step at which the run is taken up."""
    header, *rows = path.read_text().splitlines()
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    path.write_text("\n".join([header, *kept]) + "\n")


def _progress_bar(config: TrainConfig, step: int, *, progress: bool) -> AbstractContextManager[Progress | None]:
    if not progress:
        return nullcontext()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[recent]}"),
    )
    bar.add_task(config.name, total=config.total_steps, completed=step, recent="")
    return bar


class _RunRecorder(BaseCallback):
    """Writes the training curve, the checkpoints and, now and then, what a resumed run needs."""

    def __init__(self, run: Path, config: TrainConfig, bar: Progress | None) -> None:
        super().__init__()
        self.run, self.config, self.bar = run, config, bar
        self.recent: list[float] = []

    def _on_step(self) -> bool:
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done:
                self._end_episode(info)
        if self.num_timesteps in self.config.checkpoint_steps:
            _save_checkpoint(self.model, self.run, self.num_timesteps)
        if self.num_timesteps % RESUME_EVERY == 0:
            self.save_resume()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.num_timesteps)
        return True

    def _end_episode(self, info: JsonObject) -> None:
        episode = info["episode"]
        arrived = info.get("rewards", {}).get("arrived_reward")
        row = [self.num_timesteps, episode["r"], episode["l"], int(info.get("crashed", False))]
        with (self.run / "curve.csv").open("a", newline="") as file:
            csv.writer(file).writerow([*row, "" if arrived is None else int(arrived)])
        self.recent = [*self.recent[-99:], episode["r"]]
        if self.bar is not None:
            mean = sum(self.recent) / len(self.recent)
            self.bar.update(self.bar.task_ids[0], recent=f"return of the last {len(self.recent)} episodes {mean:.2f}")

    def save_resume(self) -> None:
        """Keep the model and its replay buffer; only a complete copy takes the name that a resumed run looks for."""
        folder = self.run / "resume"
        part, whole = folder / ".part", folder / f"step_{self.num_timesteps:07d}"
        if whole.exists():
            return
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        self.model.save(part / "model.zip")
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(part / "buffer.pkl")
        part.rename(whole)
        for old in folder.glob("step_*"):
            if old != whole:
                shutil.rmtree(old)
