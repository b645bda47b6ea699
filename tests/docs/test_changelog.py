"""Changes that are not released: files that towncrier reads, and joins."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRAGMENTS = sorted(path for path in (ROOT / "changelog.d").glob("*.md") if path.name != "README.md")


def test_the_name_of_a_change_says_of_which_type_it_is():
    named = re.compile(r"\+[a-z0-9-]+\.(added|changed|fixed|measured)\.md")
    assert [path.name for path in FRAGMENTS if not named.fullmatch(path.name)] == []
    assert all(path.read_text(encoding="utf-8").strip() for path in FRAGMENTS)


def test_the_draft_of_the_next_release_holds_every_change():
    draft = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(path.read_text(encoding="utf-8").split("\n")[0] in draft for path in FRAGMENTS)
