"""The experiment of the same name: its pairs differ in the cue alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "07_where_is_the_memory" / "run.py"


@pytest.fixture(scope="module")
def experiment():
    found = importlib.util.spec_from_file_location("where_is_the_memory", RUN)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_its_pairs_differ_in_the_cue_alone(experiment):
    clean, corrupt = experiment.pairs(5, 4)
    assert clean.shape == (5, 5, 3)
    differ = np.argwhere(clean != corrupt)
    assert {tuple(place[1:]) for place in differ} == {(0, 0)}
    np.testing.assert_array_equal(clean[:, :, 2], [[0, 0, 0, 0, 1]] * 5)


@pytest.mark.slow
def test_the_smoke_run_says_where_it_is(tmp_path):
    done = subprocess.run(
        [sys.executable, str(RUN), "--smoke", "--out", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "h and c  put in after each step brings back [1. 1. 1. 1. 1. 1. 1.]" in done.stdout
    assert (tmp_path / "memory.csv").exists()
