"""The smoke run of the experiment of the same name scores, drives and takes features out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "11_a_dictionary_of_driving" / "run.py"


@pytest.mark.slow
def test_the_smoke_run_gives_scores_and_drives(tmp_path):
    command = [sys.executable, str(RUN), "--smoke", "--policy", "intersection-ego-attention", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    folder = tmp_path / "intersection-ego-attention"
    scores = pd.read_csv(folder / "scores.csv")
    whole = scores[scores["splice"] == "with_error"]
    assert (whole["agreement"] == 1).all()
    assert set(scores["dictionary"]) == {"topk", "pca", "ica", "neurons", "nothing"}
    driven = pd.read_csv(folder / "features.csv")
    assert driven["condition"].str.contains("random").sum() == 6
    assert "found again" in done.stdout
