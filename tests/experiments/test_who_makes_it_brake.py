"""The experiment of the same name: its pairs are what they say, its laws hold, and it runs from public names only."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import rlmech as rlm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "02_who_makes_it_brake"


@pytest.fixture(scope="module")
def modules() -> Generator[dict[str, ModuleType]]:
    """The experiment's own modules, gone from the interpreter afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for file in FOLDER.glob("*.py"):
            patch.delitem(sys.modules, file.stem, raising=False)
        yield {name: importlib.import_module(name) for name in ("pairs", "tables")}
        for file in FOLDER.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def pairing(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["pairs"]


@pytest.fixture(scope="module")
def tables(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["tables"]


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.load("zoo:intersection-ego-attention")


@pytest.fixture(scope="module")
def recording() -> Any:
    """Traffic drawn at random, on which the policy brakes now and then; only what the pairs read."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-0.3, 0.3, size=(600, 15, 7)).astype(np.float32)
    observations[:, :, 0] = rng.random((600, 15)) < 0.3
    observations[:, 0, 0] = 1
    observations[observations[:, :, 0] == 0] = 0
    return SimpleNamespace(observations=observations, steps=pd.DataFrame({"episode": np.arange(600) // 10}))


def _chosen(policy: rlm.HookedPolicy, observations: np.ndarray) -> list[str]:
    return [policy.spec.actions[i] for i in policy(observations).argmax(1)]


@pytest.mark.parametrize("kind", ["removed", "replaced", "unrelated"])
def test_every_pair_turns_slower_to_faster(policy: rlm.HookedPolicy, made: dict[str, Any], kind: str):
    pairs = made[kind]
    assert len(pairs) > 5
    assert set(_chosen(policy, pairs.clean)) == {"SLOWER"}
    assert set(_chosen(policy, pairs.corrupt)) == {"FASTER"}


@pytest.fixture(scope="module")
def made(policy: rlm.HookedPolicy, recording: Any, pairing: ModuleType) -> dict[str, Any]:
    removed, _ = pairing.removed(policy, recording)
    return {
        "removed": removed,
        "replaced": pairing.replaced(policy, recording, removed),
        "unrelated": pairing.unrelated(policy, recording),
    }


def test_only_row_1_differs_and_the_scores_do_not_mind_the_order(
    policy: rlm.HookedPolicy, recording: Any, pairing: ModuleType, made: dict[str, Any]
):
    removed = made["removed"]
    np.testing.assert_allclose(
        pairing.scores_of(policy, removed.clean),
        pairing.scores_of(policy, recording.observations[removed.state]),
        atol=1e-4,
    )
    np.testing.assert_array_equal(
        removed.clean[:, 1], recording.observations[removed.state, removed.row], err_msg="row 1 is the vehicle"
    )
    assert not removed.corrupt[:, 1].any()
    for kind in ("removed", "replaced"):
        np.testing.assert_array_equal(np.delete(made[kind].clean, 1, axis=1), np.delete(made[kind].corrupt, 1, axis=1))
    assert (made["replaced"].corrupt[:, 1, 0] == 1).all()


def test_the_replacement_is_the_most_similar_that_will_do(
    policy: rlm.HookedPolicy, recording: Any, made: dict[str, Any]
):
    pairs = made["replaced"]
    everyone = recording.observations[:, 1:].reshape(-1, 7)
    everyone = everyone[everyone[:, 0] == 1]
    unit = np.array([1, 0.1, 0.1, 0.15, 0.15, 0.3, 0.3])
    for clean, corrupt in list(zip(pairs.clean, pairs.corrupt, strict=True))[:3]:
        tried = np.repeat(clean[None], len(everyone), axis=0)
        tried[:, 1] = everyone
        will_do = np.array(_chosen(policy, tried)) == "FASTER"
        distance = np.linalg.norm((everyone - clean[1]) / unit, axis=1)
        assert np.linalg.norm((corrupt[1] - clean[1]) / unit) == pytest.approx(distance[will_do].min())


def test_real_pairs_are_of_different_episodes(recording: Any, made: dict[str, Any]):
    pairs = made["unrelated"]
    place = {row.tobytes(): number // 10 for number, row in enumerate(recording.observations)}
    assert all(place[row.tobytes()] != episode for row, episode in zip(pairs.corrupt, pairs.episode, strict=True))


def test_closing_up_sorts_the_present_by_distance_and_changes_no_score(
    policy: rlm.HookedPolicy, recording: Any, pairing: ModuleType
):
    seen = recording.observations[:50]
    closed = pairing.closed_up(policy, seen)
    away = np.hypot(*(closed[:, 1:, 1:3] - closed[:, :1, 1:3]).transpose(2, 0, 1))
    away[closed[:, 1:, 0] == 0] = np.inf
    assert (np.sort(away, axis=1) == away).all()
    np.testing.assert_allclose(pairing.scores_of(policy, closed), pairing.scores_of(policy, seen), atol=1e-4)


def test_pairs_that_repeat_their_episode_make_an_interval_no_narrower(tables: ModuleType):
    rng = np.random.default_rng(0)
    gain, copies = rng.normal(1, 1, size=(1, 20)), 25
    few = SimpleNamespace(episode=np.arange(20))
    many = SimpleNamespace(episode=np.tile(np.arange(20), copies))
    one, same = (
        tables.over_episodes(xr.Dataset(), pairs, gain=g, span=np.ones(g.shape[1]))
        for pairs, g in ((few, gain), (many, np.tile(gain, copies)))
    )
    for name in ("effect_low", "effect_high"):
        np.testing.assert_allclose(one[name], same[name])
    assert float(one["effect_low"][0]) < gain.mean() < float(one["effect_high"][0])


def test_it_uses_public_names_only():
    siblings = {file.stem for file in FOLDER.glob("*.py")}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert all(m == "rlmech" or not m.startswith("rlmech") for m in modules), file
            assert siblings.isdisjoint(sys.stdlib_module_names)


@pytest.mark.slow
def test_the_smoke_run_keeps_the_laws_and_writes_the_page(tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            str(FOLDER / "run.py"),
            "--smoke",
            "--out",
            str(tmp_path),
            "--recordings",
            str(tmp_path / "r"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "brings back" in done.stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    cut = numbers["patched"]["removed"]["vehicle"][-1]  # the embedding and the mask: all that differs
    through = numbers["paths"]["vehicle ->"][-1]  # all keys and all values: all ways from the embedding
    for row in (cut, through):
        assert row["enough"] == pytest.approx([1, 1, 1], abs=1e-3)
        assert row["needed"] == pytest.approx([1, 1, 1], abs=1e-3)
    for row in numbers["attributed"].values():
        assert row["gradient"]["largest error where certified"] < 1e-4
    assert (tmp_path / "index.html").read_text(encoding="utf-8").count("<article") > 15
