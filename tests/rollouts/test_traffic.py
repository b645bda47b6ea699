"""Who is who: observation rows against the simulator's vehicles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rlmech.rollouts.env import make_env, spec_of
from rlmech.rollouts.episode import run_episode
from rlmech.rollouts.traffic import VEHICLE_COLUMNS, World, lanes_of

KINEMATICS = {
    "type": "Kinematics",
    "vehicles_count": 6,
    "features": ["presence", "x", "y", "vx", "vy"],
    "features_range": {"x": [-30, 30], "y": [-30, 30], "vx": [-20, 20], "vy": [-20, 20]},
    "absolute": True,
}


def observed(config: dict[str, Any], *, seed: int = 3, env_id: str = "intersection-v2") -> list[tuple[Any, list[Any]]]:
    """Observations of an episode, each with the vehicles noted beside it."""
    env = make_env(env_id, config={"simulation_frequency": 5, "duration": 6, "observation": config})
    pairs: list[tuple[Any, list[Any]]] = []
    world = World(env)

    def decide(observation: Any) -> int:
        pairs.append((observation, world.vehicles))
        return 1

    last = list(run_episode(world, decide, seed=seed))[-1]
    pairs.append((last.next_observation, world.vehicles))
    return pairs


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("vehicles_count", [3, 15])
def test_each_row_is_the_vehicle_it_is_said_to_be(order: str, vehicles_count: int) -> None:
    config = KINEMATICS | {"order": order, "vehicles_count": vehicles_count}
    spec = spec_of(make_env("intersection-v2", config={"observation": config}))
    x, y, vx = (spec.index("feature", name) for name in ("x", "y", "vx"))
    for observation, vehicles in observed(config):
        rows = {v[1]: v for v in vehicles if v[1] >= 0}
        assert len(rows) == int((observation[:, 0] > 0.5).sum()), "as many rows as vehicles that are present"
        for row, vehicle in rows.items():
            state = dict(zip(VEHICLE_COLUMNS, vehicle, strict=True))
            seen = [spec.features[i].physical(observation[row : row + 1, i])[0] for i in (x, y, vx)]
            true = [state["x"], state["y"], state["speed"] * np.cos(state["heading"])]
            assert seen == pytest.approx(np.clip(true, [-30, -30, -20], [30, 30, 20]), abs=1e-4)
            assert observation[row, 0] == 1
        assert rows[0][0] == 0, "row 0 is the ego"


def test_a_shuffled_vehicle_changes_its_row_and_keeps_its_number() -> None:
    pairs = observed(KINEMATICS | {"order": "shuffled", "vehicles_count": 10})
    rows: dict[int, set[int]] = {}
    places: dict[int, list[tuple[float, float]]] = {}
    for _, vehicles in pairs:
        for number, row, _, x, y, *_ in vehicles:
            rows.setdefault(number, set()).add(row)
            places.setdefault(number, []).append((x, y))
    assert rows[0] == {0}, "the ego is always row 0"
    assert any(len(r) > 1 for n, r in rows.items() if n)
    for track in places.values():
        assert all(np.hypot(a[0] - b[0], a[1] - b[1]) < 15 for a, b in itertools.pairwise(track))


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_watched_episode_is_the_unwatched_one(order: str) -> None:
    config = {"simulation_frequency": 5, "duration": 5, "observation": KINEMATICS | {"order": order}}
    env = make_env("intersection-v2", config=config)
    alone = list(run_episode(env, lambda _: 1, seed=5))
    watched = list(run_episode(World(env), lambda _: 1, seed=5))
    after = list(run_episode(env, lambda _: 1, seed=5))
    for other in (watched, after):
        assert [s.reward for s in other] == [s.reward for s in alone]
        assert all(np.array_equal(a.observation, b.observation) for a, b in zip(alone, other, strict=True))


def test_nothing_stays_on_the_environment_while_nobody_steps_it() -> None:
    env = make_env("highway-fast-v0", config={"vehicles_count": 3})
    base: Any = env.unwrapped
    world = World(env)
    world.reset(seed=0)
    world.step(1)
    with pytest.raises(KeyError):
        world.step(17)  # no such action: it fails in the middle of a step
    assert "define_spaces" not in vars(base)
    assert "observe" not in vars(base.observation_type)
    assert "close_objects_to" not in vars(base.road)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_fork_goes_on_alike_and_apart(order: str) -> None:
    config = {"simulation_frequency": 5, "duration": 8, "observation": KINEMATICS | {"order": order}}
    world = World(make_env("intersection-v2", config=config))
    world.reset(seed=5)
    world.step(1)
    twin, other = world.fork(), world.fork()
    other.step(0)
    for action in (1, 2, 0, 1):
        ours, theirs = world.step(action), twin.step(action)
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        assert world.vehicles == twin.vehicles, "numbers, rows and states"


def test_other_observations_have_vehicles_without_rows() -> None:
    grid = {"type": "OccupancyGrid", "features": ["presence"], "grid_size": [[-10, 10], [-10, 10]], "grid_step": [5, 5]}
    for _, vehicles in observed(grid):
        assert vehicles
        assert {v[1] for v in vehicles} == {-1}


def test_environments_without_a_road_are_left_alone() -> None:
    env = make_env("CartPole-v1")
    world = World(env)
    world.reset(seed=0)
    assert world.vehicles == []
    assert lanes_of(env) == []


def test_lanes_are_drawn_where_the_road_is() -> None:
    env = make_env("intersection-v2")
    lanes = lanes_of(env)
    assert len(lanes) == 20
    straight = next(lane for lane in lanes if (lane["from"], lane["to"]) == ("o0", "ir0"))
    assert straight["points"] == [[2.0, 111.0], [2.0, 11.0]]
    assert straight["width"] == 4
    assert max(len(lane["points"]) for lane in lanes) > 5, "curves are drawn as curves"
