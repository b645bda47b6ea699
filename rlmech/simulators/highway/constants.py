"""The class constants that highway-env's intersections overwrite, kept apart for each environment.

`IntersectionEnv` sets three constants of its traffic's class when it is reset. They then hold for every environment of
the process, so that a later episode of another one no longer follows from its seed. Here each episode begins with the
class's own values (as its source file defines them, whatever the process did before), keeps what its own reset made
of them, and leaves the process as it was. Cost: about ten microseconds a call.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from rlmech.simulators.identity import class_constants
from rlmech.simulators.values import told
from rlmech.untyped import Settings

NAMES = ("DISTANCE_WANTED", "COMFORT_ACC_MAX", "COMFORT_ACC_MIN")
SET_BY_INTERSECTIONS = {"DISTANCE_WANTED": 7, "COMFORT_ACC_MAX": 6, "COMFORT_ACC_MIN": -3}

Constants = Mapping[type, Settings]
"""By vehicle class, the constants that stand in the class itself; one that is inherited does not."""


class EpisodeConstants:
    """The constants of one environment's traffic, in force only while it is reset or stepped."""

    def __init__(self) -> None:
        self._own: Constants | None = None  # None: those that the process has, of an episode begun elsewhere

    def copy(self) -> EpisodeConstants:
        """Those of a copied environment."""
        twin = EpisodeConstants()
        twin._own = _read() if self._own is None else self._own
        return twin

    @contextmanager
    def of_a_new_episode(self) -> Generator[None]:
        """Begin with the classes' own values, and keep what the reset makes of them."""
        self._own = {cls: _unaltered(cls, values) for cls, values in _read().items()}
        with self.in_force():
            yield

    @contextmanager
    def in_force(self) -> Generator[None]:
        """Set this episode's constants for a call, and the process's again after it."""
        before = _read()
        _write(before if self._own is None else self._own)
        try:
            yield
        finally:
            self._own = _read()
            _write({cls: {} for cls in self._own} | dict(before))


def vehicle_constants(vehicles: Iterable[Any]) -> dict[str, str]:
    """The constants of the classes of vehicles, by name, without what an intersection left there."""
    found: dict[str, str] = {}
    for cls in sorted({type(vehicle) for vehicle in vehicles}, key=lambda cls: cls.__qualname__):
        found |= dict(class_constants(cls))
    for cls, values in _read().items():
        own = _unaltered(cls, values)
        for name in NAMES:
            key = f"class {cls.__qualname__}.{name}"
            found.pop(key, None)
            if name in own:
                found[key] = told(own[name])
    return found


def _read() -> Constants:
    return {cls: {name: vars(cls)[name] for name in NAMES if name in vars(cls)} for cls in _traffic_classes()}


def _write(constants: Constants) -> None:
    for cls, values in constants.items():
        for name in NAMES:
            if name in values:
                setattr(cls, name, values[name])
            elif name in vars(cls):
                delattr(cls, name)


def _traffic_classes() -> Iterator[type]:
    """The vehicle classes whose objects are driven by the intelligent driver model; none before highway-env is used."""
    behavior = sys.modules.get("highway_env.vehicle.behavior")
    waiting: list[type] = [] if behavior is None else [behavior.IDMVehicle]
    while waiting:
        cls = waiting.pop()
        yield cls
        waiting += cls.__subclasses__()


def _unaltered(cls: type, values: Mapping[str, object]) -> Mapping[str, object]:
    """A class's constants without what an intersection left there; what a user has set otherwise stays."""
    return _as_defined(cls) if values == SET_BY_INTERSECTIONS else values


@cache
def _as_defined(cls: type) -> Mapping[str, object]:
    """The constants as the class's source file defines them, found by running it once more under another name."""
    module = sys.modules.get(cls.__module__)
    path = getattr(module, "__file__", None)
    if path is None or cls.__module__ == "__main__":
        return {}
    spec = importlib.util.spec_from_file_location(f"_rlmech_unaltered_{cls.__module__.replace('.', '_')}", path)
    if spec is None or spec.loader is None:
        return {}
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    found: Any = again
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return {name: vars(found)[name] for name in NAMES if name in vars(found)} if isinstance(found, type) else {}
