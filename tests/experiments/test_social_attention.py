"""The experiment of the same name: its scenes are what they say, its laws hold, and it runs from public names only."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import rlmech as rlm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "06_social_attention"
NAMES = ("attention", "claims", "intervals", "observed", "policies", "priority", "right_of_way", "road", "scenes",
         "states", "traffic")  # fmt: skip


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
    return rlm.load("zoo:intersection-ego-attention")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("episodes")


@pytest.fixture(scope="module")
def seen(modules: dict[str, ModuleType], policy: rlm.HookedPolicy, folder: Path) -> Any:
    """Four episodes of the zoo's policy."""
    states = modules["states"].recorded(policy, folder, episodes=4)
    return modules["traffic"].Seen(states, modules["road"].Road(states.lanes))


@pytest.fixture(scope="module")
def made(modules: dict[str, ModuleType], seen: Any) -> dict[str, Any]:
    return {name: make(seen) for name, make in modules["scenes"].MAKERS.items()}


def _as_seen(modules: dict[str, ModuleType], seen: Any, scenes: Any) -> Any:
    """The made observations, read like recorded ones."""
    return modules["traffic"].Seen(replace(seen.states, observations=scenes.observations), seen.road)


def test_physical_values_are_the_simulators(seen: Any, folder: Path):
    (part,) = [rlm.Recording.load(path) for path in (folder / "horizontal").iterdir()]
    vehicles = part.vehicles.merge(part.steps[["seed", "step"]].reset_index(names="state"), on=["seed", "step"])
    vehicles = vehicles[(vehicles["row"] >= 0) & (vehicles[["x", "y"]].abs() < 100).all(axis=1)]
    at = vehicles["state"].to_numpy(), vehicles["row"].to_numpy()
    assert len(vehicles) > 50
    np.testing.assert_allclose(seen.place[at], vehicles[["x", "y"]], atol=1e-4)
    np.testing.assert_allclose(seen.speed[at], vehicles["speed"], atol=1e-4)
    np.testing.assert_allclose(np.cos(seen.heading[at]), np.cos(vehicles["heading"]), atol=1e-5)
    np.testing.assert_allclose(np.sin(seen.heading[at]), np.sin(vehicles["heading"]), atol=1e-5)


def test_a_vehicle_put_where_it_is_leaves_the_observation_as_it_was(seen: Any):
    state = 3
    for entity in np.flatnonzero(seen.there[state]):
        row = seen.row(state, seen.place[state, entity], seen.heading[state, entity], seen.speed[state, entity])
        np.testing.assert_allclose(row, seen.states.observations[state, entity], atol=1e-6)


def test_the_ways_that_cross_the_egos_are_those_on_the_map(seen: Any):
    arms = {"left": (1, {0: False, 2: True, 3: True}), "front": (2, {0: True, 1: True, 3: False}),
            "right": (3, {0: True, 1: True, 2: False})}  # fmt: skip
    for arm, ways in arms.values():
        assert {to: seen.road.crosses_ego(arm, to) for to in ways} == ways
        assert seen.road.crosses_ego(arm, seen.road.turn(arm, crossing=True))
        assert not seen.road.crosses_ego(arm, seen.road.turn(arm, crossing=False))


@pytest.mark.parametrize("name", ["arms", "approach", "leaving", "intent"])
def test_a_scene_changes_one_vehicle_and_it_moves_as_it_points(
    modules: dict[str, ModuleType], seen: Any, made: dict[str, Any], name: str
):
    scenes = made[name]
    after = _as_seen(modules, seen, scenes)
    for scene in range(0, len(scenes), 7):
        rows = np.flatnonzero(scenes.scene == scene)
        entity = scenes.read[rows[0]]
        others = np.delete(scenes.observations[rows], entity, axis=1)
        np.testing.assert_array_equal(others, np.broadcast_to(others[0], others.shape))
        recorded = np.delete(seen.states.observations, entity, axis=1)
        assert (recorded == others[0]).all(axis=(1, 2)).any(), "all else is a recorded state"
        np.testing.assert_allclose(after.speed[rows, entity], after.speed[rows[0], entity], atol=1e-4)
    moved = np.arange(len(scenes.observations)), scenes.read
    assert after.there[moved].all()
    velocity = np.stack([after.feature("vx")[moved], after.feature("vy")[moved]], axis=1)
    along = np.stack([np.cos(after.heading[moved]), np.sin(after.heading[moved])], axis=1)
    np.testing.assert_allclose(velocity, after.speed[moved][:, None] * along, atol=1e-4)
    away = np.linalg.norm(after.place - after.place[moved][:, None], axis=-1)
    away[~after.there] = np.inf
    away[moved] = np.inf
    assert away.min() >= modules["traffic"].CLEAR_OF - 1e-4


