"""A sweep's journal: what is finished, on disk, so that a sweep that was stopped goes on and gives the same result.

A directory with one safetensors file per finished group of jobs, written under another name and moved into place: a
file that is there is whole. `sweep.json` says what the journal is of; another sweep's journal is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmech.errors import ConfigError
from rlmech.files import DamagedError, moved_into_place, parse_json, read_sealed, write_sealed
from rlmech.untyped import Settings


class Journal:
    """Finished groups of one sweep.

    Args:
        path: A directory, made if it is not there.
        identity: What the sweep is: anything that changes its result.

    Raises:
        ConfigError: The directory holds the journal of another sweep, or something else.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: Settings) -> None:
        self.path = Path(path)
        header = self.path / "sweep.json"
        text = json.dumps({key: str(value) for key, value in identity.items()}, indent=1, sort_keys=True)
        if self.path.exists() and not self.path.is_dir():
            raise self._refused("a file of that name", "a directory of the journal's own")
        self.path.mkdir(parents=True, exist_ok=True)
        if header.exists():
            there = self._header(header)
            wanted = json.loads(text)
            differs = [key for key in {**wanted, **there} if there.get(key) != wanted.get(key)]
            if differs:
                raise self._refused(f"the journal of another sweep: another {', '.join(differs)}", "this sweep's own")
            if header.read_text(encoding="utf-8") != text:
                raise self._damaged(header, "not the text that was written")
        elif any(self.path.iterdir()):
            raise self._refused("a directory with other files in it", "an empty or absent directory")
        else:
            with moved_into_place(header) as partial:
                partial.write_text(text)

    def _header(self, header: Path) -> dict[str, object]:
        try:
            there = parse_json(header.read_bytes())
        except (OSError, DamagedError) as error:
            raise self._damaged(header, error) from error
        if not isinstance(there, dict):
            raise self._damaged(header, f"a {type(there).__name__} where a mapping is expected")
        return there

    def _damaged(self, file: Path, what: object) -> ConfigError:
        return ConfigError(
            "A sweep's journal is damaged.",
            given=f"{file}: {what}",
            expected="a file as the sweep wrote it, bit for bit",
            fix="remove that file to redo its part of the sweep, or sweep.json's whole folder to begin again",
        )

    def _refused(self, given: str, expected: str) -> ConfigError:
        return ConfigError(
            f"{str(self.path)!r} cannot be this sweep's journal.",
            given=given,
            expected=expected,
            fix="give another path; nothing was changed there",
        )

    def read(self, number: int) -> tuple[Tensor, Tensor] | None:
        """The measured and active rows of a finished group; None where it is not finished.

        Raises:
            ConfigError: Its file is damaged.
        """
        file = self._file(number)
        if not file.exists():
            return None
        try:
            stored, _ = read_sealed(file)
            return stored["measured"], stored["active"]
        except (DamagedError, KeyError, OSError) as error:
            raise self._damaged(file, error) from error

    def write(self, number: int, measured: Tensor, active: Tensor) -> None:
        """Keep a finished group."""
        stored = {"measured": measured.contiguous().cpu(), "active": active.contiguous().cpu()}
        write_sealed(self._file(number), stored, metadata={})

    def _file(self, number: int) -> Path:
        return self.path / f"group_{number:05d}.safetensors"


def digest(tensors: Sequence[Tensor]) -> str:
    """A short hash of some tensors' shapes, dtypes and values."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def function_digest(function: object) -> str:
    """A short hash of a function: its code, what it has closed over, its defaults, the plain globals it reads.

    It is the same in every process. Objects that are no plain values count by their attributes, or by their class where
    they have none to be seen. Functions that it calls by a global name count by that name alone.
    """
    hashed = hashlib.sha256()
    _describe(function, hashed.update, {})
    return hashed.hexdigest()[:16]


def _describe(value: object, add: Callable[[bytes], None], seen: dict[int, object]) -> None:
    add(f"|{type(value).__module__}.{type(value).__qualname__}:".encode())
    if value is None or isinstance(value, str | bytes | int | float | complex):
        add(repr(value).encode())
        return
    if isinstance(value, Tensor):
        add(digest([value]).encode())
        return
    if isinstance(value, np.ndarray):
        add(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        return
    if id(value) in seen:  # what refers to itself
        return
    seen[id(value)] = value  # kept, so that no other object takes its number
    for part in _parts(value):
        _describe(part, add, seen)


def _parts(value: object) -> Iterable[object]:
    """What an object is made of, as far as it can change what a function computes."""
    if isinstance(value, CodeType):  # line numbers and file names do not count
        return [value.co_code, value.co_consts, value.co_names, value.co_varnames, value.co_freevars]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        read = [given for given in named if isinstance(given, str | bytes | int | float | Tensor | np.ndarray)]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, read]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, ModuleType | type | BuiltinFunctionType):
        return [getattr(value, "__qualname__", getattr(value, "__name__", ""))]
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if isinstance(name, str)]
    own = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    return [own | dict(getattr(value, "__dict__", {}))]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # closed over, and not yet set
        return False
