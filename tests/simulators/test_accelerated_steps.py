"""Accelerated environments do what stock ones do, in every bit and type, step by step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlmech.simulators.highway.fast import acceleration
from rlmech.simulators.highway.fast.kernel import kernel
from tests.simulators.stepping import at_random, pair, same, step_alike

pytestmark = [
    pytest.mark.skipif(isinstance(kernel(), str), reason=str(kernel())),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gymnasium"),
    pytest.mark.filterwarnings("ignore::UserWarning:gymnasium"),
]
BODY = ["presence", "x", "y", "vx", "vy", "heading", "cos_h", "sin_h"]
SMALL = {"vehicles_count": 12, "lanes_count": 3, "simulation_frequency": 5}


def made(env_id: str, **config: Any) -> Any:
    return lambda: gym.make(env_id, config=config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("env_id", "config", "frames", "observations", "most"),
    [
        ("intersection-v2", {}, True, True, 8),
        ("intersection-v0", {"destination": None, "initial_vehicle_count": 14}, True, True, 4),
        ("intersection-multi-agent-v2", {}, True, True, 3),
        ("highway-fast-v0", {"vehicles_density": 2}, True, True, 20),
        ("highway-v0", {"vehicles_count": 50, "lanes_count": 3}, True, True, 2),
        ("highway-v0", {**SMALL, "controlled_vehicles": 2, "neighbour_vehicles_connected_lanes": True}, True, True, 6),
        ("merge-v1", {}, True, True, 16),
        ("merge-generic-v0", {}, True, True, 4),
        ("roundabout-v1", {}, True, True, 11),
        ("exit-v1", {}, True, False, 4),
        ("two-way-v0", {}, True, False, 8),
        ("u-turn-v1", {}, True, False, 4),
        ("racetrack-v1", {"other_vehicles": 3}, True, False, 3),
        ("lane-keeping-v0", {}, False, False, 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_step_of_an_episode_is_the_stock_one(
    env_id: str, config: dict[str, Any], frames: bool, observations: bool, most: int
) -> None:
    stock, fast = pair(made(env_id, **config))
    assert step_alike(stock, fast, seeds=[3], choose=at_random, most=most)
    found = acceleration(fast)
    assert (found.frames, found.observations) == (frames, observations), found.why
    assert bool(found.why) != (frames and observations)


@pytest.mark.parametrize(
    "observation",
    [
        {"type": "Kinematics", "features": BODY, "vehicles_count": 5, "see_behind": True},
        {"type": "Kinematics", "features": BODY, "absolute": True, "normalize": False},
        {"type": "Kinematics", "order": "shuffled", "clip": False, "vehicles_count": 30},
        {"type": "Kinematics", "features": ["x", "presence"], "features_range": {"x": [-9, 30]}, "vehicles_count": 1},
        {"type": "Kinematics", "features": ["x", "cos_d", "lat_off"], "observe_intentions": True},
        {"type": "Kinematics", "include_obstacles": False, "features_range": {"x": [-100, 100], "vx": [-20, 20]}},
        {"type": "TupleObservation", "observation_configs": [{"type": "Kinematics"}, {"type": "LidarObservation"}]},
        {"type": "OccupancyGrid"},
        {"type": "TimeToCollision"},
        {"type": "LidarObservation"},
    ],
    ids=lambda value: "-".join(map(str, value.values()))[:60],
)
def test_every_kind_of_observation_is_the_stock_one(observation: dict[str, Any]) -> None:
    stock, fast = pair(made("highway-v0", **SMALL, observation=observation))
    step_alike(stock, fast, seeds=[5], choose=at_random, most=2)


@pytest.mark.parametrize("action", ["ContinuousAction", "DiscreteAction"])
def test_an_ego_without_a_controller_is_moved_as_the_stock_one(action: str) -> None:
    stock, fast = pair(made("highway-v0", **SMALL, action={"type": action}))
    step_alike(stock, fast, seeds=[1, 2], choose=at_random, most=5)
    assert acceleration(fast)


def test_merging_traffic_sees_and_hits_the_obstacle_as_the_stock_one_does() -> None:
    stock, fast = pair(made("merge-v0"))
    stock.reset(seed=0), fast.reset(seed=0)
    for env in (stock, fast):
        for vehicle in env.unwrapped.road.vehicles:  # one after the other towards the end of the merging lane
            vehicle.position[0] += 130
    idle = 1
    for _ in range(4):
        same(stock, fast, stock.step(idle), fast.step(idle))


@pytest.mark.parametrize("env_id", ["intersection-v2", "highway-fast-v0"])
def test_copies_and_pickles_of_an_episode_go_on_as_the_stock_ones(env_id: str) -> None:
    stock, fast = pair(made(env_id, vehicles_count=8))
    stock.reset(seed=2), fast.reset(seed=2)
    stock.step(1), fast.step(1)
    for again in (copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))):
        one, other = again(stock), again(fast)
        assert acceleration(other)
        assert not acceleration(one)
        for _ in range(2):
            same(one, other, one.step(0), other.step(0))
    same(stock, fast, stock.step(2), fast.step(2))  # and the originals have not moved


def test_the_constants_of_another_environment_are_seen_as_they_are() -> None:
    from highway_env.vehicle.behavior import IDMVehicle

    names = ("DISTANCE_WANTED", "COMFORT_ACC_MAX", "COMFORT_ACC_MIN", "POLITENESS")
    before = {name: vars(IDMVehicle)[name] for name in names}
    stock, fast = pair(made("highway-v0", **SMALL))
    try:
        for name, value in zip(names, (7, 6, -3, 0.3), strict=True):
            setattr(IDMVehicle, name, value)
        step_alike(stock, fast, seeds=[4], choose=at_random, most=4)
    finally:
        for name, value in before.items():
            setattr(IDMVehicle, name, value)


def test_changes_in_the_middle_of_an_episode_are_seen() -> None:
    stock, fast = pair(made("intersection-v2"))
    stock.reset(seed=6), fast.reset(seed=6)
    stock.step(1), fast.step(1)
    for env in (stock, fast):
        road = env.unwrapped.road
        for lane in road.network.lanes_list():
            lane.priority = 3 - lane.priority
            lane.speed_limit = 7
        road.vehicles[0].speed = 3
        road.vehicles[1].position = road.vehicles[1].position + np.array([0.5, 0.25])
        road.vehicles.pop(2)
    for action in (2, 0, 1):
        same(stock, fast, stock.step(action), fast.step(action))


def test_nobody_watches_a_difference_where_each_frame_is_drawn() -> None:
    def make() -> Any:
        return gym.make("highway-v0", config=SMALL, render_mode="rgb_array")  # type: ignore[arg-type]

    stock, fast = pair(make)
    stock.reset(seed=0), fast.reset(seed=0)
    assert np.array_equal(stock.render(), fast.render())  # type: ignore[arg-type]
    same_step = stock.step(3), fast.step(3)
    assert np.array_equal(same_step[0][0], same_step[1][0])
    assert np.array_equal(stock.render(), fast.render())  # type: ignore[arg-type]
