"""Edge patching and edge attribution: against answers by hand, and by laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech import testbed
from rlmech.core.site import Site
from rlmech.edges.components import component_graph
from rlmech.edges.scores import edge_attribution
from rlmech.edges.single import edge_patching
from rlmech.errors import ConfigError, MetricError, SiteError
from rlmech.metrics.measure import bind
from rlmech.metrics.score_metrics import action_flip, action_gap, action_score
from rlmech.patching.sweeps.sweep import outputs_of
from tests.edges.edge_networks import made, vectors


def test_cancelling_paths_have_edges_of_opposite_effect():
    known = testbed.cancellation()
    metric = action_gap(known.better, known.worse)
    graph = component_graph(known.policy, units=known.units)
    arguments = {"clean": known.clean, "corrupt": known.corrupt, "units": known.units, "metric": metric}
    for result, name in (
        (edge_patching(known.policy, **arguments)["change"], "denoise"),
        (edge_attribution(known.policy, **arguments)["change"], "attribute_denoise"),
    ):
        for edge in known.all_edges:
            expected = known.answers[name][edge].mean().item()
            assert result.values[graph.edge_number(edge)] == pytest.approx(expected, abs=1e-12), edge


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("steps", [0, 3])
def test_on_a_linear_network_attribution_is_patching(direction, steps):
    torch.manual_seed(0)
    clean, corrupt = vectors(5)
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)).double()
    policy = rlm.HookedPolicy(net, clean)
    units = [*policy.sites("hook_obs", over="feature"), *policy.sites("[01].hook_out", over="neuron")]
    arguments = {"clean": clean, "corrupt": corrupt, "units": units, "direction": direction}
    exact = edge_patching(policy, **arguments)
    estimated = edge_attribution(policy, n_steps=steps, **arguments)
    base = exact.corrupt if direction == "denoise" else exact.clean
    np.testing.assert_allclose(estimated.estimate, exact.patched - base, atol=1e-12)
    np.testing.assert_allclose(estimated.completeness_error, 0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "self-attention", "multi-head", "twice"])
def test_first_order_scores_across_a_cut_sum_to_the_cuts_first_order_effect(name):
    policy, clean, corrupt = made(name)
    result = edge_attribution(policy, clean=clean, corrupt=corrupt, direction="noise", metric=action_score(0))
    arrays = policy.coerce(clean)
    leaves = [array.detach().requires_grad_() for array in arrays]
    program = policy.graph_engine.program(returned=(policy.points["hook_q_values"].address.node,))
    gradients = torch.autograd.grad(program(leaves, (), ())[0][:, 0].sum(), leaves)
    differences = [b - a for a, b in zip(arrays, policy.coerce(corrupt), strict=True)]
    whole = sum((g * d).flatten(1).sum(1) for g, d in zip(gradients, differences, strict=True))
    first = [sender.startswith("hook_obs") for sender in result.sender.values]
    np.testing.assert_allclose(result.estimate.values[first].sum(0), whole, atol=1e-10)
    last = [receiver == "hook_q_values" for receiver in result.receiver.values]
    assert result.estimate.values[last].shape[0] >= 1


def test_integration_brings_the_completeness_error_down():
    policy, clean, corrupt = made("tanh")
    errors = [
        float(np.abs(edge_attribution(policy, clean=clean, corrupt=corrupt, n_steps=steps).completeness_error).max())
        for steps in (0, 4, 64)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_integrated_scores_of_one_step_are_gradients_at_the_middle():
    """Interpolated runs are not mixed: differences are those of the two runs, gradients those of the midpoint."""
    policy, clean, corrupt = made("tanh")
    once = edge_attribution(policy, clean=clean, corrupt=corrupt, n_steps=1)
    middle = ((clean + corrupt) / 2).requires_grad_()
    hidden = policy.module[1](policy.module[0](middle))
    scores = policy.module[2:](hidden)
    measured = bind(action_gap(), policy, clean=outputs_of(policy, clean), corrupt=outputs_of(policy, corrupt))(scores)
    (gradient,) = torch.autograd.grad(measured.sum(), hidden)
    difference = policy.module[:2](clean) - policy.module[:2](corrupt)
    mine = once.estimate.values[(once.sender == "1.hook_out").values][0]
    np.testing.assert_allclose(mine, (gradient * difference).sum(1).detach(), atol=1e-12)


def test_edges_of_a_mask_are_taken_with_both_of_its_values():
    policy, clean, corrupt = made("ego")
    arguments = {"clean": clean, "corrupt": corrupt, "units": ["*.hook_mask"], "metric": action_score(0)}
    estimated = edge_attribution(policy, **arguments)
    of_mask = ["hook_mask" in sender for sender in estimated.sender.values]
    to_mask = ["hook_mask" in receiver for receiver in estimated.receiver.values]
    exact = edge_patching(policy, **arguments)
    np.testing.assert_allclose(estimated.estimate[of_mask], (exact.patched - exact.corrupt)[of_mask], atol=1e-10)
    np.testing.assert_allclose(estimated.estimate[to_mask], (exact.patched - exact.corrupt)[to_mask], atol=1e-10)
    assert (np.abs(estimated.estimate[of_mask]) > 0).any()


def test_equal_observations_give_no_effect_and_say_so():
    policy, clean, _ = made("mlp")
    result = edge_patching(policy, clean=clean, corrupt=clean)
    assert (result.effect == 0).all()
    assert result.tiny_denominator.all()
    assert (edge_attribution(policy, clean=clean, corrupt=clean).estimate == 0).all()


def test_noise_of_one_pair_is_denoise_of_the_other():
    policy, clean, corrupt = made("mlp")
    metric = action_gap(0, 1)
    there = edge_patching(policy, clean=clean, corrupt=corrupt, direction="noise", metric=metric)
    back = edge_patching(policy, clean=corrupt, corrupt=clean, direction="denoise", metric=metric)
    np.testing.assert_array_equal(there.patched, back.patched)


def test_an_edge_that_is_none_is_an_error_and_not_passed_over():
    policy, clean, corrupt = made("mlp")
    with pytest.raises(SiteError, match="did you mean"):
        edge_patching(policy, clean=clean, corrupt=corrupt, edges=[(Site("1.hook_out"), Site("3.hook_oot"))])
    with pytest.raises(SiteError, match="no such edge"):
        edge_patching(policy, clean=clean, corrupt=corrupt, edges=[(Site("3.hook_out"), Site("1.hook_out"))])
    with pytest.raises(ConfigError, match="No edge"):
        edge_patching(policy, clean=clean, corrupt=corrupt, edges=[])


def test_what_has_no_gradient_or_no_graph_is_refused():
    policy, clean, corrupt = made("mlp")
    with pytest.raises(MetricError, match="no gradient"):
        edge_attribution(policy, clean=clean, corrupt=corrupt, metric=action_flip())
    with pytest.raises(ConfigError, match="steps"):
        edge_attribution(policy, clean=clean, corrupt=corrupt, n_steps=-1)
