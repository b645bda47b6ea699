"""Where recorded episodes are written as they come: a new recording, or one to go on with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from operator import itemgetter
from pathlib import Path

from rlmech.episodes.episode_tables import Episodes, joined
from rlmech.episodes.manifest import MANIFEST, create, read_manifest, write_manifest
from rlmech.episodes.shards import MOST_BYTES, MOST_EPISODES, SHARDS, Writer, sole_writer
from rlmech.errors import RecordingError
from rlmech.simulators.identity import differences, listed
from rlmech.untyped import Settings

PATIENCE = 20.0
"""Between two times of writing, so many times what the last one took: writing takes a twentieth of the time."""
SHARD_SECONDS = 0.005
"""What a shard takes to write, until one has been written."""


class Log:
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
        """Whether a seed's episode is not there yet."""
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


class Flush:
    """Writes what was delivered: at once where that is quick, else so that writing takes a small part of the time.

    Args:
        logs: Where it is written.
    """

    def __init__(self, logs: Mapping[str, Log]) -> None:
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


def lacking_of(logs: Mapping[str, Log], seeds: list[int]) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Numbers and seeds of the episodes to run, by the conditions that lack them."""
    number_of = next(iter(logs.values())).number_of
    lacking: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for seed in seeds:
        if names := tuple(name for name, log in logs.items() if log.lacks(seed)):
            lacking.setdefault(names, []).append((number_of[seed], seed))
    return lacking


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
