"""Patching and ablation on policies whose circuit is known: what they find is what the circuit says."""

import numpy as np
import pytest
import torch

import rlmech as rlm
import rlmech.testbed as testbed
from rlmech.core.site import Site
from rlmech.metrics.score_metrics import action_gap, action_score
from tests.testbed.policies import POLICIES, make

BY_HAND = tuple(name for name in POLICIES if name != "random_circuit")
EXACT = {"rtol": 0.0, "atol": 1e-9}
"""Float64, scores of size 1 to 1e3, and delta updates that add in another order than the whole pass."""


def gap(known):
    return action_gap(known.better, known.worse)


def sites_of(known, experiment):
    answers = known.answers.get(experiment, {})
    return [key for key in answers if isinstance(key, Site)], answers


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", BY_HAND)
def test_patching_finds_the_answer_of_every_site_in_every_pair(name, direction):
    known = make(name)
    sites, answers = sites_of(known, direction)
    wanted = np.stack([answers[site].numpy() for site in sites])
    result = rlm.activation_patching(
        known.policy, clean=known.clean, corrupt=known.corrupt, sites=sites, metric=gap(known), direction=direction
    )
    base, source = (result.corrupt, result.clean) if direction == "denoise" else (result.clean, result.corrupt)
    np.testing.assert_allclose(result.patched - base, wanted, **EXACT)
    np.testing.assert_allclose(result["change"], wanted.mean(1), **EXACT)
    np.testing.assert_allclose(result.effect, wanted.mean(1) / float((source - base).mean()), **EXACT)


@pytest.mark.parametrize("name", BY_HAND)
def test_zeroing_finds_the_answer_of_every_site_in_every_run(name):
    known = make(name)
    sites, answers = sites_of(known, "zero")
    wanted = np.stack([answers[site].numpy() for site in sites])
    result = rlm.ablation_sweep(known.policy, known.clean, sites=sites, kind="zero", metric=gap(known))
    np.testing.assert_allclose(result.patched - result.baseline, wanted, **EXACT)
    np.testing.assert_allclose(result.effect, wanted.mean(1), **EXACT)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("seed", range(3))
def test_patching_any_unit_of_a_random_circuit_is_exchanging_all_edges_out_of_it(seed, direction):
    known = testbed.random_circuit(seed)
    base, source = (known.corrupt, known.clean) if direction == "denoise" else (known.clean, known.corrupt)
    sites = [*known.inputs, *known.hidden]
    result = rlm.activation_patching(
        known.policy, clean=known.clean, corrupt=known.corrupt, sites=sites, metric=gap(known), direction=direction
    )
    for i, site in enumerate(sites):
        edges = {edge for edge in known.all_edges if edge[0] == site}
        scores = testbed.brute_force(known, base=base, other=source, edges=edges)
        np.testing.assert_allclose(result.patched[i], scores[:, 0] - scores[:, 1], **EXACT)


# ---- mean and resample ablation, each in closed form


def ablated(known, site, kind, reference, *, seed=0, metric=None):
    result = rlm.ablation_sweep(
        known.policy, known.clean, sites=[site], kind=kind, reference=reference, metric=metric or gap(known), seed=seed
    )
    return (result.patched - result.baseline).values[0]


def both(known):
    return torch.cat((known.clean, known.corrupt))


def test_the_brake_with_its_gate_at_the_mean_brakes_alike_in_every_run():
    known = make("brake")
    h = (2 * known.clean[:, 0] - known.clean[:, 1]).clamp(min=0).numpy()
    everywhere = (2 * both(known)[:, 0] - both(known)[:, 1]).clamp(min=0).mean().item()
    gate = known.hidden[0]
    np.testing.assert_allclose(ablated(known, gate, "mean", known.clean), h.mean() - h, **EXACT)
    np.testing.assert_allclose(ablated(known, gate, "mean", both(known)), everywhere - h, **EXACT)


def test_the_brake_that_sees_the_mean_speed_compares_that_with_each_distance():
    known = make("brake")
    speed, distance = known.clean[:, 0], known.clean[:, 1]
    mean = both(known)[:, 0].mean()
    wanted = (2 * mean - distance).clamp(min=0) - (2 * speed - distance).clamp(min=0)
    np.testing.assert_allclose(ablated(known, known.inputs[0], "mean", both(known)), wanted, **EXACT)
    for idle in known.hidden[1:]:
        assert (ablated(known, idle, "mean", both(known)) == 0).all()


def test_the_mean_of_yes_and_no_undoes_most_of_an_and_and_nothing_of_an_or():
    # a = (1 + 0.25) / 2: AND gives 2 ReLU(0.625 + 1 - 1.5) = 0.25 instead of 1, OR 1 - 2 ReLU(1 - 0.625 - 1) = 1
    for name, wanted in (("and_gate", -0.75), ("or_gate", 0.0)):
        known = make(name)
        for unit in (*known.inputs[:2], *known.hidden[:2]):
            np.testing.assert_allclose(ablated(known, unit, "mean", both(known)), wanted, **EXACT)


def test_a_backup_repairs_its_twin_at_zero_and_not_at_its_mean():
    known = make("backup")
    p, x = known.hidden[0], known.clean[:, 0].numpy()
    np.testing.assert_allclose(ablated(known, p, "zero", None), 0 * x, **EXACT)
    mean = x.mean()
    wanted = mean + np.maximum(x - 2 * mean, 0) - x
    np.testing.assert_allclose(ablated(known, p, "mean", known.clean), wanted, **EXACT)


