"""The experiment of the same name runs, from public names only, and says what it found."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments" / "01_first_look" / "run.py"


def test_it_is_under_a_hundred_lines_of_public_names():
    source = RUN.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 100
    imported = [
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
    assert [name for name in imported if name.startswith("rlmech")] == ["rlmech"]


@pytest.mark.slow
def test_the_smoke_run_writes_a_page_and_names_a_head(tmp_path: Path):
    page = tmp_path / "first_look.html"
    done = subprocess.run(
        [sys.executable, str(RUN), "--smoke", "--out", str(page)], capture_output=True, text=True, check=True
    )
    assert "brings back" in done.stdout
    assert page.read_text(encoding="utf-8").count("<article") == 6
