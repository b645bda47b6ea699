"""The experiment of the same name: each of its edits changes what it says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import rlmech as rlm

RUN = Path(__file__).resolve().parents[2] / "experiments" / "08_what_does_it_look_at" / "run.py"


@pytest.fixture(scope="module")
def experiment():
    found = importlib.util.spec_from_file_location("what_does_it_look_at", RUN)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_its_edits_leave_a_task_that_can_be_done(experiment):
    pytest.importorskip("minigrid")
    env = rlm.make_env("MiniGrid-DoorKey-6x6-v0")
    for seed in range(experiment.FIRST_SEED, experiment.FIRST_SEED + 3):
        scene = rlm.Scene.replay(env, seed=seed)
        before = scene.entities.set_index("type")
        for name, (_, edit) in experiment.EDITS.items():
            edited = edit(scene)
            after = edited.entities.set_index("type")
            assert not edited.edits[-1].reasons, name
            assert not after.equals(before), name
        moved = experiment.goal_moved(scene).entities.set_index("type").loc["goal"]
        assert (moved.x, moved.y) == (before.loc["goal", "x"], 1)


@pytest.mark.slow
def test_the_smoke_run_says_what_it_looks_at(tmp_path):
    done = subprocess.run(
        [sys.executable, str(RUN), "--smoke", "--out", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "unedited" in done.stdout
    assert (tmp_path / "looks.csv").exists()
    assert (tmp_path / "page.html").exists()
