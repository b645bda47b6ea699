from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import rlmech as rlm
from rlmech.episodes import record
from rlmech.errors import ObservationError
from rlmech.first_look import FirstLook, first_look, summary, take_away, write_page
from rlmech.first_look.driven import most_changed
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env, spec_of
from tests.plot.pages import frames

SHORT = {"duration": 8}


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(3)
    env = make_env("intersection-v2", config=SHORT)
    network = EgoAttentionNetwork(7, 3, d_model=16, n_heads=2, embedding=(16, 16), output=(16,))
    observations = [env.reset(seed=5)[0], *(env.step(2)[0] for _ in range(8))]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
        network.output_layer.predict.bias -= network(torch.as_tensor(np.stack(observations))).mean(0)
    return rlm.HookedPolicy(network, torch.rand(2, 15, 7), spec=spec_of(env))


@pytest.fixture(scope="module")
def look(policy: rlm.HookedPolicy) -> FirstLook:
    return first_look(policy, make_env("intersection-v2", config=SHORT), seeds=[0, 1], progress=False)


def test_the_vehicle_taken_away_is_the_one_attended_to_most(look: FirstLook):
    assert look.pairs is not None
    pattern = look.recording.activation("attention_layer.hook_pattern")[look.pairs.rows][:, :, 0, 1:].sum(axis=1)
    there = look.pairs.clean[:, 1:, 0] >= 0.5
    np.testing.assert_array_equal(look.pairs.removed, np.where(there, pattern, -1).argmax(axis=1) + 1)


def test_a_corrupt_observation_lacks_that_row_and_is_otherwise_the_clean_one(look: FirstLook):
    pairs = look.pairs
    assert pairs is not None
    for clean, corrupt, row in zip(pairs.clean, pairs.corrupt, pairs.removed, strict=True):
        assert clean[row, 0] == 1
        assert not corrupt[row].any()
        others = np.arange(len(clean)) != row
        np.testing.assert_array_equal(clean[others], corrupt[others])


def test_clean_observations_are_recorded_ones(look: FirstLook):
    assert look.pairs is not None
    observations = look.recording.observations
    assert isinstance(observations, np.ndarray)
    np.testing.assert_array_equal(look.pairs.clean, observations[look.pairs.rows])


def test_pairs_are_those_whose_action_changes_unless_they_are_too_few(look: FirstLook, policy: rlm.HookedPolicy):
    pairs = look.pairs
    assert pairs is not None
    flips = policy.predict(pairs.clean)[0] != policy.predict(pairs.corrupt)[0]
    assert flips.all() if pairs.n_flips >= 8 else len(pairs.rows) == min(32, pairs.n_states)
    assert flips.sum() == min(pairs.n_flips, len(pairs.rows))


def test_restoring_keys_and_values_alone_does_exactly_nothing(look: FirstLook):
    result = look.patching["heads"]
    hooks = result.coords["hook"].values
    for part in ("hook_k", "hook_v"):
        assert not result["effect"].values[[str(hook).endswith(part) for hook in hooks]].any()


def test_vehicles_that_were_never_taken_away_carry_nothing(look: FirstLook):
    assert look.pairs is not None
    effect = look.patching["vehicles"]["effect"].values
    never = np.setdiff1d(np.arange(1, 15), look.pairs.removed)
    assert not effect[never - 1].any()
    assert effect.any()


def test_every_head_and_every_vehicle_is_patched_and_every_head_ablated(look: FirstLook):
    heads = look.patching["heads"]
    z = [str(hook).endswith("hook_z") for hook in heads.coords["hook"].values]
    assert heads.coords["head"].values[z].tolist() == [0, 1]
    assert look.patching["vehicles"].coords["entity"].values.tolist() == [f"vehicle_{i}" for i in range(1, 15)]
    assert set(look.ablation) == {"mean ablation", "resample ablation", "zero ablation"}
    assert all(result.coords["head"].values.tolist() == [0, 1] for result in look.ablation.values())


