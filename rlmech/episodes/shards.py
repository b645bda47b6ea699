"""The files of a recording: shards of whole episodes, written beside and renamed, small ones merged as they come.

    shards/00000007/            one episode, as it was finished
    shards/00000000-00000511/   many, merged
        episodes.parquet  one row an episode          steps.parquet       one row a decision
        entities.parquet  one row an entity and scene arrays.safetensors  observations, scores, activations, frames
        checksums.json    the SHA-256 of each of these

Every file is checked when it is read for the first time: its bits, and that steps and arrays have as many rows as the
episodes say. A shard appears under its name when it is complete, so that a kill or a full disk leaves what was
finished. One process writes, many episodes at once where they come at once; merging keeps the number of files, and with
it the time to open a recording, a thousand times smaller. Cost: about 5 ms a shard. Nothing is pickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlmech.episodes.episode_tables import TABLES, Episodes, is_final, joined
from rlmech.errors import RecordingError
from rlmech.files import DamagedError, digest_of, read_sealed_json, write_sealed_json

SHARDS = "shards"
ARRAYS = "arrays.safetensors"
CHECKSUMS = "checksums.json"
MOST_EPISODES = 512
MOST_BYTES = 64 * 2**20
_NAME = re.compile(r"(\d{8})(?:-(\d{8}))?$")


@dataclass(slots=True)
class _Read:
    """What was read of a shard so far: its checksums, the files that are as they were written, its number of steps."""

    checksums: Mapping[str, str] = field(default_factory=dict[str, str])
    whole: set[str] = field(default_factory=set[str])
    n_steps: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A folder of whole episodes.

    Attributes:
        path: The folder.
        first: Number of its first episode.
        last: Number of its last one; all in between are there.
    """

    path: Path
    first: int
    last: int
    _read: _Read = field(default_factory=_Read, compare=False, repr=False)

    def has(self, name: str) -> bool:
        """Whether it has a table: entities are told of by some simulators only."""
        return f"{name}.parquet" in self._checksums

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One of its tables.

        Raises:
            RecordingError: The file is damaged.
        """
        try:
            with pq.ParquetFile(self.file(f"{name}.parquet")) as file:
                table = file.read(columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise damaged(self.path, error) from error
        if name == "steps":
            self._check_rows("the table of steps", len(table), self.n_steps)
        return table

    def schema(self, name: str) -> pa.Schema:
        """The columns of one of its tables.

        Raises:
            RecordingError: The file is damaged.
        """
        try:
            return pq.read_schema(self.file(f"{name}.parquet"))
        except (OSError, pa.ArrowException) as error:
            raise damaged(self.path, error) from error

    def file(self, name: str) -> Path:
        """The path of one of its files, which is as it was written.

        Raises:
            RecordingError: It is damaged.
        """
        path = self.path / name
        if name not in self._read.whole:
            try:
                if self._checksums.get(name) != digest_of(path):
                    raise DamagedError(f"the checksum of {name} does not fit what it holds")
            except (DamagedError, OSError) as error:
                raise damaged(self.path, error) from error
            self._read.whole.add(name)
        return path

    @property
    def _checksums(self) -> Mapping[str, str]:
        """By name, the checksums of all its files."""
        if not self._read.checksums:
            try:
                self._read.checksums = read_sealed_json(self.path / CHECKSUMS)
            except (DamagedError, OSError) as error:
                raise damaged(self.path, error) from error
        return self._read.checksums

    @property
    def n_steps(self) -> int:
        """Steps of all its episodes together."""
        if not self._read.n_steps:
            self._read.n_steps = sum(self.table("episodes", ["length"])["length"].to_pylist())
        return self._read.n_steps

    def _check_rows(self, what: str, n: int, expected: int) -> None:
        if n != expected:
            raise damaged(self.path, DamagedError(f"{what} has {n} rows, its episodes say {expected}"))

    def array(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of one of its arrays; a slice reads no others.

        Raises:
            RecordingError: The file is damaged.
        """
        from safetensors import safe_open

        try:
            with safe_open(self.file(ARRAYS), framework="numpy") as file:  # type: ignore[no-untyped-call]
                stored = file.get_slice(name)
                n_rows = self.last - self.first + 1 if is_final(name) else self.n_steps
                self._check_rows(f"the array {name}", stored.get_shape()[0], n_rows)
                return stored[rows.start : rows.stop] if isinstance(rows, slice) else file.get_tensor(name)[rows]
        except (OSError, SafetensorError) as error:
            raise damaged(self.path, error) from error

    def load(self) -> Episodes:
        """All of it.

        Raises:
            RecordingError: A file is damaged.
        """
        try:
            arrays = load_file(self.file(ARRAYS))
        except (OSError, SafetensorError) as error:
            raise damaged(self.path, error) from error
        tables = {name: self.table(name) if self.has(name) else None for name in TABLES}
        return Episodes(**tables, arrays=arrays)


def shards_in(path: Path) -> list[Shard]:
    """A recording's shards in the order of their episodes, without those that a merged one stands for."""
    found: list[Shard] = []
    for folder in (path / SHARDS).glob("[0-9]*"):
        if named := _NAME.match(folder.name):
            found.append(Shard(folder, int(named[1]), int(named[2] or named[1])))
    kept: list[Shard] = []
    for shard in sorted(found, key=lambda s: (s.first, -s.last)):
        if not kept or shard.first > kept[-1].last:
            kept.append(shard)
    return kept


@dataclass(frozen=True, slots=True)
class _Small:
    """A shard that is to be merged: its last episode, its bytes, and its episodes where they are at hand."""

    last: int
    size: int
    part: Episodes | None = None


