from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import rlmech as rlm
from rlmech import cli
from rlmech.cli.ablations import conditions
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env, spec_of

COMMANDS = (
    "demo",
    "train",
    "inspect",
    "record",
    "compare",
    "patch",
    "ablate",
    "circuits",
    "features",
    "view",
    "report",
    "atlas",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained policy on disk, with its spec."""
    torch.manual_seed(3)
    env = make_env("intersection-v2", config={"duration": 6})
    network = EgoAttentionNetwork(7, 3, d_model=16, n_heads=2, embedding=(16, 16), output=(16,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
        observations = [env.reset(seed=5)[0], *(env.step(2)[0] for _ in range(8))]
        network.output_layer.predict.bias -= network(torch.as_tensor(np.stack(observations))).mean(0)
    path = tmp_path_factory.mktemp("policies") / "ego"
    rlm.save_policy(rlm.HookedPolicy(network, torch.rand(2, 15, 7), spec=spec_of(env)), path)
    return str(path)


@pytest.fixture(scope="module")
def recorded(saved: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recordings") / "two"
    assert run("record", saved, "--episodes", "2", "--out", str(path), "--json") == 0
    return str(path)


def run(*arguments: str) -> int:
    """Run a command as the installed script does; gives its exit code."""
    before, sys.argv = sys.argv, ["rlmech", *arguments]
    try:
        cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        sys.argv = before
    return 0


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints with --json."""
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command fails with."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("rlmech: ")
    return lines[0]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    assert run(command, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"rlmech {rlm.__version__}"


@pytest.mark.slow
def test_asking_for_help_imports_nothing_that_only_some_commands_need():
    code = "import sys; sys.argv = ['rlmech', '--help']\nfrom rlmech.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('stable_baselines3', 'highway_env', 'plotly', 'xarray', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_inspect_lists_hook_points_attention_and_names(saved: str, capsys: pytest.CaptureFixture[str]):
    found = result(capsys, "inspect", saved)
    points = {point["name"]: point for point in found["hook_points"]}
    assert points["attention_layer.hook_pattern"]["axes"] == ["batch", "head", "query", "key"]
    assert points["attention_layer.hook_pattern"]["shape"] == [None, 2, 1, 15]
    assert found["attention"]["attention_layer"] == {"n_heads": 2, "d_head": 8, "d_model": 16}
    assert found["spec"]["actions"] == ["SLOWER", "IDLE", "FASTER"]


def test_inspect_shows_a_table_too(saved: str, capsys: pytest.CaptureFixture[str]):
    assert run("inspect", saved) == 0
    shown = capsys.readouterr().out
    assert "attention_layer: 2 heads x 8" in shown
    assert "batch head query key" in shown


def test_record_writes_a_recording_with_attention(recorded: str):
    recording = rlm.Recording.load(recorded)
    assert recording.manifest["seeds"] == [0, 1]
    assert list(recording.manifest["activations"]) == ["attention_layer.hook_pattern"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("head 0,1", {"head 0": (0,), "head 1": (1,)}),
        ("head 0+1", {"head 0+1": (0, 1)}),
        ("head", {"head 0": (0,), "head 1": (1,)}),
        ("head 1, 0+1", {"head 1": (1,), "head 0+1": (0, 1)}),
    ],
)
def test_a_comma_begins_a_condition_and_a_plus_joins_positions(
    saved: str, typed: str, meant: dict[str, tuple[int, ...]]
):
    found = conditions(rlm.load(saved), typed, sites="auto")
    z = "attention_layer.hook_z"
    assert found == {name: [rlm.Site(z, head=list(heads))] for name, heads in meant.items()}


def test_named_positions_and_whole_hook_points_can_be_ablated(saved: str):
    policy = rlm.load(saved)
    found = conditions(policy, "entity vehicle_1", sites="attention_layer.hook_v")
    assert found == {"entity vehicle_1": [rlm.Site("attention_layer.hook_v", entity=["vehicle_1"])]}
    assert conditions(policy, "all", sites="*.hook_z") == {"all": [rlm.Site("attention_layer.hook_z")]}


def test_record_drives_with_a_head_at_its_mean_over_a_recording(
    saved: str, recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "edited"
    arguments = ("--ablate", "head 1", "--reference", recorded, "--episodes", "1", "--out", str(out))
    found = result(capsys, "record", saved, *arguments)
    policy = rlm.load(saved)
    _, cache = policy.run_with_cache(rlm.Recording.load(recorded).observations, "*.hook_z")
    edit = rlm.mean_ablation(rlm.Site("attention_layer.hook_z", head=1), reference=cache)
    env = rlm.make_env("intersection-v2", config=policy.spec.env_config)
    same = rlm.record(policy, env, seeds=[0], edits=[edit], progress=False)
    np.testing.assert_array_equal(rlm.Recording.load(out).scores, same.scores)
    assert len(found["edits"]) == 1


@pytest.fixture(scope="module")
def compared(saved: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "heads"
    assert run("compare", saved, "--ablate", "head 0,1", "--kind", "zero", "--seeds", "2", "--out", str(out)) == 0
    return out


def test_compare_gives_the_comparison_of_what_drove(saved: str, compared: Path, capsys: pytest.CaptureFixture[str]):
    arguments = (
        "--ablate",
        "head 0,1",
        "--kind",
        "zero",
        "--seeds",
        "4",
        "--half-width",
        "0.5",
        "--out",
        str(compared),
    )
    found = result(capsys, "compare", saved, *arguments)  # goes on from the recordings, which are all there
    folders = {"baseline": "baseline", "head 0": "head_0", "head 1": "head_1"}
    recordings = {name: rlm.Recording.load(compared / "recordings" / folder) for name, folder in folders.items()}
    same = rlm.episodes.compare_recordings(recordings)
    rows = {row["condition"]: row for row in found["conditions"]}
    assert list(rows) == list(folders)
    for name in ("delta_return", "delta_return_low", "mean_speed", "delta_crashed_p_holm"):
        assert [row[name] for row in rows.values()] == pytest.approx(same[name].values.tolist())
    for head in (0, 1):
        edit = rlm.zero_ablation(rlm.Site("attention_layer.hook_z", head=[head]))
        assert rows[f"head {head}"]["edits"] == str(edit)
    assert found["n_seeds"] == 4
    assert set(found["seeds_needed"]) == {"half_width", "baseline", "head 0", "head 1"}


def test_compare_keeps_figure_table_and_recordings(compared: Path):
    assert "Holm" in (compared / "comparison.html").read_text(encoding="utf-8")
    table = pd.read_csv(compared / "comparison.csv")
    assert table["condition"].tolist() == ["baseline", "head 0", "head 1"]
    returns = rlm.Recording.load(compared / "recordings" / "head_0").episodes["return"]
    assert table["mean_return"][1] == pytest.approx(float(returns.mean()))


def test_compare_prints_differences_with_their_intervals(
    saved: str, compared: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert run("compare", saved, "--ablate", "head 0,1", "--kind", "zero", "--seeds", "4", "--out", str(compared)) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.strip().startswith("head 1"))
    assert re.search(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", row)


def test_patch_gives_what_activation_patching_gives(saved: str, recorded: str, capsys: pytest.CaptureFixture[str]):
    from rlmech.first_look import take_away

    found = result(capsys, "patch", saved, recorded, "--sites", "*.hook_z", "--over", "head", "--direction", "noise")
    policy = rlm.load(saved)
    pairs = take_away(policy, rlm.Recording.load(recorded))
    sites = policy.sites("*.hook_z", over=("head",))
    same = rlm.activation_patching(policy, clean=pairs.clean, corrupt=pairs.corrupt, sites=sites, direction="noise")
    assert [site["effect"] for site in found["sites"]] == pytest.approx(same["effect"].values.tolist())
    assert [site["head"] for site in found["sites"]] == [0, 1]


def test_ablate_gives_the_share_of_changed_actions(saved: str, recorded: str, capsys: pytest.CaptureFixture[str]):
    found = result(capsys, "ablate", saved, recorded, "--sites", "*.hook_z", "--over", "head", "--kind", "zero")
    assert found["method"] == "zero ablation"
    assert all(0 <= site["effect"] <= 1 for site in found["sites"])


def test_a_sweep_can_be_drawn(saved: str, recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "heads.html"
    assert run("patch", saved, recorded, "--sites", "*.hook_z", "--over", "head", "--figure", str(page)) == 0
    assert "taking the vehicle away" in page.read_text(encoding="utf-8")
    assert "attention_layer.hook_z" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["qk", "ov"])
def test_circuits_are_read_between_features(kind: str, saved: str, recorded: str, capsys: pytest.CaptureFixture[str]):
    found = result(capsys, "circuits", saved, recorded, "--kind", kind)
    last = {"qk": "feature_key", "ov": "action"}[kind]
    assert found["circuit"]["dims"][0] == "head"
    assert found["circuit"]["dims"][-1] == last


def test_circuits_without_a_recording_are_between_embeddings(saved: str, capsys: pytest.CaptureFixture[str]):
    found = result(capsys, "circuits", saved)
    assert found["circuit"]["dims"] == ["head", "d_model_query", "d_model_key"]


def test_view_writes_a_page_of_the_recording(recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "view.html"
    found = result(capsys, "view", recorded, "--out", str(page), "--episodes", "1")
    assert (found["n_episodes"], found["n_recorded"]) == (1, 2)
    assert "seed 0" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_report_does_everything_for_any_policy(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = result(capsys, "report", saved, "--episodes", "2", "--out", str(tmp_path))
    assert found["n_episodes"] == 2
    assert (tmp_path / "index.html").exists()
    assert {"heads", "vehicles", "values"} == set(found["patching"])


@pytest.mark.slow
def test_demo_does_the_main_job_and_prints_a_summary(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli.look, "ZOO_POLICY", saved)
    assert run("demo", "--episodes", "2", "--out", str(tmp_path / "report")) == 0
    shown = capsys.readouterr()
    assert "patching: heads" in shown.out
    assert "ablated on 2 seeds" in shown.out
    assert "ablation: mean ablation" in shown.out
    assert f"The page is at {tmp_path / 'report' / 'index.html'}" in shown.out
    assert "recording" in shown.err + shown.out


def test_a_missing_file_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    line = error(capsys, "inspect", "nothing.zip")
    assert "given: 'nothing.zip'" in line
    assert "expected:" in line
    assert "fix:" in line


def test_an_unknown_hook_point_offers_the_nearest(saved: str, recorded: str, capsys: pytest.CaptureFixture[str]):
    line = error(capsys, "ablate", saved, recorded, "--sites", "attention_layer.hook_zz")
    assert "did you mean 'attention_layer.hook_z'" in line


def test_an_environment_that_does_not_fit_is_refused(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = error(capsys, "record", saved, "CartPole-v1", "--out", str(tmp_path / "new"))
    assert "do not fit the policy" in line


def test_a_recording_made_otherwise_is_not_overwritten(saved: str, recorded: str, capsys: pytest.CaptureFixture[str]):
    arguments = ("record", saved, "--out", recorded, "--episodes", "1", "--ablate", "head 0", "--kind", "zero")
    assert "another recording" in error(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["patch", "policy"], "Missing argument"),
        (["demo", "--episodes", "0"], "Invalid value for '--episodes'"),
        (["demo", "--nothing"], "No such option"),
        (["inspekt"], "No such command 'inspekt'"),
        (["train", "nothing.toml"], "given:"),
        (["view", "nothing"], "no recording"),
        (["compare", "nothing.zip", "--seeds", "1"], "Invalid value for '--seeds'"),
        (["compare", "nothing.zip", "--kind", "resample"], "Invalid value for '--kind'"),
        (["compare", "nothing.zip", "--backend", "slurm"], "Invalid value for '--backend'"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_says_how(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    line = error(capsys, *arguments)
    assert said in line
    assert "fix:" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "--ablate", "head 0,,1"], "what to ablate"),
        (["compare", "--ablate", "head 9", "--kind", "zero", "--seeds", "2"], "9"),
        (["compare", "--ablate", "entity 1"], "no axis 'entity'"),
        (["compare", "--ablate", "head 7"], "7"),
        (["compare", "--controls", "nothing", "--kind", "zero", "--seeds", "2"], "no control 'nothing'"),
        (["compare", "--reference", "nowhere"], "no recording"),
        (["compare", "--half-width", "0"], "No number of seeds"),
        (["record", "--ablate", "head"], "one condition"),
    ],
)
def test_an_ablation_that_cannot_be_is_one_line_before_any_episode(
    saved: str, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = error(capsys, arguments[0], saved, *arguments[1:], "--out", str(tmp_path / "new"))
    assert said in line
    assert "fix:" in line


def test_a_policy_without_heads_asks_for_a_hook_point(capsys: pytest.CaptureFixture[str]):
    line = error(capsys, "compare", "zoo:highway-dqn-mlp")
    assert "no attention heads" in line
    assert "--sites" in line


def test_a_bug_is_not_disguised_as_a_users_error(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rlm, "load", broken)
    with pytest.raises(ZeroDivisionError):
        run("inspect", "policy.zip")


def test_json_holds_no_nan(capsys: pytest.CaptureFixture[str]):
    from rlmech.console import plain, print_result

    print_result(plain({"a": np.float32("nan"), "b": np.arange(2), "c": [np.int64(1)]}), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [0, 1], "c": [1]}


def test_features_writes_a_page_and_says_whether_a_dictionary_is_worth_it(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "features.html"
    small = ("--episodes", "4", "--driven", "1", "--steps", "5", "--n-features", "12", "--active", "2")
    found = result(capsys, "features", saved, "--out", str(page), *small)
    assert found["site"] == "output_layer.relu_0.hook_out"
    assert [row["dictionary"] for row in found["dictionaries"]] == ["topk", "pca", "ica", "neurons", "nothing"]
    assert found["says"] == "too few episodes for an interval"
    written = page.read_text()
    assert all(title in written for title in ("Is a dictionary worth it here?", "to be sorted", "How it drives"))
    said = error(capsys, "features", saved, "--site", "no_such_point", "--episodes", "1")
    assert "no hook point" in said
