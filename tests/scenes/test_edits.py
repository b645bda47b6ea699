"""Edits: what they do to the simulator, and whether they say truly if that is reachable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import xarray as xr

import rlmech as rlm
from rlmech.scenes import Scene
from tests.scenes.conftest import intersection


@pytest.fixture(scope="module")
def crossing() -> Scene:
    return Scene.replay(intersection(), seed=1, actions=[1, 1, 1])


@pytest.fixture(scope="module")
def highway() -> Scene:
    return Scene.replay(rlm.make_env("highway-fast-v0"), seed=0, actions=[1])


def reasons(scene: Scene) -> str:
    return "; ".join(scene.edits[-1].reasons)


def test_moving_along_leads_through_the_turn_of_the_route(crossing: Scene) -> None:
    ego = crossing.stage.ego
    turned = crossing.move("ego", along=40.0).stage.ego
    assert ego.route[-1][1] == turned.route[-1][1] == "o1"
    assert turned.lane_index == ("il1", "o1", 0)
    left = ego.lane.length - ego.lane.local_coordinates(ego.position)[0]
    turn = crossing.stage.road.network.get_lane(("ir0", "il1", 0)).length
    assert turned.lane.local_coordinates(turned.position)[0] == pytest.approx(40.0 - left - turn, abs=1e-9)
    assert abs(turned.lane.local_angle(turned.heading, 1.0)) < 1e-9
    assert crossing.move("ego", along=200.0).edits[-1].reasons[0].startswith("off the road"), "it does not turn back"
    assert "off the road" in reasons(crossing.move("ego", along=-100.0))
    back = crossing.move("ego", along=13.0).move("ego", along=-13.0).stage.ego
    assert back.position == pytest.approx(ego.position, abs=1e-9)
    assert back.heading == pytest.approx(ego.heading)


def test_braking_follows_the_equations_of_motion_and_stops_at_rest(highway: Scene) -> None:
    number = highway.number(row=2)
    before = highway.stage.vehicle(number)
    braked = highway.brake(number, deceleration=3.0, seconds=2.0).stage.vehicle(number)
    assert braked.speed == pytest.approx(before.speed - 6.0)
    assert braked.position[0] == pytest.approx(before.position[0] - 6.0)
    stopped = highway.brake(number, deceleration=50.0, seconds=1.0)
    lost = before.speed - before.speed**2 / 100.0
    assert stopped.stage.vehicle(number).speed == 0.0
    assert stopped.stage.vehicle(number).position[0] == pytest.approx(before.position[0] - lost)
    assert "speed jumps" in reasons(stopped)
    sped = highway.speed_up(number, acceleration=2.0, seconds=1.0).stage.vehicle(number)
    assert sped.position[0] == pytest.approx(before.position[0] + 1.0)


def test_states_that_the_simulator_cannot_come_to_are_said_to_be_so(crossing: Scene, highway: Scene) -> None:
    x, y = crossing.stage.vehicle(2).position
    assert "overlaps vehicle 2" in reasons(crossing.move(1, x=x + 2.0, y=y))
    assert "off the road by" in reasons(crossing.move(1, x=40.0, y=40.0))
    assert "against its lane" in reasons(highway.move(3, heading=math.pi))
    assert "across its lane" in reasons(highway.move(3, heading=1.0))
    assert "outside" in reasons(highway.set_speed(3, 55.0))
    assert "speed jumps by -10.0" in reasons(highway.set_speed(3, by=-10.0))
    assert highway.set_speed(3, by=-5.9).reachable
    assert "outside 20.0 to 30.0" in reasons(highway.set_speed("ego", 12.0))
    assert highway.move(3, along=-4.0).reachable
    seen = crossing.set_feature(2, x=10.0)
    assert not seen.reachable
    assert seen.edits[-1].off_manifold
    assert "only the observation" in seen.describe()


def test_a_speed_bound_of_the_ego_is_the_one_that_driving_keeps() -> None:
    """Two decisions apart as far as they go never differ by more than the bound says."""
    scene = Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
    parted = abs(scene.step(3).stage.ego.speed - scene.step(4).stage.ego.speed)
    slow = scene.set_speed("ego", scene.stage.ego.speed - parted / 2)
    assert parted > 5.0
    assert slow.reachable


def test_an_added_vehicle_drives_on_and_is_seen(crossing: Scene) -> None:
    added = crossing.add(lane=("o1", "ir1", 0), at=70.0, speed=6.0, to="o3")
    number = added.edits[-1].vehicle
    assert number == 7
    assert added.reachable
    assert added.vehicles.set_index("vehicle").loc[number, ["speed", "goal"]].tolist() == [6.0, "o3"]
    assert added.rows[number] > 0
    assert added.step(1).step(1).stage.vehicle(number).position[0] > added.stage.vehicle(number).position[0] + 3
    assert "overlaps" in reasons(crossing.add(lane=("o0", "ir0", 0), at=84.0, to="o2"))
    free = crossing.add(x=-60.0, y=2.0, speed=5.0, to="o2").stage.vehicle(7)
    assert abs(free.heading) < 1e-9, "turned as its lane is"


def test_rerouting_changes_where_the_ego_arrives(crossing: Scene) -> None:
    alone = crossing.set_spawn_rate(0.0)
    for number in crossing.vehicles.vehicle[1:]:
        alone = alone.remove(number)
    for goal in ("o1", "o2", "o3"):
        scene = alone.reroute("ego", to=goal)
        while not scene.ended:
            scene, _, info = scene.advance(2)
        assert scene.stage.ego.lane_index[1] == goal
        assert info["rewards"]["arrived_reward"]


def test_a_spawn_rate_of_zero_lets_nobody_come(crossing: Scene) -> None:
    scenes = {rate: crossing.set_spawn_rate(rate) for rate in (0.0, 1.0)}
    for _ in range(5):
        scenes = {rate: scene.step(0) for rate, scene in scenes.items()}
    known = {rate: scene.stage.next_number for rate, scene in scenes.items()}
    assert known[0.0] == crossing.stage.next_number < known[1.0]


def test_priority_decides_who_yields() -> None:
    scene = Scene.replay(intersection(), seed=1)
    for number in scene.vehicles.vehicle[1:]:
        scene = scene.remove(number)
    scene = scene.set_spawn_rate(0.0).add(lane=("o2", "ir2", 0), at=84.0, speed=8.0, to="o0")
    scene = scene.add(lane=("o3", "ir3", 0), at=84.0, speed=8.0, to="o1").move("ego", along=-40.0)
    slowest = {}
    for name, lanes in {"horizontal": [], "vertical": [("o2", "ir2"), ("ir2", "il0")]}.items():
        after = scene.set_priority(lanes, 9) if lanes else scene
        ego = after.stage.ego
        assert ego.lane is after.stage.road.network.get_lane(ego.lane_index)
        for _ in range(2):
            after = after.step(0)
        added = [edit.vehicle for edit in scene.edits if edit.kind == "add"]
        slowest[name] = min(added, key=lambda number: after.stage.vehicle(number).speed) - added[0]
    assert slowest == {"horizontal": 0, "vertical": 1}


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("vehicles_count", [4, 15])
def test_pairs_keep_every_vehicle_in_its_row(order: str, vehicles_count: int) -> None:
    scene = Scene.replay(intersection(order=order, vehicles_count=vehicles_count), seed=1, actions=[1, 1])
    row = 1 if vehicles_count == 4 else 2
    if row not in scene.rows.values():
        row = min(place for place in scene.rows.values() if place)
    number = scene.number(row=row)
    pair = scene.pair(remove=number)
    assert pair.vehicle.values[0, row] == number
    differs = (pair.clean != pair.corrupt).any("feature").values[0]
    assert np.flatnonzero(differs).tolist() == [row]
    assert not pair.corrupt.values[0, row].any()
    edited = scene.remove(number)
    assert np.array_equal(edited.aligned, pair.corrupt.values[0])
    assert np.array_equal(pair.own.values[0], edited.observation)
    if order == "sorted":
        assert not pair.in_order.item()
        assert pair.hidden.item() == (1 if vehicles_count == 4 else 0), "who comes into view has no row"
    moved = scene.pair(move={"vehicle": number, "along": -30.0})
    changed = (moved.clean != moved.corrupt).any("feature").values[0]
    assert np.flatnonzero(changed).tolist() == [row]


def test_a_vehicle_added_takes_a_free_row_and_pairs_stack(crossing: Scene, ego_attention: rlm.HookedPolicy) -> None:
    added = crossing.add(lane=("o1", "ir1", 0), at=80.0, speed=6.0, to="o3")
    pair = crossing.pair(added)
    free = max(crossing.rows.values()) + 1
    assert pair.vehicle.values[0, free] == 7
    assert pair.corrupt.values[0, free, 0] == 1.0
    assert np.array_equal(np.delete(pair.corrupt.values[0], free, 0), np.delete(pair.clean.values[0], free, 0))
    scenes = [crossing, crossing.step(1), crossing.step(1).step(1)]
    pairs = xr.concat([scene.pair(remove={"row": 1}) for scene in scenes], "pair")
    swept = rlm.activation_patching(
        ego_attention, clean=pairs.clean.values, corrupt=pairs.corrupt.values, sites="*hook_z"
    )
    assert swept.sizes["pair"] == 3


def test_only_what_is_seen_changes_and_only_until_the_next_step(crossing: Scene) -> None:
    number = crossing.number(row=2)
    seen = crossing.set_feature(row=2, x=-12.0, vy=3.0)
    at: Any = seen.observation[2] - crossing.observation[2]
    assert np.flatnonzero(at).tolist() == [1, 4]
    assert seen.observation[2, 1] == pytest.approx(-0.12)
    assert seen.stage.vehicle(number).position == pytest.approx(crossing.stage.vehicle(number).position)
    moved = seen.remove(row=1)
    assert moved.observation[moved.rows[number], 1] == pytest.approx(-0.12), "it follows its vehicle to another row"
    assert np.array_equal(seen.step(1).observation, crossing.step(1).observation)


def test_a_vehicle_without_a_route_is_moved_straight_on() -> None:
    scene = Scene.replay(rlm.make_env("merge-v1"), seed=0)
    ego = scene.stage.ego
    assert not getattr(ego, "route", None)
    start = scene.stage.road.network.get_lane(ego.lane_index)
    left = start.length - start.local_coordinates(ego.position)[0]
    beyond = scene.move("ego", along=left + 5.0).stage.ego
    assert beyond.lane_index[:2] == ("b", "c"), "the next road of the same direction"
    assert beyond.lane.local_coordinates(beyond.position)[0] == pytest.approx(5.0)
    assert not getattr(beyond, "route", None), "and none is made up"
