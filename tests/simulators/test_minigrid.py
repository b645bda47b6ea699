"""MiniGrid behind the seam: what is told equals what the environment holds, and episodes are the same however run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import EnvironmentFitError
from rlmech.simulators.minigrid.grid_world import GridWorld
from rlmech.simulators.minigrid.objects import DIRECTIONS, OBJECT_COLUMNS, layout
from rlmech.simulators.minigrid.view import in_view

pytest.importorskip("minigrid")
wrappers = pytest.importorskip("minigrid.wrappers")

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
OPENS = (3, 2, 5, 2, 2, 0, 1, 4, 2, 6, 2, 0, 2)  # a bit of everything: pickup, forward, toggle, drop


def made(env_id: str = DOOR_KEY, *names: str, **keywords: Any) -> gym.Env[Any, Any]:
    env = rlm.make_env(env_id, **keywords)
    for name in names:
        env = getattr(wrappers, name)(env)
    return env


class Floats(torch.nn.Module):
    """A row of numbers of any observation."""

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return seen.float().flatten(1) / 10


def network(env: gym.Env[Any, Any], *, seed: int = 0) -> rlm.HookedPolicy:
    """An untrained policy that wanders, for any array of observations."""
    torch.manual_seed(seed)
    shape = env.observation_space.shape
    assert shape is not None
    last = torch.nn.Linear(16, int(env.action_space.n))  # type: ignore[attr-defined]
    net = torch.nn.Sequential(Floats(), torch.nn.Linear(int(np.prod(shape)), 16), torch.nn.ReLU(), last)
    example = torch.randint(0, 9, (2, *shape), dtype=torch.uint8)
    return rlm.HookedPolicy(net, example, spec=rlm.simulators.spec_of(env), output_kind="logits")


def named(row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(OBJECT_COLUMNS, row, strict=True))


@pytest.mark.parametrize(
    "env_id", [DOOR_KEY, "MiniGrid-LavaGapS5-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0", "BabyAI-GoToRedBall-v0"]
)
def test_rows_and_step_columns_equal_what_the_environment_holds(env_id: str) -> None:
    env = made(env_id)
    world: Any = rlm.simulators.simulator_of(env).world(env)
    observation, _ = world.reset(seed=3)
    base, numbers = env.unwrapped, dict[int, str]()
    for action in (None, *OPENS):
        if action is not None:
            observation, *_, terminated, _truncated, _info = world.step(min(action, env.action_space.n - 1))
            if terminated:
                break
        agent, *others = [named(row) for row in world.entities]
        assert (agent["object"], agent["x"], agent["y"]) == (0, *base.agent_pos)
        assert agent["direction"] == DIRECTIONS[base.agent_dir]
        told = rlm.simulators.simulator_of(env).step_values(world.entities)
        assert (told["x"], told["y"], told["direction"]) == (agent["x"], agent["y"], agent["direction"])
        here = {(x, y): base.grid.get(x, y) for x in range(base.width) for y in range(base.height)}
        here = {cell: one for cell, one in here.items() if one is not None and one.type not in ("wall", "floor")}
        assert {(one["x"], one["y"]) for one in others if not one["carried"]} == set(here)
        for one in others:
            thing = base.carrying if one["carried"] else here[one["x"], one["y"]]
            assert (one["type"], one["color"]) == (thing.type, thing.color)
            assert numbers.setdefault(one["object"], one["type"]) == one["type"], "a number stays with its object"
            if one["seen"]:
                assert tuple(observation["image"][one["view_x"], one["view_y"]]) == thing.encode()
            elif not one["carried"]:
                place = in_view(base, one["x"], one["y"], size=base.agent_view_size)
                assert place is None or tuple(observation["image"][place]) != thing.encode()
        assert (base.carrying is None) == (told["carrying"] == "")


def test_a_view_is_placed_as_minigrid_places_it() -> None:
    base: Any = made("MiniGrid-FourRooms-v0").unwrapped
    base.reset(seed=0)
    for direction in range(4):
        base.agent_dir = direction
        for x in range(base.width):
            for y in range(base.height):
                assert in_view(base, x, y, size=base.agent_view_size) == base.relative_coords(x, y)


@pytest.mark.parametrize("full", [False, True])
def test_wrappers_say_what_is_seen_and_where(full: bool) -> None:
    env = made(DOOR_KEY, *(["FullyObsWrapper"] if full else []), "ImgObsWrapper")
    env = env if full else wrappers.ImgObsWrapper(wrappers.ViewSizeWrapper(made(), 3))
    world = GridWorld(env)
    observation, _ = world.reset(seed=1)
    seen = [one for one in map(named, world.entities) if one["seen"]]
    assert len(seen) == (4 if full else 0) or not full
    for one in seen:
        expected = wrappers.OBJECT_TO_IDX[one["type"]]
        assert observation[one["view_x"], one["view_y"], 0] == expected
        assert not full or (one["view_x"], one["view_y"]) == (one["x"], one["y"])


def test_success_is_what_minigrid_rewards_whatever_a_wrapper_makes_of_the_reward() -> None:
    env = gym.wrappers.TransformReward(made("MiniGrid-Empty-5x5-v0"), lambda reward: reward - 5)
    world = GridWorld(env)
    world.reset(seed=0)
    steps = [world.step(action) for action in (2, 2, 1, 2, 2)]
    assert [step[4]["success"] for step in steps] == [False] * 4 + [True]
    assert "step" not in vars(env.unwrapped), "nothing stays attached"
    lava = GridWorld(made("MiniGrid-LavaGapS5-v0"))
    lava.reset(seed=0)
    base: Any = lava.base
    base.agent_pos, base.agent_dir = (1, 2 if tuple(base.gap_pos) != (2, 2) else 1), 0
    assert lava.step(2)[2:5] == (True, False, {"success": False})


def test_copies_go_on_alike_and_apart() -> None:
    world = GridWorld(made("MiniGrid-Dynamic-Obstacles-Random-6x6-v0", "FlatObsWrapper"))
    world.reset(seed=5)
    world.step(0)
    before, twin = list(world.entities), world.fork()
    told = [twin.step(action)[0] for action in (1, 0, 1)]
    assert world.entities == before
    assert all(np.array_equal(world.step(action)[0], seen) for action, seen in zip((1, 0, 1), told, strict=True))
    assert world.entities == twin.entities


@pytest.mark.parametrize(
    "names", [("ImgObsWrapper",), ("OneHotPartialObsWrapper", "ImgObsWrapper"), ("FlatObsWrapper",)]
)
def test_an_environment_is_made_again_from_its_spec(names: tuple[str, ...]) -> None:
    env = made(DOOR_KEY, *names, agent_view_size=5)
    again = rlm.make_env(rlm.simulators.spec_of(env))
    assert again.observation_space == env.observation_space
    assert rlm.simulators.spec_of(again) == rlm.simulators.spec_of(env)
    assert all(
        np.array_equal(one[0], other[0])
        for one, other in zip([env.reset(seed=4), env.step(2)], [again.reset(seed=4), again.step(2)], strict=True)
    )


def test_names_lie_along_the_axes_of_an_image_and_of_the_flat_observation() -> None:
    env = made(DOOR_KEY, "OneHotPartialObsWrapper", "ImgObsWrapper")
    policy = network(env)
    point = policy.hook_dict["hook_obs"]
    assert point.axes == ("batch", "height", "width", "channel")
    seen, _ = env.reset(seed=2)
    world = GridWorld(env)
    seen, _ = world.reset(seed=2)
    key = next(named(row) for row in world.entities if named(row)["type"] == "key" and named(row)["seen"])
    where = {"height": key["view_x"], "width": key["view_y"], "channel": "object key"}
    with torch.no_grad():
        site = rlm.Site("hook_obs", **where)
        assert float(torch.as_tensor(seen)[None][site.index(point)]) == 1
    flat = made(DOOR_KEY, "FlatObsWrapper")
    seen, _ = flat.reset(seed=2)
    features = [feature.name for feature in rlm.simulators.spec_of(flat).features]
    assert len(features) == len(seen)
    letters = [name for name, value in zip(features, seen, strict=True) if name.startswith("letter") and value]
    assert "".join(name.split(" is ")[1].strip("'") for name in letters) == flat.unwrapped.mission  # type: ignore[attr-defined]
    image = flat.unwrapped.gen_obs()["image"]  # type: ignore[attr-defined]
    assert seen[features.index("object, middle, ahead 1")] == image[3, 5, 0]


def test_a_mission_is_refused_in_words() -> None:
    env = made()
    with pytest.raises(EnvironmentFitError, match="hold a text, 'mission'") as caught:
        rlm.record(network(made(DOOR_KEY, "ImgObsWrapper")), env, seeds=[0], progress=False)
    assert "ImgObsWrapper" in caught.value.fix
    for numbers in (gym.wrappers.FilterObservation(env, ["image", "direction"]), made(DOOR_KEY, "ImgObsWrapper")):
        assert "mission" not in str(numbers.observation_space)


def test_episodes_are_the_same_with_workers_and_gone_on_with(tmp_path: Any) -> None:
    env = made(DOOR_KEY, "ImgObsWrapper", max_steps=12)
    policy = network(env)
    whole = rlm.record(policy, env, seeds=range(6), deterministic=False, path=tmp_path / "whole", progress=False)
    rlm.record(policy, env, seeds=range(3), deterministic=False, path=tmp_path / "parts", progress=False)
    parts = rlm.record(policy, env, seeds=range(6), deterministic=False, path=tmp_path / "parts", progress=False)
    assert parts.equals(whole)
    assert rlm.record(policy, env, seeds=range(6), deterministic=False, workers=2, progress=False).equals(whole)
    assert not whole.entities.empty
    assert whole.vehicles.empty
    assert {"x", "y", "direction", "carrying", "goal_distance", "success"} <= set(whole.steps)
    assert not {"ttc", "distance", "crashed", "speed"} & set(whole.steps)
    assert whole.where(direction="up").entities["step"].isin(whole.where(direction="up").steps["step"]).all()
    first: Any = env.unwrapped
    env.reset(seed=4)
    assert whole.episodes.set_index("seed")["layout"][4] == layout(first)
    assert len(whole.entities.query("seed == 4 and step == 0")) == 4


def test_drivers_share_what_they_do_alike_and_the_outcome_is_compared() -> None:
    env = made(DOOR_KEY, "ImgObsWrapper", max_steps=8)
    policy = network(env)
    blind = [rlm.zero_ablation(rlm.Site("hook_obs", channel="object"))]
    result = rlm.compare_rollouts(policy, env, conditions={"blind": blind}, seeds=range(5), progress=False)
    assert "success" in result
    assert not str(result.attrs["shared_simulation"]).startswith("no")


def test_another_encoding_is_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, env = rlm.simulators.simulator_of(made()), made()
    before = simulator.identity(env)
    assert simulator.identity(made()) == before
    assert simulator.identity(made(max_steps=9)) != before
    from minigrid.core import constants

    monkeypatch.setitem(constants.STATE_TO_IDX, "ajar", 3)
    assert simulator.identity(env) != before


def test_rlmech_works_without_minigrid() -> None:
    code = (
        "import sys; sys.modules['minigrid'] = None\n"
        "import rlmech as rlm, gymnasium as gym\n"
        "print(rlm.simulators.simulator_of(gym.make('CartPole-v1')).name)\n"
        "try: rlm.make_env('MiniGrid-Empty-5x5-v0')\n"
        "except rlm.RlmechError as error: print(error.fix)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["plain", "pip install 'rlmech[minigrid]'"]
