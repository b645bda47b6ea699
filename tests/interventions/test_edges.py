"""The component graph, runs with edges off, edge patching and edge attribution: against brute force, and by laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech import testbed
from rlmech.core.edit import Site
from rlmech.errors import ConfigError, EngineError, MetricError, SiteError
from rlmech.interventions.component_graph import component_graph
from rlmech.interventions.edge_attribution import edge_attribution
from rlmech.interventions.edge_patching import edge_patching
from rlmech.interventions.edge_runs import EdgeRuns
from rlmech.interventions.metrics import action_flip, action_gap, action_score, bind
from rlmech.interventions.sweep import outputs_of
from rlmech.interventions.units import choose_units
from tests.networks import (
    Branching,
    CalledTwice,
    Convolutional,
    DictObservation,
    FusedAttention,
    InPlace,
    MultiHead,
    ScaledQueries,
    Transformer,
    mlp,
    scenes,
)

SCENES = (scenes(4).double(), scenes(4, seed=1).double())


def vectors(*shape):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, *shape, dtype=torch.float64, generator=generator) for _ in range(2))


def dicts():
    (track, other), (camera, another) = vectors(4, 3), vectors(4)
    return {"track": track, "camera": camera}, {"track": other, "camera": another}


NETWORKS = {
    "mlp": lambda: (mlp(4, 6, 6, 3), vectors(4)),
    "tanh": lambda: (mlp(4, 6, 6, 3, activation=nn.Tanh), vectors(4)),
    "in-place": lambda: (InPlace(), vectors(4)),
    "twice": lambda: (CalledTwice(), vectors(4)),
    "conv": lambda: (Convolutional(), vectors(2, 8, 8)),
    "lstm": lambda: (DictObservation(), dicts()),
    "self-attention": lambda: (Transformer(), SCENES),
    "padded": lambda: (Transformer(padding=True), SCENES),
    "multi-head": lambda: (MultiHead(), SCENES),
    "fused": lambda: (FusedAttention(), SCENES),
    "interleaved": lambda: (FusedAttention(interleaved=True), SCENES),
    "matrices": lambda: (ScaledQueries(), SCENES),
    "ego": lambda: (rlm.load("zoo:intersection-ego-attention"), SCENES),
}


def made(name):
    torch.manual_seed(0)
    net, (clean, corrupt) = NETWORKS[name]()
    policy = net.double() if isinstance(net, rlm.HookedPolicy) else rlm.HookedPolicy(net.double().eval(), clean)
    return policy, clean, corrupt


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    policy, clean, corrupt = made(request.param)
    graph = choose_units(policy)
    runs = EdgeRuns(graph, policy.coerce(clean), reference=graph.values(policy.coerce(corrupt)))
    return policy, graph, runs, clean, corrupt


def test_with_no_edge_off_it_is_the_base_run_bit_for_bit(case):
    policy, graph, runs, clean, _ = case
    outputs = runs.outputs(np.zeros((1, len(graph.edges)), dtype=bool))[0]
    np.testing.assert_array_equal(outputs.scores, policy(clean).detach())


def test_with_all_edges_off_it_is_the_other_run(case):
    policy, graph, runs, _, corrupt = case
    outputs = runs.outputs(np.ones((1, len(graph.edges)), dtype=bool))[0]
    np.testing.assert_allclose(outputs.scores, policy(corrupt).detach(), atol=1e-12)


def test_a_full_cut_off_is_the_other_run(case):
    policy, graph, runs, _, corrupt = case
    off = np.array([[graph.stages[graph.stage_of[sender]].node.op == "input" for sender, _ in graph.edges]])
    np.testing.assert_allclose(runs.outputs(off)[0].scores, policy(corrupt).detach(), atol=1e-12)


def test_all_edges_out_of_a_unit_are_its_patch(case):
    policy, graph, runs, clean, corrupt = case
    chosen = range(0, len(graph.units), 1 + len(graph.units) // 12)
    off = np.array([[sender == unit for sender, _ in graph.edges] for unit in chosen])
    _, cache = policy.run_with_cache(corrupt)
    for unit, outputs in zip(chosen, runs.outputs(off), strict=True):
        if graph.units[unit].name in graph.outputs:
            continue
        with policy.edited([rlm.patch(graph.units[unit], source=cache)]):
            np.testing.assert_allclose(outputs.scores, policy(clean).detach(), atol=1e-12, err_msg=graph.names[unit])


def test_jobs_stacked_are_jobs_alone(case):
    _, graph, runs, _, _ = case
    off = np.random.default_rng(0).random((5, len(graph.edges))) < 0.3
    together = runs.outputs(off)
    for job in range(len(off)):
        np.testing.assert_allclose(together[job].scores, runs.outputs(off[job : job + 1])[0].scores, atol=1e-12)


def test_no_edge_is_missed(case):
    """A unit that changes at random moves none but the units that it has an edge to, when those are held."""
    policy, graph, _, clean, _ = case
    arrays = policy.coerce(clean)
    base = graph.values(arrays)
    children = {unit: {r for s, r in graph.edges if s == unit} for unit in range(len(graph.units))}
    for number, stage in enumerate(graph.stages):
        fragment = graph.fragment(number) if stage.parents else None
        for parent in stage.parents:
            for sender in graph.stages[parent].units:
                value = base[parent]
                noise = ~value if value.dtype == torch.bool else value + torch.randn_like(value)
                changed = torch.where(graph.mask_of[sender], noise, value)
                moved = (fragment(arrays, {**base, parent: changed}) != fragment(arrays, base)).reshape(4, -1).any(0)
                for unit in stage.units:
                    if unit not in children[sender]:
                        assert not (moved & graph.mask_of[unit].flatten()).any(), (graph.names[sender], unit)


def test_the_edges_of_the_ego_attention_graph_are_those_of_its_equations():
    policy = rlm.load("zoo:intersection-ego-attention")
    graph = choose_units(policy)
    edges = {(graph.names[a], graph.names[b]) for a, b in graph.edges}
    prefix = "features_extractor."
    attention = f"{prefix}attention_layer."
    ego, other = f"{prefix}ego_embedding.relu_1.hook_out", f"{prefix}others_embedding.relu_1.hook_out"
    names = policy.spec.entities
    embedded = {name: f"{ego if i == 0 else other} entity={name}" for i, name in enumerate(names)}
    expected = {(f"hook_obs entity={name}", embedded[name]) for name in names}
    expected |= {(f"hook_obs entity={name}", f"{attention}hook_mask key={name}") for name in names}
    for head in range(4):
        z = f"{attention}hook_z head={head}"
        q = f"{attention}hook_q head={head} entity=ego"
        expected |= {(embedded["ego"], q), (q, z), (z, "q_net.1.hook_out")}
        for name in names:
            k, v = (f"{attention}hook_{letter} head={head} entity={name}" for letter in "kv")
            expected |= {(embedded[name], k), (embedded[name], v), (k, z), (v, z)}
            expected.add((f"{attention}hook_mask key={name}", z))
    expected |= {(embedded["ego"], "q_net.1.hook_out")}
    expected |= {("q_net.1.hook_out", "q_net.3.hook_out"), ("q_net.3.hook_out", "hook_q_values")}
    assert edges == expected


# ---- known circuits


def test_cancelling_paths_have_edges_of_opposite_effect():
    known = testbed.cancellation()
    metric = action_gap(known.better, known.worse)
    graph = component_graph(known.policy, units=known.units)
    arguments = {"clean": known.clean, "corrupt": known.corrupt, "units": known.units, "metric": metric}
    for result, name in (
        (edge_patching(known.policy, **arguments)["shift"], "denoise"),
        (edge_attribution(known.policy, **arguments)["shift"], "attribute_denoise"),
    ):
        for edge in known.all_edges:
            expected = known.answers[name][edge].mean().item()
            assert result.values[graph.edge_number(edge)] == pytest.approx(expected, abs=1e-12), edge


@pytest.mark.parametrize("seed", range(5))
def test_any_edges_off_is_what_the_equations_give(seed):
    known = testbed.random_circuit(seed)
    graph = component_graph(known.policy, units=known.units)
    arrays = known.policy.coerce(known.clean)
    runs = EdgeRuns(graph, arrays, reference=graph.values(known.policy.coerce(known.corrupt)))
    edges = sorted(known.all_edges, key=repr)
    chosen = [edge for edge in edges if np.random.default_rng(seed).random() < 0.5] or edges[:1]
    off = np.zeros((1, len(graph.edges)), dtype=bool)
    off[0, [graph.edge_number(edge) for edge in chosen]] = True
    expected = testbed.brute_force(known, other=known.corrupt, base=known.clean, edges=chosen)
    np.testing.assert_allclose(runs.outputs(off)[0].scores, expected, atol=1e-10)


# ---- attribution


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
    estimated = edge_attribution(policy, steps=steps, **arguments)
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
        float(np.abs(edge_attribution(policy, clean=clean, corrupt=corrupt, steps=steps).completeness_error).max())
        for steps in (0, 4, 64)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_integrated_scores_of_one_step_are_gradients_at_the_middle():
    """Interpolated runs are not mixed: differences are those of the two runs, gradients those of the midpoint."""
    policy, clean, corrupt = made("tanh")
    once = edge_attribution(policy, clean=clean, corrupt=corrupt, steps=1)
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


# ---- refusals


def test_an_edge_that_is_none_is_an_error_and_not_passed_over():
    policy, clean, corrupt = made("mlp")
    with pytest.raises(SiteError, match="did you mean"):
        edge_patching(policy, clean=clean, corrupt=corrupt, edges=[(Site("1.hook_out"), Site("3.hook_oot"))])
    with pytest.raises(SiteError, match="no such edge"):
        edge_patching(policy, clean=clean, corrupt=corrupt, edges=[(Site("3.hook_out"), Site("1.hook_out"))])
    with pytest.raises(ConfigError, match="No edge"):
        edge_patching(policy, clean=clean, corrupt=corrupt, edges=[])


def test_units_that_overlap_or_cover_the_output_in_part_are_refused():
    policy, _, _ = made("mlp")
    with pytest.raises(SiteError, match="overlap"):
        component_graph(policy, units=[Site("1.hook_out"), Site("1.hook_out", neuron=2)])
    with pytest.raises(SiteError, match="overlap"):
        component_graph(policy, units=[Site("4.hook_out"), Site("hook_q_values", action=0)])
    with pytest.raises(SiteError, match="part of the policy's output"):
        component_graph(policy, units=[Site("hook_q_values", action=0)])


def test_what_has_no_gradient_or_no_graph_is_refused():
    policy, clean, corrupt = made("mlp")
    with pytest.raises(MetricError, match="no gradient"):
        edge_attribution(policy, clean=clean, corrupt=corrupt, metric=action_flip())
    with pytest.raises(ConfigError, match="steps"):
        edge_attribution(policy, clean=clean, corrupt=corrupt, steps=-1)
    with pytest.raises(EngineError, match="traced graph"):
        choose_units(rlm.HookedPolicy(Branching(), torch.rand(1, 4)))
