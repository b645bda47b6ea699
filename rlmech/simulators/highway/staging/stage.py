"""A simulator to experiment in: a copy of an environment whose vehicles can be taken hold of by their numbers.

`in_sight` says which vehicles the last observation looked at, and in which row each stands (-1: in none). It is not
the road's own list: some environments let vehicles come and go right after they were observed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import gymnasium as gym
import numpy as np

from rlmech.errors import SceneError
from rlmech.simulators.highway.traffic import HighwayWorld
from rlmech.simulators.staging import check_capturable, forked
from rlmech.simulators.world import World
from rlmech.untyped import Stepped

if TYPE_CHECKING:
    from highway_env.vehicle.controller import ControlledVehicle

EGO = 0


class Stage(HighwayWorld):
    """A copied environment; made by `Stage.of`.

    Attributes:
        in_sight: Observation row by vehicle number, in the road's order, of what the last observation looked at.
        watched: Whether the rows are those of the environment's own last observation.
    """

    in_sight: dict[int, int]
    watched: bool

    @classmethod
    def of(cls, source: gym.Env | World) -> Stage:
        """Copy an environment as it is now.

        Raises:
            SceneError: It has not been reset, or cannot be copied.
        """
        world = source if isinstance(source, HighwayWorld) else HighwayWorld(check_capturable(source))
        return cls._adopt(forked(world))

    @classmethod
    def _adopt(cls, world: World) -> Stage:
        stage = cls.__new__(cls)
        vars(stage).update(vars(world))  # all that a world knows of its episode
        stage.watched = bool(world.entities)
        stage._look()
        return stage

    def copied(self) -> Self:
        """A copy as it is now."""
        twin = super().copied()
        twin._look()
        twin.in_sight, twin.watched = dict(self.in_sight), self.watched
        return twin

    def step(self, action: object) -> Stepped:
        """Take an action."""
        result = super().step(action)
        self.watched = True
        self._look()
        return result

    def _look(self) -> None:
        """Number who has come since the last observation, and note who was in it."""
        self.in_sight = {entry[0]: entry[1] for entry in self.entities}
        if self.has_road:
            here = [self.ego, *(one for one in self.on_road if one is not self.ego)]
            numbers = [self._number(one) for one in here]
            if not self.entities:
                self.in_sight = dict.fromkeys(numbers, -1)

    # ---- who is there

    @property
    def base(self) -> Any:
        """The environment without its wrappers."""
        return self.env.unwrapped

    @property
    def has_road(self) -> bool:
        """Whether this is a highway-env environment with traffic and an ego."""
        return getattr(self.base, "road", None) is not None and getattr(self.base, "vehicle", None) is not None

    @property
    def road(self) -> Any:
        """The road.

        Raises:
            SceneError: There is none.
        """
        if self.has_road:
            return self.base.road
        raise SceneError(
            "The environment has no road, so its state has no vehicles to look at or to change.",
            given=str(self.env),
            expected="an environment of highway-env, e.g. rlm.make_env('intersection-v2')",
            fix="such a scene can be observed, stepped and rolled on, but not edited",
        )

    @property
    def ego(self) -> Any:
        """The vehicle that the policy drives."""
        return self.base.vehicle

    @property
    def on_road(self) -> list[Any]:
        """All vehicles and objects that the simulator moves from here on."""
        return [*self.road.vehicles, *self.road.objects]

    @property
    def numbers(self) -> list[int]:
        """The vehicles that are in sight or on the road."""
        here = {self._numbers[id(one)] for one in self.on_road} if self.has_road else set[int]()
        return sorted(here | set(self.in_sight))

    def vehicle(self, number: Any) -> Any:
        """The simulator's own object.

        Raises:
            SceneError: No such vehicle, with those that there are.
        """
        road = self.road
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if whole and (number in self.in_sight or number in self.numbers):
            return self._known[int(number)]
        gone = whole and 0 <= int(number) < len(self._known)
        close = [one for one in self.numbers if whole and abs(one - int(number)) <= 2] or self.numbers[1:2]
        raise SceneError(
            f"There is no vehicle {number!r} in this scene{': it has left the road' if gone else ''}.",
            given=repr(number),
            expected=f"one of {self.numbers} (0 is the ego), {len(road.vehicles)} of them on the road",
            fix=f"scene.vehicles shows them; say, vehicle={close[0] if close else 0}",
        )

    def is_on_road(self, number: int) -> bool:
        """Whether the simulator still moves it."""
        return any(one is self._known[number] for one in self.on_road)

    # ---- changing who is there

    @property
    def next_number(self) -> int:
        """The number of the next vehicle to come."""
        return len(self._known)

    def remove(self, number: int) -> None:
        """Take a vehicle off the road and out of sight."""
        gone, road = self.vehicle(number), self.road
        road.vehicles = [one for one in road.vehicles if one is not gone]
        road.objects = [one for one in road.objects if one is not gone]
        self.in_sight.pop(number, None)

    def add(self, vehicle: ControlledVehicle) -> int:
        """Put a vehicle on the road and in sight; its number."""
        self.road.vehicles = [*self.road.vehicles, vehicle]
        number = self._number(vehicle)
        self.in_sight[number] = -1
        return number
