"""Who is who: observation rows against the simulator's vehicles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rlmech.episodes.episode import run_episode
from rlmech.simulators.env import make_env, spec_of
from rlmech.simulators.highway.measures import VEHICLE_COLUMNS
from rlmech.simulators.highway.traffic import HighwayWorld, lanes_of

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
    world = HighwayWorld(env)

    def decide(observation: Any) -> int:
        pairs.append((observation, world.entities))
        return 1

    last = list(run_episode(world, decide, seed=seed))[-1]
    pairs.append((last.next_observation, world.entities))
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
    watched = list(run_episode(HighwayWorld(env), lambda _: 1, seed=5))
    after = list(run_episode(env, lambda _: 1, seed=5))
    for other in (watched, after):
        assert [s.reward for s in other] == [s.reward for s in alone]
        assert all(np.array_equal(a.observation, b.observation) for a, b in zip(alone, other, strict=True))


def test_nothing_stays_on_the_environment_while_nobody_steps_it() -> None:
    env = make_env("highway-fast-v0", config={"vehicles_count": 3})
    base: Any = env.unwrapped
    world = HighwayWorld(env)
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
    world = HighwayWorld(make_env("intersection-v2", config=config))
    world.reset(seed=5)
    world.step(1)
    twin, other = world.fork(), world.fork()
    other.step(0)
    for action in (1, 2, 0, 1):
        ours, theirs = world.step(action), twin.step(action)
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        assert world.entities == twin.entities, "numbers, rows and states"


def test_other_observations_have_vehicles_without_rows() -> None:
    grid = {"type": "OccupancyGrid", "features": ["presence"], "grid_size": [[-10, 10], [-10, 10]], "grid_step": [5, 5]}
    for _, vehicles in observed(grid):
        assert vehicles
        assert {v[1] for v in vehicles} == {-1}


def test_environments_without_a_road_are_left_alone() -> None:
    env = make_env("CartPole-v1")
    world = HighwayWorld(env)
    world.reset(seed=0)
    assert world.entities == []
    assert lanes_of(env) == []


def test_lanes_are_drawn_where_the_road_is() -> None:
    env = make_env("intersection-v2")
    lanes = lanes_of(env)
    assert len(lanes) == 20
    straight = next(lane for lane in lanes if (lane["from"], lane["to"]) == ("o0", "ir0"))
    assert straight["points"] == [[2.0, 111.0], [2.0, 11.0]]
    assert straight["width"] == 4
    assert max(len(lane["points"]) for lane in lanes) > 5, "curves are drawn as curves"


TYPES = {"int64": int, "float64": float, "bool": bool, "str": str}


def named(vehicles: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(VEHICLE_COLUMNS, vehicle, strict=True)) for vehicle in vehicles]


def drive(
    env_id: str, *, seed: int = 1, steps: int = 6, action: Any = None, **config: Any
) -> tuple[HighwayWorld, list[Any]]:
    world = HighwayWorld(make_env(env_id, config=config))
    world.reset(seed=seed)
    scenes = [named(world.entities)]
    for _ in range(steps):
        done = any(world.step(world.env.action_space.sample() if action is None else action)[2:4])
        scenes.append(named(world.entities))
        if done:
            break
    return world, scenes


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # gymnasium of the continuous intersection
@pytest.mark.parametrize(
    "env_id", ["intersection-v2", "intersection-v1", "highway-fast-v0", "merge-v1", "roundabout-v1", "racetrack-v1"]
)
def test_every_road_fills_every_column_with_its_type(env_id: str) -> None:
    for scene in drive(env_id, steps=2)[1]:
        assert scene[0]["vehicle"] == 0
        for vehicle in scene:
            for name, column in VEHICLE_COLUMNS.items():
                assert type(vehicle[name]) is TYPES[column.dtype], name
            assert vehicle["lane_from"]
            assert np.hypot(vehicle["vx"], vehicle["vy"]) == pytest.approx(abs(vehicle["speed"]))
        assert all(np.isnan(scene[0][name]) for name in ("distance", "gap", "closing_speed", "ttc"))


def test_a_parking_space_is_near_but_cannot_be_collided_with() -> None:
    scene = drive("parking-v0", steps=1)[1][-1]
    goal = next(v for v in scene if v["kind"] == "Landmark")
    assert goal["distance"] > 0
    assert np.isnan(goal["ttc"])
    assert any(v["ttc"] >= 0 for v in scene if v["kind"] == "Obstacle"), "walls can"


def test_a_collision_was_foretold_by_the_time_to_collision() -> None:
    # a wall across the lane, 50 m ahead
    from highway_env.vehicle.objects import Obstacle

    world = HighwayWorld(make_env("highway-fast-v0", config={"vehicles_count": 0, "lanes_count": 1}))
    world.reset(seed=0)
    base: Any = world.env.unwrapped
    base.road.objects.append(Obstacle(base.road, base.vehicle.position + np.array([100.0, 0.0])))
    world.step(1)
    ego, wall = named(world.entities)
    assert wall["gap"] == pytest.approx(wall["distance"] - (5 + 2) / 2)
    assert wall["ttc"] == pytest.approx(wall["gap"] / ego["speed"], rel=1e-6)
    for _ in range(int(wall["ttc"])):
        assert not world.step(1)[2]
    assert world.step(1)[2], "it crashes in the second that was said"
    assert named(world.entities)[1]["ttc"] == 0


def test_the_ego_of_the_intersection_says_where_it_goes() -> None:
    for destination, turn in (("o1", "left"), ("o2", "straight"), ("o3", "right")):
        _, scenes = drive("intersection-v2", seed=11, steps=12, action=2, destination=destination, spawn_probability=0)
        egos = [scene[0] for scene in scenes]
        assert {(ego["destination"], ego["turn"]) for ego in egos} == {(destination, turn)}, "from beginning to end"
        assert (egos[0]["lane_from"], egos[0]["lane_to"], egos[0]["lane"]) == ("o0", "ir0", 0)


def test_a_vehicle_that_has_driven_its_route_says_where_it_went_and_how_it_turned() -> None:
    world, scenes = drive("intersection-v2", seed=3, steps=1, action=0)
    before = {vehicle["vehicle"]: (vehicle["destination"], vehicle["turn"]) for vehicle in scenes[-1]}
    for vehicle in world.env.unwrapped.road.vehicles:
        vehicle.route = []  # as the simulator leaves it at the end of the last lane
    world.step(0)
    after = {vehicle["vehicle"]: (vehicle["destination"], vehicle["turn"]) for vehicle in named(world.entities)}
    known = before.keys() & after.keys()
    assert len(known) > 1
    assert all(before[vehicle][0] for vehicle in known)
    assert {vehicle: after[vehicle] for vehicle in known} == {vehicle: before[vehicle] for vehicle in known}


def test_routes_turn_as_their_ends_lie_to_each_other() -> None:
    seen: set[str] = set()
    for seed in range(2):
        for scene in drive("intersection-v2", seed=seed, action=0)[1]:
            for vehicle in scene:
                if vehicle["lane_from"].startswith("o"):
                    clockwise = (int(vehicle["destination"][1]) - int(vehicle["lane_from"][1])) % 4
                    assert vehicle["turn"] == {1: "left", 2: "straight", 3: "right"}[clockwise]
                    seen.add(vehicle["turn"])
    assert seen == {"left", "straight", "right"}


def test_a_lane_change_and_a_wanted_speed_are_intentions() -> None:
    world, _ = drive("highway-v0", steps=1, action=1, vehicles_count=0, lanes_count=3, initial_lane_id=1)
    before = named(world.entities)[0]
    base: Any = world.env.unwrapped
    base.vehicle.target_lane_index = ("0", "1", 2)
    world.step(3)  # faster
    twice = world.fork()
    now = named(world.entities)[0]
    assert (before["lane_change"], before["target_speed"]) == (0, 25)
    assert now["target_speed"] == 30
    assert now["lane_change"] + now["lane"] == 2
    base.vehicle.target_lane_index = ("0", "1", 0)
    world.step(1)
    left = named(world.entities)[0]
    assert left["lane_change"] + left["lane"] == 0
    assert named(twice.entities)[0] == pytest.approx(now, nan_ok=True), "another's future is not ours"


def test_priority_is_what_the_road_s_own_rule_says() -> None:
    compared = 0
    for seed in range(3):
        world = HighwayWorld(make_env("intersection-v2"))
        world.reset(seed=seed)
        for _ in range(3):
            base: Any = world.env.unwrapped
            by_place = {tuple(v.position.tolist()): v for v in base.road.vehicles}
            ego = base.vehicle
            for vehicle in named(world.entities)[1:]:
                other = by_place.get((vehicle["x"], vehicle["y"]))
                if other is not None:
                    first = base.road.respect_priorities(other, ego) is ego
                    assert (vehicle["has_priority"], vehicle["priority"]) == (first, other.lane.priority)
                    compared += 1
            world.step(0)
    assert compared > 20
    assert not any(v["has_priority"] for scene in drive("highway-fast-v0", steps=1)[1] for v in scene)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("absolute", [True, False])
def test_clipped_is_who_stands_outside_of_the_ranges(order: str, absolute: bool) -> None:
    config = KINEMATICS | {"order": order, "vehicles_count": 10, "absolute": absolute}
    clipped = 0
    for _, vehicles in observed(config):
        scene = named(vehicles)
        ego = scene[0] if not absolute else dict.fromkeys(("x", "y", "vx", "vy"), 0.0)
        for vehicle in scene:
            origin = ego if vehicle["row"] else dict.fromkeys(ego, 0.0)
            outside = any(
                abs(vehicle[n] - origin[n]) > limit for n, limit in (("x", 30), ("y", 30), ("vx", 20), ("vy", 20))
            )
            assert vehicle["clipped"] == (outside and vehicle["row"] >= 0)
            clipped += vehicle["clipped"]
    assert clipped
    unclipped = observed(config | {"clip": False})
    assert not any(v["clipped"] for _, vehicles in unclipped for v in named(vehicles))


def test_a_vehicle_without_a_route_says_of_no_goal_and_others_keep_theirs() -> None:
    world, _ = drive("intersection-v2", seed=3, steps=1, action=1)
    road: Any = world.env.unwrapped.road  # type: ignore[attr-defined]
    aimless = type(road.vehicles[1]).make_on_lane(road, ("o1", "ir1", 0), longitudinal=10.0, speed=0.0)
    aimless.route = None
    road.vehicles.append(aimless)
    before = {entry["vehicle"]: entry["destination"] for entry in named(world.entities)}
    world.step(1)
    now = {entry["vehicle"]: (entry["destination"], entry["turn"]) for entry in named(world.entities)}
    new = [plan for number, plan in now.items() if number not in before]
    assert ("", "") in new
    assert all(now[number][0] == goal for number, goal in before.items() if number in now)
    assert all(entry["destination"] == "" for entry in named(drive("highway-v0", steps=1, action=1)[0].entities))
