"""The component graph and runs with edges off: against brute force, and by laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech import testbed
from rlmech.core.site import Site
from rlmech.edges.components import component_graph
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.units import choose_units
from rlmech.errors import EngineError, SiteError
from tests.edges.edge_networks import NETWORKS, made
from tests.networks import Branching


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
    """A unit that changes at random moves none but the units that it has an edge to, when all others are held."""
    policy, graph, _, clean, _ = case
    _refute_missing_edges(policy, graph, clean)


def test_no_edge_is_missed_between_any_two_hook_points(case):
    policy, _, _, clean, _ = case
    sites, taken = [], set()
    for name, point in policy.hook_dict.items():
        node = policy.points[name].address.node
        if node not in taken and point.kind != "result":
            taken.add(node)
            axis = point.axes[-1] if point.axes[-1] in ("key", "action") else point.axes[min(1, len(point.axes) - 1)]
            sites += [Site(name)] if axis == "batch" else policy.sites(name, over=axis)
    _refute_missing_edges(policy, component_graph(policy, units=sites), clean)


def _refute_missing_edges(policy, graph, clean):
    arrays = policy.coerce(clean)
    base = graph.values(arrays)
    children = {unit: {r for s, r in graph.edges if s == unit} for unit in range(len(graph.units))}
    for number, stage in enumerate(graph.stages):
        if not stage.parents:
            continue
        fragment = graph.fragment(number)
        before = fragment(arrays, base)
        for parent in stage.parents:
            senders = graph.stages[parent].units
            for sender in senders[:: 1 + len(senders) // 8]:
                value = base[parent]
                noise = ~value if value.dtype == torch.bool else value + torch.randn_like(value)
                changed = torch.where(graph.mask_of[sender], noise, value)
                moved = (fragment(arrays, {**base, parent: changed}) != before).reshape(4, -1).any(0)
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


def test_units_that_overlap_or_cover_the_output_in_part_are_refused():
    policy, _, _ = made("mlp")
    with pytest.raises(SiteError, match="overlap"):
        component_graph(policy, units=[Site("1.hook_out"), Site("1.hook_out", neuron=2)])
    with pytest.raises(SiteError, match="overlap"):
        component_graph(policy, units=[Site("4.hook_out"), Site("hook_q_values", action=0)])
    with pytest.raises(SiteError, match="part of the policy's output"):
        component_graph(policy, units=[Site("hook_q_values", action=0)])


def test_without_a_graph_it_says_so():
    with pytest.raises(EngineError, match="traced graph"):
        choose_units(rlm.HookedPolicy(Branching(), torch.rand(1, 4)))
