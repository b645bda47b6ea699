"""A sweep's journal: what is finished, on disk, so that a sweep that was stopped goes on and gives the same result.

A directory with one safetensors file per finished group of jobs, written under another name and moved into place: a
file that is there is whole. `sweep.json` says what the journal is of; another sweep's journal is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlmech.errors import ConfigError
from rlmech.files import moved_into_place


class Journal:
    """Finished groups of one sweep.

    Args:
        path: A directory, made if it is not there.
        identity: What the sweep is: anything that changes its result.

    Raises:
        ConfigError: The directory holds the journal of another sweep, or something else.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        header = self.path / "sweep.json"
        text = json.dumps({key: str(value) for key, value in identity.items()}, indent=1, sort_keys=True)
        if self.path.exists() and not self.path.is_dir():
            raise self._refused("a file of that name", "a directory of the journal's own")
        self.path.mkdir(parents=True, exist_ok=True)
        if header.exists():
            there = json.loads(header.read_text())
            differs = [key for key, value in json.loads(text).items() if there.get(key) != value]
            if differs:
                raise self._refused(f"the journal of another sweep: another {', '.join(differs)}", "this sweep's own")
        elif any(self.path.iterdir()):
            raise self._refused("a directory with other files in it", "an empty or absent directory")
        else:
            with moved_into_place(header) as partial:
                partial.write_text(text)

    def _refused(self, given: str, expected: str) -> ConfigError:
        return ConfigError(
            f"{str(self.path)!r} cannot be this sweep's journal.",
            given=given,
            expected=expected,
            fix="give another path; nothing was changed there",
        )

    def read(self, number: int) -> tuple[Tensor, Tensor] | None:
        """The measured and active rows of a finished group; None where it is not finished."""
        file = self._file(number)
        if not file.exists():
            return None
        stored = load_file(file)
        return stored["measured"], stored["active"]

    def write(self, number: int, measured: Tensor, active: Tensor) -> None:
        """Keep a finished group."""
        stored = {"measured": measured.contiguous().cpu(), "active": active.contiguous().cpu()}
        with moved_into_place(self._file(number)) as partial:
            save_file(stored, partial)

    def _file(self, number: int) -> Path:
        return self.path / f"group_{number:05d}.safetensors"


def digest(tensors: Sequence[Tensor]) -> str:
    """A short hash of some tensors' shapes, dtypes and values."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]
