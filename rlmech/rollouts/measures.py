"""What is measured of the vehicles on a road: the columns of their table, gaps and times to collision.

Vehicles are oriented rectangles, length by width, as the simulator collides them. Two rectangles with offset p and
relative velocity v overlap at time t where |n·(p + v t)| <= r_n holds for each of their four side normals n, r_n being
half of what both span along n; each n gives an interval of t, and the time to collision is where all of them begin.
Cost: about 0.1 ms for a scene. Headings and speeds are held constant: nobody brakes, steers or follows a bend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Complex128, Float

RELATIVE_REST = 1e-9  # m/s; slower than that, two vehicles stand still towards each other but for rounding


Numbers = Float[np.ndarray, "entity"]
Sides = Float[np.ndarray, "2 entity 2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table of vehicles.

    Attributes:
        dtype: What its values are, in every recording, with or without vehicles.
        unit: Their unit; empty for what has none.
        meaning: What they say, and what stands where there is nothing to say.
    """

    dtype: Literal["int64", "float64", "bool", "str"]
    unit: str
    meaning: str


def _columns(*rows: tuple[str, Literal["int64", "float64", "bool", "str"], str, str]) -> Mapping[str, Column]:
    return MappingProxyType({name: Column(dtype=d, unit=u, meaning=m) for name, d, u, m in rows})


VEHICLE_COLUMNS = _columns(
    ("vehicle", "int64", "", "a number that it keeps for the episode; 0 is the ego"),
    ("row", "int64", "", "its row in the observation; -1 where it is not observed"),
    ("kind", "str", "", "the simulator's class of it"),
    ("x", "float64", "m", "position of its centre"),
    ("y", "float64", "m", "position of its centre; the simulator's y grows to the right of x"),
    ("heading", "float64", "rad", "from x towards y"),
    ("speed", "float64", "m/s", "along its heading; negative backwards"),
    ("length", "float64", "m", "of its rectangle"),
    ("width", "float64", "m", "of its rectangle"),
    ("crashed", "bool", "", "has collided"),
    ("vx", "float64", "m/s", "velocity, speed · cos heading"),
    ("vy", "float64", "m/s", "velocity, speed · sin heading"),
    ("distance", "float64", "m", "from the ego, centre to centre; NaN for the ego"),
    ("gap", "float64", "m", "from the ego, rectangle to rectangle; 0 where they overlap, NaN for the ego"),
    ("closing_speed", "float64", "m/s", "by which the distance shrinks; negative where it grows, NaN for the ego"),
    (
        "ttc",
        "float64",
        "s",
        "until it and the ego overlap at constant velocities: 0 now, inf never, NaN not to collide",
    ),
    ("lane_from", "str", "", "node that its lane leads from; empty off every lane"),
    ("lane_to", "str", "", "node that its lane leads to; empty off every lane"),
    ("lane", "int64", "", "number of its lane between these nodes, 0 the leftmost; -1 off every lane"),
    ("along", "float64", "m", "position along the lane's centre line, from its start; NaN off every lane"),
    ("across", "float64", "m", "position right of the lane's centre line; NaN off every lane"),
    ("destination", "str", "", "last node of its planned route; empty where none was planned"),
    (
        "turn",
        "str",
        "",
        "left, straight or right, at the next junction of its route, or the last passed; empty unknown",
    ),
    ("lane_change", "int64", "", "lanes to the right of the present one that it steers for; negative to the left"),
    ("target_speed", "float64", "m/s", "that its controller tracks; NaN without one"),
    ("priority", "int64", "", "level of its lane: on roads with a rule the higher goes first; -1 off every lane"),
    ("has_priority", "bool", "", "the road's rule lets it pass before the ego; false where the road has no rule"),
    ("yielding", "bool", "", "the road's rule is holding it back"),
    ("clipped", "bool", "", "some of its observed numbers were clipped to the observation's ranges"),
)
"""The table of vehicles, column by column, in order."""

