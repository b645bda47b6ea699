"""Recordings notice each changed bit when they are read, and tables that do not fit their arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import rlmech as rlm
from rlmech.episodes.shards import ARRAYS, CHECKSUMS
from rlmech.errors import RecordingError
from rlmech.files import DamagedError, digest_of, read_sealed_json, write_sealed_json


@pytest.fixture
def recording(tmp_path: Path) -> rlm.Recording:
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
    return rlm.record(policy, "CartPole-v1", seeds=range(2), path=tmp_path / "r", progress=False)


def flipped(path: Path, *, every: int) -> Iterator[int]:
    """The file with one bit changed, at one place after the other; whole again afterwards."""
    whole = path.read_bytes()
    for place in range(0, len(whole), every):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        yield place
    path.write_bytes(whole)


def read(path: Path) -> None:
    opened = rlm.Recording.load(path)
    _ = opened.steps, opened.episodes, opened.observations, opened.scores, opened.final_observations


def noticed(path: Path) -> bool:
    try:
        read(path)
    except RecordingError:
        return True
    return False


def test_a_bit_flipped_anywhere_in_a_recording_is_noticed(recording: rlm.Recording) -> None:
    files = [file for file in recording.path.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {
        *("manifest.json", CHECKSUMS, ARRAYS),
        *("episodes.parquet", "steps.parquet"),
    }
    for file in files:
        for place in flipped(file, every=97):
            assert noticed(recording.path), f"{file.name}, byte {place}"
    read(recording.path)


def test_an_arrow_dataset_is_checked_before_it_is_given_away(recording: rlm.Recording) -> None:
    steps = next(recording.path.rglob("steps.parquet"))
    for _ in flipped(steps, every=1000):
        with pytest.raises(RecordingError, match="is damaged"):
            rlm.Recording.load(recording.path).dataset()


@pytest.mark.parametrize("name", ["steps.parquet", ARRAYS])
def test_a_table_that_does_not_fit_its_arrays_is_refused(recording: rlm.Recording, name: str) -> None:
    shard = next(recording.path.rglob(CHECKSUMS)).parent
    if name == ARRAYS:
        from safetensors.numpy import load_file, save_file

        save_file({key: value[:-1].copy() for key, value in load_file(shard / name).items()}, shard / name)
    else:
        pq.write_table(pq.read_table(shard / name).slice(1), shard / name)
    sums: dict[str, Any] = read_sealed_json(shard / CHECKSUMS)
    write_sealed_json(shard / CHECKSUMS, sums | {name: digest_of(shard / name)})  # by whoever changed it
    with pytest.raises(RecordingError, match="is damaged") as caught:
        read(recording.path)
    assert "rows, its episodes say" in caught.value.given


def test_a_file_that_is_gone_is_told(recording: rlm.Recording) -> None:
    next(recording.path.rglob(CHECKSUMS)).unlink()
    with pytest.raises(RecordingError, match="is damaged"):
        rlm.Recording.load(recording.path)


def test_a_bit_flipped_anywhere_in_a_sealed_text_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    content = {"name": "é", "numbers": [1, 2.5, None], "nested": {"sha256": "0" * 64}}
    write_sealed_json(path, content)
    assert read_sealed_json(path) == content
    for _ in flipped(path, every=1):
        with pytest.raises(DamagedError):
            read_sealed_json(path)
