"""Observations in metres and metres per second, and back: where everyone is, and one vehicle put somewhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from road import ARMS, EGO_WAY, Road
from states import States

CLEAR_OF = 7.0  # m between centres: 2 m behind a vehicle 5 m long
BOX = 11.0  # m from the middle to an entry


@dataclass(frozen=True)
class Seen:
    """What the policy saw, physically.

    Attributes:
        states: The recorded states.
        road: Their road.
    """

    states: States
    road: Road

    def feature(self, name: str) -> np.ndarray:
        """A feature in its unit, `[state, entity]`; positions and velocities of the road, not of the ego."""
        spec = self.states.spec
        number = spec.index("feature", name)
        values = np.asarray(spec.features[number].physical(self.states.observations[..., number].astype(float)))
        if spec.relative and name in ("x", "y", "vx", "vy"):
            values[:, 1:] += values[:, :1]
        return values

    @cached_property
    def place(self) -> np.ndarray:
        """Positions, `[state, entity, 2]`, in m."""
        return np.stack([self.feature("x"), self.feature("y")], axis=-1)

    @cached_property
    def heading(self) -> np.ndarray:
        """Headings, `[state, entity]`, in rad."""
        return np.arctan2(self.feature("sin_h"), self.feature("cos_h"))

    @cached_property
    def speed(self) -> np.ndarray:
        """Speeds along the heading, `[state, entity]`, in m/s; below 0 in reverse, as some yielding vehicles drive."""
        return self.feature("vx") * np.cos(self.heading) + self.feature("vy") * np.sin(self.heading)

    @cached_property
    def there(self) -> np.ndarray:
        """Whether a row is a vehicle, `[state, entity]`."""
        return self.feature("presence") >= 0.5

    @cached_property
    def ego_to_entry(self) -> np.ndarray:
        """The ego's way to the entry of the intersection, `[state]`, in m; below 0 inside and past it."""
        way = self.road.way(*EGO_WAY)
        return self.road.incoming(0).length - way.along(self.place[:, 0], self.heading[:, 0])

    @cached_property
    def to_entry(self) -> dict[str, np.ndarray]:
        """By arm: each vehicle's way to the entry, `[state, entity]`, in m; not a number if it is not on its lane."""
        flat = self.place.reshape(-1, 2), self.heading.ravel()
        found: dict[str, np.ndarray] = {}
        for name, arm in ARMS.items():
            lane = self.road.incoming(arm)
            ahead = (lane.length - lane.along(*flat)).reshape(self.there.shape)
            ahead[:, 0] = np.nan
            found[name] = np.where(self.there, ahead, np.nan)
        return found

    @cached_property
    def inside(self) -> np.ndarray:
        """Whether a vehicle other than the ego is inside the intersection, `[state, entity]`."""
        within = self.there & (np.abs(self.place) < BOX).all(-1)
        within[:, 0] = False
        return within

    def free(self, state: int, place: tuple[float, float], *, without: list[int]) -> bool:
        """Whether there is room for a vehicle at a place, those in the rows `without` taken away."""
        others = self.there[state].copy()
        others[without] = False
        return bool((np.linalg.norm(self.place[state, others] - place, axis=1) >= CLEAR_OF).all())

    def row(self, state: int, place: tuple[float, float], heading: float, speed: float) -> np.ndarray:
        """The observation row `[feature]` of a vehicle there: position, heading and velocity together."""
        values = {
            "presence": 1.0, "x": place[0], "y": place[1], "cos_h": np.cos(heading), "sin_h": np.sin(heading),
            "vx": speed * np.cos(heading), "vy": speed * np.sin(heading),
        }  # fmt: skip
        spec = self.states.spec
        if spec.relative:
            values |= {name: values[name] - self.feature(name)[state, 0] for name in ("x", "y", "vx", "vy")}
        physical = [(feature, np.array([values[feature.name]])) for feature in spec.features]
        return np.concatenate([feature.normalised(value) for feature, value in physical])
