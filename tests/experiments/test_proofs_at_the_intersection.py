"""The experiment of the same name uses public names only, and its smoke run gives radii, a map and verdicts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "09_proofs_at_the_intersection" / "run.py"


def test_it_imports_public_names_only():
    imported = [
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(RUN.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
    assert [name for name in imported if name.startswith("rlmech")] == ["rlmech"]


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
