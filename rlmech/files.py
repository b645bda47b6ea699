"""Files that are whole or not there, and tensors whose file notices every changed bit when it is read.

A sealed file is a safetensors file whose metadata holds the SHA-256 of all its bytes, taken with the digest's own 64
characters as zeros. Cost: a hash of the file, about a second a gigabyte.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

SEAL = "sha256"
_UNSEALED = "0" * 64
_SEALED = re.compile(rb'"sha256":"([0-9a-f]{64})"')


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
    import json

    content = bytearray(path.read_bytes())
    place = _place(content)
    digest = bytes(content[place])
    content[place] = _UNSEALED.encode()
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedError("its checksum does not fit what it holds")
    try:  # sealed is not yet sound: anybody can seal
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(bytes(content)), dict(header["__metadata__"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(str(error)) from error


def _place(content: bytearray) -> slice:
    """Where the digest stands: in the header, before any tensor."""
    end = 8 + int.from_bytes(content[:8], "little")
    found = _SEALED.search(content, 0, min(end, len(content)))
    if found is None:
        raise DamagedError("it holds no checksum")
    return slice(*found.span(1))