def test_the_summary_is_plain_and_counts_right(look: FirstLook):
    import json

    found = json.loads(json.dumps(summary(look), allow_nan=False))
    assert found["n_episodes"] == 2
    assert found["n_steps"] == len(look.recording.steps)
    assert found["return"]["mean"] == pytest.approx(float(look.recording.episodes["return"].mean()))
    assert len(found["patching"]["vehicles"]) == 14
    assert [row["condition"] for row in found["driven"]["conditions"]] == ["baseline", "head 0", "head 1"]
    assert found["driven"]["conditions"][0]["delta_return"] == 0


def test_the_page_has_every_figure_with_its_code(look: FirstLook, tmp_path: Path):
    page = write_page(look, tmp_path / "index.html", source="zoo:x").read_text(encoding="utf-8")
    for title in ("The road, the scores", "Whom each head", "Patching each head", "Ablating each head", "QK:", "OV:"):
        assert f"<h3>{title}" in page
    assert page.count("<article") == page.count("The code that makes this")
    assert look.driven is not None
    assert look.driven.edited is not None
    own = look.recording.episode(look.driven.seed).steps
    both = max(len(own), len(look.driven.edited.steps))
    assert len(frames(page)) == len(look.recording.steps) + both + 1


def test_the_driven_baseline_is_the_recording_untouched(look: FirstLook):
    assert look.driven is not None
    untouched = look.driven.result["return"].sel(condition="baseline").values
    assert untouched.tolist() == look.recording.episodes["return"].tolist()


def test_the_episode_shown_is_the_one_compared(look: FirstLook):
    driven = look.driven
    assert driven is not None
    assert driven.edited is not None
    compared = driven.result["return"].sel(condition=driven.condition, seed=driven.seed)
    assert float(driven.edited.episodes["return"].iloc[0]) == float(compared)
    ours, theirs = driven.edited.actions, look.recording.episode(driven.seed).actions
    step = int(driven.result["divergence"].sel(condition=driven.condition, seed=driven.seed))
    assert ours[:step].tolist() == theirs[:step].tolist()
    assert ours[step] != theirs[step]


def outcomes(returns: list[list[float]], divergence: list[list[float]]) -> xr.Dataset:
    names = ["baseline", *(f"head {i}" for i in range(len(returns) - 1))]
    values = np.array(returns)
    return xr.Dataset(
        {
            "return": (("condition", "seed"), values),
            "delta_return": ("condition", (values - values[0]).mean(1)),
            "divergence": (("condition", "seed"), np.array(divergence)),
        },
        coords={"condition": names, "seed": list(range(10, 10 + values.shape[1]))},
    )


def test_shown_is_the_seed_that_changes_most_under_the_head_that_matters_most():
    nan = float("nan")
    result = outcomes([[5, 5, 5], [5, 9, 4], [4, 1, 5]], [[nan] * 3, [nan, 2, 3], [6, 7, nan]])
    assert most_changed(result) == ("head 1", 11)


def test_among_equal_changes_the_one_that_parts_first_is_shown():
    nan = float("nan")
    assert most_changed(outcomes([[5, 5], [4, 4]], [[nan] * 2, [6, 2]])) == ("head 0", 11)


def test_no_episode_is_shown_where_no_action_ever_changes(look: FirstLook, tmp_path: Path):
    nan = float("nan")
    assert most_changed(outcomes([[5, 5], [5, 5]], [[nan] * 2, [nan] * 2])) == ("", None)
    assert look.driven is not None
    idle = replace(look, driven=replace(look.driven, condition="", seed=None, edited=None))
    page = write_page(idle, tmp_path / "index.html", source="zoo:x").read_text(encoding="utf-8")
    assert "The same episode twice" not in page
    assert "In none of these 2 episodes did an ablation change an action" in page


def test_the_page_says_that_the_episode_is_no_typical_one_and_how_many_seeds_it_takes(look: FirstLook, tmp_path: Path):
    page = write_page(look, tmp_path / "index.html", source="zoo:x").read_text(encoding="utf-8")
    assert look.driven is not None
    assert f"<h3>The same episode twice: untouched, and with {look.driven.condition} ablated" in page
    assert "It is not a typical episode" in page
    assert "The mean difference of return is" in page
    assert any("first difference" in frame["mark"] for frame in frames(page))


