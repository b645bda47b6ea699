"""A figure as a page of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_figure(path: Path, title: str, meaning: str, figure: Any) -> Path:
    """Write a figure with its title and what it means, and return the path."""
    import rlmech as rlm

    panel = rlm.plot.Panel(title=title, meaning=meaning, figure=figure)
    return rlm.plot.page([rlm.plot.Section(title=title, panels=(panel,))], path, title=title)