def test_on_every_arm_the_vehicle_is_as_far_from_its_entry(modules: dict[str, ModuleType], seen: Any, made: Any):
    scenes = made["arms"]
    after = _as_seen(modules, seen, scenes)
    moved = np.arange(len(scenes.observations)), scenes.read
    for condition, arm in enumerate(scenes.conditions):
        mine = scenes.condition == condition
        wanted = [float(scenes.kind[scene].removesuffix(" m")) for scene in scenes.scene[mine]]
        np.testing.assert_allclose(after.to_entry[arm][moved][mine], wanted, atol=1e-3)


def test_intent_shows_in_the_heading_alone(modules: dict[str, ModuleType], seen: Any, made: dict[str, Any]):
    scenes = made["intent"]
    after = _as_seen(modules, seen, scenes)
    for undecided, revealed in ((0, 1), (2, 3)):
        pair = [np.flatnonzero(scenes.condition == condition) for condition in (undecided, revealed)]
        assert (scenes.scene[pair[0]] == scenes.scene[pair[1]]).all()
        one, other = (after.place[rows, scenes.read[rows]] for rows in pair)
        np.testing.assert_allclose(one, other, atol=1e-6)
        turned = np.subtract(*(after.heading[rows, scenes.read[rows]] for rows in pair))
        np.testing.assert_allclose(np.abs((turned + np.pi) % (2 * np.pi) - np.pi), np.pi / 4, atol=0.02)


def test_with_the_way_clear_nobody_could_cross_and_nobody_is_missing(
    modules: dict[str, ModuleType], seen: Any, made: dict[str, Any]
):
    scenes = made["clear"]
    after = _as_seen(modules, seen, scenes)
    as_it_was, cleared = (np.flatnonzero(scenes.condition == condition) for condition in (0, 1))
    np.testing.assert_array_equal(after.there[as_it_was], after.there[cleared])
    near = np.stack([after.to_entry[arm] <= modules["scenes"].COULD_CROSS for arm in modules["road"].ARMS]).any(0)
    could_cross = (near | after.inside).any(1)
    assert could_cross[as_it_was].all()
    assert not could_cross[cleared].any()
    assert could_cross[scenes.condition == 3].all()


def test_a_part_of_the_scenes_is_a_part_of_the_table(made: dict[str, Any]):
    scenes = made["approach"]
    values = scenes.observations[:, 0, 1].astype(float)
    some = scenes.some(5)
    kept = np.linspace(0, len(scenes) - 1, 5).astype(int)
    mine = np.isin(scenes.scene, kept)
    np.testing.assert_array_equal(some.table(values[mine]), scenes.table(values)[kept])
    np.testing.assert_array_equal(some.episode, scenes.episode[kept])


def test_the_rule_is_turned_round_and_not_seen(modules: dict[str, ModuleType], policy: rlm.HookedPolicy, seen: Any):
    envs = {rule: modules["priority"].make_env(rule) for rule in ("horizontal", "vertical")}
    first = {rule: env.reset(seed=200_000)[0] for rule, env in envs.items()}
    np.testing.assert_array_equal(first["horizontal"], first["vertical"])
    np.testing.assert_array_equal(first["horizontal"], rlm.make_env("intersection-v2").reset(seed=200_000)[0])
    np.testing.assert_array_equal(first["horizontal"], seen.states.observations[0])
    priorities = {"horizontal": ([1, 3, 1, 3], [0, 2, 0, 2]), "vertical": ([3, 1, 3, 1], [2, 0, 2, 0])}
    for rule, env in envs.items():
        base: Any = env.unwrapped
        for way, expected in zip((2, 1), priorities[rule], strict=True):  # straight on, to the left
            lanes = [base.road.network.get_lane((f"ir{arm}", f"il{(arm + way) % 4}", 0)) for arm in range(4)]
            assert [lane.priority for lane in lanes] == expected


def test_episodes_under_one_rule_differ_in_nothing(modules: dict[str, ModuleType], policy: rlm.HookedPolicy, seen: Any):
    read = modules["attention"].read(policy, seen.states.observations)
    same = {"horizontal": (seen, read), "vertical": (seen, read)}
    turned = modules["right_of_way"].compare(same, untrained=same)
    for found in (turned.slower, turned.matched, turned.to_ego, *turned.outcomes.values(), turned.over["untrained"]):
        assert (found.value, found.low, found.high) == (0, 0, 0)
    assert turned.agreement.value == 1
    assert turned.verdict == "does not hold"


