"""Digests of what an object holds, equal in every process for equal contents: what identities and copies are told by.

Everything that can be reached is read: attributes, slots, containers, arrays, states of generators, code of functions.
What holds its state outside of Python is taken by what pickling would keep of it; what cannot be pickled either is told
by its class alone. Nothing is called that an object defines itself, but its pickling. Cost: about that of a deepcopy.
"""

from __future__ import annotations

import hashlib
import random
import types
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch

LONGEST = 60
"""Characters of a value that is told as it is; of a longer one, its digest."""
_DRAWS = ("pygame", "pyglet", "imageio", "matplotlib", "moviepy", "cv2")
"""Packages whose objects draw, and decide nothing."""
_OURS = "rlmech.simulators.highway.fast"
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def told(value: Any, *, within: Any = None) -> str:
    """A value in a few characters: itself where it is short, else its class and a digest.

    Args:
        value: Any object.
        within: The object that it belongs to; where the value leads back to it, it is not read again.

    Example:
        >>> told(9.8), told({"a": [1, 2]}) == told({"a": [1, 2]}), told([1]) == told([2])
        ('9.8', True, False)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN) and len(repr(value)) <= LONGEST:
        return repr(value)
    reader = _Reader()
    if within is not None:
        reader.above.append(id(within))
    return f"{_named(type(value)).rpartition('.')[2]} {reader.digest(value).hex()[:16]}"


def draws_only(value: object) -> bool:
    """Whether an object only draws, and decides nothing."""
    return _module(type(value)).split(".")[0] in _DRAWS


class _Reader:
    """One walk through an object."""

    def __init__(self) -> None:
        self.above: list[int] = []  # the objects that are being read: a way back to one of them is told, not gone again
        self._known: dict[int, bytes] = {}
        self._alive: list[object] = []  # so that no other object takes an id()

    def digest(self, value: object) -> bytes:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, _PLAIN):
            return _plain_digest(repr(value))
        if id(value) in self.above:
            return _hashed("above", _named(type(value)))
        if id(value) not in self._known:
            self.above.append(id(value))
            try:
                self._known[id(value)] = _hashed(*self._parts(value))
            finally:
                self.above.pop()
            self._alive.append(value)
        return self._known[id(value)]

    def _parts(self, value: object) -> Iterable[str | bytes]:
        cls = type(value)
        if draws_only(value):
            return (self.digest(None),)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return ("objects", repr(value.shape), self.digest(value.tolist()))
            return ("array", str(value.dtype), repr(value.shape), np.ascontiguousarray(value).tobytes())
        if isinstance(value, torch.Tensor):
            return ("tensor", str(value.dtype), self.digest(value.detach().cpu().double().numpy()))
        if isinstance(value, type):
            return ("class", _named(value))
        if isinstance(value, types.ModuleType):
            return ("module", value.__name__)
        if isinstance(value, Enum):
            return ("enum", cls.__qualname__, value.name)
        if isinstance(value, Mapping | list | tuple | set | frozenset | deque):
            return self._container(value)
        return self._function(value) or self._state(value)

    def _container(self, value: Any) -> Iterable[str | bytes]:
        own = self._attributes(value) if _module(type(value)) != "builtins" else b""
        name = _named(type(value))
        if isinstance(value, Mapping):
            pairs = [self.digest(key) + self.digest(one) for key, one in list(value.items())]
            return (name, own, *sorted(pairs))
        parts = [self.digest(one) for one in list(value)]
        return (name, own, *(sorted(parts) if isinstance(value, set | frozenset) else parts))

    def _function(self, value: object) -> Iterable[str | bytes] | None:
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
            kept = (value.__defaults__, value.__kwdefaults__, cells)
            return ("function", value.__qualname__, *_code(value.__code__), self.digest(kept))
        if isinstance(value, types.MethodType):
            return ("method", self.digest(value.__func__), self.digest(value.__self__))
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType | types.WrapperDescriptorType):
            return ("builtin", value.__qualname__)
        if isinstance(value, partial):
            return ("partial", self.digest((value.func, value.args, value.keywords)))
        if isinstance(value, weakref.ref):
            return ("weak", self.digest(value()))
        return None

    def _state(self, value: Any) -> Iterable[str | bytes]:
        name = _named(type(value))
        if isinstance(value, np.random.Generator):
            return (name, self.digest(value.bit_generator.state))
        if isinstance(value, np.random.RandomState):
            return (name, self.digest(value.get_state(legacy=False)))
        if isinstance(value, random.Random):
            return (name, self.digest(value.getstate()))
        if hasattr(value, "getRAM") and hasattr(value, "getEpisodeFrameNumber"):  # a console of ale-py
            return (name, value.getRAM().tobytes(), repr(value.getEpisodeFrameNumber()))
        if hasattr(value, "__dict__") or _slots(value):
            return (name, self._attributes(value))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # whatever its class raises: it does not tell
            return (name,)
        return (name, self.digest(reduced[1:3]) if isinstance(reduced, tuple) else b"")

    def _attributes(self, value: object) -> bytes:
        named = dict(getattr(value, "__dict__", {}))
        named |= {slot: getattr(value, slot) for slot in _slots(value)}
        if isinstance(value, gym.Space):  # its generator serves `sample`, which no episode asks for
            named.pop("_np_random", None)
        return _hashed(*(part for name in sorted(named) for part in (name, self.digest(named[name]))))


def _named(cls: type) -> str:
    """A class's full name; of one of ours that stands in for another and does the same to the bit, the other's."""
    meant = next((one for one in cls.__mro__ if not _module(one).startswith(_OURS)), cls)
    return f"{_module(meant)}.{meant.__qualname__}"


def _module(cls: type) -> str:
    return str(getattr(cls, "__module__", ""))  # classes made by SWIG have none


@lru_cache(maxsize=1 << 14)
def _plain_digest(text: str) -> bytes:
    return _hashed("plain", text)


def _hashed(*parts: str | bytes) -> bytes:
    whole: list[bytes] = []
    for part in parts:
        content = part.encode("utf-8", "backslashreplace") if isinstance(part, str) else part
        whole += (len(content).to_bytes(8, "little"), content)
    return hashlib.sha256(b"".join(whole)).digest()


def _slots(value: object) -> list[str]:
    names: list[str] = []
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    plain = [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]
    return [name for name in plain if hasattr(value, name)]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _code(code: types.CodeType) -> list[str | bytes]:
    """What a function does: its instructions, the names that it uses, and its constants, inner functions included."""
    parts: list[str | bytes] = [code.co_code, repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        parts += _code(constant) if isinstance(constant, types.CodeType) else [repr(constant)]
    return parts
