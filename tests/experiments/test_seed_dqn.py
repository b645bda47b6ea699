"""The experiment of the same name: what it records and measures is what it says, and it runs."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import rlmech as rlm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "03_seed_dqn"
NAMES = ("attribution", "behaviour", "episode", "naive", "network", "scenes")


@pytest.fixture(scope="module")
def modules() -> Generator[dict[str, ModuleType]]:
    """The experiment's own modules, gone from the interpreter afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for file in FOLDER.glob("*.py"):
            patch.delitem(sys.modules, file.stem, raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}
        for file in FOLDER.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.load("zoo:highway-dqn-mlp")


@pytest.fixture(scope="module")
def recording(policy: rlm.HookedPolicy) -> rlm.Recording:
    """Two short episodes."""
    env = rlm.make_env("highway-fast-v0", config=policy.spec.env_config | {"duration": 10})
    return rlm.record(policy, env, seeds=(1, 2), names="q_net.*", progress=False)


@pytest.fixture(scope="module")
def data(modules: dict[str, ModuleType], policy: rlm.HookedPolicy, recording: rlm.Recording) -> Any:
    return modules["scenes"].Data(policy=policy, fast=recording, dense=recording)


def test_changes_are_those_of_an_episode_and_hold_what_chose_the_new_action(
    modules: dict[str, ModuleType], policy: rlm.HookedPolicy, recording: rlm.Recording, tmp_path: Path
):
    found = modules["scenes"].changes(recording, policy.spec)
    taken = [policy.spec.actions[int(action)] for action in recording.actions]
    episodes, steps = (recording.steps[name].tolist() for name in ("episode", "step"))
    expected = [
        (episodes[i], steps[i], taken[i - 1], taken[i])
        for i in range(1, len(taken))
        if episodes[i] == episodes[i - 1] and taken[i] != taken[i - 1]
    ]
    names = ("episode", "step", "last_action", "new_action")
    assert expected == list(zip(*(found[name].values.tolist() for name in names), strict=True))
    scores, cache = policy.run_with_cache(found["observation"].values, "q_net.*")
    assert [policy.spec.actions[i] for i in scores.argmax(1)] == found["new_action"].values.tolist()
    for layer, hook in modules["scenes"].LAYERS.items():
        np.testing.assert_allclose(found[layer].values, cache[hook].detach().numpy(), atol=1e-5)
    path = tmp_path / "deep" / "changes.nc"
    for _ in range(2):  # an existing file is no obstacle
        again = modules["scenes"].saved(found, path)
    for name in found:
        np.testing.assert_array_equal(again[name].values, found[name].values)
    assert again["new_action"].values.tolist() == found["new_action"].values.tolist()


def test_no_change_is_counted_where_one_episode_follows_another(modules: dict[str, ModuleType]):
    steps = pd.DataFrame({"episode": [0, 0, 1, 1], "step": [0, 1, 0, 1]})
    made = SimpleNamespace(
        steps=steps,
        actions=np.array([3, 3, 4, 3]),
        observations=np.zeros((4, 5, 5)),
        activation=lambda _: np.arange(4.0)[:, None],
        manifest={"policy": {"fingerprint": ""}},
    )
    found = modules["scenes"].changes(made, rlm.load("zoo:highway-dqn-mlp").spec)
    assert found["row"].values.tolist() == [3]
    assert found["hidden_1"].values.tolist() == [[3.0]]
    assert (found["last_action"].item(), found["new_action"].item()) == ("SLOWER", "FASTER")


def test_the_scene_is_where_the_simulator_has_its_vehicles(
    modules: dict[str, ModuleType], policy: rlm.HookedPolicy, recording: rlm.Recording
):
    scene = modules["scenes"].scene(policy, recording.observations)
    table = recording.vehicles.set_index(["episode", "step"])
    for i, (episode, step) in enumerate(recording.steps[["episode", "step"]].itertuples(index=False)):
        there = table.loc[(episode, step)]
        ego, others = there[there["vehicle"] == 0].iloc[0], there[there["row"] > 0]
        dx, dy = others["x"] - ego["x"], others["y"] - ego["y"]
        for name, at in (("gap ahead", 0), ("gap ahead, left lane", -4), ("gap ahead, right lane", 4)):
            ahead = dx[(np.abs(dy - at) < 2) & (dx > 0)]
            expected = ahead.min() if len(ahead) else np.nan
            assert scene[name][i] == pytest.approx(expected, abs=0.01, nan_ok=True), (name, i)
        assert scene["own speed"][i] == pytest.approx(ego["speed"] * np.cos(ego["heading"]), abs=0.01)
        assert scene["lane"][i] == round(ego["y"] / 4)


