"""What is measured of the vehicles on a road: the columns of their table, gaps and times to collision.

Vehicles are oriented rectangles, length by width, as the simulator collides them. Two rectangles with offset p and
relative velocity v overlap at time t where |n·(p + v t)| <= r_n holds for each of their four side normals n, r_n being
half of what both span along n; each n gives an interval of t, and the time to collision is where all of them begin.
Cost: about 0.01 ms a pair. Headings and speeds are held constant: nobody brakes, steers or follows a bend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rlmech.simulators.protocol import Column
from rlmech.untyped import Row

RELATIVE_REST = 1e-9  # m/s; slower than that, two vehicles stand still towards each other but for rounding


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
class Rectangle:
    """An oriented rectangle that moves at constant velocity.

    Attributes:
        x: Position of its centre, m.
        y: The same.
        heading: Of its length, from x towards y, rad.
        vx: Velocity, m/s.
        vy: The same.
        length: Size along the heading, m.
        width: Size across it, m.
    """

    x: float
    y: float
    heading: float
    vx: float
    vy: float
    length: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Encounter:
    """How two rectangles stand and move towards each other; exact but for rounding.

    Attributes:
        distance: Between their centres, m.
        gap: The smallest between the rectangles, m; 0 where they touch or overlap.
        closing_speed: By how much the distance shrinks, -d|p|/dt = -p·v / |p|, m/s; 0 where the centres coincide.
        ttc: Time to collision: when they first touch if both keep velocity and heading, s; 0 where they touch already,
            infinite where they never will.

    Source:
        The separating axes of Gottschalk, Lin and Manocha, OBBTree (SIGGRAPH 1996), with moving centres: the module's
        equation. Two rectangles apart are closest at a corner of one of them, which gives the gap.

    Example:
        >>> size = {"y": 0.0, "heading": 0.0, "vy": 0.0, "length": 5.0, "width": 2.0}
        >>> Encounter.of(Rectangle(x=0.0, vx=10.0, **size), Rectangle(x=25.0, vx=0.0, **size))
        Encounter(distance=25.0, gap=20.0, closing_speed=10.0, ttc=2.0)
    """

    distance: float
    gap: float
    closing_speed: float
    ttc: float

    @classmethod
    def of(cls, one: Rectangle, other: Rectangle) -> Encounter:
        """Measure two rectangles."""
        dx, dy, dvx, dvy = other.x - one.x, other.y - one.y, other.vx - one.vx, other.vy - one.vy
        distance = math.hypot(dx, dy)
        c1, s1, c2, s2 = math.cos(one.heading), math.sin(one.heading), math.cos(other.heading), math.sin(other.heading)
        h1, w1, h2, w2 = one.length / 2, one.width / 2, other.length / 2, other.width / 2
        cos, sin = c1 * c2 + s1 * s2, c1 * s2 - s1 * c2  # of the turn from the one's heading to the other's
        parallel, square = abs(cos), abs(sin)
        offsets = (dx * c1 + dy * s1, dy * c1 - dx * s1, dx * c2 + dy * s2, dy * c2 - dx * s2)
        speeds = (dvx * c1 + dvy * s1, dvy * c1 - dvx * s1, dvx * c2 + dvy * s2, dvy * c2 - dvx * s2)
        reaches = (
            h1 + parallel * h2 + square * w2,
            w1 + square * h2 + parallel * w2,
            h2 + parallel * h1 + square * w1,
            w2 + square * h1 + parallel * w1,
        )
        if all(abs(p) <= r for p, r in zip(offsets, reaches, strict=True)):
            gap = 0.0
        else:
            ours = _nearest_corner(offsets[0], offsets[1], h2, w2, cos, sin, h1, w1)
            theirs = _nearest_corner(-offsets[2], -offsets[3], h1, w1, cos, -sin, h2, w2)
            gap = min(ours, theirs)
        return cls(
            distance=distance,
            gap=gap,
            closing_speed=-(dx * dvx + dy * dvy) / distance if distance > 0 else 0.0,
            ttc=_first_overlap(offsets, speeds, reaches),
        )


def scene_summary(vehicles: Sequence[Row]) -> dict[str, float]:
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


def _first_overlap(offsets: Sequence[float], speeds: Sequence[float], reaches: Sequence[float]) -> float:
    """When all of the intervals |offset + speed · t| <= reach have begun, if that is before one of them ends."""
    first, last = 0.0, math.inf
    for offset, speed, reach in zip(offsets, speeds, reaches, strict=True):
        if abs(speed) < RELATIVE_REST:
            if abs(offset) > reach:
                return math.inf
            continue
        middle, half = -offset / speed, reach / abs(speed)
        first, last = max(first, middle - half), min(last, middle + half)
        if first > last:
            return math.inf
    return first


def _nearest_corner(x: float, y: float, h: float, w: float, cos: float, sin: float, to_h: float, to_w: float) -> float:
    """Distance of a rectangle's nearest corner to another rectangle, in whose frame it stands at (x, y), turned."""
    nearest = math.inf
    for along, across in ((h, w), (h, -w), (-h, w), (-h, -w)):
        outside_x = abs(x + cos * along - sin * across) - to_h
        outside_y = abs(y + sin * along + cos * across) - to_w
        nearest = min(nearest, math.hypot(max(outside_x, 0.0), max(outside_y, 0.0)))
    return nearest
