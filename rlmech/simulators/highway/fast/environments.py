"""Which environments are accelerated, and why others are not.

An environment becomes accelerated by a change of its class, to one of the same name that overrides how frames are run
and what observations are made of. highway-env's own classes are not touched. Copies and pickles stay what they are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from highway_env.envs.common.abstract import AbstractEnv
from highway_env.envs.exit_env import ExitEnv
from highway_env.envs.highway_env import HighwayEnv, HighwayEnvFast
from highway_env.envs.intersection_env import IntersectionEnv

from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.highway.fast.frames import run_frames
from rlmech.simulators.highway.fast.kernel import kernel
from rlmech.simulators.highway.fast.known import unknown
from rlmech.simulators.highway.fast.observing import AcceleratedKinematics, accelerate_observation
from rlmech.simulators.highway.fast.roads import accelerate_road, put_off

SEATING = {
    IntersectionEnv: "_make_vehicles",
    HighwayEnv: "_create_vehicles",
    HighwayEnvFast: "_create_vehicles",
    ExitEnv: "_create_vehicles",
}
"""Methods that put vehicles on the road, of which it is known that between two frames they look at none of them."""


_STOCK: dict[type, type] = {}
"""Of each accelerated class, that of highway-env which it accelerates."""


def _define_spaces(self: Any) -> None:
    """As highway-env does, with observations that are made of arrays."""
    _STOCK[type(self)].define_spaces(self)
    accelerate_observation(self.observation_type)


def _reset(self: Any) -> None:
    _STOCK[type(self)]._reset(self)
    accelerate_road(self.road)


def _simulate(self: Any, action: Any = None) -> None:
    """As `AbstractEnv._simulate`, all frames in one call, or one by one where each is drawn."""
    config = self.config
    rate = config["simulation_frequency"]
    frames = int(rate // config["policy_frequency"])
    if config["manual_control"] or frames < 1 or self.steps % frames:
        _STOCK[type(self)]._simulate(self, action)
        return
    if action is not None:
        self.action_type.act(action)
    drawn = self.viewer is not None and self.enable_auto_render
    at_once = 1 if drawn else frames
    for frame in range(0, frames, at_once):
        if not run_frames(self.road, dt=1 / rate, frames=at_once):
            for _ in range(at_once):
                self.road.act()
                self.road.step(1 / rate)
        self.steps += at_once
        if drawn and frame < frames - 1:
            self._automatic_rendering()
    self.enable_auto_render = False


def _reduce(self: object) -> tuple[object, ...]:
    return _remake, (_STOCK[type(self)],), dict(self.__dict__)


def _seating(name: str) -> object:
    def seat(self: Any, *args: Any) -> None:
        accelerate_road(self.road)
        with put_off(self.road):
            getattr(_STOCK[type(self)], name)(self, *args)

    return seat


def accelerate(env: Any) -> None:
    """Accelerate an environment of highway-env where that can be done bit for bit; `acceleration` tells."""
    base = env.unwrapped
    if type(base) not in _STOCK and _why_not(type(base)) is None:
        base.__class__ = _accelerated(type(base))
        accelerate_observation(base.observation_type)
        accelerate_road(base.road)


def acceleration(env: Any) -> Acceleration:
    """What is accelerated of an environment of highway-env, as it is now."""
    base = env.unwrapped
    if type(base) not in _STOCK:
        why = _why_not(type(base)) or "it was made without: rlm.make_env(..., accelerated=True) makes one that is"
        return Acceleration(frames=False, observations=False, why=why)
    of_frames = "there is no road" if base.road is None else unknown(base.road)
    kinds = _kinds(base.observation_type)
    others = [type(kind).__name__ for kind in kinds if not isinstance(kind, AcceleratedKinematics)]
    of_observations = f"{others[0]} is highway-env's own" if others else None
    reasons = [reason for reason in (of_frames, of_observations) if reason is not None]
    return Acceleration(frames=of_frames is None, observations=not others, why="; ".join(reasons))


def _kinds(kind: object) -> list[object]:
    parts = getattr(kind, "agents_observation_types", None) or getattr(kind, "observation_types", None)
    return [one for part in parts for one in _kinds(part)] if parts else [kind]


def _why_not(cls: type) -> str | None:
    if not issubclass(cls, AbstractEnv):
        return f"{cls.__name__} is no environment of highway-env"
    if getattr(cls, "_simulate") is not getattr(AbstractEnv, "_simulate"):  # noqa: B009  # protected
        return f"{cls.__name__} runs its frames in its own way"
    library = kernel()
    return library if isinstance(library, str) else None


@cache
def _accelerated(cls: type) -> type:
    """The class of the same name; derived from it alone, as a change of class asks for."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    methods = {"define_spaces": _define_spaces, "_reset": _reset, "_simulate": _simulate, "__reduce__": _reduce}
    seats = {name: _seating(name) for one, name in SEATING.items() if getattr(cls, name, None) is getattr(one, name)}
    made = type(cls.__name__, (cls,), {**names, **methods, **seats})
    _STOCK[made] = cls
    return made


def _remake(cls: type) -> object:
    """An environment of a class, accelerated where that can be done here, to be filled from a pickle."""
    can = _why_not(cls) is None
    return object.__new__(_accelerated(cls) if can else cls)
