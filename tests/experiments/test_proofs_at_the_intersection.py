"""The smoke run of the experiment of the same name gives radii, a map and verdicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "09_proofs_at_the_intersection" / "run.py"


@pytest.mark.slow
def test_the_smoke_run_certifies_less_than_it_attacks(tmp_path):
    done = subprocess.run(
        [sys.executable, str(RUN), "--smoke", "--out", str(tmp_path)], capture_output=True, text=True, check=True
    )
    radii = pd.read_csv(tmp_path / "radii.csv")
    assert (radii["certified"] <= radii["attacked"]).all()
    assert (radii["certified"] > 0).any()
    assert (tmp_path / "map.html").exists()
    assert "keeps its action" in done.stdout
