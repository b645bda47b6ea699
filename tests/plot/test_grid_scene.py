"""Grids as drawings: everything in its cell, what is not seen marked, and nothing of a road."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import xarray as xr

import rlmech as rlm
from rlmech.episodes import Recording
from rlmech.errors import ConfigError, RecordingError
from rlmech.plot import episodes, scene, side_by_side

pytest.importorskip("minigrid")
SVG = "{http://www.w3.org/2000/svg}"


class Turns(torch.nn.Module):
    """A policy that turns left, and right where it sees a door."""

    def __init__(self) -> None:
        super().__init__()
        self.gap = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        door = (seen[..., 0] == 4).flatten(1).any(-1).float()
        return torch.stack([self.gap * (1 - door), self.gap * door, *[0 * door - 1] * 5], dim=1)


@pytest.fixture(scope="module")
def turning() -> Recording:
    wrappers = ("minigrid.wrappers.ImgObsWrapper",)
    spec = rlm.PolicySpec(env_id="MiniGrid-DoorKey-6x6-v0", env_wrappers=wrappers, env_kwargs={"max_steps": 3})
    env = rlm.make_env(spec)
    example = torch.randint(0, 9, (2, 7, 7, 3), dtype=torch.uint8)
    policy = rlm.HookedPolicy(Turns(), example, spec=rlm.simulators.spec_of(env), output_kind="logits")
    return rlm.record(policy, env, seeds=[0, 1], progress=False)


def groups(svg: str, name: str) -> list[Any]:
    return [one for one in ElementTree.fromstring(svg).iter() if one.get("class") == name]


def test_everything_stands_in_its_cell_and_what_is_not_seen_says_so(turning: Recording) -> None:
    for step in range(4):
        svg = scene(turning, episode=0, step=step, title="Here").svg
        here = turning.entities.query("episode == 0 and step == @step")
        objects = {one.get("transform"): one.find(f"{SVG}title").text for one in groups(svg, "object")}
        for one in here.query("object > 0").itertuples():
            said = objects[f"translate({one.x} {one.y})"]
            assert f"{one.color} {one.type} ({one.object})" in said
            assert ("not seen" in said) != one.seen
        (agent,) = groups(svg, "agent")
        row = here.iloc[0]
        assert agent.get("transform") == f"translate({row.x} {row.y})"
        assert f"looking {row.direction}" in agent.find(f"{SVG}title").text
        assert len(groups(svg, "wall")) == turning.episodes["layout"][0].count("#")
        assert not {"ego", "vehicle", "crashed"} & set(svg.replace("<", " ").replace(">", " ").split())


def test_the_step_after_the_last_action_is_there_and_no_further(turning: Recording) -> None:
    scene(turning, episode=1, step=3)
    with pytest.raises(RecordingError, match="no such step"):
        scene(turning, episode=1, step=4)


def test_a_page_and_two_episodes_show_the_grid(turning: Recording) -> None:
    steps = episodes(turning)
    assert len(steps.frames) == len(turning.steps)
    assert 'class="agent"' in steps.frames[0].figures[0].svg  # type: ignore[union-attr]
    both = side_by_side({"one": turning, "other": turning}, seed=0)
    assert both.frames[0].figures[0].svg.count('class="agent"') == 2  # type: ignore[union-attr]


def test_attention_over_a_grid_is_refused_in_words(turning: Recording) -> None:
    import xarray as xr

    with pytest.raises(ConfigError, match="over a road alone"):
        scene(turning, episode=0, step=0, pattern=xr.DataArray([[1.0]], dims=("head", "key")))


def test_a_scene_is_drawn_as_it_was_edited() -> None:
    replayed = rlm.Scene.replay(rlm.make_env("MiniGrid-DoorKey-6x6-v0"), seed=0, actions=[2])
    key = replayed.entities.set_index("type").loc["key", "object"]

    drawn, without = scene(replayed).svg, scene(replayed.remove(object=int(key)), title="No key").svg

    assert len(groups(drawn, "object")) == len(groups(without, "object")) + 1
    assert len(groups(drawn, "wall")) == len(groups(without, "wall"))
    assert "No key" in without
    with pytest.raises(ConfigError, match="over a road alone"):
        scene(replayed, pattern=xr.DataArray([[1.0]], dims=("head", "key")))


def test_a_scene_of_a_road_is_drawn_like_the_step_of_its_recording() -> None:
    env = rlm.make_env("highway-fast-v0", config={"vehicles_count": 4, "duration": 3})
    recording = rlm.record(rlm.load("zoo:highway-dqn-mlp"), env, seeds=[0], progress=False)
    replayed = rlm.Scene.replay(env, seed=0, actions=recording.actions[:1])
    ego = recording.vehicles[recording.vehicles["row"] == 0][["x", "y"]].to_numpy()

    drawn = scene(replayed, way=ego, title="Here").svg

    assert drawn == scene(recording, episode=0, step=1, way=ego, title="Here").svg
    with pytest.raises(ConfigError, match="Which step of the recording"):
        scene(recording)