def test_braking_less_with_the_right_of_way_is_a_fall_of_slower(
    modules: dict[str, ModuleType], policy: rlm.HookedPolicy, seen: Any
):
    read = modules["attention"].read(policy, seen.states.observations)
    slower, faster = (seen.states.spec.index("action", name) for name in ("SLOWER", "FASTER"))
    rules = {
        rule: (
            modules["traffic"].Seen(replace(seen.states, actions=np.full(len(read.scores), action)), seen.road),
            read,
        )
        for rule, action in (("horizontal", slower), ("vertical", faster))
    }
    turned = modules["right_of_way"].compare(rules, untrained=None)
    assert (turned.slower.value, turned.matched.value, turned.agreement.value) == (-1, -1, 0)
    assert turned.verdict == "holds"
    other = modules["right_of_way"].compare(rules, untrained=rules)
    assert other.over["untrained"].value == 0
    assert other.verdict == "cannot be told", "the control does the same"


def test_attention_adds_up_and_is_the_forward_passs(
    modules: dict[str, ModuleType], policy: rlm.HookedPolicy, seen: Any
):
    read = modules["attention"].read(policy, seen.states.observations)
    np.testing.assert_allclose(read.pattern.sum(-1), 1, atol=1e-5)
    assert read.scores.argmax(1).tolist() == seen.states.actions.tolist()


