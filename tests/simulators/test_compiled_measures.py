"""The compiled measures of vehicles are those of `measures`, in every bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlmech.simulators.env import make_env
from rlmech.simulators.highway import fast
from rlmech.simulators.highway.measures import Encounter, Rectangle
from rlmech.simulators.highway.traffic import HighwayWorld

pytestmark = pytest.mark.skipif(not fast.has_kernel(), reason="the compiled part is not here")


def rectangles(seed: int) -> list[Rectangle]:
    """Near and far, overlapping, parallel and turned, at rest and moving."""
    draw = np.random.default_rng(seed)
    made: list[Rectangle] = []
    for i in range(200):
        heading = float(draw.choice([0.0, math.pi / 2, draw.uniform(-4, 4)]))
        speed = float(draw.choice([0.0, draw.uniform(-5, 30)]))
        x, y = draw.normal(0, 12, 2).round(i % 3).tolist()
        vx, vy = speed * math.cos(heading), speed * math.sin(heading)
        made.append(Rectangle(x=x, y=y, heading=heading, vx=vx, vy=vy, length=5.0, width=2.0 + i % 2))
    return made


@pytest.mark.parametrize("seed", range(5))
def test_encounters_are_those_that_python_computes(seed: int) -> None:
    from rlmech.simulators.highway.fast.measuring import towards

    some = rectangles(seed)
    found = towards([(r.x, r.y, math.cos(r.heading), math.sin(r.heading), r.vx, r.vy, r.length, r.width) for r in some])
    for other, values in zip(some[1:], found[1:], strict=True):
        expected = Encounter.of(some[0], other)
        assert values == (expected.distance, expected.gap, expected.closing_speed, expected.ttc)


@pytest.mark.parametrize("env_id", ["intersection-v2", "merge-v1", "highway-fast-v0"])
def test_the_table_of_vehicles_is_the_same_with_and_without_the_compiled_part(
    env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables(env: Any) -> list[str]:
        world = HighwayWorld(env)
        world.reset(seed=4)
        found = [repr(world.entities)]
        for action in (1, 0, 2):
            world.step(action)
            found.append(repr(world.entities))
        return found

    compiled = tables(make_env(env_id))
    monkeypatch.setattr(fast, "has_kernel", lambda: False)
    assert compiled == tables(make_env(env_id, accelerated=False))
