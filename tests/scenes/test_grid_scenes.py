"""Scenes of MiniGrid: what an edit shows is what the environment would, and a scene goes on as its episode does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import SceneError
from rlmech.scenes import Scene, scene_field, smallest_change
from rlmech.simulators.identity import attributes_of

pytest.importorskip("minigrid")

ACTIONS = (3, 0, 2, 2, 1, 5, 2)


def made(env_id: str = "MiniGrid-DoorKey-6x6-v0", *names: str, **keywords: Any) -> gym.Env[Any, Any]:
    wrappers = tuple(f"minigrid.wrappers.{name}" for name in names)
    return rlm.make_env(rlm.PolicySpec(env_id=env_id, env_wrappers=wrappers, env_kwargs=keywords))


def image(*names: str) -> gym.Env[Any, Any]:
    return made("MiniGrid-DoorKey-6x6-v0", *names, "ImgObsWrapper")


def number(scene: Scene, kind: str) -> int:
    return int(scene.entities.query("type == @kind")["object"].iloc[0])


def sees(channel: int, value: float, *, action: str, otherwise: str) -> rlm.HookedPolicy:
    """A policy that does one thing where some cell of its view holds a value, and another where none does."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gap = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, seen: torch.Tensor) -> torch.Tensor:
            there = ((seen[..., channel] - value).abs() < 0.5).flatten(1).any(-1).float()
            scores = torch.zeros(len(seen), 7) + 0 * self.gap
            marks = torch.nn.functional.one_hot(torch.tensor([names.index(action), names.index(otherwise)]), 7)
            return scores + there[:, None] * marks[0] + (1 - there)[:, None] * marks[1]

    env = image()
    names = rlm.simulators.spec_of(env).actions
    example = torch.randint(0, 9, (2, 7, 7, 3), dtype=torch.uint8)
    return rlm.HookedPolicy(Net(), example, spec=rlm.simulators.spec_of(env), output_kind="logits")


@pytest.mark.parametrize("names", [("FlatObsWrapper",), ("FullyObsWrapper", "ImgObsWrapper"), ("ImgObsWrapper",), ()])
def test_a_scene_shows_what_was_given_and_goes_on_as_the_episode_does(names: tuple[str, ...]) -> None:
    env, alone = made("MiniGrid-DoorKey-6x6-v0", *names), made("MiniGrid-DoorKey-6x6-v0", *names)
    scene = Scene.replay(env, seed=4)
    told = [alone.reset(seed=4)]
    assert same(scene.observation, told[0][0])
    for action in ACTIONS:
        scene, reward, _ = scene.advance(action)
        observation, expected, *_ = alone.step(action)
        assert same(scene.observation, observation)
        assert reward == expected
        assert same(Scene.capture(alone).observation, observation), "observed anew"
    again = Scene.replay(env, seed=4, actions=ACTIONS)
    assert again.entities.equals(scene.entities)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(same(one[key], other[key]) for key in one)
    return one == other if isinstance(one, str) else bool(np.array_equal(one, other))


EDITS: dict[str, tuple[Callable[[Scene], Scene], Callable[[Any], None]]] = {
    "remove": (lambda s: s.remove(number(s, "key")), lambda b: b.grid.set(*where(b, "key"), None)),
    "open": (
        lambda s: s.open(number(s, "door")),
        lambda b: vars(thing(b, "door")).update(is_open=True, is_locked=False),
    ),
    "recolour": (lambda s: s.recolour(number(s, "key"), "red"), lambda b: setattr(thing(b, "key"), "color", "red")),
    "place": (lambda s: s.place_agent(1, 1, direction="down"), lambda b: vars(b).update(agent_pos=(1, 1), agent_dir=1)),
    "turn": (lambda s: s.turn("left"), lambda b: setattr(b, "agent_dir", 2)),
    "wall": (lambda s: s.remove(at=(3, 4)), lambda b: b.grid.set(3, 4, None)),
}


def where(base: Any, kind: str) -> tuple[int, int]:
    place = next(i for i, one in enumerate(base.grid.grid) if one is not None and one.type == kind)
    return place % base.width, place // base.width


def thing(base: Any, kind: str) -> Any:
    return base.grid.get(*where(base, kind))


