"""The command line on a policy without heads or roads: conditions on steps, doses, probes, certificates, completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech import cli
from rlmech.cli.completion import VARIABLE
from rlmech.cli.opening import refuse_unwritable
from rlmech.cli.selecting import acting_when, observed, select_steps
from rlmech.errors import ConfigError
from rlmech.nets.mlp import MultiLayerPerceptron
from tests.test_cli import error, result, run

SPEC = rlm.PolicySpec(
    features=tuple(rlm.FeatureSpec(name=name) for name in ("place", "speed", "angle", "spin")),
    actions=("LEFT", "RIGHT"),
    env_id="CartPole-v1",
)


@pytest.fixture(scope="module")
def balancing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy that leans where the pole leans, with units to spare."""
    torch.manual_seed(0)
    network = MultiLayerPerceptron(4, [6], d_out=2)
    assert network.predict is not None
    with torch.no_grad():  # pushes to the side to which the pole leans, and falls in the end
        network.layers[0].weight[:2] = 10 * torch.tensor([[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
        network.layers[0].bias[:2] = 0
        network.predict.weight[:] = 0.01 * network.predict.weight
        network.predict.weight[:, :2] = torch.eye(2)
        network.predict.bias[:] = 0
    path = tmp_path_factory.mktemp("balancing") / "policy"
    rlm.save_policy(rlm.HookedPolicy(network, torch.rand(2, 4), spec=SPEC), path)
    return str(path)


@pytest.fixture(scope="module")
def driven(balancing: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("driven") / "eight"
    assert run("record", balancing, "--episodes", "8", "--out", str(path), "--json") == 0
    return str(path)


def test_the_program_alone_shows_its_help(capsys: pytest.CaptureFixture[str]):
    assert run() == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: rlmech")
    assert all(f"  {name} " in shown.out for name in ("dose", "probes", "certify", "completion"))
    assert not shown.err


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("step < 3", lambda steps, obs: steps["step"] < 3),
        ("1 <= step < 3", lambda steps, obs: (steps["step"] >= 1) & (steps["step"] < 3)),
        ("action == 'RIGHT'", lambda steps, obs: steps["action"] == 1),
        ("action in ['RIGHT'] and not step == 2", lambda steps, obs: (steps["action"] == 1) & (steps["step"] != 2)),
        ("terminated or observation[2] > 0", lambda steps, obs: steps["terminated"] | (obs[:, 2] > 0)),
        ("observation['angle'] <= -0.01", lambda steps, obs: obs[:, 2] <= -0.01),
        ("seed not in (0, 1)", lambda steps, obs: ~steps["seed"].isin([0, 1])),
    ],
)
def test_a_condition_chooses_the_steps_that_pandas_does(driven: str, when: str, holds: Any):
    recording = rlm.Recording.load(driven)
    chosen = select_steps(recording, when, spec=SPEC)
    met = np.asarray(holds(recording.steps, recording.observations))
    assert 0 < met.sum() < len(met)
    np.testing.assert_array_equal(chosen.observations, recording.observations[met])


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("spee < 3", "no column 'spee'"),
        ("step <", "cannot be read"),
        ("__import__('os').getcwd()", "no comparison"),
        ("step + 1 < 3", "neither a column nor a value"),
        ("action == 'UP'", "no action 'UP'"),
        ("observation[9] > 0", "no such number"),
        ("observation[0, 0] > 0", "no such number"),
        ("step in 3", "no list"),
        ("step is 3", "not known"),
        ("step > 100000", "No recorded step"),
    ],
)
def test_a_condition_that_cannot_be_is_told_in_words(balancing: str, driven: str, when: str, said: str):
    with pytest.raises(ConfigError, match=said) as told:
        select_steps(rlm.Recording.load(driven), when, spec=SPEC)
    assert "--when" in str(told.value)


