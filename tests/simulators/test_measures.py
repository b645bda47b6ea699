"""Gaps and times to collision against cases worked out by hand and against simulation in small steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rlmech.simulators.highway.measures import VEHICLE_COLUMNS, Encounter, Rectangle, scene_summary

LENGTH, WIDTH = 5.0, 2.0


def car(x: float = 0, y: float = 0, *, heading: float = 0, speed: float = 0, **size: float) -> Rectangle:
    vx, vy = speed * math.cos(heading), speed * math.sin(heading)
    return Rectangle(x=x, y=y, heading=heading, vx=vx, vy=vy, **({"length": LENGTH, "width": WIDTH} | size))


def meet(one: Rectangle, other: Rectangle) -> tuple[float, float, float, float]:
    found = Encounter.of(one, other)
    return found.distance, found.gap, found.closing_speed, found.ttc


def test_head_on_they_meet_bumper_to_bumper() -> None:
    assert meet(car(speed=10), car(45, heading=math.pi, speed=10)) == pytest.approx((45, 40, 20, 2))


def test_following_faster_one_meets_the_tail_of_the_other() -> None:
    assert meet(car(speed=15), car(25, speed=5)) == pytest.approx((25, 20, 10, 2))
    assert meet(car(speed=5), car(25, speed=15)) == pytest.approx((25, 20, -10, math.inf))
    assert meet(car(speed=15), car(25, speed=15)) == pytest.approx((25, 20, 0, math.inf))


def test_crossing_they_meet_where_the_front_of_one_reaches_the_side_of_the_other() -> None:
    # 10 m/s along x; the other comes up along y: it spans |x - 20| <= 1 and reaches |y| <= 1 at t = (30 - 1 - 2.5) / v
    one, v = car(speed=10), 15.0
    other = car(20, -30, heading=math.pi / 2, speed=v)
    assert Encounter.of(one, other).ttc == pytest.approx(26.5 / v)  # by then the one spans 15.2 to 20.2: it is there
    assert Encounter.of(one, car(20, -60, heading=math.pi / 2, speed=v)).ttc == math.inf  # it has passed
    assert Encounter.of(car(speed=0), other).ttc == math.inf


def test_side_by_side_they_never_meet_and_the_gap_is_sideways() -> None:
    assert meet(car(speed=20), car(3, 4, speed=20)) == pytest.approx((5, 2, 0, math.inf))
    drifting = Rectangle(x=0, y=4, heading=0, vx=20, vy=-1, length=LENGTH, width=WIDTH)
    assert Encounter.of(car(speed=20), drifting).ttc == pytest.approx(2)


def test_overlapping_ones_have_met() -> None:
    assert meet(car(speed=3), car(4, 1, heading=1)) == pytest.approx((math.hypot(4, 1), 0, 12 / math.hypot(4, 1), 0))
    crossed = car(heading=math.pi / 2)  # no corner of either lies in the other
    assert meet(car(), crossed) == (0, 0, 0, 0)
    assert Encounter.of(car(speed=-3), car(4)).ttc == 0, "also while they part"


def test_touching_is_meeting() -> None:
    assert meet(car(), car(5)) == (5, 0, 0, 0)
    assert Encounter.of(car(speed=1), car(10, 2)).ttc == pytest.approx(5)
    assert Encounter.of(car(speed=1), car(10, 2.001)).ttc == math.inf


def test_the_gap_of_turned_rectangles_is_from_a_corner() -> None:
    turned = car(10, heading=math.pi / 4)
    ahead, aside = 10 - 2.5 - (2.5 + 1) / math.sqrt(2), (2.5 - 1) / math.sqrt(2) - 1  # corner to corner
    assert Encounter.of(car(), turned).gap == pytest.approx(math.hypot(ahead, aside))
    assert Encounter.of(turned, car()).gap == pytest.approx(math.hypot(ahead, aside))


def corners(box: Rectangle, time: float = 0) -> np.ndarray:
    along, across = np.array([1, 1, -1, -1]) * box.length / 2, np.array([1, -1, -1, 1]) * box.width / 2
    cos, sin = math.cos(box.heading), math.sin(box.heading)
    x = box.x + box.vx * time + cos * along - sin * across
    y = box.y + box.vy * time + sin * along + cos * across
    return np.stack([x, y], axis=-1)


def brute_gap(one: Rectangle, other: Rectangle, time: float = 0) -> float:
    """The distance of two outlines by sampling both; not by corners, frames or separating axes."""
    share = np.linspace(0, 1, 81)[:, None]
    outlines = [
        np.concatenate([a * (1 - share) + b * share for a, b in zip(c, np.roll(c, -1, axis=0), strict=True)])
        for c in (corners(one, time), corners(other, time))
    ]
    return float(np.linalg.norm(outlines[0][:, None] - outlines[1][None], axis=-1).min())


def collide(one: Rectangle, other: Rectangle, times: np.ndarray) -> np.ndarray:
    """Whether they overlap, as the simulator decides it."""
    from highway_env.utils import are_polygons_intersecting

    still = np.zeros(2)
    closed = [[np.vstack([c, c[:1]]) for c in (corners(one, t), corners(other, t))] for t in times]
    return np.array([are_polygons_intersecting(a, b, still, still)[0] for a, b in closed])


numbers = st.floats(-1, 1, allow_subnormal=False)
boxes = st.builds(
    lambda x, y, h, vx, vy, length, width: Rectangle(
        x=20 * x, y=20 * y, heading=math.pi * h, vx=10 * vx, vy=10 * vy, length=4 + 2 * length, width=2 + width
    ),
    *[numbers] * 7,
)


@settings(max_examples=60, deadline=None)
@given(one=boxes, other=boxes)
@example(one=car(speed=10), other=car(20, heading=math.pi, speed=10))
def test_the_simulator_finds_the_collision_when_it_was_said_to_come(one: Rectangle, other: Rectangle) -> None:
    ttc = Encounter.of(one, other).ttc
    assume(ttc == math.inf or ttc < 30)
    if ttc == math.inf:
        assert not collide(one, other, np.linspace(0.01, 10, 200)).all()
        grazing = Encounter.of(one, Rectangle(**_fields(other) | {"length": other.length + 0.01})).ttc
        assert not collide(one, other, np.linspace(0, 10, 200)).any() or grazing < math.inf
        return
    before = ttc - np.linspace(1e-3, 2, 40)
    assert not collide(one, other, before[before >= 0]).any(), "not a moment sooner"
    speed = math.hypot(one.vx - other.vx, one.vy - other.vy)
    assert brute_gap(one, other, ttc) < 0.2 or ttc == 0
    assert Encounter.of(_at(one, ttc), _at(other, ttc)).gap <= 1e-6 * (1 + speed), "they touch then"


@settings(max_examples=60, deadline=None)
@given(one=boxes, other=boxes)
def test_the_gap_is_the_distance_of_the_outlines(one: Rectangle, other: Rectangle) -> None:
    found = Encounter.of(one, other)
    assert found.gap == pytest.approx(Encounter.of(other, one).gap, abs=1e-9)
    if found.gap > 0:
        assert found.gap - 1e-9 <= brute_gap(one, other) <= found.gap + 0.1, "outlines are sampled every 9 cm"
    else:
        assert collide(one, other, np.zeros(1)).all() or brute_gap(one, other) < 1e-6


@settings(max_examples=60, deadline=None)
@given(one=boxes, other=boxes)
def test_the_closing_speed_is_the_slope_of_the_distance(one: Rectangle, other: Rectangle) -> None:
    found, dt = Encounter.of(one, other), 1e-6
    assume(found.distance > 0.1)
    later = Encounter.of(_at(one, dt), _at(other, dt)).distance
    assert found.closing_speed == pytest.approx((found.distance - later) / dt, abs=1e-2)


def _fields(box: Rectangle) -> dict[str, Any]:
    return {name: getattr(box, name) for name in Rectangle.__slots__}


def _at(box: Rectangle, time: float) -> Rectangle:
    return Rectangle(**_fields(box) | {"x": box.x + box.vx * time, "y": box.y + box.vy * time})


def row(**values: Any) -> tuple[Any, ...]:
    return tuple(values.get(name, 0) for name in VEHICLE_COLUMNS)


def test_a_scene_is_summed_up_by_its_nearest_and_its_most_urgent_vehicle() -> None:
    ego = row(distance=math.nan, ttc=math.nan)
    scene = [ego, row(distance=5.0, ttc=math.inf), row(distance=30.0, ttc=2.0), row(distance=1.0, ttc=math.nan)]
    assert scene_summary(scene) == {"distance": 5.0, "ttc": 2.0}, "the last is a landmark: it cannot be collided with"
    assert scene_summary([ego]) == {"distance": math.inf, "ttc": math.inf}
    assert all(math.isnan(value) for value in scene_summary([]).values())


def test_every_column_has_a_type_and_a_meaning() -> None:
    for name, column in VEHICLE_COLUMNS.items():
        assert column.meaning, name
        assert (column.unit == "") <= (column.dtype != "float64"), "numbers have units"
