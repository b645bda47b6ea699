"""The ego-attention experiment: its parts are what they say, its laws hold, and it runs from public names only."""

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
import plotly.graph_objects as go
import pytest
import torch

import rlmech as rlm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "04_seed_ego_attention"


@pytest.fixture(scope="module")
def modules() -> Generator[dict[str, ModuleType]]:
    """The experiment's own modules, gone from the interpreter afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for file in FOLDER.glob("*.py"):
            patch.delitem(sys.modules, file.stem, raising=False)
        yield {name: importlib.import_module(name) for name in ("subjects", "exact", "naive", "saved")}
        for file in FOLDER.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    return rlm.load("zoo:intersection-ego-attention")


@pytest.fixture(scope="module")
def states(modules: dict[str, ModuleType], policy: rlm.HookedPolicy) -> Any:
    """States drawn at random in place of a recording; vehicle i stands in row i throughout."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-0.3, 0.3, size=(40, 15, 7)).astype(np.float32)
    obs[:, :, 0] = rng.random((40, 15)) < 0.4
    obs[:, 0, 0] = 1
    obs[obs[:, :, 0] == 0] = 0
    with torch.no_grad():
        scores, cache = policy.run_with_cache(obs)
    steps = pd.DataFrame({"episode": np.arange(40) // 10, "step": np.arange(40) % 10})
    everyone = steps.merge(pd.DataFrame({"vehicle": range(15), "row": range(15)}), how="cross")
    recording = SimpleNamespace(
        observations=obs,
        scores=scores.numpy(),
        steps=steps,
        vehicles=everyone,
        activation=lambda name: cache[name].numpy(),
    )
    return modules["subjects"].States(policy, recording)


@pytest.fixture(scope="module")
def terms(modules: dict[str, ModuleType], states: Any) -> Any:
    return modules["exact"].Terms.of(states)


def test_every_identity_holds_to_float32_rounding(modules: dict[str, ModuleType], states: Any, terms: Any):
    paths = rlm.circuits.path_expansion(states.policy, states.obs, better="FASTER", worse="SLOWER")
    errors = modules["exact"].laws(states, terms, paths)
    size = errors.pop("scores")
    assert all(error < 2e-5 * size for error in errors.values()), errors


def test_the_shares_of_the_paths_add_up_to_the_gap(modules: dict[str, ModuleType], states: Any):
    paths = rlm.circuits.path_expansion(states.policy, states.obs, better="FASTER", worse="SLOWER")
    shares = [row["share of the gap's variance"][0] for row in modules["exact"].path_shares(states, paths)]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_the_right_formula_is_not_wrong_by_the_same_measure(modules: dict[str, ModuleType], states: Any):
    naive, d_head = modules["naive"], 16
    raw = np.einsum("nhd,nehd->nhe", states.split("query_ego")[:, 0], states.split("key_all"))
    right = naive.against(states, naive.softmax(raw / np.sqrt(d_head), ~states.there[:, None]))
    assert all(abs(value[0]) < 1e-4 for value in right.values()), right


@pytest.mark.parametrize(
    "formula",
    ["no head split", "no 1/sqrt(d_head)", "no mask", "the skip not halved", "the skip left out"],
)
def test_each_wrong_formula_changes_decisions(formula: str, found: dict[str, Any]):
    assert found[formula]["another action"][0] > 0.02


@pytest.fixture(scope="module")
def found(modules: dict[str, ModuleType], states: Any, terms: Any) -> dict[str, Any]:
    return modules["naive"].measured(states, terms)


def test_products_of_weights_tell_less_than_nothing_of_scores_and_contributions(found: dict[str, Any]):
    assert found["ReLU and biases ignored, QK"]["product"]["variance of the scores told"][0] < 0
    assert found["ReLU and biases ignored, OV"]["product"]["squares of the contributions told"][0] < 0
    assert found["a softmax over features of a weight product"]["standard deviation over states"] == 0


def test_the_transposed_product_fails_as_it_did_and_the_zero_baseline_is_refused(found: dict[str, Any]):
    assert "Expected size" in found["q @ k.T on three dimensions"]["torch says"]
    assert "crosses the mask" in found["a zero baseline across the mask"]["exact_integrated_gradients says"]


def test_a_vehicle_that_keeps_its_row_is_never_taken_for_another(found: dict[str, Any], states: Any):
    rows = found["attention of s_t+1 labelled a_t"]["rows that hold another vehicle a step later"]
    assert rows == [0, 0, 0]


@pytest.mark.parametrize("how", ["whole skip", "no skip"])
def test_a_wrong_skip_is_what_the_network_makes_of_it_by_hand(modules: dict[str, ModuleType], states: Any, how: str):
    policy, path = states.policy, "features_extractor."
    with torch.no_grad():
        _, cache = policy.run_with_cache(states.obs)
        ego = cache[f"{path}ego_embedding.relu_1.hook_out"][:, 0]
        read = cache[f"{path}attention_layer.hook_attn_out"][:, 0] + (ego if how == "whole skip" else 0)
        by_hand = policy.module.q_net(read).numpy()
    wrong = np.abs(states.gap(by_hand) - states.gap()).mean()
    assert modules["naive"].skipped(states, how)["error of Q(FASTER) - Q(SLOWER) [return]"][0] == pytest.approx(
        wrong, rel=1e-3
    )


def test_every_vehicle_there_is_in_one_place_and_nobody_else_is(modules: dict[str, ModuleType], states: Any):
    group = modules["exact"].groups_of(states)
    np.testing.assert_array_equal(group >= 0, states.there)
    assert (group[:, 0] == 0).all()
    assert (group[:, 1:] != 0).all()


def test_ahead_is_along_the_heading_and_left_is_up_the_page(modules: dict[str, ModuleType], states: Any):
    obs = np.zeros((1, 15, 7), dtype=np.float32)
    obs[0, 0] = [1, 0.1, 0.2, 0, 0, 0, 1]  # at (10, 20) m, heading down the page
    obs[0, 1] = [1, 0.1, 0.5, 0, 0, 1, 0]  # 30 m farther down
    obs[0, 2] = [1, 0.3, 0.2, 0, 0, 1, 0]  # 20 m to the east, which is left of whoever heads south
    ahead, left = modules["subjects"].States(states.policy, SimpleNamespace(observations=obs)).places()
    np.testing.assert_allclose(ahead[0, :3], [0, 30, 0], atol=1e-4)
    np.testing.assert_allclose(left[0, :3], [0, 0, 20], atol=1e-4)
    assert np.isnan(ahead[0, 3:]).all()


def test_slopes_are_the_jacobians_by_the_metre(modules: dict[str, ModuleType], states: Any):
    jacobian = rlm.attribution.local_affine(states.policy, states.obs).jacobian.isel(entity=0)
    gap = (jacobian.sel(action="FASTER") - jacobian.sel(action="SLOWER")).mean("batch")
    slope = modules["exact"].slopes(states)["slope"].sel(of="ego")
    for name, unit, reach in (("x", "x [m]", 100), ("vy", "vy [m/s]", 20), ("sin_h", "sin_h", 1)):
        assert float(slope.sel(feature=unit)) == pytest.approx(float(gap.sel(feature=name)) / reach, rel=1e-4)


def test_a_vehicle_off_the_softmax_is_one_whose_score_is_minus_infinity(modules: dict[str, ModuleType], states: Any):
    head, near = 1, modules["exact"].groups_of(states) == 1
    changes = []
    for state, row in zip(*np.nonzero(near), strict=True):
        scores = states.attention_scores.copy()
        scores[state, head, row] = -np.inf
        name = modules["subjects"].names_of(states.policy)["scores"]
        after = states.rerun(name, lambda _, scores=scores: torch.as_tensor(scores)[:, :, None])
        changes.append((states.gap(after) - states.gap())[state])
    found = modules["exact"].moved_by_the_pattern(states)["change"].sel(head=head, where="ahead, to 15 m")
    assert float(found) == pytest.approx(np.mean(changes), abs=2e-4)


def test_the_terms_of_a_state_are_its_own_ov_form_weighted_with_the_pattern(
    modules: dict[str, ModuleType], states: Any
):
    one = modules["subjects"].States(states.policy, _first_state(states))
    alone = modules["exact"].Terms.of(one)
    row = int(np.flatnonzero(one.there[0, 1:])[0]) + 1
    form = rlm.circuits.ov_circuit(one.policy, obs=one.obs, better="FASTER", worse="SLOWER").circuit.isel(
        query=0, action=0, entity=row
    )
    weight, x = one.pattern[0, :, row], one.obs[0, row].numpy()
    by_form = weight * (form.transpose("head", "feature").values[:, :-1] @ x)
    np.testing.assert_allclose(alone.vehicles[0, :, row - 1].sum(-1), by_form, atol=1e-4)


def _first_state(states: Any) -> Any:
    kept = states.recording
    return SimpleNamespace(observations=kept.observations[:1], activation=lambda name: kept.activation(name)[:1])


def test_moving_a_vehicle_to_the_first_row_changes_no_score(states: Any):
    moved, state, row = states.one_vehicle_each()
    assert len(moved) == states.there[:, 1:].sum()
    np.testing.assert_array_equal(moved[:, 1], states.obs[state, row])
    with torch.no_grad():
        np.testing.assert_allclose(states.policy(moved).numpy(), states.scores[state], atol=1e-4)


def test_an_untrained_network_has_the_same_names_and_other_weights(modules: dict[str, ModuleType], states: Any):
    before = {name: value.clone() for name, value in states.policy.module.state_dict().items()}
    fresh, again, other = (modules["subjects"].untrained(states.policy, seed) for seed in (0, 0, 1))
    assert list(fresh.hook_dict) == list(states.policy.hook_dict)
    same = [torch.equal(a, b) for a, b in zip(fresh.module.parameters(), again.module.parameters(), strict=True)]
    assert all(same)
    for one in (other, states.policy):
        pairs = zip(fresh.module.parameters(), one.module.parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(value, before[name]) for name, value in states.policy.module.state_dict().items())


def test_activations_come_back_from_the_file_and_a_directory_in_the_way_is_left(
    modules: dict[str, ModuleType], states: Any, tmp_path: Path
):
    (tmp_path / "a.safetensors").write_text("what was there before")
    kept = modules["saved"].kept(states, tmp_path / "a.safetensors")
    assert kept["shapes"] == {
        "query_ego": [1, 1, 64],
        "key_all": [1, 15, 64],
        "value_all": [1, 15, 64],
        "attention_combine": [1, 64],
    }
    assert kept["read back equal"]
    assert kept["the recording holds the same"]
    assert kept["a directory in the way"].startswith("CacheError")


def test_states_of_one_episode_make_an_interval_no_narrower(modules: dict[str, ModuleType]):
    values, interval = np.random.default_rng(0).normal(size=20), modules["subjects"].interval
    few = interval(np.arange(20), lambda rows: values[rows].mean())
    repeated = np.repeat(values, 25)
    many = interval(np.repeat(np.arange(20), 25), lambda rows: repeated[rows].mean())
    assert few == pytest.approx(many)


def test_it_uses_public_names_only():
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert all(m == "rlmech" or not m.startswith("rlmech") for m in modules), file


def test_the_notebook_only_displays():
    cells = json.loads((FOLDER / "show.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    sources = ["".join(cell["source"]) for cell in code]
    assert not any(word in source for source in sources for word in ("rlmech", "torch", "import numpy"))


@pytest.mark.slow
def test_the_smoke_run_writes_what_the_notebook_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "report" / "seed_ego_attention"
    command = [
        sys.executable,
        str(FOLDER / "run.py"),
        "--smoke",
        "--out",
        str(out),
        "--recordings",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the page is at" in done.stdout
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    names: dict[str, Any] = {}
    for cell in json.loads((FOLDER / "show.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(shown) == len(list((out / "figures").glob("[0-9]*.json"))) > 10