@pytest.mark.parametrize("names", [("ImgObsWrapper",), ("FullyObsWrapper", "ImgObsWrapper"), ("FlatObsWrapper",)])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_scene_shows_and_does_what_the_environment_changed_by_hand_does(
    edit: str, names: tuple[str, ...]
) -> None:
    env = made("MiniGrid-DoorKey-6x6-v0", *names)
    scene = Scene.replay(env, seed=0)
    edited = EDITS[edit][0](scene)
    env.reset(seed=0)
    EDITS[edit][1](env.unwrapped)
    assert same(edited.observation, Scene.capture(env).observation)
    for action in ACTIONS[:4]:
        edited = edited.step(action)
        assert same(edited.observation, env.step(action)[0])
    assert scene.edits == ()


def test_an_edit_that_is_taken_back_leaves_everything_as_it_was() -> None:
    scene = Scene.replay(image(), seed=0)
    key, door = number(scene, "key"), number(scene, "door")
    x, y = (int(scene.entities.set_index("object").loc[key, axis]) for axis in ("x", "y"))
    back = scene.move(key, x=1, y=1).carry(key).move(key, x=x, y=y).open(door).lock(door)
    back = back.recolour(key, "red").recolour(key, "yellow").place_agent(1, 1, direction="up")
    agent = scene.entities.iloc[0]
    back = back.place_agent(agent.x, agent.y, direction=agent.direction)
    before, after = (attributes_of(one.stage.env, every=True) for one in (scene, back))
    different = {name for name in before if before[name] != after[name]}
    assert same(back.observation, scene.observation)
    assert back.entities.equals(scene.entities)
    assert different <= {"DoorKeyEnv.grid", "DoorKeyEnv.agent_pos"}, "of which cur_pos is another kind of pair"
    assert same(back.step(3).step(0).observation, scene.step(3).step(0).observation)


def test_what_speaks_against_a_state_is_said() -> None:
    scene = Scene.replay(image(), seed=0)
    key, door = number(scene, "key"), number(scene, "door")
    assert scene.remove(key).edits[-1].reasons == ("no key opens the locked yellow door",)
    assert scene.carry(key).reachable
    assert scene.open(door).remove(key).reachable
    assert not scene.move(door, x=1, y=1).reachable
    assert not scene.remove(at=(3, 4)).reachable
    assert scene.recolour(key, "red").recolour(door, "red").edits[-1].reachable
    walled = scene.open(door).remove(door).add("wall", x=3, y=1)
    assert walled.edits[-1].reasons == ("walls or lava part the agent from every goal",)


def test_what_an_environment_keeps_of_an_object_goes_along_with_it() -> None:
    moving = Scene.replay(made("MiniGrid-Dynamic-Obstacles-6x6-v0"), seed=1)
    ball = number(moving, "ball")
    fewer = moving.remove(ball).step(0)
    assert (fewer.entities["type"] == "ball").sum() == (moving.entities["type"] == "ball").sum() - 1
    target = Scene.replay(made("MiniGrid-GoToObject-6x6-N2-v0"), seed=0)
    at = tuple(target.stage.base.target_pos)
    row = target.entities.query("x == @at[0] and y == @at[1]").iloc[0]
    free = next(
        (x, y) for x in range(1, 5) for y in range(1, 5)
        if not target.stage.taken((x, y)) and (x, y) != tuple(target.stage.base.agent_pos)
    )  # fmt: skip
    moved = target.move(int(row["object"]), x=free[0], y=free[1])
    assert tuple(moved.stage.base.target_pos) == free
    assert tuple(target.stage.base.target_pos) == at


def test_a_field_is_the_scene_with_that_object_in_each_cell_and_empty_where_it_cannot_be() -> None:
    env = image()
    policy = sees(0, 5, action="forward", otherwise="left")
    scene = Scene.replay(env, seed=0)
    key = number(scene, "key")
    found = scene_field(policy, scene, over={"y": range(6), "x": range(6)}, object=key, measure=("forward", "left"))
    n_seen = 0
    for y in range(6):
        for x in range(6):
            cell = found.value.sel(condition="before", y=y, x=x)
            here = (x, y) == tuple(scene.entities.set_index("object").loc[key, ["x", "y"]])
            if not here and scene.stage.taken((x, y), by=scene.stage.thing(key)):
                assert np.isnan(cell)
                assert not found.reachable.sel(condition="before", y=y, x=x)
                continue
            there = scene if here else scene.move(key, x=x, y=y)
            shown = bool(there.entities.set_index("object").loc[key, "seen"])
            assert float(cell) == (1.0 if shown else -1.0)
            n_seen += shown
    assert n_seen > 1
    assert found.attrs["object"] == key
    with pytest.raises(SceneError, match="no vehicles in this environment"):
        scene_field(policy, scene, over={"y": [1, 2], "x": [1, 2]}, vehicle=1)


