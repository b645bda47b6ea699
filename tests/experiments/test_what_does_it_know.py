"""The smoke run of the experiment of the same name knows no coin, drives and looks ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "12_what_does_it_know" / "run.py"


@pytest.mark.slow
def test_the_smoke_run_knows_no_coin_drives_and_looks_ahead(tmp_path):
    command = [sys.executable, str(RUN), "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    known = pd.read_csv(tmp_path / "known.csv")
    assert not known[known["target"] == "coin"]["says"].str.startswith("decodable").any()
    driven = pd.read_csv(tmp_path / "used.csv")
    assert set(driven["condition"]) >= {"erased", "pushed up", "pushed down", "erased, random 1"}
    assert len(pd.read_csv(tmp_path / "planned.csv")) == 4