def test_the_vehicle_ahead_alone_is_moved_and_rows_stay_in_order(modules: dict[str, ModuleType], data: Any):
    moved, where = modules["behaviour"].leader_moved(data)
    gap = modules["scenes"].scene(data.policy, data.seen)["gap ahead"]
    assert where.tolist() == np.flatnonzero(np.isfinite(gap)).tolist()
    for distance, seen in zip(modules["behaviour"].DISTANCES, moved, strict=True):
        np.testing.assert_array_equal(seen[:, 0], data.seen[where, 0])
        away = np.where(seen[:, 1:, 0] >= 0.5, np.abs(seen[:, 1:, 1]), np.inf)
        assert (np.sort(away, axis=1) == away).all()
        for now, before in zip(seen, data.seen[where], strict=True):
            left = [row for row in now[1:].tolist() if row not in before[1:].tolist()]
            assert len(left) <= 1
            assert all(row[1] == pytest.approx(distance / 200) for row in left)


class _Careful:
    """Chooses SLOWER where the vehicle ahead in the lane is nearer than 37 m, whatever its speed."""

    def __init__(self, policy: rlm.HookedPolicy, scene: Any) -> None:
        self.spec, self.scene = policy.spec, scene

    def predict(self, obs: np.ndarray) -> tuple[np.ndarray, None]:
        return np.where(self.scene(self, obs)["gap ahead"] < 37, 4, 1), None


def test_distance_and_speed_of_the_vehicle_ahead_are_told_apart(modules: dict[str, ModuleType], data: Any):
    crowded = np.zeros((2, 5, 5), dtype=np.float32)
    crowded[:, :, 0] = 1
    crowded[:, 1:, 1] = np.array([20, 90, 95, 99]) / 200  # the nearest in the lane, the others elsewhere
    crowded[:, 2:, 2] = 8 / 12
    recording = SimpleNamespace(observations=crowded)
    careful = _Careful(data.policy, modules["scenes"].scene)
    found = modules["behaviour"].leader_compared(modules["scenes"].Data(policy=careful, fast=recording, dense=None))
    assert found == {"as fast as the ego, or 8 m/s slower": 0, "at 25 m, or at 50 m": 1}


def test_the_nearest_vehicle_alone_changes_lane_and_only_to_lanes_that_are_there(
    modules: dict[str, ModuleType], data: Any
):
    lane = modules["scenes"].scene(data.policy, data.seen)["lane"]
    aside = modules["behaviour"].nearest_aside(data)
    assert len(aside[0]) == len(data.seen)
    for offset, seen in aside.items():
        rows = (lane + offset >= 0) & (lane + offset <= 2)
        kept = np.ones((5, 5), dtype=bool)
        kept[1, 2] = False
        np.testing.assert_array_equal(seen[:, kept], data.seen[rows][:, kept])
        np.testing.assert_allclose(seen[:, 1, 2], offset * 4 / 12, atol=1e-6)


def test_a_lane_change_at_the_edge_is_counted_as_keeping_the_lane(modules: dict[str, ModuleType]):
    spec = rlm.load("zoo:highway-dqn-mlp").spec
    seen = np.zeros((3, 5, 5), dtype=np.float32)
    seen[:, 0, 2] = np.array([0, 4, 8]) / 12

    class Always:
        def __init__(self, action: int) -> None:
            self.spec, self.action = spec, action

        def __call__(self, obs: np.ndarray) -> torch.Tensor:
            return torch.eye(5)[[self.action] * len(obs)]

    for number in (0, 2):
        found = modules["behaviour"].moves(Always(number), seen)
        assert found["keeps lane and speed"] == pytest.approx(1 / 3)
        assert found["moves left" if number == 0 else "moves right"] == pytest.approx(2 / 3)


def test_what_is_recorded_of_lane_changes_is_where_the_simulator_put_the_ego(
    modules: dict[str, ModuleType], data: Any, recording: rlm.Recording
):
    found = modules["behaviour"].stays(data)
    ego = recording.vehicles.query("vehicle == 0").set_index(["episode", "step"])["y"]
    for key, row in found.items():
        action, lane = key.split(" in the ")
        number = ["left lane", "middle lane", "right lane"].index(lane)
        same = []
        for i, (episode, step) in enumerate(recording.steps[["episode", "step"]].itertuples(index=False)):
            last = step == recording.steps.query("episode == @episode")["step"].max()
            if last or data.policy.spec.actions[int(recording.actions[i])] != action:
                continue
            if round(ego[episode, step] / 4) == number:
                same.append(round(ego[episode, step + 1] / 4) == number)
        assert row["states"] == len(same)
        assert not same or row["same lane a step later"] == pytest.approx(np.mean(same))


