"""Recordings larger than memory: selections, pieces, other people's query engines, and shards that merge."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmech.episodes import manifest as manifests
from rlmech.episodes import recording as store
from rlmech.episodes import shards
from rlmech.episodes.episode_tables import FINAL, Episodes, joined, table_of
from rlmech.episodes.recording import Recording
from rlmech.episodes.shards import Writer
from rlmech.errors import RecordingError

MANIFEST = {
    "format": manifests.FORMAT,
    "outcomes": [],
    "identity": {},
    "versions": {},
    "policy": {"fingerprint": "f", "output_kind": "q_values"},
    "edits": [],
    "when": None,
    "spec": {},
    "env": {"id": "Made-v0", "config": {}},
    "activations": {"hook_z": ["step", "neuron"]},
    "observation_keys": [],
    "frames": False,
    "lanes": [],
}


def episode(number: int, *, length: int, seed: int) -> Episodes:
    """An episode whose every value tells where it belongs."""
    rng = np.random.default_rng(seed)
    head = {"episode": number, "seed": seed}
    ttc = rng.uniform(0, 5, length)
    crossed = rng.random(length) < 0.3
    steps = [
        {**head, "step": t, "action": t % 3, "ttc": ttc[t], "reward": float(t), "action_changed": bool(crossed[t])}
        for t in range(length)
    ]
    vehicles = [{**head, "step": t, "vehicle": v, "x": seed + t + v / 10} for t in range(length + 1) for v in range(2)]
    marks = np.stack([np.full(length, seed), np.arange(length)], axis=1).astype(np.float32)
    arrays = {
        store.OBSERVATION: marks,
        store.SCORES: marks + 0.5,
        store.ACTION: np.arange(length) % 3,
        store.ACTIVATION + "hook_z": marks * 2,
        FINAL: np.array([[seed, -1]], dtype=np.float32),
    }
    summary = {**head, "return": float(sum(range(length))), "length": length}
    return Episodes(episodes=table_of([summary]), steps=table_of(steps), entities=table_of(vehicles), arrays=arrays)


def recorded(path: Path, lengths: list[int], order: list[int] | None = None) -> Recording:
    """A recording whose episodes were finished in some order."""
    seeds = [100 + i for i in range(len(lengths))]
    manifests.create(path, MANIFEST | {"seeds": seeds})
    writer = Writer(path)
    for number in order or range(len(lengths)):
        writer.add(episode(number, length=lengths[number], seed=seeds[number]))
    writer.close()
    return Recording.load(path)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Several shards: 40 episodes, at most 7 in each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MOST_EPISODES", 7)
        return recorded(tmp_path_factory.mktemp("long") / "r", [1 + i % 6 for i in range(40)])


def folders(recording: Recording) -> list[str]:
    return sorted(folder.name for folder in (recording.path / "shards").iterdir())


def test_shards_merge_and_nothing_is_lost(long: Recording) -> None:
    assert folders(long)[:2] == ["00000000-00000006", "00000007-00000013"]
    assert len(folders(long)) == 6
    assert list(long.episodes["seed"]) == list(range(100, 140))
    assert np.array_equal(long.observations[:, 0], long.steps["seed"])
    assert np.array_equal(long.observations[:, 1], long.steps["step"])
    assert np.array_equal(long.activation("hook_z"), long.observations * 2)
    assert np.array_equal(long.final_observations[:, 0], long.episodes["seed"])
    assert len(long.vehicles) == 2 * (len(long.steps) + len(long))


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(9)), st.integers(2, 5))
def test_the_order_in_which_episodes_finish_leaves_no_trace(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MOST_EPISODES", most)
        lengths = [3, 1, 4, 1, 5, 2, 2, 6, 1]
        mixed = recorded(tmp_path_factory.mktemp("a") / "r", lengths, order)
        ordered = recorded(tmp_path_factory.mktemp("b") / "r", lengths)
    assert mixed.equals(ordered)
    assert max(len(range(s.first, s.last + 1)) for s in shards.shards_in(mixed.path)) <= most


def test_many_bytes_fill_a_shard_as_many_episodes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_BYTES", 1)
    assert len(folders(recorded(tmp_path / "r", [2, 2, 2]))) == 3


def test_a_kill_between_merging_and_clearing_up_shows_every_episode_once(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "whole", [2, 3, 4])
    manifests.create(tmp_path / "killed", whole.manifest)
    writer = Writer(tmp_path / "killed")
    parts = [episode(i, length=n, seed=100 + i) for i, n in enumerate([2, 3, 4])]
    for part in parts:
        writer.add(part)
    writer._write(joined(parts), 0, 2)
    (tmp_path / "killed" / "shards" / ".00000003.77").mkdir()
    killed = Recording.load(tmp_path / "killed")
    assert len(folders(killed)) == 5
    assert killed.equals(whole)
    assert Writer(tmp_path / "killed").finished == {0, 1, 2}
    assert folders(killed) == ["00000000-00000002"], "the next writer clears up"


def test_selected_rows_are_the_same_in_all_parts(long: Recording) -> None:
    steps = long.steps
    chosen = long.where(action_changed=True, ttc_below=2.0)
    wanted = steps[steps["action_changed"] & (steps["ttc"] < 2)]
    assert 0 < len(wanted) < len(steps)
    assert chosen.steps.equals(wanted.reset_index(drop=True))
    assert np.array_equal(chosen.observations, long.observations[wanted.index])
    assert np.array_equal(chosen.activation("hook_z"), long.activation("hook_z")[wanted.index])
    assert set(chosen.episodes["seed"]) == set(wanted["seed"])
    pairs = set(zip(chosen.vehicles["seed"], chosen.vehicles["step"], strict=True))
    assert pairs == set(zip(wanted["seed"], wanted["step"], strict=True))
    assert len(chosen.vehicles) == 2 * len(wanted)


def test_selections_narrow_each_other(long: Recording) -> None:
    narrowed = long.where(ttc_below=2.0).where(action=[0, 2]).where(pc.field("reward") > 1)
    steps = long.steps
    wanted = steps[(steps["ttc"] < 2) & steps["action"].isin([0, 2]) & (steps["reward"] > 1)]
    assert narrowed.steps.equals(wanted.reset_index(drop=True))
    assert np.array_equal(narrowed.scores, long.scores[wanted.index])
    one = narrowed.episode(int(wanted["seed"].iloc[0]))
    assert set(one.steps["seed"]) == {wanted["seed"].iloc[0]}
    assert len(one.scores) == len(one.steps)


def test_a_selection_of_nothing_is_empty_and_keeps_its_shape(long: Recording) -> None:
    nothing = long.where(ttc_below=-1)
    assert len(nothing) == 0
    assert nothing.observations.shape == (0, 2)
    assert nothing.activation("hook_z").shape == (0, 2)
    assert list(nothing.steps.columns) == list(long.steps.columns)
    assert nothing.steps.empty
    assert nothing.vehicles.empty


def test_pieces_put_together_are_the_whole(long: Recording) -> None:
    pieces = list(long.parts(n_steps=20))
    assert len(pieces) > 3
    assert all(len(piece.steps) <= 20 for piece in pieces)
    assert np.array_equal(np.concatenate([piece.observations for piece in pieces]), long.observations)
    selected = long.where(action=1)
    assert np.array_equal(np.concatenate([p.scores for p in selected.parts(n_steps=20)]), selected.scores)


def test_duckdb_and_polars_read_what_pandas_reads(long: Recording) -> None:
    chosen = long.where(action_changed=True)
    steps = chosen.dataset()  # noqa: F841  # DuckDB finds it by its name
    ((n, total),) = duckdb.sql("select count(*), sum(ttc) from steps").fetchall()
    assert n == len(chosen.steps)
    assert total == pytest.approx(chosen.steps["ttc"].sum())
    per_seed = duckdb.from_arrow(long.episode(104).dataset("vehicles").scanner().to_reader())
    assert len(per_seed) == len(long.episode(104).vehicles)
    lazily = polars.from_arrow(long.dataset("episodes").to_table())
    assert isinstance(lazily, polars.DataFrame)
    assert lazily["return"].sum() == long.episodes["return"].sum()


@pytest.mark.parametrize(
    ("condition", "fix"),
    [({"tcc_below": 2.0}, "'ttc_below'"), ({"action_change": True}, "'action_changed'"), ({"q": 1}, "recording.steps")],
)
def test_an_unknown_column_names_the_nearest(long: Recording, condition: dict[str, float], fix: str) -> None:
    with pytest.raises(RecordingError, match="have no column") as caught:
        long.where(**condition)
    assert fix in caught.value.fix


def test_a_selection_without_a_condition_is_refused(long: Recording) -> None:
    with pytest.raises(RecordingError, match="needs a condition"):
        long.where()


def test_missing_values_meet_no_condition(tmp_path: Path) -> None:
    manifests.create(tmp_path / "r", MANIFEST | {"seeds": [7]})
    part = episode(0, length=3, seed=7)
    ttc = pa.array([np.nan, None, 1.0], pa.float64())
    gaps = part.steps.set_column(part.steps.column_names.index("ttc"), "ttc", ttc)
    Writer(tmp_path / "r").add(Episodes(episodes=part.episodes, steps=gaps, entities=part.entities, arrays=part.arrays))
    recording = Recording.load(tmp_path / "r")
    assert len(recording.where(ttc_below=2.0).steps) == 1
    assert len(recording.where(ttc_above=0.0).steps) == 1


def test_columns_that_differ_from_episode_to_episode_are_brought_together(tmp_path: Path) -> None:
    store_path = tmp_path / "r"
    manifests.create(store_path, MANIFEST | {"seeds": [7, 8]})
    parts = [episode(0, length=3, seed=7), episode(1, length=2, seed=8)]
    whole = parts[0].steps.set_column(parts[0].steps.column_names.index("ttc"), "ttc", pa.array([1, 2, 3]))
    late = parts[1].steps.append_column("arrived", pa.array([False, True]))
    writer = Writer(store_path)
    for part, steps in zip(parts, (whole, late), strict=True):
        writer.add(Episodes(episodes=part.episodes, steps=steps, entities=part.entities, arrays=part.arrays))
    apart = Recording.load(store_path)
    assert apart.steps["ttc"].dtype == float
    assert apart.where(arrived=True).steps["seed"].tolist() == [8]
    assert apart.dataset().to_table()["arrived"].to_pylist() == [None, None, None, False, True]
    writer.close()
    merged = Recording.load(store_path)
    assert len(folders(merged)) == 1
    assert merged.where(arrived=True).steps["seed"].tolist() == [8]
    assert merged.steps["ttc"].tolist()[:3] == [1.0, 2.0, 3.0]


def test_a_recording_without_a_finished_episode_says_so(tmp_path: Path) -> None:
    manifests.create(tmp_path / "r", MANIFEST | {"seeds": [7]})
    empty = Recording.load(tmp_path / "r")
    assert len(empty) == 0
    assert empty.missing_seeds == [7]
    with pytest.raises(RecordingError, match="no finished episode"):
        _ = empty.observations