def test_the_smallest_change_flips_the_action_and_no_smaller_one_does() -> None:
    policy = sees(0, 5, action="forward", otherwise="left")
    scene = Scene.replay(image(), seed=0)
    found = smallest_change(policy, scene)
    assert found.change.dims == ("object", "quantity", "direction")
    n_flips = 0
    for place in np.ndindex(found.change.shape):
        at = found.isel(dict(zip(found.change.dims, place, strict=True)))
        change, who, what = float(at.change), int(at["object"]), str(at["quantity"].values)
        if np.isnan(change):
            continue
        n_flips += 1
        here = {"x": scene.entities["x"], "y": scene.entities["y"]}
        row = scene.entities.index[scene.entities["object"] == who][0]
        if what == "direction":
            names = ("right", "down", "left", "up")
            to = names[(names.index(scene.entities["direction"][row]) + int(change)) % 4]
            edited = scene.turn(to)
        else:
            edited = scene.move(who, **{what: int(here[what][row] + change)})
        assert edited.decide(policy).name == at.action.item() != found.attrs["action"]
    assert n_flips > 0
    assert (
        found.reasons.sel(object=number(scene, "key"), quantity="direction", direction="more")
        == "it has no such quantity"
    )


def test_a_roll_is_the_episode_and_tells_success() -> None:
    policy = sees(0, 5, action="forward", otherwise="left")
    env = made("MiniGrid-DoorKey-6x6-v0", "ImgObsWrapper", max_steps=9)
    recording = rlm.record(policy, env, seeds=[3], progress=False)
    rolled = Scene.replay(env, seed=3).roll(policy)
    assert rolled.steps.action.tolist() == recording.actions.tolist()
    assert rolled.steps[["x", "y", "direction"]].equals(recording.steps[["x", "y", "direction"]])
    assert rolled.outcomes == {"success": False}
    assert rolled.ended


def test_a_pair_names_cells_and_channels_and_no_vehicles() -> None:
    scene = Scene.replay(image(), seed=0)
    pair = scene.pair(remove=number(scene, "key"))
    assert pair.clean.dims == ("pair", "height", "width", "channel")
    assert (pair.clean != pair.corrupt).any()
    assert "vehicle" not in pair
    assert scene.vehicles.empty
    assert "turn" in dir(scene)
    assert not hasattr(scene, "brake")


BAD: list[tuple[Callable[[Scene], Any], str, str]] = [
    (lambda s: s.remove(9), "no object 9 in this scene", "scene.entities"),
    (lambda s: s.remove(), "by its number or by its cell", "at=(1, 3)"),
    (lambda s: s.remove("agent"), "no object", "place_agent"),
    (lambda s: s.remove(0), "agent is no object", "place_agent"),
    (lambda s: s.remove(at=(0, 2)), "edge of the grid", "inside"),
    (lambda s: s.remove(at=(9, 2)), "no such cell", "scene.entities"),
    (lambda s: s.remove(at=(4, 2)), "nothing in the cell", "scene.entities"),
    (lambda s: s.move(number(s, "key")), "moved to a cell", "scene.move("),
    (lambda s: s.move(number(s, "key"), x=0), "cannot be in such a state", "another cell"),
    (lambda s: s.move("agent", x=0), "cannot be in such a state", "another cell"),
    (lambda s: s.open(number(s, "key")), "is no door", "doors"),
    (lambda s: s.recolour(number(s, "key"), "gren"), "no colour 'gren'", "did you mean 'gre"),
    (lambda s: s.turn("north"), "no such direction", "scene.turn("),
    (lambda s: s.add("kee", x=1, y=1), "no object of type 'kee'", "did you mean 'key'"),
    (lambda s: s.carry(number(s, "door")), "cannot be picked up", "scene.entities"),
    (lambda s: s.carry(number(s, "key")).carry(number(s, "key")), "carries yellow key", "scene.move"),
    (lambda s: s.number(row=1), "rows of a grid's observation are cells", "scene.entities"),
]


@pytest.mark.parametrize(("edit", "problem", "fix"), BAD)
def test_what_cannot_be_edited_is_said(edit: Callable[[Scene], Any], problem: str, fix: str) -> None:
    scene = Scene.replay(image(), seed=0)
    with pytest.raises(SceneError) as caught:
        edit(scene)
    assert problem in caught.value.problem
    assert fix in f"{caught.value.fix} {caught.value.expected}"
