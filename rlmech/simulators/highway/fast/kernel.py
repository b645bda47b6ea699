"""The compiled part: found, handed numpy's inner loops, and proved against numpy before its first use in a process.

`kernel()` gives the library, or why there is none. Proving takes a few milliseconds: every primitive that the kernel
computes is compared with numpy's bit by bit; one difference, and highway-env's own code is used throughout.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

LOOPS = (np.sin, np.cos, np.tan, np.arctan, np.arcsin, np.arctan2, np.power)
"""In the order of the kernel's enum."""
SIZES = {"Lane": 21, "Entity": 41, "Settings": 16, "Control": 12}
"""Members of the kernel's structs, 8 bytes each; another number means that it was built from other source."""
SOURCE_VERSION = 1
"""Of kernel.c; a build of another one is not used."""
N_CHECKED = 256
NOT_BUILT = "the compiled part is not here: it was installed without a C compiler"
OTHER_SOURCE = "the compiled part was built from another version's source: install rlmech again"


class _UFunc(ctypes.Structure):
    """The head of numpy's PyUFuncObject (numpy/ufuncobject.h, unchanged since numpy 1.0)."""

    _fields_ = [
        ("refcount", ctypes.c_ssize_t),
        ("type", ctypes.c_void_p),
        ("nin", ctypes.c_int),
        ("nout", ctypes.c_int),
        ("nargs", ctypes.c_int),
        ("identity", ctypes.c_int),
        ("functions", ctypes.POINTER(ctypes.c_void_p)),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("ntypes", ctypes.c_int),
        ("reserved", ctypes.c_int),
        ("name", ctypes.c_char_p),
    ]


@cache
def kernel() -> Any:
    """The library with its primitives proved, or a line of text that says why it is not used."""
    found = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(f"_kernel{suffix}")).exists()]
    if not found:
        return NOT_BUILT
    try:
        library = _declared(ctypes.PyDLL(str(found[0])))
    except AttributeError:  # a function that this version calls is not in it
        return OTHER_SOURCE
    except OSError as error:
        return f"the compiled part cannot be loaded: {error}"
    if library.source_version() != SOURCE_VERSION or any(
        library.layout(place) != 8 * size for place, size in enumerate(SIZES.values())
    ):
        return OTHER_SOURCE
    for place, ufunc in enumerate(LOOPS):
        loop = _loop(ufunc)
        if loop is None:
            return f"numpy {np.__version__} keeps the loop of {ufunc.__name__} elsewhere"
        library.set_loop(place, *loop)
    different = _different(library)
    return library if different is None else f"{different} of the compiled part is not numpy's on this machine"


def _declared(library: ctypes.PyDLL) -> ctypes.PyDLL:
    address, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    signatures: dict[str, tuple[object, tuple[object, ...]]] = {
        "source_version": (number, ()),
        "layout": (number, (ctypes.c_int,)),
        "set_loop": (None, (ctypes.c_int, address, address)),
        "primitives": (None, (address, address, number, address)),
        "closest_lane": (number, (address, number, real, real, real)),
        "coordinates": (None, (address, address, number, address)),
        "on_own_lanes": (None, (address, address, address, number, address)),
        "encounters": (None, (address, number, address)),
        "run": (number, (address,) * 8),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _loop(ufunc: np.ufunc) -> tuple[int | None, int | None] | None:
    """Address of a ufunc's loop over doubles, and what it is handed; None where its object is laid out otherwise."""
    head = _UFunc.from_address(id(ufunc))
    shape = (head.nin, head.nout, head.nargs, head.ntypes)
    if shape != (ufunc.nin, ufunc.nout, ufunc.nargs, ufunc.ntypes) or head.name != ufunc.__name__.encode():
        return None
    place = ufunc.types.index("d" * ufunc.nin + "->d")
    return head.functions[place], head.data[place] if head.data else None


def _different(library: Any) -> str | None:
    """The first primitive that differs from numpy's, called one number at a time as highway-env does."""
    draw = np.random.default_rng(0)
    a = draw.uniform(-1, 1, N_CHECKED)
    b = np.concatenate([draw.uniform(3.5, 4.5, N_CHECKED // 2), draw.uniform(-200, 200, N_CHECKED - N_CHECKED // 2)])
    names = [*(ufunc.__name__ for ufunc in LOOPS), "remainder", "dot", "norm", "square", "clip"]
    made = np.zeros((N_CHECKED, len(names)))
    library.primitives(a.ctypes.data, b.ctypes.data, N_CHECKED, made.ctypes.data)
    with np.errstate(over="ignore", under="ignore"):
        expected = np.array([_expected(x, y, z) for x, y, z in zip(a, b, a[::-1], strict=True)])
        whole = np.array([ufunc(a) for ufunc in LOOPS[:5]]).T
    same = (made == expected).all(axis=0)
    if not same.all():
        return names[int(np.argmin(same))]
    # observations are made of whole arrays, where highway-env calls sin and cos for one vehicle at a time
    return None if np.array_equal(whole, expected[:, :5]) else "an array's sine"


def _expected(x: Any, y: Any, z: Any) -> list[Any]:
    return [
        *(ufunc(x) for ufunc in LOOPS[:5]),
        np.arctan2(x, y),
        np.power(abs(x), y),
        ((y + np.pi) % (2 * np.pi)) - np.pi,
        np.dot(np.array([x, y]), np.array([y, z])),
        np.linalg.norm(np.array([x, y])),
        np.power(y, 2),
        np.clip(y, -1, 1),
    ]