class Writer:
    """Adds finished episodes to a recording's directory.

    Args:
        path: The recording's directory, made by `create`.

    Attributes:
        finished: Numbers of the episodes that are there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._folder = path, path / SHARDS
        shards = shards_in(path)
        self._clean({shard.path for shard in shards})
        self.finished = {number for shard in shards for number in range(shard.first, shard.last + 1)}
        self._small = {
            shard.first: _Small(shard.last, _size(shard.path))
            for shard in shards
            if shard.last - shard.first + 1 < MOST_EPISODES and _size(shard.path) < MOST_BYTES
        }
        self._first_of = {small.last: first for first, small in self._small.items()}

    def add(self, part: Episodes) -> None:
        """Add episodes with consecutive numbers; where there is no room for all, as many as there is room for.

        Raises:
            RecordingError: They could not be written, e.g. because the disk is full.
        """
        numbers = part.numbers
        try:
            folder = self._write(part, numbers[0], numbers[-1])
        except RecordingError:
            if len(numbers) == 1:
                raise
            for place in range(len(numbers)):
                self.add(part.part(place, place + 1))
            return
        self.finished.update(numbers)
        size = _size(folder)
        if len(numbers) < MOST_EPISODES and size < MOST_BYTES:
            self._small[numbers[0]] = _Small(numbers[-1], size, part)
            self._first_of[numbers[-1]] = numbers[0]
            self._merge(self._run_to(numbers[0]), whole=False)

    def close(self) -> None:
        """Merge what is left, where it is complete."""
        while self._small:
            self._merge(self._run_to(max(self._small)), whole=True)

    def abandon(self) -> None:
        """Clean up after an interruption: half-written shards go, and the recording where nothing is finished."""
        for partial in self._folder.glob(".*"):
            shutil.rmtree(partial, ignore_errors=True)
        if not self.finished:
            shutil.rmtree(self.path, ignore_errors=True)

    def _run_to(self, first: int) -> list[int]:
        """Small shards around one of them without a gap, by their first numbers."""
        run = [first]
        while (before := self._first_of.get(run[0] - 1)) is not None:
            run.insert(0, before)
        while (after := self._small[run[-1]].last + 1) in self._small:
            run.append(after)
        return run

    def _merge(self, run: list[int], *, whole: bool) -> None:
        """Merge small shards from the first on, as long as they fill one; with `whole`, what is left, too."""
        start, size, n_episodes = 0, 0, 0
        for place, first in enumerate(run):
            size += self._small[first].size
            n_episodes += self._small[first].last - first + 1
            full = n_episodes >= MOST_EPISODES or size >= MOST_BYTES
            if full or (whole and place == len(run) - 1):
                self._merge_exactly(run[start : place + 1])
                start, size, n_episodes = place + 1, 0, 0

    def _merge_exactly(self, firsts: list[int]) -> None:
        small = [(first, self._small[first]) for first in firsts]
        folders = [self._folder / _name(first, one.last) for first, one in small]
        if len(firsts) > 1:
            parts = [
                one.part or Shard(folder, first, one.last).load()
                for folder, (first, one) in zip(folders, small, strict=True)
            ]
            self._write(joined(parts), firsts[0], small[-1][1].last)
            for folder in folders:
                shutil.rmtree(folder)
        for first, one in small:
            del self._small[first], self._first_of[one.last]

    def _write(self, part: Episodes, first: int, last: int) -> Path:
        partial = self._folder / f".{_name(first, last)}.{os.getpid()}"
        try:
            partial.mkdir()
            for name, table in part.tables.items():
                pq.write_table(table, partial / f"{name}.parquet", compression="zstd")
            save_file({name: np.ascontiguousarray(array) for name, array in part.arrays.items()}, partial / ARRAYS)
            write_sealed_json(partial / CHECKSUMS, {file.name: digest_of(file) for file in sorted(partial.iterdir())})
            return partial.rename(self._folder / _name(first, last))
        except (OSError, SafetensorError, pa.ArrowException) as error:
            what = f"Episode {first}" if first == last else f"Episodes {first} to {last}"
            raise unwritable(what, self.path, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _clean(self, kept: set[Path]) -> None:
        """Remove what a kill left: half-written shards, and small ones whose merged one is complete."""
        for folder in self._folder.iterdir():
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sole_writer(path: Path) -> Generator[None]:
    """Keep every other process from writing to a recording; the system lets go of it when this one dies.

    Raises:
        RecordingError: Another process is writing to it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock on a directory
        yield
        return
    place = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have none either
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordingError(
                    "Another process is writing to this recording.",
                    given=path,
                    expected="one writer at a time",
                    fix="wait for it, or record to another path",
                ) from None
        yield
    finally:
        os.close(place)


def damaged(path: Path, error: Exception) -> RecordingError:
    """The error for files that are not as they were written."""
    return RecordingError(
        "The recording is damaged.",
        given=f"{path}: {error}",
        expected="files as rlm.record wrote them",
        fix="remove the damaged shard's folder and record again to the same path: only what is missing is redone",
    )


def unwritable(what: str, path: Path, error: Exception) -> RecordingError:
    """The error for a full disk, a missing permission and the like."""
    return RecordingError(
        f"{what} could not be written.",
        given=f"{path}: {error}",
        expected="room on the disk and permission to write",
        fix="make room and record again to the same path: finished episodes are kept, what is missing is redone",
    )


def _name(first: int, last: int) -> str:
    return f"{first:08d}" if first == last else f"{first:08d}-{last:08d}"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
