"""Smallest changes: what is said to flip the action does so in the simulator, and a little less does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import SceneError
from rlmech.scenes import Scene, smallest_change
from rlmech.simulators.env import spec_of
from rlmech.simulators.highway.staging.road import ROAD


def edited(scene: Scene, vehicle: int, quantity: str, change: float) -> Scene:
    if quantity == "speed":
        return scene.set_speed(vehicle, by=change)
    if quantity == "heading":
        return scene.move(vehicle, heading=scene.stage.vehicle(vehicle).heading + change)
    along_or_sideways: dict[str, Any] = {quantity: change}
    return scene.move(vehicle, **along_or_sideways)


@pytest.mark.parametrize("env_id", ["intersection-v2", "highway-fast-v0"])
@pytest.mark.parametrize("rows", ["own", "aligned"])
def test_a_change_flips_the_action_and_a_little_less_does_not(
    env_id: str, rows: Any, ego_attention: rlm.HookedPolicy, highway_mlp: rlm.HookedPolicy
) -> None:
    policy = ego_attention if env_id.startswith("inter") else highway_mlp
    scene = Scene.replay(rlm.make_env(env_id), seed=1, actions=[1, 1, 1])
    found = smallest_change(policy, scene, vehicles=[0, 1, 3], n_grid=8, rows=rows)
    n_flips = 0
    for vehicle, quantity, direction in np.ndindex(3, 4, 2):
        at = found.isel(vehicle=vehicle, quantity=quantity, direction=direction)
        change, name = float(at.change), str(at["quantity"].values)
        if np.isnan(change):
            assert at.action.item() == ""
            continue
        n_flips += 1
        for size, action in ((change, at.action.item()), (float(at.keeps), found.attrs["action"])):
            there = edited(scene, int(at["vehicle"]), name, size)
            seen = there.observation if rows == "own" else there.aligned
            assert policy.spec.actions[int(policy(seen[None]).argmax())] == action, (vehicle, name, size)
        assert 0 < abs(change - float(at.keeps)) <= ROAD.quantities[name].tolerance
        assert np.sign(change) == (-1 if direction == 0 else 1)
        assert at.reachable.item() == edited(scene, int(at["vehicle"]), name, change).reachable
    assert n_flips >= 5
    both = np.abs(found.change)
    assert np.array_equal(np.abs(found.smallest), both.min("direction"), equal_nan=True)


def test_a_threshold_that_is_known_is_found() -> None:
    """A policy that goes faster where the ego drives at less than 24 m/s changes its mind there and nowhere else."""
    env = rlm.make_env("highway-fast-v0")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        vx = spec_of(env).index("feature", "vx")
        network[1].weight[3, vx] = -1.0
        network[1].bias[3] = 24.0 / 80.0
    policy = rlm.HookedPolicy(network, torch.rand(2, 5, 5), spec=spec_of(env))
    scene = Scene.replay(env, seed=0)
    ego = scene.stage.ego
    found = smallest_change(policy, scene, tolerances={"speed": 1e-4}, ranges={"speed": 6.0})
    speed = found.change.sel(vehicle=0, quantity="speed").values
    assert speed[0] == pytest.approx(24.0 - ego.speed, abs=1e-3)
    assert np.isnan(speed[1])
    assert np.isnan(found.change.drop_sel(vehicle=0)).all()
    assert found.action.sel(vehicle=0, quantity="speed", direction="less").item() == "FASTER"
    heading = found.change.sel(vehicle=0, quantity="heading").values
    assert np.abs(heading) == pytest.approx(np.arccos(24.0 / ego.speed), abs=2e-3)
    assert "speed 0.0001 m/s" in found.attrs["tolerance"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"quantities": ["alnog"]}, "no quantity 'alnog'"),
        ({"ranges": {"speed": 0.001}}, "no room to"),
        ({"n_grid": 0}, "no room to"),
        ({"vehicles": [99]}, "no vehicle 99"),
        ({"rows": "sorted"}, "no such order"),
    ],
)
def test_what_cannot_be_searched_is_said(arguments: Any, problem: str, highway_mlp: rlm.HookedPolicy) -> None:
    scene = Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
    with pytest.raises(SceneError, match=problem):
        smallest_change(highway_mlp, scene, **arguments)
