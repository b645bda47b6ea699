"""What goes wrong says what was given, what was expected and how to mend it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

import rlmech as rlm
from rlmech.errors import EnvironmentFitError, SceneError
from rlmech.scenes import Scene
from tests.scenes.conftest import intersection


@pytest.fixture(scope="module")
def crossing() -> Scene:
    return Scene.replay(intersection(), seed=1, actions=[1, 1, 1])


@pytest.fixture(scope="module")
def highway() -> Scene:
    return Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)


BAD: list[tuple[Callable[[Scene], Any], str, str, str]] = [
    (lambda s: s.remove(9), "no vehicle 9 in this scene", "[0, 1, 2, 3, 4, 5, 6]", "scene.vehicles"),
    (lambda s: s.remove(2).move(2, along=1.0), "it has left the road", "[0, 1, 3, 4, 5, 6]", "scene.vehicles"),
    (lambda s: s.remove("leader"), "no vehicle 'leader'", "0 is the ego", "scene.vehicles"),
    (lambda s: s.remove(True), "no vehicle True", "0 is the ego", "scene.vehicles"),
    (lambda s: s.remove(row=12), "Nobody stands in row 12", "[0, 1, 2, 3, 4, 5, 6]", "scene.vehicles"),
    (lambda s: s.remove(), "by its number or by its row", "one of the two", "row=1"),
    (lambda s: s.remove("ego"), "ego cannot be taken away", "another vehicle", "scene.vehicles"),
    (lambda s: s.move(1), "along its way, onto a lane, or to a position", "lane and at", "chain edits"),
    (lambda s: s.move(1, x=1.0, along=1.0), "along its way, onto a lane", "x, y and heading", "chain edits"),
    (lambda s: s.move(1, x=math.nan), "finite numbers", "metres", "finite"),
    (
        lambda s: s.move(1, lane=("o1", "ir2", 0)),
        "no lane ('o1', 'ir2', 0)",
        "20 lanes",
        "did you mean ('o",
    ),
    (lambda s: s.move(1, lane=3), "no lane 3", "(from, to, number)", "did you mean"),
    (lambda s: s.reroute("ego", to="o9"), "no node 'o9'", "can still reach: ir0, il", "did you mean 'o"),
    (lambda s: s.reroute("ego", to="o0"), "No way leads from 'o0' to 'o0'", "can still reach", "did you mean"),
    (lambda s: s.add(lane=("o1", "ir1", 0), at=50.0), "follows routes here", "o3", "to='o"),
    (lambda s: s.add(x=1.0), "on a lane, or at x and y", "x and y", "scene.add("),
    (lambda s: s.set_speed(1), "set, or changed", "in m/s", "by=-2.0"),
    (lambda s: s.brake(1, deceleration=-1.0, seconds=1.0), "positive numbers", "at least 0", "speed_up"),
    (lambda s: s.set_spawn_rate(1.5), "is a probability", "0 to 1", "between"),
    (
        lambda s: s.set_priority([("o0", "ir5")], 2),
        "no lane ('o0', 'ir5')",
        "20 lanes",
        "did you mean ('o0', 'ir0', 0)",
    ),
    (lambda s: s.set_feature(1, vz=1.0), "no observed feature 'vz'", "'vx'", "did you mean 'v"),
    (lambda s: s.set_feature(1), "No feature to be set", "features of", "scene.spec"),
    (lambda s: s.pair(remov=3), "one edit of its methods", "remove, add, move", "did you mean 'remove'"),
    (lambda s: s.pair(remove=3, add=2), "one edit of its methods", "remove", "chain edits"),
    (lambda s: s.remove(1).pair(s.remove(2)), "not a scene and its edited version", "by edits", "scene.pair("),
    (lambda s: s.pair(s.step(1)), "not a scene and its edited version", "by edits", "scene.pair("),
]


@pytest.mark.parametrize(("wrong", "problem", "expected", "fix"), BAD, ids=[problem for _, problem, *_ in BAD])
def test_a_wrong_edit_says_what_is_right(
    wrong: Callable[[Scene], Any], problem: str, expected: str, fix: str, crossing: Scene
) -> None:
    with pytest.raises(SceneError) as caught:
        wrong(crossing)
    assert problem in caught.value.problem
    assert expected in caught.value.expected
    assert fix in caught.value.fix
    assert caught.value.given


def test_what_an_environment_does_not_have_is_said(highway: Scene, ego_attention: rlm.HookedPolicy) -> None:
    with pytest.raises(SceneError, match="No vehicles come"):
        highway.set_spawn_rate(0.5)
    with pytest.raises(SceneError, match="regards the lanes' priorities"):
        highway.set_priority("all", 1)
    with pytest.raises(SceneError, match="no node 'exit'"):
        highway.reroute("ego", to="exit")
    with pytest.raises(EnvironmentFitError):
        highway.decide(ego_attention)


def test_what_cannot_be_captured_is_said() -> None:
    with pytest.raises(SceneError, match="not been started") as caught:
        Scene.capture(gym.make("CartPole-v1"))
    assert "env.reset(seed=0)" in caught.value.fix
    with pytest.raises(SceneError, match="single Gymnasium environment"):
        Scene.capture(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"))  # type: ignore[arg-type]
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    with pytest.raises(SceneError, match="observation of this scene is not known") as caught:
        _ = Scene.capture(env).observation
    assert "observation=observation" in caught.value.fix
    env.unwrapped.socket = (one for one in ())  # type: ignore[attr-defined]
    with pytest.raises(SceneError, match="cannot be copied: TypeError"):
        Scene.capture(env)


@pytest.mark.parametrize("env_id", ["highway-v0", "merge-v1", "roundabout-v1", "two-way-v1"])
def test_other_roads_are_captured_edited_and_driven_on(env_id: str) -> None:
    gym.register_envs(__import__("highway_env"))
    if env_id not in gym.registry:
        env_id = env_id.replace("v1", "v0")
    config = {"simulation_frequency": 5, "vehicles_count": 8} if env_id == "highway-v0" else {"simulation_frequency": 5}
    env = rlm.make_env(env_id, config=config)
    env.reset(seed=0)
    scene = Scene.capture(env)
    other = int(scene.vehicles.query("vehicle > 0 and speed > 1").vehicle.iloc[0])
    edited = scene.brake(other, deceleration=2.0, seconds=1.0).move("ego", along=1.0).step(1)
    assert edited.stage.vehicle(other).position.tolist() != scene.step(1).stage.vehicle(other).position.tolist()
    assert edited.observation.shape == scene.observation.shape
    lane = scene.stage.ego.lane_index
    assert scene.remove(other).move("ego", lane=lane).reachable
