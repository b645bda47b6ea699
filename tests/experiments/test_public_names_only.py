"""Experiments use what `import rlmech` shows, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NAMES = (
    "07_where_is_the_memory",
    "08_what_does_it_look_at",
    "09_proofs_at_the_intersection",
    "11_a_dictionary_of_driving",
    "12_what_does_it_know",
)


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_public_names_only(name):
    source = (EXPERIMENTS / name / "run.py").read_text(encoding="utf-8")
    imported = [
        one.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for one in node.names
    ]
    assert [one for one in imported if one.startswith("rlmech")] == ["rlmech"]
