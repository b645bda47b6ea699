"""Cells whose memory is known: sweeps over time find the steps and units that carry it, and no others."""

from __future__ import annotations

import pytest
import torch

import rlmech as rlm
from rlmech.testbed import counting_cell, cue_lstm, delay_line, forgetting_cell

CELLS = {"delay line": delay_line, "counter": counting_cell, "forgetting": forgetting_cell, "lstm": cue_lstm}


def gap(known):
    return rlm.metrics.action_gap(known.better, known.worse)


@pytest.fixture(params=list(CELLS), scope="module")
def known(request):
    return CELLS[request.param]()


def test_patching_over_steps_and_units_gives_the_answers_derived_by_hand(known):
    policy = known.policy.unrolled(known.clean.shape[1])
    answers = known.answers["denoise"]
    result = rlm.activation_patching(
        policy, clean=known.clean, corrupt=known.corrupt, sites=list(answers), metric=gap(known)
    )
    change = torch.as_tensor(result.patched.values - result.corrupt.values)
    torch.testing.assert_close(change, torch.stack(list(answers.values())), rtol=0, atol=2e-7)


def test_wiping_the_memory_before_a_step_gives_the_answers_derived_by_hand(known):
    policy = known.policy.unrolled(known.clean.shape[1])
    answers = known.answers["zero"]
    result = rlm.ablation_sweep(policy, known.clean, sites=list(answers), kind="zero", metric=gap(known))
    change = torch.as_tensor(result.patched.values - result.baseline.values)
    torch.testing.assert_close(change, torch.stack(list(answers.values())), rtol=0, atol=2e-7)


def test_gradients_through_time_give_what_an_observation_some_steps_ago_still_does(known):
    policy = known.policy.unrolled(known.clean.shape[1])
    answers = {site: value for site, value in known.answers["denoise"].items() if site.name == "hook_obs"}
    if "lstm" in known.policy.state_names[0]:
        pytest.skip("the first order of a tanh is not its change")
    result = rlm.attribution_patching(
        policy, clean=known.clean, corrupt=known.corrupt, sites=list(answers), metric=gap(known)
    )
    torch.testing.assert_close(torch.as_tensor(result.estimate.values), torch.stack(list(answers.values())))


def test_the_same_edit_of_one_step_in_a_sequence_of_steps_gives_the_same(known):
    _, source = known.policy.run_sequence(known.clean)
    plain, _ = known.policy.run_sequence(known.corrupt)
    for site, change in known.answers["denoise"].items():
        if site.name == "hook_obs":
            continue
        with known.policy.edited([rlm.patch(site, source=source)]):
            scores, _ = known.policy.run_sequence(known.corrupt)
        gaps = (scores - plain)[:, -1]
        torch.testing.assert_close((gaps[:, 0] - gaps[:, 1]).detach(), change, rtol=0, atol=2e-7)


def test_an_effect_is_read_at_every_later_step():
    known = delay_line(n_delay=2, n_steps=6)
    site = rlm.Site("hook_h", step=1, neuron=0)
    effects = []
    for read in range(1, 6):
        policy = known.policy.unrolled(6, read=read)
        result = rlm.activation_patching(
            policy, clean=known.clean, corrupt=known.corrupt, sites=[site], metric=gap(known)
        )
        effects.append(float(abs(result.patched.values - result.corrupt.values).max()))
    assert [effect > 1e-9 for effect in effects] == [False, False, True, False, False]
