"""Files that are whole or not there, and whose readers notice every changed bit.

A sealed file holds the SHA-256 of all its bytes, taken with the digest's own 64 characters as zeros: a safetensors file
in its metadata, a JSON file as its first entry. Cost: a hash of the file, about a second a gigabyte.
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

SEAL = "sha256"
_UNSEALED = "0" * 64
_SEALED = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')
_JSON_HEAD = 90  # bytes of a JSON file in which the digest stands


class DamagedError(Exception):
    """A file that is not as it was written; whoever reads it says so in words of its own."""


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
    place = _place(content)
    content[place] = hashlib.sha256(content).hexdigest().encode()
    with moved_into_place(path) as partial:
        partial.write_bytes(content)


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a sealed file.

    Raises:
        DamagedError: It is no sealed file, or not one bit for bit as it was written.
        OSError: It cannot be read.
    """
    content = bytearray(path.read_bytes())
    _unseal(content, _place(content))
    try:  # sealed is not yet sound: anybody can seal
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(bytes(content)), dict(header["__metadata__"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(str(error)) from error


def write_sealed_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as one sealed JSON file, wholly or not at all.

    Args:
        path: The file; one of that name is replaced.
        content: What JSON holds; `sha256` is the seal's own.
    """
    text = bytearray(json.dumps({SEAL: _UNSEALED, **content}, indent=1).encode() + b"\n")
    text[_place(text, end=_JSON_HEAD)] = hashlib.sha256(text).hexdigest().encode()
    with moved_into_place(path) as partial:
        partial.write_bytes(text)


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The content of a sealed JSON file.

    Raises:
        DamagedError: It is no sealed file, or not one bit for bit as it was written.
        OSError: It cannot be read.
    """
    text = bytearray(path.read_bytes())
    _unseal(text, _place(text, end=_JSON_HEAD))
    try:
        content = json.loads(text)
        del content[SEAL]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(str(error)) from error
    return content


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unseal(content: bytearray, place: slice) -> None:
    """Set the digest to zeros, as it was when it was taken, and check it."""
    digest = bytes(content[place])
    content[place] = _UNSEALED.encode()
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedError("its checksum does not fit what it holds")


def _place(content: bytearray, *, end: int | None = None) -> slice:
    """Where the digest stands: in a safetensors file's header, before any tensor; in JSON before anything else."""
    end = 8 + int.from_bytes(content[:8], "little") if end is None else end
    found = _SEALED.search(content, 0, min(end, len(content)))
    if found is None:
        raise DamagedError("it holds no checksum")
    return slice(*found.span(1))