_NAMES = tuple(VEHICLE_COLUMNS)
_DISTANCE, _TTC = _NAMES.index("distance"), _NAMES.index("ttc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangles:
    """Oriented rectangles that move at constant velocity.

    Attributes:
        x: Position of the centres, `[entity]`, m.
        y: The same.
        heading: Of their length, from x towards y, rad.
        vx: Velocity, m/s.
        vy: The same.
        length: Size along the heading, m.
        width: Size across it, m.
    """

    x: Numbers
    y: Numbers
    heading: Numbers
    vx: Numbers
    vy: Numbers
    length: Numbers
    width: Numbers


def encounters(one: Rectangles, others: Rectangles) -> dict[str, Numbers]:
    """How one rectangle and each of some others stand and move towards each other.

    Args:
        one: One rectangle.
        others: The others.

    Returns:
        By name, `[entity]`:
        `distance`, between the centres, m;
        `gap`, the smallest between the rectangles, m, 0 where they touch or overlap;
        `closing_speed`, by how much the distance shrinks, -d|p|/dt = -p·v / |p|, m/s, 0 where the centres coincide;
        `ttc`, the time to collision: when they first touch if all keep their velocities and headings, s, 0 where they
        touch already and infinite where they never will. All are exact but for rounding.

    Source:
        The separating axes of Gottschalk, Lin and Manocha, OBBTree (SIGGRAPH 1996), with moving centres: the module's
        equation. Two rectangles apart are closest at a corner of one of them, which gives the gap.

    Example:
        >>> import numpy as np
        >>> def car(x, vx):
        ...     zero = np.zeros(1)
        ...     size = {"length": np.full(1, 5.0), "width": np.full(1, 2.0)}
        ...     return Rectangles(x=np.full(1, x), y=zero, heading=zero, vx=np.full(1, vx), vy=zero, **size)
        >>> {name: value.item() for name, value in encounters(car(0.0, 10.0), car(25.0, 0.0)).items()}
        {'distance': 25.0, 'gap': 20.0, 'closing_speed': 10.0, 'ttc': 2.0}
    """
    meeting = _Meeting.of(one, others)
    return {
        "distance": meeting.distance,
        "gap": meeting.gap(),
        "closing_speed": meeting.closing_speed(),
        "ttc": meeting.time_to_collision(),
    }


def scene_summary(vehicles: Sequence[tuple[Any, ...]]) -> dict[str, float]:
    """The ego's most urgent and its nearest other vehicle, of one scene.

    Args:
        vehicles: Rows of `VEHICLE_COLUMNS`, as `World.vehicles` has them.

    Returns:
        `distance`: to the nearest, centre to centre, m. `ttc`: the least time to collision, s. Over whatever can be
        collided with, observed or not; both are infinite where there is nothing, and NaN where there is no road.

    Example:
        >>> scene_summary([])
        {'distance': nan, 'ttc': nan}
    """
    if not vehicles:
        return {"distance": float("nan"), "ttc": float("nan")}
    others = [(v[_DISTANCE], v[_TTC]) for v in vehicles if not math.isnan(v[_TTC])]
    distances, times = zip(*others, strict=True) if others else ((), ())
    return {"distance": min(distances, default=float("inf")), "ttc": min(times, default=float("inf"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meeting:
    """One rectangle and each of some others, in the frame of the one (first) and of the other (second).

    In a rectangle's frame x runs along it and y across it. Complex numbers, in which turning is a product.
    """

    distance: Numbers  # between the centres, m
    turn: Complex128[np.ndarray, "entity"]  # from the one's heading to the other's
    half: Sides  # half the length and width of the one and of the other, m
    offset: Complex128[np.ndarray, "2 entity"]  # of the other's centre against the one's, m
    velocity: Complex128[np.ndarray, "2 entity"]  # m/s
    reach: Sides  # half of what both span along the length and width of the one and of the other, m

    @classmethod
    def of(cls, one: Rectangles, others: Rectangles) -> _Meeting:
        theirs = np.exp(1j * others.heading)
        frames = np.empty((2, len(theirs)), dtype=complex)
        frames[0], frames[1] = np.exp(-1j * one.heading), theirs.conj()
        turn = theirs * frames[0]
        half = np.empty((2, len(theirs), 2))
        half[0, :, 0], half[0, :, 1], half[1, :, 0], half[1, :, 1] = one.length, one.width, others.length, others.width
        half /= 2
        cos, sin = np.abs(turn.real)[:, None], np.abs(turn.imag)[:, None]
        offset = (others.x - one.x) + 1j * (others.y - one.y)
        return cls(
            distance=np.abs(offset),
            turn=turn,
            half=half,
            offset=offset * frames,
            velocity=((others.vx - one.vx) + 1j * (others.vy - one.vy)) * frames,
            reach=half + cos * half[::-1] + sin * half[::-1, :, ::-1],
        )

    def closing_speed(self) -> Numbers:
        approach = -(self.offset[0].conj() * self.velocity[0]).real
        return np.divide(approach, self.distance, out=np.zeros_like(approach), where=self.distance > 0)

    def gap(self) -> Numbers:
        theirs, ours = self.half[1].view(complex)[:, 0], self.half[0].view(complex)[:, 0]
        there, back = self.turn, self.turn.conj()
        corners = np.empty(
            (4, 2, len(there)), dtype=complex
        )  # the other's in the one's frame, the one's in the other's
        corners[0], corners[1] = (there * theirs, back * ours), (there * theirs.conj(), back * ours.conj())
        corners[2:] = -corners[:2]
        corners[:, 0] += self.offset[0]
        corners[:, 1] -= self.offset[1]
        outside = np.maximum(np.abs(_sides(corners)) - self.half, 0)
        apart = np.hypot(outside[..., 0], outside[..., 1]).min((0, 1))
        return np.where((np.abs(_sides(self.offset)) <= self.reach).all((0, 2)), 0.0, apart)

    def time_to_collision(self) -> Numbers:
        velocity = _sides(self.velocity)
        speed = np.abs(velocity)
        side = np.copysign(1.0, velocity) * _sides(self.offset)
        resting = speed < RELATIVE_REST
        overlap = np.where(np.abs(side) <= self.reach, np.inf, -np.inf)  # at rest: for ever, or never
        speed = np.where(resting, 1.0, speed)
        begin = np.where(resting, -overlap, (-side - self.reach) / speed)
        end = np.where(resting, overlap, (self.reach - side) / speed)
        first, last = begin.max((0, 2)), end.min((0, 2))
        return np.where((first <= last) & (last >= 0), np.maximum(first, 0.0), np.inf)


def _sides(values: Complex128[np.ndarray, "*many entity"]) -> Float[np.ndarray, "*many entity 2"]:
    return values.view(float).reshape(*values.shape, 2)
