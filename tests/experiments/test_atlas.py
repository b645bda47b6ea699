"""The experiment of the same name uses public names only; its students and its opened agent say what is planted."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import rlmech as rlm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "10_atlas"


def module(name: str):
    found = importlib.util.spec_from_file_location(f"atlas_{name}", FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def test_it_imports_public_names_only():
    imported = [
        name.name if isinstance(node, ast.Import) else str(node.module)
        for file in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
    assert {name for name in imported if name.startswith("rlmech")} == {"rlmech"}


@pytest.mark.parametrize("target", ["actions", "values"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_student_learns_what_its_teacher_does(activation, target):
    states = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    scores = states @ torch.tensor([[1.0, -1.0], [0.5, 0.5], [0.0, 2.0]]) + 100  # values share a large part
    net = module("students").student(
        states, scores, target=target, activation=activation, seed=0, width=16, n_steps=300
    )
    assert float((net(states).argmax(1) == scores.argmax(1)).double().mean()) > 0.95
    bends = {type(layer).__name__ for layer in net if not isinstance(layer, nn.Linear)}
    assert bends == {"ReLU" if activation == "relu" else "Tanh"}


SHORT = rlm.PolicySpec(env_id="CartPole-v1", env_kwargs={"max_episode_steps": 60})


def balancing(harm: float) -> rlm.HookedPolicy:
    """Balances the pole by one unit; another one, a constant, pushes it to one side."""
    first, last = nn.Linear(4, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0.1, 0.3, 3.0, 1.0], [0.0, 0, 0, 0]]))
        first.bias.copy_(torch.tensor([0.0, 1.0]))
        last.weight.copy_(torch.tensor([[-1.0, harm], [1.0, 0.0]]))
        last.bias.zero_()
    return rlm.HookedPolicy(nn.Sequential(first, nn.Tanh(), last), torch.rand(2, 4), spec=SHORT)


@pytest.mark.slow
def test_the_unit_that_is_needed_is_the_worst_and_setting_it_to_constants_costs():
    policy, sizes = balancing(0.0), rlm.atlas.Sizes.quick()
    found = rlm.atlas.drive_units(policy, rlm.make_env(policy.spec), sizes=sizes)
    assert found["worst"] == "layer 1 unit 0"
    assert found["worst_share"] > 0.5
    opened = module("opened")
    site = opened.site_of(policy, found["worst"])
    assert site == rlm.Site("1.hook_out", neuron=0)
    driven, where = opened.open_up(policy, found["worst"], n_seeds=4, n_recorded=4)
    driven = driven.set_index("condition")
    assert driven.loc["removed", "change"] < -20
    assert driven.loc["removed", "change"] == driven.loc["mean +0 sd", "change"]  # removed is the dose of none
    assert driven.loc["removed after the first fifth", "return"] > driven.loc["removed", "return"]
    angle = where["correlation_with_unit"].astype(float).abs()
    assert np.isfinite(angle).all()
    assert angle.idxmax() in (2, 3)  # the pole's angle and its speed, which the unit weighs most


def test_the_agent_that_gains_most_for_its_way_is_the_one_opened():
    loops = pd.DataFrame(
        {"policy": ["a", "b", "c"], "gain": [50.0, 20.0, 9.0], "way": [1000.0, 100.0, -5.0], "best": ["x", "y", "z"]}
    )
    assert module("opened").chosen(loops)["policy"] == "b"


@pytest.mark.slow
def test_the_smoke_run_writes_tables_and_opens_an_agent(tmp_path):
    command = [sys.executable, "-W", "ignore", str(FOLDER / "run.py"), "--smoke", "--out", str(tmp_path)]
    subprocess.run([*command, "--only", "ppo", "--steps", "tables,opened"], capture_output=True, check=True)
    assert pd.read_csv(tmp_path / "opened.csv")["policy"].unique().tolist() == ["ppo CartPole-v1"]
    assert (pd.read_csv(tmp_path / "loops.csv")["n_units"] == 16).all()
    assert (tmp_path / "answers.csv").exists()
