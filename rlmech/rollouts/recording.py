"""A recording on disk: a directory with a manifest and one folder for each finished episode.

    manifest.json                    versions, policy, spec, environment, seeds, hooks and their axes, edits, lanes
    episodes/000000/steps.parquet    one row a decision
                    vehicles.parquet one row a vehicle and observation, the last one after the last action included
                    arrays.safetensors  observations, actions, scores, activations, frames; `step` is the first axis

A folder appears under its name when it is complete (written beside, then renamed), so that a kill or a full disk leaves
the finished episodes loadable. Nothing is pickled. Tables and arrays are read when asked for, and only those.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped, UInt8

from rlmech.errors import RecordingError, nearest
from rlmech.spec import PolicySpec

FORMAT = "rlmech.recording/1"
MANIFEST, EPISODES = "manifest.json", "episodes"
STEPS, VEHICLES, ARRAYS = "steps.parquet", "vehicles.parquet", "arrays.safetensors"
OBSERVATION, FINAL, ACTION, SCORES, FRAMES = "observation", "final_observation", "action", "scores", "frames"
ACTIVATION = "activation/"


class Recording:
    """Episodes of a policy, as `record` wrote them.

    Rows of `steps`, `observations`, `actions`, `scores`, `frames` and `activation(name)` belong together.

    Args:
        path: The recording's directory.
        episodes: Numbers of the episodes to show; None for all that are finished.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(3), progress=False)
        >>> len(recording), recording.scores.shape[1], list(recording.episodes["seed"])
        (3, 2, [0, 1, 2])
    """

    def __init__(self, path: str | Path, *, episodes: Iterable[int] | None = None) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = _read_manifest(self.path)
        finished = sorted(int(folder.name) for folder in (self.path / EPISODES).glob("[0-9]*"))
        self._numbers = finished if episodes is None else list(episodes)
        self._holder: TemporaryFolder | None = None

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Open a recording; of an interrupted one, the finished episodes.

        Raises:
            RecordingError: There is no recording at that path, or it is damaged or of another format.
        """
        return cls(path)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        env = self.manifest["env"]["id"]
        return f"Recording of {len(self)} episodes of {env} at {self.path}"

    @property
    def spec(self) -> PolicySpec:
        """What observations and actions mean."""
        return PolicySpec.from_json(self.manifest["spec"])

    @property
    def missing_seeds(self) -> list[int]:
        """Seeds that were asked for and whose episodes were not finished."""
        done = {self.manifest["seeds"][number] for number in self._numbers}
        return [seed for seed in self.manifest["seeds"] if seed not in done]

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a decision: episode, seed, step, action (where discrete), reward, terminated, truncated.

        Of highway-env's environments also what the action led to: crashed, speed in m/s and, where there is a goal,
        arrived.
        """
        return self._table(STEPS)

    @cached_property
    def vehicles(self) -> pd.DataFrame:
        """One row a vehicle and observation; empty for environments without a road.

        Columns: episode, seed, step, vehicle (a number kept for the episode, 0 the ego), row (its row in that step's
        observation, -1 if it is not observed), kind, x and y in m, heading in rad, speed in m/s, length and width in
        m, crashed. The observation after the last action is there too, as one more step.
        """
        return self._table(VEHICLES)

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row an episode: episode, seed, return, length.

        Of highway-env's environments also crashed, mean speed in m/s and, where there is a goal, arrived.
        """
        groups = self.steps.groupby(["episode", "seed"], sort=False)
        table = groups.agg(**{"return": ("reward", "sum"), "length": ("reward", "size")})
        for name in ("crashed", "arrived"):
            if name in self.steps:
                table[name] = groups[name].last()
        if "speed" in self.steps:
            table["speed"] = groups["speed"].mean()
        return table.reset_index()

    @cached_property
    def observations(self) -> Shaped[np.ndarray, "step ..."] | dict[str, Shaped[np.ndarray, "step ..."]]:
        """What the policy saw, `[step, ...]`; by key for dictionary observations."""
        return self._by_key(OBSERVATION)

    @cached_property
    def actions(self) -> Shaped[np.ndarray, "step ..."]:
        """What it did, `[step]`, or `[step, component]` for continuous actions."""
        return self._array(ACTION)

    @cached_property
    def scores(self) -> Float[np.ndarray, "step action"]:
        """How it scored the actions, `[step, action]`."""
        return self._array(SCORES)

    @property
    def frames(self) -> UInt8[np.ndarray, "step height width channel"]:
        """Pictures of the scenes decided in, `[step, height, width, channel]`, uint8.

        Raises:
            RecordingError: Recorded without frames.
        """
        if not self.manifest["frames"]:
            raise RecordingError(
                "The recording has no frames.",
                given="frames=False",
                expected="frames=True when it was recorded",
                fix="record again with frames=True and an environment of render_mode='rgb_array'",
            )
        return self._array(FRAMES)

    def activation(self, name: str) -> Shaped[np.ndarray, "step ..."]:
        """The values at a hook point, `[step, ...]`, with `axes(name)`.

        Raises:
            RecordingError: Nothing of that name was recorded.
        """
        self.axes(name)
        return self._array(ACTIVATION + name)

    def axes(self, name: str) -> tuple[str, ...]:
        """Axis names of an activation, `step` first.

        Raises:
            RecordingError: Nothing of that name was recorded.
        """
        recorded: dict[str, list[str]] = self.manifest["activations"]
        if name not in recorded:
            close = nearest(name, recorded)
            raise RecordingError(
                f"The recording holds no activation {name!r}.",
                given=repr(name),
                expected=f"one of {list(recorded)}" if recorded else "none: it was recorded without names",
                fix=f"did you mean {close[0]!r}?" if close else f"record again with names=[{name!r}]",
            )
        return tuple(recorded[name])

    def episode(self, seed: int) -> Recording:
        """The episode of one seed, as a recording of its own.

        Raises:
            RecordingError: No finished episode has that seed.
        """
        seeds = [self.manifest["seeds"][number] for number in self._numbers]
        if seed not in seeds:
            raise RecordingError(
                f"The recording has no episode of seed {seed}.",
                given=seed,
                expected=f"one of {seeds[:10]}{'...' if len(seeds) > 10 else ''}",
                fix="recording.episodes lists them all",
            )
        one = Recording(self.path, episodes=[self._numbers[seeds.index(seed)]])
        one._holder = self._holder
        return one

    def equals(self, other: Recording) -> bool:
        """Whether both hold the same manifest, tables and arrays, bit for bit."""
        if self.manifest != other.manifest or self._numbers != other._numbers:
            return False
        if not (self.steps.equals(other.steps) and self.vehicles.equals(other.vehicles)):
            return False
        return all(_same(self._shard(n), other._shard(n)) for n in self._numbers)

    def hold(self, folder: TemporaryFolder) -> Recording:
        """Keep a temporary folder until this recording, and all parts of it, are gone."""
        self._holder = folder
        return self

    def _folder(self, number: int) -> Path:
        return self.path / EPISODES / f"{number:06d}"

    def _table(self, name: str) -> pd.DataFrame:
        try:
            tables = [pd.read_parquet(self._folder(number) / name) for number in self._numbers]
        except (OSError, ValueError) as error:
            raise _damaged(self.path, error) from error
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(self._folder(number) / ARRAYS)
        except (OSError, SafetensorError) as error:
            raise _damaged(self.path, error) from error

    def _array(self, name: str) -> np.ndarray:
        from safetensors import SafetensorError, safe_open

        parts: list[np.ndarray] = []
        try:
            for number in self._numbers:
                with safe_open(self._folder(number) / ARRAYS, framework="numpy") as shard:  # type: ignore[no-untyped-call]
                    parts.append(shard.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise _damaged(self.path, error) from error
        return np.concatenate(parts) if parts else np.empty(0)

    def _by_key(self, name: str) -> np.ndarray | dict[str, np.ndarray]:
        keys: list[str] = self.manifest["observation_keys"]
        return {key: self._array(f"{name}/{key}") for key in keys} if keys else self._array(name)


class TemporaryFolder:
    """A folder that goes, without a word, when nobody refers to it any more.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="rlmech-recording-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def create(path: Path, manifest: Mapping[str, Any]) -> None:
    """Make a recording's directory, with its manifest and no episode.

    Raises:
        RecordingError: The path is taken, or cannot be written to.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise RecordingError(
            "There is something at the recording's path already.",
            given=path,
            expected="a path that does not exist",
            fix="choose another path; Recording.load opens a recording, an interrupted one too",
        ) from None
    except OSError as error:
        raise _unwritable("The recording", path, error) from error
    try:
        (path / EPISODES).mkdir()
        partial = path / f".{MANIFEST}"
        partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        partial.replace(path / MANIFEST)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise _unwritable("The recording", path, error) from error


def append(
    path: Path, number: int, *, steps: pd.DataFrame, vehicles: pd.DataFrame, arrays: Mapping[str, np.ndarray]
) -> None:
    """Add a finished episode to a recording: wholly, or not at all.

    Raises:
        RecordingError: It could not be written, e.g. because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = path / EPISODES
    partial = folder / f".{number:06d}.{os.getpid()}"
    try:
        partial.mkdir()
        steps.to_parquet(partial / STEPS, index=False)
        vehicles.to_parquet(partial / VEHICLES, index=False)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial / ARRAYS)
        partial.rename(folder / f"{number:06d}")
    except (OSError, SafetensorError) as error:
        raise _unwritable(f"Episode {number}", path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def abandon(path: Path) -> None:
    """Clean up after an interrupted recording: half-written episodes go, and all of it where none was finished."""
    for partial in (path / EPISODES).glob(".*"):
        shutil.rmtree(partial, ignore_errors=True)
    if not any((path / EPISODES).glob("[0-9]*")):
        shutil.rmtree(path, ignore_errors=True)


def _unwritable(what: str, path: Path, error: Exception) -> RecordingError:
    return RecordingError(
        f"{what} could not be written.",
        given=f"{path}: {error}",
        expected="room on the disk and permission to write",
        fix=f"make room; episodes that were finished are kept: Recording.load({str(path)!r})",
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordingError(
            "There is no recording at this path.",
            given=path,
            expected=f"a directory with a {MANIFEST}",
            fix="check the path; rlm.record(..., path=...) makes one",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RecordingError(
            "This version of rlmech does not read that recording.",
            given=f"format {manifest.get('format') if isinstance(manifest, dict) else None!r}",
            expected=f"format {FORMAT!r}",
            fix="record again, or open it with the version that made it",
        )
    return manifest


def _damaged(path: Path, error: Exception) -> RecordingError:
    return RecordingError(
        "The recording is damaged.",
        given=f"{path}: {error}",
        expected="files as rlm.record wrote them",
        fix="remove the damaged episode's folder, or record again",
    )


def _same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]) for name in ours
    )
