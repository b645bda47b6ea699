"""Files that are whole or not there: written under another name in the same directory, then moved into place."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def moved_into_place(path: Path) -> Generator[Path]:
    """Where to write a file; it takes its own name when the block ends well, and leaves nothing behind otherwise.

    Args:
        path: The file; one of that name is replaced.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
