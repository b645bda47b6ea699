"""First-order attributions on policies whose circuit is known: exact where nothing bends, blind where a gate is off."""

import numpy as np
import pytest
import torch

import rlmech.testbed as testbed
from rlmech.attribution.first_order import attribution_patching
from rlmech.core.site import Site
from rlmech.metrics.score_metrics import action_gap
from rlmech.patching.activations import activation_patching
from tests.testbed.policies import make

ATTRIBUTED = ("brake", "and_gate", "or_gate", "backup", "nearest_vehicle", "cancellation")
EXACT = {"rtol": 0.0, "atol": 1e-9}


def attributed(known, sites, direction, **options):
    metric = action_gap(known.better, known.worse)
    pairs = {"clean": known.clean, "corrupt": known.corrupt, "sites": sites, "metric": metric, "direction": direction}
    result = attribution_patching(known.policy, **pairs, **{"repairs": (), **options})
    return result.estimate.transpose("site", "pair").values


def stacked(known, experiment):
    answers = known.answers[experiment]
    sites = [key for key in answers if isinstance(key, Site)]
    return sites, np.stack([answers[site].numpy() for site in sites])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ATTRIBUTED)
def test_the_plain_attribution_of_every_site_is_its_closed_form(name, direction):
    known = make(name)
    sites, wanted = stacked(known, f"attribute_{direction}")
    np.testing.assert_allclose(attributed(known, sites, direction), wanted, **EXACT)


def test_a_gate_that_is_off_hides_what_is_before_it_from_the_gradient_and_not_from_patching():
    known = make("brake")
    before = [*known.inputs, Site("hidden.hook_out", neuron=0)]
    assert (attributed(known, before, "denoise") == 0).all()
    patched = activation_patching(
        known.policy,
        clean=known.clean,
        corrupt=known.corrupt,
        sites=before,
        metric=action_gap("BRAKE", "KEEP"),
    )
    assert (np.abs(patched.patched - patched.corrupt).max("pair") > 1).all()


def test_no_gradient_sees_the_backup_and_patching_does():
    known = make("backup")
    p = known.hidden[0]
    low, high = known.corrupt[:, 0].numpy(), known.clean[:, 0].numpy()
    np.testing.assert_allclose(attributed(known, [p], "noise")[0], low - high, **EXACT)
    np.testing.assert_allclose(known.answers["noise"][p], -low, **EXACT)


@pytest.mark.parametrize("name", ["cancellation"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_where_no_gate_turns_attribution_is_patching(name, direction):
    known = make(name)
    sites, wanted = stacked(known, direction)
    np.testing.assert_allclose(attributed(known, sites, direction), wanted, **EXACT)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_saturated_softmax_hides_the_choice_of_another_vehicle_and_the_repair_shows_it(direction):
    known = make("nearest_vehicle")
    base, source = (known.corrupt, known.clean) if direction == "denoise" else (known.clean, known.corrupt)
    _, cache = known.policy.run_with_cache(source, "attention_layer.hook_pattern")
    chosen = cache["attention_layer.hook_pattern"][:, 0, 0].argmax(-1)
    speeds = base[:, :, 3] * (torch.arange(base.shape[1]) > 0)  # the ego, entity 0, passes on nothing
    before = -known.answers["zero"][Site("attention_layer.hook_z", query=0, head=0, d_head=0)]
    if direction == "denoise":
        before = before + known.answers["noise"][Site("attention_layer.hook_z", query=0, head=0, d_head=0)]
    wanted = (speeds[torch.arange(len(base)), chosen] - before) * (before > 0)  # a closed gate passes on no gradient
    scores = [Site("attention_layer.hook_attn_scores", head=0)]
    assert (attributed(known, scores, direction) == 0).all()
    np.testing.assert_allclose(attributed(known, scores, direction, repairs=("softmax",))[0], wanted, **EXACT)
    assert wanted.abs().max() > 1


def test_integrated_attribution_sees_through_the_gate_of_the_brake():
    known = testbed.brake(n_pairs=6)
    before = [Site("hidden.hook_out", neuron=0)]
    wanted = known.answers["denoise"][before[0]].numpy()
    found = attributed(known, before, "denoise", n_steps=4096)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-2)  # the gate opens within one of 4096 steps
