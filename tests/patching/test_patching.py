"""Patching, ablation, steering and interactions as users call them: laws over pairs, groups, journals, bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import ConfigError, EditError, EngineError, MetricError, ObservationError, SiteError
from rlmech.nets import EgoAttentionNetwork
from rlmech.patching.sweeps import sweep
from tests import networks as nets


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3).double(), nets.scenes(3).double(), spec=nets.SPEC)


@pytest.fixture(scope="module")
def pairs():
    return {"clean": nets.scenes(20, seed=1).double(), "corrupt": nets.scenes(20, seed=2).double()}


def test_noising_is_denoising_the_other_way_around(policy, pairs):
    metric = rlm.metrics.action_gap("FASTER", "SLOWER")
    noise = rlm.activation_patching(policy, **pairs, metric=metric, direction="noise")
    swapped = {"clean": pairs["corrupt"], "corrupt": pairs["clean"]}
    denoise = rlm.activation_patching(policy, **swapped, metric=metric, direction="denoise")
    for name in ("patched", "effect", "effect_low", "effect_high", "change"):
        np.testing.assert_array_equal(noise[name], denoise[name])


def test_both_directions_stand_side_by_side(policy, pairs, tmp_path):
    both = rlm.activation_patching(policy, **pairs, direction="both", journal=tmp_path / "journal")
    assert both["condition"].values.tolist() == ["denoise", "noise"]
    for direction in ("denoise", "noise"):
        alone = rlm.activation_patching(policy, **pairs, direction=direction)
        for name in ("patched", "effect", "effect_low", "no_op"):
            np.testing.assert_array_equal(both[name].sel(condition=direction), alone[name])
    assert both["clean"].dims == ("pair",)


def test_equal_observations_give_no_effect_with_the_denominator_flagged(policy, pairs):
    same = pairs["clean"]
    result = rlm.activation_patching(policy, clean=same, corrupt=same)
    assert (result["effect"] == 0).all()
    assert result["tiny_denominator"].all()
    assert result["no_op"].all()


def test_a_window_is_its_sites_patched_together(policy, pairs):
    heads = policy.sites("attention_layer.hook_z", over="head")
    windows = rlm.patching.sliding_windows(heads, size=2)
    result = rlm.activation_patching(policy, **pairs, sites=windows)
    one = rlm.activation_patching(policy, **pairs, sites=[rlm.Site("attention_layer.hook_z", head=(1, 2))])
    np.testing.assert_allclose(result["patched"][1], one["patched"][0], atol=1e-12)
    assert result["head"].values.tolist() == ["0 & 1", "1 & 2", "2 & 3"]
    assert result.attrs["scheme"] == "3 delta"


@pytest.mark.parametrize("size", [0, 5])
def test_a_window_larger_than_the_sites_is_refused(policy, size):
    with pytest.raises(SiteError, match="A window holds at least one site"):
        rlm.patching.sliding_windows(policy.sites("attention_layer.hook_z", over="head"), size=size)


def test_overlapping_sites_of_one_job_are_refused(policy, pairs):
    overlap = (rlm.Site("attention_layer.hook_z", head=(0, 1)), rlm.Site("attention_layer.hook_z", head=1))
    with pytest.raises(SiteError, match="Two sites of one job overlap") as error:
        rlm.activation_patching(policy, **pairs, sites=[overlap])
    assert "head=(0, 1)" in str(error.value)


def test_nothing_to_sweep_over_is_refused(policy, pairs):
    with pytest.raises(SiteError, match="There is no site to sweep over"):
        rlm.activation_patching(policy, **pairs, sites=[])


def test_observations_that_do_not_pair_up_are_refused(policy, pairs):
    with pytest.raises(ObservationError, match="do not pair up"):
        rlm.activation_patching(policy, clean=pairs["clean"], corrupt=pairs["corrupt"][:3])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda scores, context: scores, "did not give one number per row"),
        (lambda scores, context: scores[:, 0] * torch.nan, "is NaN"),
    ],
)
def test_a_metric_that_gives_something_else_is_refused(policy, pairs, metric, message):
    with pytest.raises(MetricError, match=message):
        rlm.activation_patching(policy, **pairs, metric=metric)


def ablated(policy, obs, site, edit):
    with torch.no_grad(), policy.edited([edit]):
        return policy(obs)[:, 0].numpy()


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_an_ablation_is_what_its_edit_does(policy, pairs, kind):
    obs, site = pairs["clean"], rlm.Site("others_embedding.relu_1.hook_out", entity=2)
    reference = policy.run_with_cache(pairs["corrupt"], site.name)[1]
    edit = {
        "zero": lambda: rlm.zero_ablation(site),
        "mean": lambda: rlm.mean_ablation(site, reference=reference),
        "resample": lambda: rlm.resample_ablation(site, reference=reference, seed=3),
    }[kind]()
    result = rlm.ablation_sweep(
        policy, obs, sites=[site], kind=kind, metric=rlm.metrics.action_score(0), reference=reference, seed=3
    )
    np.testing.assert_allclose(result["patched"][0], ablated(policy, obs, site, edit), atol=1e-12)
    np.testing.assert_allclose(result["effect"][0], (result["patched"][0] - result["baseline"]).mean(), atol=1e-12)


def test_a_dose_of_steering_is_what_its_edit_does(policy, pairs):
    obs, site = pairs["clean"], rlm.Site("output_layer.relu_0.hook_out", neuron=(3, 5))
    direction, doses = torch.tensor([1.0, -2.0]), [-1.0, 0.0, 0.5]
    result = rlm.patching.steering_sweep(
        policy, obs, site=site, vector=direction, coefficients=doses, metric=rlm.metrics.action_score(0)
    )
    assert result["coefficient"].values.tolist() == doses
    for place, dose in enumerate(doses):
        edit = rlm.steer(site, direction, coefficient=dose)
        np.testing.assert_allclose(result["patched"][place], ablated(policy, obs, site, edit), atol=1e-12)
    assert result["no_op"][1].all()


def test_synergy_is_what_is_left_of_both_patched_together(policy, pairs):
    heads = policy.sites("attention_layer.hook_z", over="head")
    found = rlm.patching.pairwise_interactions(policy, **pairs, sites=heads)
    alone = rlm.activation_patching(policy, **pairs, sites=heads)["patched"].values
    for place, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        both = rlm.Site("attention_layer.hook_z", head=(i, j))
        together = rlm.activation_patching(policy, **pairs, sites=[both])
        synergy = together["patched"][0] - alone[i] - alone[j] + together["corrupt"]
        np.testing.assert_allclose(found["synergy"][place], synergy, atol=1e-12)
    assert found["first_head"].values.tolist() == [0, 0, 0, 1, 1, 2]
    assert found["second_head"].values.tolist() == [1, 2, 3, 2, 3, 3]


def test_an_interaction_needs_two_sites(policy, pairs):
    with pytest.raises(SiteError, match="An interaction is between two sites"):
        rlm.patching.pairwise_interactions(policy, **pairs, sites="attention_layer.hook_z")


class Stopped(Exception):
    pass


def test_a_sweep_that_was_stopped_goes_on_from_its_journal(policy, pairs, tmp_path, monkeypatch):
    sites = [*policy.sites("attention_layer.hook_z", over="head"), *policy.sites("others_*.relu_1.*", over="entity")]
    whole = rlm.activation_patching(policy, **pairs, sites=sites)
    run, ran = sweep._Sweep._run_group, []

    def stop_at_the_second(self, group, unpatched):
        if len(ran) == 1:
            raise Stopped
        ran.append(group.names)
        return run(self, group, unpatched)

    monkeypatch.setattr(sweep._Sweep, "_run_group", stop_at_the_second)
    with pytest.raises(Stopped):
        rlm.activation_patching(policy, **pairs, sites=sites, journal=tmp_path / "journal")
    monkeypatch.setattr(sweep._Sweep, "_run_group", lambda *a: (ran.append(a[1].names), run(*a))[1])
    again = rlm.activation_patching(policy, **pairs, sites=sites, journal=tmp_path / "journal")
    assert ran == [("attention_layer.hook_z",), ("others_embedding.relu_1.hook_out",)]
    assert again.identical(whole)


def test_the_journal_of_another_sweep_is_refused_and_left_alone(policy, pairs, tmp_path):
    rlm.activation_patching(policy, **pairs, journal=tmp_path / "journal")
    before = {file: file.read_bytes() for file in (tmp_path / "journal").iterdir()}
    other = {"clean": pairs["corrupt"], "corrupt": pairs["clean"]}
    with pytest.raises(ConfigError, match="cannot be this sweep's journal") as error:
        rlm.activation_patching(policy, **other, journal=tmp_path / "journal")
    assert "another" in str(error.value)
    assert "observations" in str(error.value)
    assert {file: file.read_bytes() for file in (tmp_path / "journal").iterdir()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="a directory with other files in it"):
        rlm.activation_patching(policy, **pairs, journal=tmp_path / "full")


def test_weights_that_train_on_are_read_anew(pairs):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3).double(), nets.scenes(3).double())
    sites = policy.sites("attention_layer.hook_v", over=("head", "entity"))
    rlm.activation_patching(policy, **pairs, sites=sites)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    after = rlm.activation_patching(policy, **pairs, sites=sites)
    fresh = rlm.activation_patching(rlm.HookedPolicy(policy.module, nets.scenes(3).double()), **pairs, sites=sites)
    np.testing.assert_allclose(after["patched"], fresh["patched"], atol=1e-12)


def test_optimal_ablation_changes_the_scores_no_more_than_mean_ablation(policy, pairs):
    obs = pairs["clean"]
    sites = [rlm.Site("attention_layer.hook_z"), *policy.sites("attention_layer.hook_z", over="head")]

    def squared_change(scores, context):
        return ((scores - context.clean.scores) ** 2).mean(-1)

    mean = rlm.ablation_sweep(policy, obs, sites=sites, kind="mean", metric=squared_change)["effect"]
    optimal = rlm.ablation_sweep(policy, obs, sites=sites, kind="optimal", metric=squared_change)["effect"]
    assert (optimal <= mean + 1e-12).all()
    assert float(optimal.sum()) < 0.9 * float(mean.sum())


def test_optimal_constants_are_for_single_sites(policy, pairs):
    with pytest.raises(EditError, match="trained for single sites"):
        rlm.ablation_sweep(policy, pairs["clean"], sites=[tuple(policy.sites("*.hook_z", over="head"))], kind="optimal")


def test_a_sweep_of_an_edited_policy_patches_the_edited_policy(policy, pairs):
    """What stands in for an ablated twin is seen only while the twin is ablated."""
    ablation = rlm.zero_ablation(rlm.Site("attention_layer.hook_z", head=0))
    sites = policy.sites("attention_layer.hook_z", over="head")
    with policy.edited([ablation]):
        result = rlm.activation_patching(policy, **pairs, sites=[*sites, rlm.Site("hook_obs")])
    assert result.attrs["scheme"] == "5 forward"
    np.testing.assert_allclose(result["patched"][4], result["clean"], atol=1e-12)
    without = rlm.activation_patching(policy, **pairs, sites=sites)
    assert abs(result["patched"][1] - without["patched"][1]).max() > 1e-3


def test_what_walks_the_graph_refuses_a_policy_with_edits(policy, pairs):
    from rlmech.attribution.first_order import attribution_patching

    with (
        pytest.raises(EngineError, match="Something is attached to the policy"),
        policy.edited([rlm.zero_ablation("attention_layer.hook_z")]),
    ):
        attribution_patching(policy, **pairs)


def test_intervals_over_episodes_are_wider_where_the_pairs_of_one_repeat_each_other(policy, pairs):
    doubled = {name: torch.cat([obs] * 8) for name, obs in pairs.items()}
    episode = list(range(20)) * 8
    for call in (
        lambda **given: rlm.activation_patching(policy, **doubled, **given)["effect_high"],
        lambda **given: rlm.ablation_sweep(policy, doubled["clean"], **given)["effect_high"],
    ):
        assert (call(clusters=episode) > call()).sum() > 0.8 * call().size
