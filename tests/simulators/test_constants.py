"""highway-env's class constants: an episode follows from its seed, whatever the process did before."""

from __future__ import annotations

import pytest
from highway_env.vehicle.behavior import IDMVehicle

import rlmech as rlm
from rlmech.simulators.highway.traffic import HighwayWorld


@pytest.fixture(autouse=True)
def _constants_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISTANCE_WANTED", "COMFORT_ACC_MAX", "COMFORT_ACC_MIN"):
        monkeypatch.setattr(IDMVehicle, name, getattr(IDMVehicle, name))


def speeds(world: HighwayWorld) -> list[float]:
    world.reset(seed=0)
    for _ in range(4):
        world.step(1)
    return [float(vehicle.speed) for vehicle in world.env.unwrapped.road.vehicles]  # type: ignore[attr-defined]


def test_an_intersection_reset_elsewhere_does_not_change_an_episode() -> None:
    world = HighwayWorld(rlm.make_env("highway-fast-v0"))
    before = speeds(world)
    rlm.make_env("intersection-v2").reset(seed=0)
    assert IDMVehicle.DISTANCE_WANTED == 7, "the simulator still leaves it behind"
    assert speeds(world) == before


def test_an_intersection_episode_leaves_the_constants_of_the_process() -> None:
    world = HighwayWorld(rlm.make_env("intersection-v2"))  # which resets it, by itself
    IDMVehicle.COMFORT_ACC_MAX = 2.5  # a user's own
    world.reset(seed=0)
    assert IDMVehicle.COMFORT_ACC_MAX == 2.5


def test_constants_that_a_user_has_set_hold_in_an_episode() -> None:
    world = HighwayWorld(rlm.make_env("highway-fast-v0"))
    before = speeds(world)
    IDMVehicle.COMFORT_ACC_MAX = 0.5
    assert speeds(world) != before