def test_the_baseline_keeps_who_is_there_and_is_their_mean(modules: dict[str, ModuleType], data: Any):
    absent = data.seen.copy()
    absent[::2, 3] = 0
    thinned = SimpleNamespace(policy=data.policy, seen=absent)
    base = modules["attribution"].typical(thinned)
    np.testing.assert_array_equal(base[..., 0], absent[..., 0])
    np.testing.assert_allclose(base[1, 3], absent[1::2, 3].mean(0), atol=1e-6)
    assert not base[0, 3].any()


def test_the_naive_gradients_are_the_left_rule_from_zeros(modules: dict[str, ModuleType], data: Any):
    policy, seen = data.policy, data.seen[:3]
    action = np.array([0, 3, 4])
    found = modules["naive"].zero_baseline_gradients(policy, seen, action)
    change = policy(seen) - policy(np.zeros_like(seen))
    expected = change[np.arange(3), action].detach().numpy()
    np.testing.assert_allclose(found.sum((1, 2)), expected, rtol=0.25, atol=0.5)
    assert np.abs(found[..., 0]).sum() > 0.1 * np.abs(found).sum()


def test_hooks_left_on_show_another_observation_and_are_gone_afterwards(modules: dict[str, ModuleType], data: Any):
    first, then = data.seen[:1], data.seen[5:6]
    found = modules["naive"].left_on(data.policy, first, then)
    _, cache = data.policy.run_with_cache(then, "q_net.3.hook_out")
    np.testing.assert_allclose(found["found"], cache["q_net.3.hook_out"].detach(), atol=1e-5)
    assert (found["hooks"], found["calls"]) == (2, 4)
    assert not any(module._forward_hooks for module in data.policy.module.modules())


def test_the_wrong_product_fits_and_is_wrong(modules: dict[str, ModuleType], policy: rlm.HookedPolicy):
    w, _ = modules["naive"].weights(policy)
    right, wrong = (w[1] @ w[0]).T, modules["naive"].product(w)
    x = np.random.default_rng(0).normal(size=25)
    first, second = (policy.module.get_submodule(f"q_net.{i}") for i in (0, 2))
    zero = torch.zeros(25, dtype=torch.float32)
    with torch.no_grad():
        through = second(first(torch.tensor(x, dtype=torch.float32))) - second(first(zero))
    np.testing.assert_allclose(x @ right, through, atol=1e-3)
    assert wrong.shape == right.shape
    assert modules["network"].agreement(right, right)["relative error"] == 0
    assert modules["network"].agreement(right, wrong)["relative error"] > 0.5


def test_it_uses_public_names_only():
    siblings = {file.stem for file in FOLDER.glob("*.py")}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert all(name == "rlmech" or not name.startswith("rlmech") for name in names), file
    assert siblings.isdisjoint(sys.stdlib_module_names)


def test_the_notebook_only_displays_and_holds_no_outputs():
    notebook = json.loads((FOLDER / "show.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert not any("rlm" in "".join(cell["source"]) or "torch" in "".join(cell["source"]) for cell in code)


def test_the_smoke_run_keeps_the_laws_and_writes_the_page(tmp_path: Path):
    given = ["--smoke", "--out", str(tmp_path), "--recordings", str(tmp_path / "r")]
    subprocess.run([sys.executable, str(FOLDER / "run.py"), *given], capture_output=True, text=True, check=True)
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["weights"]["largest |J x + c - score|"] < 1e-4
    assert numbers["changes"]["its hidden activations choose the new action"] == 1
    assert numbers["features"]["exact: largest completeness error"] < 1e-4
    assert numbers["features"]["by feature"]["presence"] == 0
    assert "other entities present" in numbers["features"]["zeros as the baseline"]["the package says"]
    assert numbers["along"]["labelled by its own step: right action"] == 1
    assert numbers["lens"]["agreement"]["mean"]["q_net.3.hook_out"] == 1
    assert numbers["observation"]["hooks left on"]["hooks left by run_with_cache"] == 0
    assert (tmp_path / "changes.nc").exists()
    assert (tmp_path / "index.html").read_text(encoding="utf-8").count("<article") > 15
