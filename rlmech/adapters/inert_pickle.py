"""Reading the data in a pickle without running anything: numbers, arrays, containers; all else is an inert stub.

A pickle names classes and functions and says what to call them with. Here no name is looked up: numpy's array
constructors are replaced by a reader of raw numbers, plain containers by themselves, and every other name by a stub
that keeps what it is given. So whatever a file says, nothing of it runs, and its state can be read as data.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
from typing import Any

import numpy as np

from rlmech.errors import CheckpointError
from rlmech.untyped import Args

LARGEST = 256 * 2**20
_DTYPE = re.compile(r"[<>|=]?[biufc?]\d*")


class Stub:
    """An object whose class is not known here: its name, and what it was made with.

    Attributes:
        name: Module and class, as the pickle names them.
        args: What the class was called with.
        state: Its attributes.
    """

    name = ""

    def __new__(cls, *args: object, **kwargs: object) -> Stub:
        """An object with its arguments, whichever way a pickle makes it."""
        stub = super().__new__(cls)
        stub.args, stub.state = (*args, *kwargs.values()), {}
        return stub

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args: Args
        self.state: dict[Any, Any]

    def __setstate__(self, state: object) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.state.update(part)

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, str):
            self.state[key] = value

    def append(self, value: object) -> None:
        """What a list's subclass is filled with is not kept."""

    def extend(self, values: object) -> None:
        """What a list's subclass is filled with is not kept."""

    def add(self, value: object) -> None:
        """What a set's subclass is filled with is not kept."""


class _Dtype:
    """A dtype of plain numbers, by its code; its byte order comes as state."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else ""
        if order in ("<", ">", "|", "="):
            self.code = order + self.code.lstrip("<>|=")

    def known(self) -> np.dtype[Any]:
        """The dtype itself.

        Raises:
            ValueError: It is not one of plain numbers.
        """
        if not _DTYPE.fullmatch(self.code):
            raise ValueError(f"an array of dtype {self.code!r}")
        return np.dtype(self.code)


class _Array:
    """An array before its state: shape, dtype and raw bytes."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C") if isinstance(raw, bytes) else None


def _array(raw: Any, dtype: Any, shape: Any, order: object = "C") -> np.ndarray:
    values = np.frombuffer(bytes(raw), dtype=dtype.known())
    return values.reshape(tuple(int(n) for n in shape), order="F" if order == "F" else "C").copy()


def _scalar(dtype: Any, raw: object = b"") -> object:
    return np.frombuffer(bytes(raw), dtype=dtype.known())[0] if isinstance(raw, bytes) else Stub(raw)


def _encoded(text: object, codec: object = "") -> object:
    """Raw bytes in the old protocols, which write them as text."""
    return text.encode("latin1") if isinstance(text, str) and codec == "latin1" else Stub(text)


def _raw(value: object = b"", *_: object) -> object:
    """Bytes of bytes; a number would be a size, and memory taken."""
    return bytes(value) if isinstance(value, bytes | bytearray) else Stub(value)


def _bare(cls: object, *_: object) -> object:
    """`copyreg`'s constructors: an object of a class, before its state."""
    return cls() if isinstance(cls, type) and issubclass(cls, Stub | _Array) else Stub(cls)


_KNOWN: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("copyreg", "_reconstructor"): _bare,
    ("copyreg", "__newobj__"): _bare,
    ("copy_reg", "_reconstructor"): _bare,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encoded,
    **{
        (module, name): made
        for module in ("builtins", "__builtin__")
        for name, made in (
            ("object", object),
            ("set", set),
            ("frozenset", frozenset),
            ("bytes", _raw),
            ("bytearray", _raw),
        )
    },
    **{
        (f"numpy.{core}.{module}", name): made
        for core in ("core", "_core")
        for module, name, made in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array),
        )
    },
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> object:
        known = _KNOWN.get((module, name))
        return type("Stub", (Stub,), {"name": f"{module}.{name}"}) if known is None else known

    def persistent_load(self, pid: object, /) -> object:
        return Stub(pid)

    def get_extension(self, code: int) -> object:
        raise pickle.UnpicklingError(f"extension {code}")


def read_inert(content: bytes, *, name: str) -> object:
    """Read a pickle as data.

    Args:
        content: The pickle.
        name: What to call it in errors.

    Returns:
        Numbers, texts, arrays and containers; `Stub` for every object of another class.

    Raises:
        CheckpointError: It is damaged, too large, or holds what is no data.

    Example:
        >>> import datetime, pickle
        >>> read_inert(pickle.dumps({"clip": 10.0, "day": datetime.timedelta(1)}), name="a pickle")["day"].args
        (1, 0, 0)
    """
    if len(content) > LARGEST:
        raise _unreadable(name, f"{len(content)} bytes")
    try:
        return _plain(_Reader(io.BytesIO(content)).load(), {})
    except Exception as error:  # a damaged pickle raises whatever its opcodes come upon
        raise _unreadable(name, f"{type(error).__name__}: {str(error)[:120]}") from error


def _plain(value: object, seen: dict[int, object]) -> object:
    """With arrays in the place of their readers, all through containers and stubs."""
    if isinstance(value, _Array):
        return value.value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Stub):
        seen[id(value)] = value
        value.state = {key: _plain(part, seen) for key, part in value.state.items()}
        value.args = tuple(_plain(part, seen) for part in value.args)
        return value
    if isinstance(value, dict):
        made: dict[object, object] = type(value)() if isinstance(value, collections.OrderedDict) else {}
        seen[id(value)] = made
        made.update({key: _plain(part, seen) for key, part in value.items()})
        return made
    if isinstance(value, list | tuple):
        parts = [_plain(part, seen) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _unreadable(name: str, given: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot be read as data: it is damaged, or not what it should be.",
        given=given,
        expected=f"a pickle of at most {LARGEST // 2**20} MiB",
        fix="copy or download it again, and compare its size with the original's",
    )