def test_one_seed_is_not_given_a_mean(policy: rlm.HookedPolicy, tmp_path: Path):
    env = make_env("intersection-v2", config=SHORT)
    one = first_look(policy, env, seeds=[1], progress=False)
    page = write_page(one, tmp_path / "index.html", source="zoo:x").read_text(encoding="utf-8")
    assert "The mean difference" not in page
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not any("nan" in cell for frame in frames(page) for cell in frame["cells"])
    assert "tells nothing of the mean" in page


def test_seeds_that_were_not_driven_are_not_said_to_be(look: FirstLook, tmp_path: Path):
    assert look.driven is not None
    apart = replace(look, driven=replace(look.driven, result=look.driven.result.assign_coords(seed=[3, 9])))
    apart = replace(apart, driven=replace(apart.driven, edited=None, seed=None, condition=""))
    page = write_page(apart, tmp_path / "index.html", source="zoo:x").read_text(encoding="utf-8")
    assert "on seeds 3, 9." in page


def test_intervals_resample_episodes(look: FirstLook):
    assert "clusters" in look.ablation["mean ablation"].attrs["interval"]
    assert "clusters" in look.patching["heads"].attrs["interval"]


@pytest.mark.slow
def test_the_code_on_the_page_runs_from_top_to_bottom(
    look: FirstLook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    saved = tmp_path / "policy"
    rlm.save_policy(look.policy, saved)
    page = write_page(look, tmp_path / "index.html", source=str(saved)).read_text(encoding="utf-8")
    snippets = [unescape(re.sub(r"<[^>]+>", "", code)) for code in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(snippets) == 1 + page.count("<article")
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert isinstance(names["recording"], rlm.Recording)
    assert names["recording"].steps["action"].tolist() == look.recording.steps["action"].tolist()
    capsys.readouterr()


def test_a_policy_without_attention_gets_a_page_too(tmp_path: Path):
    torch.manual_seed(0)
    env = make_env("highway-fast-v0", config={"duration": 4, "vehicles_count": 5})
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    policy = rlm.HookedPolicy(network, torch.rand(2, 5, 5), spec=spec_of(env))
    look = first_look(policy, env, seeds=[0, 1], progress=False)
    assert set(look.patching) == {"features"}
    page = write_page(look, tmp_path / "index.html", source="mlp.zip").read_text(encoding="utf-8")
    assert "<h3>Ablating each layer" in page
    assert "<h3>QK" not in page
    assert look.driven is not None
    assert [site.name for site in look.driven.sites.values()] == ["2.hook_out"]
    assert "neuron" in page


def test_a_policy_without_entities_gets_episodes_and_ablations(tmp_path: Path):
    env = make_env("CartPole-v1")
    policy = rlm.HookedPolicy(
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.rand(2, 4)
    )
    look = first_look(policy, env, seeds=[0, 1], n_driven=0, progress=False)
    assert look.pairs is None
    assert look.driven is None
    page = write_page(look, tmp_path / "index.html", source="cartpole.zip").read_text(encoding="utf-8")
    assert "<h3>Ablating each layer" in page
    with pytest.raises(ObservationError, match="No vehicle can be taken away"):
        take_away(policy, record(policy, env, seeds=[0], progress=False))


def test_the_page_of_a_grid_is_about_a_grid_and_its_code_makes_the_environment(tmp_path: Path):
    pytest.importorskip("minigrid")
    policy = rlm.load("zoo:minigrid-doorkey-mlp")
    look = first_look(policy, make_env(policy.spec), seeds=[0, 1], n_driven=1, progress=False)

    page = write_page(look, tmp_path / "index.html", source="zoo:minigrid-doorkey-mlp").read_text(encoding="utf-8")

    assert "The grid and the scores, step by step" in page
    assert "The road" not in page
    assert "success rate" in page
    assert "env = rlm.make_env(policy.spec)" in unescape(re.sub("<[^>]+>", "", page))
    hooks = set(look.ablation["mean ablation"]["hook"].values)
    assert hooks == {"mlp_extractor.policy_net.1.hook_out", "mlp_extractor.policy_net.3.hook_out"}
    assert all("value_net" not in site.name for site in look.driven.sites.values())
    assert summary(look)["success"]["mean"] == look.recording.episodes["success"].mean()
