"""Causal scrubbing on policies whose circuit is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech import testbed
from rlmech.core.site import Site
from rlmech.edges.components import component_graph
from rlmech.edges.discover import discover_circuit
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.scrubbing import causal_scrubbing
from rlmech.errors import ConfigError, ObservationError, SiteError
from rlmech.metrics.score_metrics import action_gap, action_score
from tests.networks import mlp, scenes


@pytest.fixture(scope="module")
def known():
    return testbed.random_circuit(0, n_pairs=32)


def scrub(known, edges, **arguments):
    metric = action_gap(known.better, known.worse)
    arguments = {"units": known.units, "metric": metric, "n_draws": 3} | arguments
    return causal_scrubbing(known.policy, obs=known.clean, hypothesis=edges, **arguments)


def test_when_every_edge_matters_nothing_changes(known):
    graph = component_graph(known.policy, units=known.units)
    result = scrub(known, [(graph.units[a], graph.units[b]) for a, b in graph.edges])
    np.testing.assert_allclose(result.scrubbed, result.policy, atol=1e-12)  # a mean over draws rounds
    assert float(result["error"]) == 0


def test_when_no_edge_matters_all_is_lost(known):
    result = scrub(known, [])
    np.testing.assert_array_equal(result.scrubbed, result.resampled)
    assert float(result["error"]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_circuit_survives_and_a_part_of_it_does_not(seed):
    known = testbed.random_circuit(seed, n_pairs=32)
    whole, without = scrub(known, known.edges), scrub(known, sorted(known.edges, key=repr)[1:])
    assert float(whole["error"]) < 0.15
    assert float(without["error"]) > float(whole["error"])


def test_each_unimportant_edge_has_a_draw_of_its_own():
    """One sum of two copies of the input: resampled apart, the two do not agree."""
    net = torch.nn.Linear(2, 2, bias=False).double()
    net.weight.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).double()
    obs = torch.randn(40, 1, dtype=torch.float64).expand(40, 2).contiguous()
    policy = rlm.HookedPolicy(net, obs)
    result = causal_scrubbing(policy, obs=obs, hypothesis=[], metric=action_score(0), n_draws=1)
    assert np.abs(result.policy).max() == 0
    assert np.abs(result.resampled).mean() > 0.3


def test_draws_by_edge_are_those_of_a_loop_over_units():
    policy = rlm.load("zoo:intersection-ego-attention").double()
    obs = scenes(5).double()
    from rlmech.edges.units import choose_units

    graph = choose_units(policy)
    arrays = policy.coerce(obs)
    values = graph.values(arrays)
    generator = np.random.default_rng(0)
    drawn = generator.integers(5, size=(len(graph.edges), 5))
    off = generator.random((1, len(graph.edges))) < 0.4
    runs = EdgeRuns(graph, arrays, reference=values, drawn=drawn)
    current = dict(values)
    for number, stage in enumerate(graph.stages):
        if not stage.parents:
            continue
        result = values[number].clone()
        for unit in stage.units:
            seen = {parent: current[parent].clone() for parent in stage.parents}
            for edge in graph.incoming[unit]:
                sender = graph.edges[edge][0]
                parent = graph.stage_of[sender]
                if off[0, edge]:
                    other = values[parent][torch.from_numpy(drawn[edge])]
                    seen[parent] = torch.where(graph.mask_of[sender], other, seen[parent])
            result = torch.where(graph.mask_of[unit], graph.fragment(number)(arrays, seen), result)
        current[number] = result.detach()
    scores = current[graph.outputs["hook_q_values"]]
    np.testing.assert_allclose(runs.outputs(off)[0].scores, scores, atol=1e-12)


def test_a_discovered_circuit_is_a_hypothesis():
    torch.manual_seed(0)
    clean, corrupt = torch.randn(2, 24, 4, dtype=torch.float64)
    policy = rlm.HookedPolicy(mlp(4, 6, 6, 3).double(), clean)
    circuit = discover_circuit(policy, clean=clean, corrupt=corrupt, over="neuron", threshold=0.0, n_controls=0)
    result = causal_scrubbing(policy, obs=clean, hypothesis=circuit)
    assert result.attrs["n_edges"] == len(circuit.kept)
    assert 0 <= float(result["error"]) < 0.5
    assert float(result["error_low"]) <= float(result["error"]) <= float(result["error_high"])


def test_the_same_seed_draws_the_same(known):
    assert scrub(known, known.edges, seed=1).identical(scrub(known, known.edges, seed=1))


def test_what_cannot_be_scrubbed_is_refused(known):
    with pytest.raises(SiteError, match="no such edge"):
        scrub(known, [(Site("hook_q_values", action=0), known.units[0])])
    with pytest.raises(ConfigError, match="Nothing is drawn"):
        scrub(known, known.edges, n_draws=0)
    with pytest.raises(ObservationError, match="no other row"):
        causal_scrubbing(known.policy, obs=known.clean[:1], hypothesis=known.edges, units=known.units)


def test_recovery_is_the_ratio_of_what_is_left_to_what_resampling_takes(known):
    """Both ends of the quotient, from the values themselves: a denominator of another sign or run fails here."""
    result = scrub(known, sorted(known.edges, key=repr)[1:], metric=action_gap())
    left = float((result.scrubbed - result.resampled).mean())
    taken = float((result.policy - result.resampled).mean())
    assert abs(taken) > 1e-3
    assert float(result["recovery"]) == pytest.approx(left / taken)
