"""A cheap fingerprint of what the layers of an environment hold: equal ones hold the same, so that it is told once.

The layers' attributes are pickled, which runs in compiled code, and the bytes hashed. What a class of its own pickling
might leave out is told in full (`values.told`), so that whatever a full reading would see changes the fingerprint;
the other way round, equal contents may have two fingerprints, which costs a reading. Cost: a twentieth of a reading.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import types
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from rlmech.simulators.values import draws_only, told

_TOLD = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, partial, gym.Space)
_PICKLED_WHOLE = ("numpy", "gymnasium", "collections", "random", "enum", "builtins")
"""Packages whose objects keep all of themselves when they are pickled."""


def fingerprint_of(layers: Sequence[object], contents: Sequence[Mapping[str, object]]) -> bytes | None:
    """A hash of what some layers hold; None where it cannot be pickled.

    Args:
        layers: An environment and its wrappers, which their contents may refer to.
        contents: Of each, the attributes that count.
    """
    buffer = io.BytesIO()
    classes = [f"{type(layer).__module__}.{type(layer).__qualname__}" for layer in layers]
    try:
        _Pickler(buffer, layers).dump((classes, [dict(one) for one in contents]))
    except Exception:  # whatever an object raises when it is pickled: it is read in full then
        return None
    return hashlib.sha256(buffer.getvalue()).digest()


class _Text(str):
    """What stands in a pickle for an object that is told."""

    __slots__ = ()


class _Pickler(pickle.Pickler):
    """Pickles an object by its attributes, and what would be pickled otherwise by what it is told by."""

    def __init__(self, buffer: io.BytesIO, layers: Sequence[Any]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._layers = {id(layer): place for place, layer in enumerate(layers)}

    def reducer_override(self, obj: Any) -> Any:
        """How an object that is no plain value is pickled."""
        if id(obj) in self._layers:  # its attributes are pickled elsewhere
            return _Text, (f"layer {self._layers[id(obj)]}",)
        if isinstance(obj, type):
            return NotImplemented  # by its name
        if draws_only(obj):
            return _Text, ("draws",)
        if isinstance(obj, _TOLD):  # of a space all but its generator, which serves `sample` alone
            return _Text, (told(obj),)
        cls = type(obj)
        if str(cls.__module__).partition(".")[0] in _PICKLED_WHOLE or not _pickles_itself(cls):
            return NotImplemented
        return _Text, (told(obj),)


def _pickles_itself(cls: type) -> bool:
    """Whether a class says itself what pickling keeps of its objects."""
    own = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    return any(getattr(cls, name, None) is not getattr(object, name, None) for name in own)