def test_edits_act_at_the_moments_that_a_condition_names(
    balancing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    site = ("--ablate", "neuron 0+1", "--sites", "relu_0.hook_out", "--kind", "zero", "--when", "step >= 2")
    result(capsys, "record", balancing, "--episodes", "2", "--out", str(tmp_path / "late"), *site)
    steps = rlm.Recording.load(tmp_path / "late").steps
    assert (steps["edited"] == (steps["step"] >= 2)).all()
    assert "that could act" in error(capsys, "record", balancing, "--when", "step > 1", "--out", str(tmp_path / "x"))


def test_a_moment_without_such_a_number_says_which_there_are(
    balancing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--ablate", "neuron 0", "--sites", "relu_0.hook_out", "--kind", "zero", "--when", "lanes < 2")
    line = error(capsys, "record", balancing, "--episodes", "1", "--out", str(tmp_path / "x"), *arguments)
    assert "no 'lanes'" in line
    assert "previous_action" in line
    assert str(acting_when("step < 2", spec=SPEC)) == "step < 2"
    assert acting_when("", spec=SPEC) is None


def test_patch_and_ablate_work_on_chosen_steps_of_any_policy(
    balancing: str, driven: str, capsys: pytest.CaptureFixture[str]
):
    options = ("--sites", "relu_0.hook_out", "--over", "neuron", "--when", "step >= 1")
    patched = result(capsys, "patch", balancing, driven, *options)
    assert [site["neuron"] for site in patched["sites"]] == list(range(6))
    found = result(capsys, "ablate", balancing, driven, "--kind", "zero", *options)
    policy, chosen = rlm.load(balancing), rlm.Recording.load(driven)
    rows = chosen.steps["step"].to_numpy() >= 1
    same = rlm.ablation_sweep(
        policy,
        chosen.observations[rows],
        sites=policy.sites("relu_0.hook_out", over="neuron"),
        kind="zero",
        metric=rlm.metrics.action_flip(),
    )
    assert [site["effect"] for site in found["sites"]] == pytest.approx(same["effect"].values.tolist())


def test_what_needs_heads_says_so(balancing: str, capsys: pytest.CaptureFixture[str]):
    assert "no attention heads" in error(capsys, "circuits", balancing)
    assert "no attention heads" in error(capsys, "compare", balancing)


def test_an_environment_that_does_not_fit_is_refused_by_inspect(balancing: str, capsys: pytest.CaptureFixture[str]):
    assert "do not fit the policy" in error(capsys, "inspect", balancing, "--env", "Acrobot-v1")
    assert result(capsys, "inspect", balancing, "--env", "CartPole-v1")["spec"]["actions"] == ["LEFT", "RIGHT"]


def test_a_wrapper_changes_what_is_observed(balancing: str, capsys: pytest.CaptureFixture[str]):
    wrapper = 'gymnasium.wrappers.FilterObservation{"filter_keys": [0]}'
    assert "cannot be made" in error(capsys, "inspect", balancing, "--wrapper", wrapper)
    flat = ("--wrapper", "gymnasium.wrappers.FlattenObservation")
    assert result(capsys, "inspect", balancing, *flat)["output_kind"] == "q_values"


def test_dose_steers_by_a_difference_of_means(
    balancing: str, driven: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--toward", "observation['angle'] > 0", "--reference", driven, "--doses=-1,2", "--seeds", "3")
    found = result(capsys, "dose", balancing, *arguments, "--out", str(tmp_path))
    assert [row["dose"] for row in found["doses"]] == [-1, 0, 2]
    policy, seen = rlm.load(balancing), rlm.Recording.load(driven).observations
    with torch.no_grad():
        _, cache = policy.run_with_cache(seen, "relu_0.hook_out")
    values, toward = cache["relu_0.hook_out"], torch.as_tensor(seen[:, 2] > 0)
    vector = values[toward].mean(0) - values[~toward].mean(0)
    same = rlm.episodes.dose_response(
        policy,
        rlm.make_env("CartPole-v1"),
        site="relu_0.hook_out",
        vector=vector,
        coefficients=[-1, 2],
        seeds=range(3),
        progress=False,
    )
    assert [row["mean_return"] for row in found["doses"]] == pytest.approx(same["mean_return"].values.tolist())
    assert (tmp_path / "doses.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--toward", "step >= 0"), "no direction"),
        (("--toward", "stepp > 1"), "--toward"),
        (("--toward", "step > 1", "--doses", "a,b"), "Doses are numbers"),
        (("--toward", "step > 1", "--doses", "0"), "needs doses"),
        (("--toward", "step > 1", "--site", "9.hook_out"), "no hook point"),
        ((), "Missing option '--toward'"),
    ],
)
def test_a_dose_that_cannot_be_is_told_in_words(
    balancing: str, driven: str, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
):
    assert said in error(capsys, "dose", balancing, "--reference", driven, "--seeds", "2", *arguments)


