"""A policy over a few steps is the same policy, and a policy like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import SiteError, StateError
from tests.core.recurrent_networks import NETWORKS

N_STEPS = 4


@pytest.fixture(params=["lstm", "two lstm layers", "gru cell", "convolutional"], scope="module")
def case(request):
    torch.manual_seed(0)
    module, state, shape = NETWORKS[request.param]()
    policy = rlm.HookedPolicy(module, torch.rand(2, *shape), state=state)
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randn(6, N_STEPS, *shape, generator=generator) for _ in range(2))
    return policy, clean, corrupt


def test_it_gives_the_scores_of_the_step_that_is_read_and_the_same_activations(case):
    policy, clean, _ = case
    scores, cache = policy.run_sequence(clean)
    for read in range(N_STEPS):
        unrolled = policy.unrolled(N_STEPS, read=read)
        got, own = unrolled.run_with_cache(clean)
        assert torch.equal(got, scores[:, read])
        for name in policy.state_names:
            assert torch.equal(own[f"step_{read}.{name}"], cache[name][:, read])


def test_it_begins_in_the_state_that_it_is_given(case):
    policy, clean, _ = case
    _, state = policy.step(clean[:, 0])
    rest = policy.unrolled(N_STEPS - 1)
    assert torch.equal(rest(rest.with_state(clean[:, 1:], state)), policy.run_sequence(clean)[0][:, -1])


def test_a_patch_on_it_is_the_edit_of_a_sequence(case):
    policy, clean, corrupt = case
    unrolled, metric = policy.unrolled(N_STEPS), rlm.metrics.action_score(0)
    name = policy.state_names[-1]
    axis = policy.point(name).axes[1]
    sites = unrolled.sites(name, over=("step", axis))
    assert len(sites) == N_STEPS * policy.point(name).size(axis)
    result = rlm.activation_patching(unrolled, clean=clean, corrupt=corrupt, sites=sites, metric=metric)
    _, source = policy.run_sequence(clean)
    for place in (0, len(sites) // 2, len(sites) - 1):
        with policy.edited([rlm.patch(sites[place], source=source)]):
            scores, _ = policy.run_sequence(corrupt)
        np.testing.assert_allclose(result.patched[place], scores[:, -1, 0].detach(), rtol=1e-4, atol=1e-5)


def test_results_say_at_which_step_a_site_stands(case):
    policy, clean, corrupt = case
    unrolled, name = policy.unrolled(N_STEPS), policy.state_names[0]
    sites = [rlm.Site("hook_obs", step=0), rlm.Site(name, step=1), rlm.Site(name, step=2)]
    result = rlm.activation_patching(unrolled, clean=clean, corrupt=corrupt, sites=sites)
    assert result.hook.values.tolist() == ["hook_obs", name, name]
    assert result.step.values.tolist() == [0, 1, 2]


def test_all_states_of_a_step_and_all_observations_after_it_are_a_full_cut(case):
    policy, clean, corrupt = case
    unrolled = policy.unrolled(N_STEPS)
    cut = (*(rlm.Site(name, step=1) for name in policy.state_names), rlm.Site("hook_obs", step=range(2, N_STEPS)))
    result = rlm.activation_patching(unrolled, clean=clean, corrupt=corrupt, sites=[cut])
    np.testing.assert_allclose(result.effect, 1, atol=1e-5)


def test_edits_by_step_act_on_it(case):
    policy, clean, _ = case
    unrolled, site = policy.unrolled(N_STEPS), rlm.Site(f"{policy.state_names[0]}_pre", step=2)
    with unrolled.edited([rlm.zero_ablation(site)]):
        edited = unrolled(clean)
    with policy.edited([rlm.zero_ablation(site)]):
        scores, _ = policy.run_sequence(clean)
    torch.testing.assert_close(edited, scores[:, -1])


def test_a_step_beyond_the_sequence_is_refused_in_words(case):
    policy, clean, corrupt = case
    site = rlm.Site(policy.state_names[0], step=N_STEPS)
    with pytest.raises(SiteError, match="No step of the sequence") as error:
        rlm.activation_patching(policy.unrolled(N_STEPS), clean=clean, corrupt=corrupt, sites=[site])
    assert "0 to 3" in error.value.expected
    with pytest.raises(SiteError, match="No step of the sequence"):
        rlm.activation_patching(
            policy.unrolled(N_STEPS, read=1),
            clean=clean,
            corrupt=corrupt,
            sites=[rlm.Site(policy.state_names[0], step=2)],
        )
    with pytest.raises(StateError, match="no such step"):
        policy.unrolled(N_STEPS, read=N_STEPS)
    with pytest.raises(StateError, match="no such step"):
        policy.unrolled(0)