def test_networks_for_comparison_are_made_from_their_seed(modules: dict[str, ModuleType]):
    policies = modules["policies"]
    one = policies.subjects()[4].load()
    before = {name: value.clone() for name, value in one.module.state_dict().items()}
    made: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        one.module.load_state_dict(before)
        made.append({name: v.clone() for name, v in policies.shuffled(one, seed=0).module.state_dict().items()})
    for name, value in made[0].items():
        torch.testing.assert_close(value, made[1][name], rtol=0, atol=0)
        torch.testing.assert_close(value.flatten().sort()[0], before[name].flatten().sort()[0], rtol=0, atol=0)
        assert value.ndim < 2 or not torch.equal(value, before[name])
    first, again, other = (policies.untrained(one, seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other


def test_what_was_recorded_is_not_recorded_again_and_not_taken_for_anothers(
    modules: dict[str, ModuleType], policy: rlm.HookedPolicy, seen: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (part,) = (folder / "horizontal").iterdir()
    written = (part / "manifest.json").stat().st_mtime_ns
    again = modules["states"].recorded(policy, folder, episodes=4)
    np.testing.assert_array_equal(again.observations, seen.states.observations)
    assert (part / "manifest.json").stat().st_mtime_ns == written
    other = rlm.load(f"zoo:{modules['policies'].ZOO}@step_0000000")
    with pytest.raises(SystemExit, match="another policy"):
        modules["states"].recorded(other, folder, episodes=4)


def test_heads_alike_are_not_specialised_and_heads_apart_wholly(modules: dict[str, ModuleType]):
    specialisation = modules["claims"].specialisation
    alike = np.einsum("a,h->ah", [0.1, 0.2, 0.7], [0.1, 0.5, 1.0])[None]
    assert specialisation(alike) == pytest.approx([0])
    assert specialisation(np.eye(3)[None]) == pytest.approx([1])
    assert specialisation(np.array([[[0.3, 0.1], [0.1, 0.1]]])) == pytest.approx([0.25])


def test_effects_are_what_their_names_say(modules: dict[str, ModuleType]):
    claims, scenes = modules["claims"], modules["scenes"]
    falling = np.array([0.4 if s in scenes.NEAR else 0.1 for s in scenes.ALONG])[None, :, None]
    falling[:, 0] = np.nan  # no room there
    assert claims.nearer(claims.near_and_far(falling)) == pytest.approx([4])
    assert claims.nearer_points(claims.near_and_far(falling)) == pytest.approx([0.3])
    four = np.array([0.6, 0.2, 0.5, 0.4])[None, :, None]
    assert claims.revealed(four) == pytest.approx([3])
    assert claims.revealed_in_the_way(four) == pytest.approx([1.25])
    assert claims.to_ego(np.array([0.1, 0.5, 0.3, 0.4])[None, :, None]) == pytest.approx([0.4])
    assert claims.to_ego_others_away(np.array([0.1, 0.5, 0.3, 0.4])[None, :, None]) == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("effect", "over", "expected"),
    [
        ((0.3, 0.2, 0.4), (0.1, 0.05, 0.2), "holds"),
        ((0.3, 0.2, 0.4), (0.1, -0.05, 0.2), "cannot be told"),
        ((0.3, 0.2, 0.4), (-0.1, -0.2, -0.05), "does not hold"),
        ((0.3, 0.05, 0.4), (0.1, 0.05, 0.2), "cannot be told"),
        ((0.05, 0.0, 0.09), (0.1, 0.05, 0.2), "does not hold"),
        ((0.08, 0.02, 0.15), (0.1, 0.05, 0.2), "cannot be told"),
    ],
)
def test_a_claim_holds_only_beyond_enough_and_beyond_its_controls(
    modules: dict[str, ModuleType], effect: tuple[float, ...], over: tuple[float, ...], expected: str
):
    one, other = (
        modules["intervals"].Estimate(**dict(zip(("value", "low", "high"), e, strict=True))) for e in (effect, over)
    )
    assert modules["intervals"].verdict(one, enough=0.1, over={"control": other}) == expected


def test_states_that_repeat_their_episode_make_an_interval_no_narrower(modules: dict[str, ModuleType]):
    rows, copies = np.random.default_rng(0).normal(1, 1, size=(30, 1)), 20
    one, same = (
        modules["intervals"].estimate(np.repeat(rows, n, axis=0), np.repeat(np.arange(30), n), lambda m: m[:, 0])
        for n in (1, copies)
    )
    assert (one.value, one.low, one.high) == pytest.approx((same.value, same.low, same.high))
    assert one.low < rows.mean() < one.high
    assert one.high - one.low == pytest.approx(4 / np.sqrt(30), rel=0.3)


def test_wilsons_interval_is_the_textbooks(modules: dict[str, ModuleType]):
    rate = modules["intervals"].wilson(8, 10)
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert modules["intervals"].wilson(0, 20).low == 0


def test_what_is_observed_is_found_where_it_was_put(modules: dict[str, ModuleType], seen: Any):
    """Attention made by hand: head 0 to the left and head 1 to the right only; then two doublings for each 10 m."""
    states, entities = seen.there.shape
    pattern = np.full((states, 2, entities), 1e-9)
    for arm, head in (("left", 0), ("right", 1)):
        away = seen.to_entry[arm]
        pattern[:, head] = np.where(np.isnan(away), 1e-9, 0.5 * 2.0 ** (-np.nan_to_num(away) / 5))
    read = modules["attention"].Reading(pattern=pattern, scores=np.zeros((states, 3)))
    found = modules["observed"].observe(seen, read)
    assert found.direction.value == pytest.approx(1, abs=0.01)
    assert found.direction_permuted < 0.9
    both = np.nanmin(np.stack([np.where(np.isnan(a), np.inf, a) for a in seen.to_entry.values()]), axis=0)
    even = np.broadcast_to((2.0 ** (-np.minimum(both, 90) / 5))[:, None], pattern.shape)
    read = modules["attention"].Reading(pattern=even, scores=np.zeros((states, 3)))
    found = modules["observed"].observe(seen, read)
    assert found.approach.value == pytest.approx(2, abs=0.01)
    assert found.approach_permuted < 2


def test_it_uses_public_names_only():
    siblings = {file.stem for file in FOLDER.glob("*.py")}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert all(m == "rlmech" or not m.startswith("rlmech") for m in modules), file
            assert siblings.isdisjoint(sys.stdlib_module_names)


@pytest.mark.slow
def test_the_smoke_run_gives_every_claim_a_verdict_and_draws_it(tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            str(FOLDER / "run.py"),
            "--smoke",
            "--out",
            str(tmp_path),
            "--recordings",
            str(tmp_path / "r"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "attention rises as a vehicle approaches: zoo at 102k" in done.stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    for name in ("direction", "approach", "intent", "clear"):
        before, after = (numbers["findings"][f"zoo at {step}k"][name] for step in (0, 102))
        assert before["verdict"] == "does not hold", "an untrained network does nothing of the kind"
        assert after["verdict"] in ("holds", "does not hold", "cannot be told")
        assert after["effect"]["low"] <= after["effect"]["value"] <= after["effect"]["high"]
    assert numbers["driving"]["zoo at 0k"]["turned"]["slower"]["value"] == 0
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"overview", "direction", "approach", "intent", "clear", "right_of_way", "crashes"}
