"""Files that are whole or not there, and that notice every changed bit when they are read.

A sealed file is a safetensors or JSON file that holds the SHA-256 of all its bytes, taken with the digest's own 64
characters as zeros. Cost: a hash of the file, about a second a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rlmech.errors import ConfigError, MissingFileError
from rlmech.untyped import JsonObject

SEAL = "sha256"
_UNSEALED = "0" * 64
_SEALED = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')
_JSON_HEAD = 90  # bytes of a JSON file in which the digest stands
_DEEPEST = 100  # of nested JSON; files of ours stay under 20, and Python gives up near 1,000


class DamagedError(Exception):
    """A file that is not as it was written; whoever reads it says so in words of its own."""


@contextmanager
def reading(path: Path, *, what: str, writer: str, expected: str) -> Generator[None]:
    """Say in words what is wrong with a file that is read inside the block.

    Args:
        path: The file.
        what: What it should hold, e.g. `circuit`.
        writer: What writes such files, e.g. `Circuit.save`.
        expected: What it should be.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: It is damaged, or holds something else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(
            f"There is no {what} at {path}.",
            given=str(path),
            expected=f"a file that {writer} wrote",
            fix=f"look at the path, or save one: {what}.save(path)",
        ) from error
    except (DamagedError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no {what}.",
            given=str(error)[:200],
            expected=expected,
            fix=f"give a file that {writer} wrote",
        ) from error


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


def write_sealed(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write tensors and texts as one sealed file, wholly or not at all.

    Args:
        path: The file; one of that name is replaced.
        tensors: By name, contiguous and on the CPU.
        metadata: Texts by name; `sha256` is the seal's own.
    """
    content = bytearray(save(dict(tensors), metadata={**metadata, SEAL: _UNSEALED}))
    _seal_and_write(path, content, end=_header_end(content))


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a sealed file.

    Raises:
        DamagedError: It is no sealed file, or not one bit for bit as it was written.
        OSError: It cannot be read.
    """
    content = bytearray(path.read_bytes())
    _unseal(content, end=_header_end(content))
    try:  # sealed is not yet sound: anybody can seal
        header = json.loads(content[8 : _header_end(content)])
        return load(bytes(content)), dict(header["__metadata__"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(str(error)) from error


def write_sealed_json(path: Path, values: Mapping[str, object]) -> None:
    """Write plain values as one sealed JSON file, wholly or not at all.

    Args:
        path: The file; one of that name is replaced.
        values: What JSON holds; the entry `sha256` is the seal's own.
    """
    text = json.dumps({SEAL: _UNSEALED, **values}, indent=1) + "\n"
    _seal_and_write(path, bytearray(text.encode()), end=_JSON_HEAD)


def read_sealed_json(path: Path) -> JsonObject:
    """The values of a sealed JSON file.

    Raises:
        DamagedError: It is no sealed file, or not one bit for bit as it was written.
        OSError: It cannot be read.
    """
    content = bytearray(path.read_bytes())
    _unseal(content, end=_JSON_HEAD)
    values = parse_json(bytes(content))
    if not isinstance(values, dict):
        raise DamagedError(f"a {type(values).__name__} where a mapping is expected")
    return {name: value for name, value in values.items() if name != SEAL}


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text.

    Raises:
        DamagedError: It is no JSON, or nested more deeply than what reads it could follow.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise DamagedError(f"JSON nested more than {_DEEPEST} deep") from error
    except ValueError as error:  # UnicodeDecodeError and numbers of too many digits among them
        raise DamagedError(str(error)) from error
    level = [values]
    for _ in range(_DEEPEST):
        level = [part for value in level for part in _parts(value)]
        if not level:
            return values
    raise DamagedError(f"JSON nested more than {_DEEPEST} deep")


def _parts(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _seal_and_write(path: Path, content: bytearray, *, end: int) -> None:
    content[_place(content, end=end)] = hashlib.sha256(content).hexdigest().encode()
    with moved_into_place(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # the bytes are on the disk before the name is


def _unseal(content: bytearray, *, end: int) -> None:
    """Set the digest to zeros, as it was when it was taken, and check it."""
    place = _place(content, end=end)
    digest = bytes(content[place])
    content[place] = _UNSEALED.encode()
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedError("its checksum does not fit what it holds")


def _place(content: bytearray, *, end: int) -> slice:
    """Where the digest stands: before `end`, in a safetensors file's header or at the beginning of JSON."""
    found = _SEALED.search(content, 0, min(end, len(content)))
    if found is None:
        raise DamagedError("it holds no checksum")
    return slice(*found.span(1))


def _header_end(content: bytearray) -> int:
    return 8 + int.from_bytes(content[:8], "little")