def test_probes_are_those_of_fit_probe(balancing: str, driven: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "probes.html"
    arguments = ("--target", "action,observation['angle']", "--sites", "layers.0.hook_out", "--figure", str(page))
    found = result(capsys, "probes", balancing, driven, *arguments)["probes"]
    recording = rlm.Recording.load(driven)
    angle = observed(recording, "observation[2]", spec=SPEC)
    np.testing.assert_array_equal(angle, recording.observations[:, 2])
    same = rlm.probes.fit_probe(
        rlm.load(balancing), recording, target={"action": "action", "angle": lambda _: angle}, sites="layers.0.hook_out"
    ).table()
    assert [row["score"] for row in found] == pytest.approx(same["score"].tolist())
    assert found[0]["says"] == same["says"][0]
    assert page.exists()
    assert "no column" in error(capsys, "probes", balancing, driven, "--target", "nothing").lower()


def test_certify_gives_the_radii_of_the_chosen_states(balancing: str, driven: str, capsys: pytest.CaptureFixture[str]):
    limits = ("--limit", "0.5", "--boxes", "0", "--features", "angle=1,spin")
    found = result(capsys, "certify", balancing, driven, "--states", "3", "--when", "step < 4", *limits)
    recording = rlm.Recording.load(driven)
    early = recording.observations[recording.steps["step"].to_numpy() < 4]
    rows = np.linspace(0, len(early) - 1, 3).astype(int)
    move = rlm.certify.Move(features={"angle": 1.0, "spin": 1.0}, clipped=True)
    same = rlm.certify.certified_radius(rlm.load(balancing), early[rows], move=move, limit=0.5, n_boxes=0)
    assert [row["certified"] for row in found["radii"]] == pytest.approx(same["certified"].values.tolist())
    assert {row["action"] for row in found["radii"]} <= {"LEFT", "RIGHT"}
    assert "is a number" in error(capsys, "certify", balancing, driven, "--features", "angle=far")
    assert "limit" in error(capsys, "certify", balancing, driven)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_the_program(shell: str, capsys: pytest.CaptureFixture[str]):
    assert run("completion", shell) == 0
    assert VARIABLE in capsys.readouterr().out


def test_what_the_script_asks_is_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, value in ((VARIABLE, "complete_bash"), ("COMP_WORDS", "rlmech cert"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(name, value)
    assert run() == 0
    assert capsys.readouterr().out.split() == ["certify"]


def test_ctrl_c_says_which_episodes_are_kept(
    balancing: str,
    driven: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "kept"
    shutil.copytree(driven, out)
    shutil.copytree(driven, tmp_path / "comparison" / "recordings" / "baseline")
    monkeypatch.setattr(rlm, "record", interrupted)
    monkeypatch.setattr(rlm, "compare_rollouts", interrupted)
    ablated = ("compare", balancing, "--ablate", "neuron 0", "--sites", "relu_0.hook_out", "--kind", "zero")
    for arguments, said in (
        (("record", balancing, "--out", str(out)), f"8 finished episodes are kept in {out}. The same command goes on"),
        ((*ablated, "--out", str(tmp_path / "comparison")), "8 finished episodes are kept"),
        (ablated, "no episode is kept. --out FOLDER"),
        (("features", balancing, "--out", str(tmp_path / "f.html")), "nothing was kept"),
    ):
        capsys.readouterr()
        assert run(*arguments) == 130
        assert said in capsys.readouterr().err


def test_where_nothing_can_be_written_is_told_before_the_work(
    balancing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(rlm, "record", None)  # is not reached
    for command, *behind in (["record"], ["features"], ["report"], ["compare", "--sites", "relu_0.hook_out"]):
        out = ("--out", str(tmp_path / "file" / "under"))
        assert "Nothing can be written" in error(capsys, command, balancing, *behind, *out)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match="Nothing can be written") as told:
        refuse_unwritable(tmp_path / "new" / "page.html")
    assert "without permission" in str(told.value)


@pytest.mark.slow
def test_a_closed_pipe_is_told_in_words(balancing: str):
    code = "import os, sys; os.close(0); sys.argv = ['rlmech', 'inspect', *sys.argv[1:]]\n"
    code += "from rlmech.cli import main\nmain()"
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    assert reader.stdin is not None
    done = subprocess.run(
        [sys.executable, "-c", code, balancing], stdout=reader.stdin, stderr=subprocess.PIPE, text=True, check=False
    )
    reader.stdin.close()
    assert done.returncode == 1
    assert done.stderr.strip() == "rlmech: the output was closed before all of it was written."


def test_the_page_of_the_command_line_names_every_command():
    page = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
    names = {one.callback.__name__ for one in cli.app.registered_commands if one.callback is not None}
    assert {name for name in names if f"rlmech {name}" not in page} == set()


def test_every_command_that_gives_a_result_gives_it_as_json(capsys: pytest.CaptureFixture[str]):
    for name in (one.callback.__name__ for one in cli.app.registered_commands if one.callback is not None):
        assert run(name, "--help") == 0
        assert ("--json" in capsys.readouterr().out) == (name != "completion")
