"""The experiment of the same name uses public names only, and its smoke run knows no coin, drives and looks ahead."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "12_what_does_it_know" / "run.py"


def test_it_imports_public_names_only():
    imported = [
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(RUN.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
    assert [name for name in imported if name.startswith("rlmech")] == ["rlmech"]


@pytest.mark.slow
def test_the_smoke_run_knows_no_coin_drives_and_looks_ahead(tmp_path):
    command = [sys.executable, str(RUN), "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    known = pd.read_csv(tmp_path / "known.csv")
    assert not known[known["target"] == "coin"]["says"].str.startswith("decodable").any()
    driven = pd.read_csv(tmp_path / "used.csv")
    assert set(driven["condition"]) >= {"erased", "pushed up", "pushed down", "erased, random 1"}
    assert len(pd.read_csv(tmp_path / "planned.csv")) == 4
