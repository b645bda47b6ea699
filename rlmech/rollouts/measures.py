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
from jaxtyping import Float

RELATIVE_REST = 1e-9  # m/s; slower than that, two vehicles stand still towards each other but for rounding

CORNERS = np.array([[[0.5], [0.5], [-0.5], [-0.5]], [[0.5], [-0.5], [0.5], [-0.5]]])  # in lengths and widths

Numbers = Float[np.ndarray, "entity"]
Sides = Float[np.ndarray, "4 entity"]


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


def distance(one: Rectangles, others: Rectangles) -> Numbers:
    """Distance from one rectangle's centre to each of the others', m."""
    return np.hypot(others.x - one.x, others.y - one.y)


def closing_speed(one: Rectangles, others: Rectangles) -> Numbers:
    """By how much the distance of the centres shrinks, -d|p|/dt = -p·v / |p|, m/s; 0 where they coincide."""
    dx, dy = others.x - one.x, others.y - one.y
    apart = np.hypot(dx, dy)
    approach = dx * (one.vx - others.vx) + dy * (one.vy - others.vy)
    return np.divide(approach, apart, out=np.zeros_like(apart), where=apart > 0)


def gap(one: Rectangles, others: Rectangles) -> Numbers:
    """Smallest distance from one rectangle to each of the others, m; 0 where they touch or overlap.

    Exact: two rectangles that do not overlap are closest at a corner of one of them.
    """
    return _Meeting.of(one, others).gap()


def time_to_collision(one: Rectangles, others: Rectangles) -> Numbers:
    """When one rectangle first touches each of the others if all keep their velocities and headings, s.

    Exact for the rectangles: 0 where they touch or overlap already, infinite where they never will.

    Args:
        one: One rectangle.
        others: The others.

    Source:
        The separating-axis test of Gottschalk, Lin and Manocha, OBBTree (SIGGRAPH 1996), with moving centres: the
        module's equation. Held constant are velocities, as in Hayward's time to collision (1972).

    Example:
        >>> import numpy as np
        >>> def car(x, vx):
        ...     zero = np.zeros(1)
        ...     size = {"length": np.full(1, 5.0), "width": np.full(1, 2.0)}
        ...     return Rectangles(x=np.full(1, x), y=zero, heading=zero, vx=np.full(1, vx), vy=zero, **size)
        >>> time_to_collision(car(0.0, 10.0), car(25.0, 0.0)).item()  # 20 m from bumper to bumper
        2.0
    """
    return _Meeting.of(one, others).time_to_collision()


def gap_and_time_to_collision(one: Rectangles, others: Rectangles) -> tuple[Numbers, Numbers]:
    """What `gap` and `time_to_collision` give, for little more than the price of one."""
    meet = _Meeting.of(one, others)
    return meet.gap(), meet.time_to_collision()


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
    """Two rectangles along the normals of their sides: the one's length and width, the other's length and width."""

    one: Rectangles
    others: Rectangles
    turn: Numbers  # rad, from the one's heading to the other's
    offset: Sides  # of the centres, m
    velocity: Sides  # of the other against the one, m/s
    reach: Sides  # half of what both span, m

    @classmethod
    def of(cls, one: Rectangles, others: Rectangles) -> _Meeting:
        dx, dy, dvx, dvy = others.x - one.x, others.y - one.y, others.vx - one.vx, others.vy - one.vy
        ours, theirs = (np.cos(one.heading), np.sin(one.heading)), (np.cos(others.heading), np.sin(others.heading))
        normals = (ours, (-ours[1], ours[0]), theirs, (-theirs[1], theirs[0]))
        turn = others.heading - one.heading
        cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
        reach = (
            one.length + cos * others.length + sin * others.width,
            one.width + sin * others.length + cos * others.width,
            others.length + cos * one.length + sin * one.width,
            others.width + sin * one.length + cos * one.width,
        )
        return cls(
            one=one,
            others=others,
            turn=turn,
            offset=np.stack([dx * nx + dy * ny for nx, ny in normals]),
            velocity=np.stack([dvx * nx + dvy * ny for nx, ny in normals]),
            reach=np.stack(reach) / 2,
        )

    def gap(self) -> Numbers:
        ours = _corner_distance(self.offset[:2], self.others, self.one, turn=self.turn)
        theirs = _corner_distance(-self.offset[2:], self.one, self.others, turn=-self.turn)
        return np.where((np.abs(self.offset) <= self.reach).all(0), 0.0, np.minimum(ours, theirs))

    def time_to_collision(self) -> Numbers:
        side, speed = np.sign(self.velocity) * self.offset, np.abs(self.velocity)
        resting = speed < RELATIVE_REST
        never = (resting & (np.abs(self.offset) > self.reach)).any(0)  # beside one another along a normal, and at rest
        speed = np.where(resting, 0.0, speed)
        with np.errstate(divide="ignore", invalid="ignore"):
            begin = np.where(resting, -np.inf, (-side - self.reach) / speed).max(0)
            end = np.where(resting, np.inf, (self.reach - side) / speed).min(0)
        return np.where(never | (begin > end) | (end < 0), np.inf, np.maximum(begin, 0.0))


def _corner_distance(
    centre: Float[np.ndarray, "2 entity"], corners_of: Rectangles, to: Rectangles, *, turn: Numbers
) -> Numbers:
    """From the nearest corner of a rectangle, given by its centre and turn in the other's frame, to that other, m."""
    cos, sin = np.cos(turn), np.sin(turn)
    along, across = CORNERS[0] * corners_of.length, CORNERS[1] * corners_of.width
    outside_x = np.maximum(np.abs(centre[0] + cos * along - sin * across) - to.length / 2, 0)
    outside_y = np.maximum(np.abs(centre[1] + sin * along + cos * across) - to.width / 2, 0)
    return np.hypot(outside_x, outside_y).min(0)
