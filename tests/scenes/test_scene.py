"""Scenes: what is captured, what is observed after an edit, and what goes on from there."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import rlmech as rlm
from rlmech.errors import SceneError
from rlmech.scenes import Scene
from rlmech.simulators.highway.traffic import HighwayWorld
from tests.scenes.conftest import intersection

ACTIONS = (1, 2, 0, 1, 1)


def started(env: gym.Env[Any, Any], *, seed: int, steps: int) -> tuple[HighwayWorld, Any]:
    world = HighwayWorld(env)
    observation, _ = world.reset(seed=seed)
    for action in ACTIONS[:steps]:
        observation = world.step(action)[0]
    return world, observation


def own_observation(env: Any) -> np.ndarray:
    """What the environment itself observes of a state."""
    return env.unwrapped.observation_type.observe()


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_the_environment_goes_on_bit_for_bit_after_it_was_captured_and_the_scene_edited(order: str) -> None:
    alone, _ = started(intersection(order=order), seed=4, steps=2)
    expected = [alone.step(action) for action in ACTIONS]
    world, _ = started(intersection(order=order), seed=4, steps=2)
    scene = Scene.capture(world)
    row = max(scene.rows.values())
    scene.remove(row=row).move(2, along=-5.0).set_speed("ego", 2.0).set_spawn_rate(1.0).step(0).step(0)
    scene.set_priority("all", 7)
    for action, (observation, reward, *_rest) in zip(ACTIONS, expected, strict=True):
        again, reward_again, *_ = world.step(action)
        assert np.array_equal(again, observation)
        assert reward_again == reward
    assert {lane.priority for lane in world.env.unwrapped.road.network.lanes_list()} == {0, 1, 2, 3}


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("vehicles_count", [4, 15])
def test_an_unedited_scene_shows_what_was_given_and_goes_on_as_the_episode_does(
    order: str, vehicles_count: int
) -> None:
    world, observation = started(intersection(order=order, vehicles_count=vehicles_count), seed=6, steps=1)
    scene = Scene.capture(world)
    assert np.array_equal(scene.observation, observation)
    for action in ACTIONS[:3]:
        scene, reward, _ = scene.advance(action)
        observation, expected, *_ = world.step(action)
        assert np.array_equal(scene.observation, observation)
        assert np.array_equal(scene.observed_in(scene.stage.in_sight), observation), (
            "rows are whose they are said to be"
        )
        assert reward == expected


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_an_edit_that_changes_nothing_shows_the_same(order: str) -> None:
    """Also where vehicles left right after they were observed, or came."""
    scene = Scene.replay(intersection(order=order, vehicles_count=6), seed=11).set_spawn_rate(1.0)
    leaving = scene.number(row=max(scene.rows.values()))
    scene = scene.move(leaving, lane=("il1", "o1", 0), at=76.0).remove(row=min(set(scene.rows.values()) - {0}))
    came = 0
    for step in range(4):
        scene = scene.step(0)
        came += len(scene.stage.numbers) - len(scene.stage.in_sight)
        if step == 0:
            assert scene.vehicles.set_index("vehicle").on_road[leaving] == np.False_
        assert np.array_equal(scene.move("ego", along=0.0).observation, scene.observation)
        assert np.array_equal(scene.set_speed("ego", by=0.0).observation, scene.observation)
    assert came > 0


@pytest.mark.parametrize(
    ("env_id", "observation"),
    [
        ("intersection-v2", {"type": "Kinematics", "vehicles_count": 5, "absolute": True, "observe_intentions": True}),
        ("highway-fast-v0", {"type": "Kinematics"}),
        (
            "highway-fast-v0",
            {"type": "Kinematics", "see_behind": True, "normalize": False, "features": ["x", "heading"]},
        ),
        ("highway-fast-v0", {"type": "Kinematics", "clip": False, "features": ["presence", "x", "lat_off", "cos_d"]}),
        ("merge-v1", {"type": "Kinematics"}),
        ("roundabout-v1", {"type": "Kinematics", "absolute": True, "features_range": {"x": [-100, 100]}}),
        (
            "exit-v1",
            {"type": "ExitObservation", "vehicles_count": 6, "features": ["presence", "x", "y"], "clip": False},
        ),
        ("highway-fast-v0", {"type": "OccupancyGrid"}),
    ],
)
def test_a_removed_vehicle_is_observed_as_if_it_had_never_been_there(env_id: str, observation: Any) -> None:
    env = rlm.make_env(env_id, config={"simulation_frequency": 5, "observation": observation})
    env.reset(seed=3)
    scene = Scene.capture(env)
    assert np.array_equal(scene.observation, own_observation(HighwayWorld(env).fork().env))
    nearest = scene.vehicles.query("vehicle > 0").sort_values("distance").vehicle.iloc[0]
    edited = scene.remove(nearest).set_speed("ego", by=-1.5).move("ego", along=1.0)
    twin: Any = HighwayWorld(env).fork().env.unwrapped
    gone = scene.stage.vehicle(nearest)
    twin.road.vehicles = [v for v in twin.road.vehicles if not np.array_equal(v.position, gone.position)]
    twin.vehicle.speed -= 1.5
    twin.vehicle.position = edited.stage.ego.position.copy()
    assert np.array_equal(edited.observation, twin.observation_type.observe())
    assert not np.array_equal(edited.observation, scene.observation)


def test_a_scene_is_found_again_by_its_observation_alone() -> None:
    env = intersection(order="shuffled")
    observation, _ = env.reset(seed=5)
    known = HighwayWorld(env.unwrapped)
    watched, _ = known.reset(seed=5)
    assert np.array_equal(watched, observation)
    assert Scene.capture(known.env, observation=watched).rows == Scene.capture(known).rows
    with pytest.raises(SceneError, match="not one of this state"):
        Scene.capture(known.env, observation=watched + np.float32(0.01))


def test_edits_are_independent_of_each_other_and_of_their_scene() -> None:
    scene = Scene.replay(intersection(), seed=1, actions=[1])
    before, table = scene.observation.copy(), scene.vehicles
    slow, fast = scene.set_speed(row=1, speed=1.0), scene.set_speed(row=1, speed=9.0)
    number = scene.number(row=1)
    assert slow.stage.vehicle(number).speed == 1.0
    assert fast.stage.vehicle(number).speed == 9.0
    assert np.array_equal(scene.observation, before)
    assert scene.vehicles.equals(table)
    assert scene.edits == ()
    again = slow.step(1)
    assert again.stage.vehicle(number).position is not slow.stage.vehicle(number).position
    assert slow.stage.vehicle(number).speed == 1.0


def test_a_roll_is_the_episode_that_the_policy_drives(ego_attention: rlm.HookedPolicy) -> None:
    env = rlm.make_env("intersection-v2")
    recording = rlm.record(ego_attention, env, seeds=[3], progress=False)
    rolled = Scene.replay(env, seed=3, actions=recording.actions[:2]).roll(ego_attention)
    assert rolled.steps.action.tolist() == recording.actions[2:].tolist()
    assert rolled.steps.reward.tolist() == recording.steps.reward.tolist()[2:]
    episode = recording.episodes.iloc[0]
    assert (rolled.crashed, rolled.arrived, rolled.ended) == (episode.crashed, episode.arrived, True)
    with pytest.raises(SceneError, match="episode is over"):
        rolled.last.step(1)
    short = Scene.replay(env, seed=3).roll(ego_attention, n_steps=2, edits=[rlm.zero_ablation(rlm.Site("hook_obs"))])
    assert len(short.steps) == 2
    assert not short.ended


def test_an_environment_without_a_road_is_captured_stepped_and_observed() -> None:
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    scene = Scene.capture(env, observation=observation)
    assert np.array_equal(scene.step(1).step(0).observation, (env.step(1), env.step(0)[0])[1])
    with pytest.raises(SceneError, match="no road"):
        scene.remove(1)
    assert scene.vehicles.empty


def test_wrappers_see_the_edited_observation() -> None:
    flat = gym.wrappers.FlattenObservation(intersection())
    flat.reset(seed=2)
    scene = Scene.capture(flat)
    assert scene.observation.shape == (15 * 7,)
    assert np.array_equal(scene.remove(row=1).observation, Scene.capture(flat.env).remove(row=1).observation.ravel())
    stacked = gym.wrappers.FrameStackObservation(flat, 2)
    stacked.reset(seed=2)
    with pytest.raises(SceneError, match="remembers"):
        Scene.capture(stacked).remove(1)