def test_at_the_mean_of_both_runs_the_cancelling_unit_does_nothing_and_its_second_path_half():
    known = make("cancellation")
    h1, g, h2 = known.hidden
    for unit, wanted in ((h1, 0.0), (g, -0.5), (h2, 0.5)):
        np.testing.assert_allclose(ablated(known, unit, "mean", both(known)), wanted, **EXACT)


def test_the_mean_of_a_head_is_the_mean_closing_speed_and_of_a_filter_the_mean_answer():
    scenes = make("nearest_vehicle")
    head, decoy = (Site("attention_layer.hook_z", query=0, head=h, d_head=0) for h in (0, 1))
    speeds = -scenes.answers["zero"][head].numpy()
    np.testing.assert_allclose(ablated(scenes, head, "mean", scenes.clean), speeds.mean() - speeds, **EXACT)
    assert (ablated(scenes, decoy, "mean", scenes.clean) == 0).all()
    grids = make("matched_filter")
    pooled = Site("pool.hook_out", channel=0)
    strengths = -grids.answers["zero"][Site("relu.hook_out", channel=0)].numpy()
    np.testing.assert_allclose(ablated(grids, pooled, "mean", grids.clean), strengths.mean() - strengths, **EXACT)


def test_resampling_gives_each_run_the_answer_of_some_reference_row_and_the_seed_says_which():
    known = make("brake")
    h = (2 * known.clean[:, 0] - known.clean[:, 1]).clamp(min=0).numpy()
    gate = known.hidden[0]
    one_row = ablated(known, gate, "resample", known.clean[3:4])
    np.testing.assert_allclose(one_row, h[3] - h, **EXACT)
    drawn = [ablated(known, gate, "resample", known.clean, seed=seed) + h for seed in (0, 0, 1)]
    for values in drawn:
        assert np.abs(values[:, None] - h[None, :]).min(1).max() < 1e-9
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_resampling_from_runs_without_either_undoes_an_and_and_leaves_an_or_as_it_is():
    for name, wanted in (("and_gate", -1.0), ("or_gate", 0.0)):
        known = make(name)
        for unit in (*known.inputs[:2], *known.hidden[:2]):
            np.testing.assert_allclose(ablated(known, unit, "resample", known.corrupt), wanted, **EXACT)


# ---- what each policy was built to show


def test_denoising_finds_the_parts_of_an_or_and_noising_those_of_an_and():
    found = {}
    for name in ("and_gate", "or_gate"):
        known = make(name)
        for direction in ("denoise", "noise"):
            result = rlm.activation_patching(
                known.policy,
                clean=known.clean,
                corrupt=known.corrupt,
                sites=list(known.hidden[:2]),
                direction=direction,
            )
            found[name, direction] = result.effect.values.round(9).tolist()
    assert found == {
        ("and_gate", "denoise"): [0, 0],
        ("and_gate", "noise"): [1, 1],
        ("or_gate", "denoise"): [1, 1],
        ("or_gate", "noise"): [0, 0],
    }


def test_both_parts_of_an_and_together_suffice():
    known = make("and_gate")
    group = tuple(known.hidden[:2])
    result = rlm.activation_patching(
        known.policy, clean=known.clean, corrupt=known.corrupt, sites=[group], metric=gap(known)
    )
    np.testing.assert_allclose(result.effect, 1.0, **EXACT)


def test_the_value_stream_moves_every_score_and_no_gap():
    known = make("matched_filter")
    value = Site("value.hook_out", neuron=0)
    pairs = {"clean": known.clean, "corrupt": known.corrupt, "sites": [value]}
    of_score = rlm.activation_patching(known.policy, **pairs, metric=action_score("BRAKE"))
    of_gap = rlm.activation_patching(known.policy, **pairs, metric=gap(known))
    seen = testbed.unit_values(known, known.clean)[value] - testbed.unit_values(known, known.corrupt)[value]
    assert seen.abs().max() > 100
    np.testing.assert_allclose((of_score.patched - of_score.corrupt)[0], seen, **EXACT)
    np.testing.assert_allclose((of_gap.patched - of_gap.corrupt)[0], 0, **EXACT)
    np.testing.assert_allclose(of_gap.effect, 0, **EXACT)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_restoring_an_absent_vehicles_embedding_does_exactly_nothing(direction):
    known = testbed.nearest_vehicle(n_pairs=40)
    base, source = (known.corrupt, known.clean) if direction == "denoise" else (known.clean, known.corrupt)
    sites = known.policy.sites("others_embedding.relu_0.hook_out", over="entity")
    result = rlm.activation_patching(
        known.policy, clean=known.clean, corrupt=known.corrupt, sites=sites, metric=gap(known), direction=direction
    )
    absent = (base[:, 1:, 0] < 0.5).T.numpy()
    only_in_base = (absent & (source[:, 1:, 0] >= 0.5).T.numpy()).any(1)
    assert only_in_base.all()  # every vehicle is somewhere restored to a scene that lacks it
    unpatched = (result.corrupt if direction == "denoise" else result.clean).values
    assert (result.patched.values[absent] == np.broadcast_to(unpatched, absent.shape)[absent]).all()
    assert result.no_op.values[absent].all()


def test_restoring_an_absent_vehicle_with_its_presence_lets_it_decide():
    known = make("nearest_vehicle")
    appears = (known.corrupt[:, 1:, 0] < 0.5) & (known.clean[:, 1:, 0] >= 0.5)
    sites = known.policy.sites("hook_obs", over="entity")[1:]
    result = rlm.activation_patching(
        known.policy, clean=known.clean, corrupt=known.corrupt, sites=sites, metric=gap(known)
    )
    changed = np.abs(result.patched - result.corrupt).values > 0.5
    assert (changed & appears.T.numpy()).any()
