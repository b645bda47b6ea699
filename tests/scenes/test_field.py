"""Fields: every cell is the scene with that vehicle in that state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import SceneError
from rlmech.scenes import Scene, scene_field
from rlmech.scenes.probe import Probe

OVER = {"speed": [6.0, 9.0], "along": [-6.0, 0.0, 6.0]}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.replay(rlm.make_env("intersection-v2"), seed=1, actions=[1, 1])


def pattern(policy: rlm.HookedPolicy) -> str:
    return next(name for name in policy.hook_dict if name.endswith("hook_pattern"))


def test_every_cell_is_the_edited_scene_and_the_difference_is_that_of_the_edit(
    scene: Scene, ego_attention: rlm.HookedPolicy
) -> None:
    removed = scene.remove(3)
    found = scene_field(ego_attention, scene, over=OVER, measure=("FASTER", "SLOWER"), edited=removed)
    for condition, base in (("before", scene), ("after", removed)):
        for speed in OVER["speed"]:
            for along in OVER["along"]:
                there = base.move("ego", along=along).set_speed("ego", speed)
                scores = there.decide(ego_attention).scores
                cell = found.sel(condition=condition, speed=speed, along=along)
                assert float(cell.value) == pytest.approx(float(scores[2] - scores[0]), abs=1e-5)
                assert int(cell.action) == int(scores.values.argmax())
                assert bool(cell.reachable) == there.reachable
    assert np.allclose(found.difference, found.value.sel(condition="after") - found.value.sel(condition="before"))
    assert np.abs(found.difference).max() > 1e-3
    assert found["speed"].attrs["units"] == "m/s"


def test_looking_at_a_state_leaves_no_trace(scene: Scene) -> None:
    probe = Probe(scene)
    for number in (0, 2):
        there = probe.look(number, {"along": 30.0, "speed": 1.0, "heading": 0.3}, judge=True)
        assert not np.array_equal(there.observation, scene.observation)
        assert probe.state(number) == Probe(scene).state(number)
        assert np.array_equal(probe.look(number, {}).observation, scene.observation)


def test_attention_toward_a_vehicle_follows_it_to_its_row(scene: Scene, ego_attention: rlm.HookedPolicy) -> None:
    site = rlm.Site(pattern(ego_attention), head=1, query=0)
    over = {"x": [-2.0, 2.0], "y": [-60.0, -2.0, 20.0, 400.0]}
    found = scene_field(ego_attention, scene, vehicle=2, over=over, measure=site, toward=2)
    kept = scene_field(ego_attention, scene, vehicle=2, over=over, measure=site, toward=2, rows="aligned")
    rows = set()
    for y in over["y"]:
        there = scene.move(2, x=2.0, y=y)
        row = there.rows.get(2)
        rows.add(row)
        cell = float(found.value.sel(condition="before", x=2.0, y=y))
        if row is None:
            assert np.isnan(cell), "too far away to be observed"
            continue
        with torch.no_grad():
            _, cache = ego_attention.run_with_cache(there.observation[None], names=site.name)
        assert cell == pytest.approx(float(cache[site.name][0, 1, 0, row]), abs=1e-6)
    assert {None} < rows
    assert len(rows) > 2
    near = {"y": [-60.0, -2.0]}  # the policy's attention does not depend on the order of rows
    assert np.allclose(found.value.sel(near), kept.value.sel(near), atol=1e-6)


def test_a_site_without_a_vehicle_is_averaged_over_what_it_selects(scene: Scene, ego_attention: Any) -> None:
    site = rlm.Site(pattern(ego_attention), query=0, key=0)
    found = scene_field(ego_attention, scene, over=OVER, measure=site)
    here = scene.move("ego", along=6.0).set_speed("ego", 9.0)
    with torch.no_grad():
        _, cache = ego_attention.run_with_cache(here.observation[None], names=site.name)
    assert float(found.value[0, 1, 2]) == pytest.approx(float(cache[site.name][0, :, 0, 0].mean()), abs=1e-6)


def test_other_observations_are_made_by_the_environment() -> None:
    grid = {"type": "OccupancyGrid", "features": ["presence"], "grid_size": [[-20, 20], [-8, 8]], "grid_step": [5, 4]}
    env = rlm.make_env("highway-fast-v0", config={"observation": grid, "vehicles_count": 6})
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 5))
    policy = rlm.HookedPolicy(network, torch.rand(2, *env.observation_space.shape))
    scene = Scene.replay(env, seed=0)
    found = scene_field(policy, scene, over={"along": [0.0, 8.0], "speed": [20.0, 25.0]}, measure=("IDLE", "LANE_LEFT"))
    scores = scene.move("ego", along=8.0).decide(policy).scores
    assert float(found.value[0, 1, 1]) == pytest.approx(float(scores[1] - scores[0]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"over": {"speed": [1.0, 2.0]}}, "two quantities"),
        ({"over": {"x": [1.0, 2.0], "along": [1.0, 2.0]}}, "two quantities"),
        ({"over": {"speed": [2.0, 1.0], "along": [1.0, 2.0]}}, "not a grid"),
        ({"over": {"sped": [1.0, 2.0], "along": [1.0, 2.0]}}, "no quantity 'sped'"),
        ({"measure": ("FASTER", "SLOW")}, "cannot be measured"),
        ({"measure": "gap"}, "cannot be measured"),
        ({"toward": 2}, "not toward a vehicle"),
        ({"measure": rlm.Site("hook_q_values"), "toward": 2}, "computed of another vehicle"),
        ({"vehicle": 99}, "no vehicle 99"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments: Any, problem: str, scene: Scene, ego_attention: Any) -> None:
    with pytest.raises(SceneError, match=problem):
        scene_field(ego_attention, scene, **({"over": OVER} | arguments))
