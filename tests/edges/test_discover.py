"""Discovered circuits: scored on planted ones, and by the laws that hold for any circuit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech import testbed
from rlmech.core.site import Site
from rlmech.edges.circuit import Circuit
from rlmech.edges.circuit_evaluation import random_circuit_edges, useful_edges
from rlmech.edges.components import component_graph
from rlmech.edges.discover import discover_circuit
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.references import other_rows, reference_values
from rlmech.edges.units import choose_units
from rlmech.errors import ConfigError, MetricError, ObservationError, SiteError
from rlmech.metrics.score_metrics import action_gap, policy_kl
from tests.networks import mlp, scenes


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    clean, corrupt = torch.randn(2, 12, 4, dtype=torch.float64)
    return rlm.HookedPolicy(mlp(4, 6, 6, 3).double(), clean), clean, corrupt


def by_neuron(known, method, **arguments):
    metric = action_gap(known.better, known.worse)
    return discover_circuit(
        known.policy,
        clean=known.clean,
        corrupt=known.corrupt,
        metric=metric,
        method=method,
        units=known.units,
        held_out=0,
        n_controls=0,
        **arguments,
    )


def area(known, method, **arguments):
    """Over all edges of the network: an edge that the true circuit lacks never counts as found."""
    circuit = by_neuron(known, method, **arguments)
    pairs = [(circuit.units[a], circuit.units[b]) for a, b in circuit.candidates]
    scores = dict(zip(pairs, np.abs(circuit.scores.values), strict=True))
    return testbed.edge_auroc({edge: scores[edge] for edge in known.all_edges}, known.edges)


METHODS = [("acdc", {}), ("eap", {}), ("eap-ig", {"n_steps": 4})]


@pytest.mark.parametrize(("method", "arguments"), METHODS)
def test_scores_tell_planted_edges_from_the_others(method, arguments):
    areas = [area(testbed.random_circuit(seed, n_pairs=16), method, **arguments) for seed in range(4)]
    assert min(areas) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("method", "arguments"), METHODS)
def test_scores_tell_planted_edges_from_the_others_in_forty_circuits(method, arguments):
    areas = [area(testbed.random_circuit(seed, n_pairs=24), method, **arguments) for seed in range(40)]
    assert np.mean(areas) > 0.99
    assert min(areas) > 0.95


def test_the_circuit_of_cancelling_paths_is_found_edge_by_edge():
    """The two paths from the light cancel: the greedy search may drop or keep both, and never the obstacle's."""
    known = testbed.cancellation()
    circuit = by_neuron(known, "acdc")
    obstacle = {(a, b) for a, b in known.all_edges if "feature=1" in repr(a) or "neuron=1" in repr(a)}
    assert obstacle <= set(circuit.edges)
    assert float(circuit.dataset["faithfulness"]) == pytest.approx(1)


def test_what_is_kept_does_what_the_policy_does_within_the_threshold(small):
    policy, clean, corrupt = small
    for threshold in (0.0, 0.05, 0.5):
        circuit = discover_circuit(
            policy, clean=clean, corrupt=corrupt, over="neuron", threshold=threshold, held_out=0, n_controls=0
        )
        score = circuit.dataset["score"].values
        went = score[score < threshold].sum()  # each score is what its own removal added
        assert float(circuit.dataset["error"]) == pytest.approx(went, abs=1e-12)


def test_edges_behind_a_unit_that_hears_nothing_are_dead_all_the_way(small):
    policy, _, _ = small
    graph = choose_units(policy)
    behind = [n for n, (sender, _) in enumerate(graph.edges) if graph.units[sender].name != "hook_obs"]
    assert len(behind) == 2
    assert useful_edges(graph, behind, consistent=True) == set()
    assert useful_edges(graph, behind, consistent=False) == set(behind)
    before = [n for n, (_, receiver) in enumerate(graph.edges) if graph.units[receiver].name != "hook_q_values"]
    assert useful_edges(graph, before, consistent=False) == set()


def test_the_whole_graph_is_faithful_and_nothing_is_left_without_it(small):
    policy, clean, corrupt = small
    circuit = discover_circuit(policy, clean=clean, corrupt=corrupt, threshold=-1e9, over="neuron", n_controls=3)
    assert len(circuit.kept) == len(circuit.candidates)
    assert float(circuit.dataset["faithfulness"]) == pytest.approx(1, abs=1e-12)
    assert float(circuit.dataset["completeness"]) == pytest.approx(1, abs=1e-12)
    assert float(circuit.dataset["error"]) == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(circuit.run(policy, clean=clean, corrupt=corrupt), policy(clean).detach())


@pytest.mark.parametrize("ablation", ["patch", "resample"])
def test_dead_edges_carry_nothing_where_the_ablation_is_a_run(small, ablation):
    policy, clean, corrupt = small
    graph, runs, kept = some_edges(policy, clean, corrupt, ablation)
    useful = useful_edges(graph, kept, consistent=True)
    assert len(useful) < len(kept)
    for edges in (useful, kept):
        off = np.array([[number not in edges for number in range(len(graph.edges))]])
        if edges is useful:
            pruned = runs.outputs(off)[0].scores
    np.testing.assert_allclose(runs.outputs(off)[0].scores, pruned, atol=1e-12)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_edges_from_units_that_hear_nothing_stay_where_it_is_not(small, ablation):
    policy, clean, corrupt = small
    graph, runs, kept = some_edges(policy, clean, corrupt, ablation)
    useful = useful_edges(graph, kept, consistent=False)
    wrongly = useful_edges(graph, kept, consistent=True)
    scores = [
        runs.outputs(np.array([[number not in edges for number in range(len(graph.edges))]]))[0].scores
        for edges in (kept, useful, wrongly)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-12)
    assert (scores[0] - scores[2]).abs().max() > 1e-3


def some_edges(policy, clean, corrupt, ablation):
    """All edges but those from the observation to some of the first neurons, and from some of the second."""
    graph = choose_units(policy, over="neuron")
    arrays = policy.coerce(clean), policy.coerce(corrupt)
    reference = reference_values(
        graph, ablation=ablation, clean=arrays[0], corrupt=arrays[1], dataset=arrays[0], seed=0
    )
    kept = {
        number
        for number, (a, b) in enumerate(graph.edges)
        if not (graph.units[a].name == "hook_obs" and "neuron" in repr(graph.units[b]) and b % 2)
    }
    return graph, EdgeRuns(graph, arrays[0], reference=reference), kept


def test_mean_ablation_is_the_mean_over_the_dataset_and_of_each_element():
    policy = rlm.load("zoo:intersection-ego-attention").double()
    graph = choose_units(policy)
    clean, corrupt = policy.coerce(scenes(6).double()), policy.coerce(scenes(6, seed=1).double())
    reference = reference_values(graph, ablation="mean", clean=clean, corrupt=corrupt, dataset=corrupt, seed=0)
    _, cache = policy.run_with_cache(corrupt[0])
    z = next(number for number, unit in enumerate(graph.units) if unit.name.endswith("hook_z"))
    stage = graph.stages[graph.stage_of[z]]
    shown = policy.points[graph.units[z].name].address.layout.show(stage.layout.restore(reference[graph.stage_of[z]]))
    expected = cache[graph.units[z].name].detach().mean(0)
    np.testing.assert_allclose(shown[0], expected, atol=1e-12)
    np.testing.assert_array_equal(shown[0], shown[5])


def test_resampling_takes_every_other_row_once():
    drawn = other_rows(9, seed=3)
    assert sorted(drawn.tolist()) == list(range(9))
    assert (drawn != np.arange(9)).all()
    with pytest.raises(ObservationError, match="no other row"):
        other_rows(1, seed=0)


@pytest.mark.parametrize("ablation", ["patch", "zero", "mean", "resample"])
@pytest.mark.parametrize("method", ["acdc", "eap"])
def test_every_ablation_serves_every_method(small, method, ablation):
    policy, clean, corrupt = small
    circuit = discover_circuit(
        policy, clean=clean, corrupt=corrupt, method=method, ablation=ablation, over="neuron", n_controls=2
    )
    assert np.isfinite(circuit.scores).all()
    again = circuit.evaluate(policy, clean=clean, corrupt=corrupt, ablation=ablation, n_controls=2)
    assert again.sizes["seed"] == 2
    assert again.sizes["pair"] == 12


def test_minimality_is_the_drop_without_the_edge(small):
    policy, clean, corrupt = small
    circuit = discover_circuit(policy, clean=clean, corrupt=corrupt, over="neuron", held_out=0, n_controls=0)
    number = circuit.kept[len(circuit.kept) // 2]
    smaller = Circuit(
        units=circuit.units,
        candidates=circuit.candidates,
        kept=tuple(edge for edge in circuit.kept if edge != number),
        dataset=circuit.dataset,
    ).evaluate(policy, clean=clean, corrupt=corrupt, n_controls=0)
    drop = float(circuit.dataset["faithfulness"] - smaller["faithfulness"])
    assert float(circuit.dataset["minimality"][number]) == pytest.approx(drop, abs=1e-12)
    outside = ~circuit.dataset.in_circuit.values
    assert np.isnan(circuit.dataset["minimality"].values[outside]).all()


def test_random_circuits_are_whole_paths_of_the_same_size(small):
    policy, _, _ = small
    graph = choose_units(policy, over="neuron")
    for draw in range(5):
        edges = random_circuit_edges(graph, 9, seed=[0, draw], consistent=True)
        assert edges == useful_edges(graph, edges, consistent=True)
        assert 7 <= len(edges) <= 9


def test_kl_is_a_metric_too_and_its_zero_gradient_is_met_with_an_error():
    known = testbed.random_circuit(0, n_pairs=8)
    arguments = {"clean": known.clean, "corrupt": known.corrupt, "metric": policy_kl(1.0), "units": known.units}
    circuit = discover_circuit(known.policy, method="acdc", held_out=0, n_controls=0, **arguments)
    assert float(circuit.dataset["error"]) < 0.5
    with pytest.raises(MetricError, match="zero at every clean run"):
        discover_circuit(known.policy, method="eap", held_out=0, n_controls=0, **arguments)


def test_a_saved_circuit_comes_back_and_nothing_else_does(small, tmp_path):
    policy, clean, corrupt = small
    circuit = discover_circuit(policy, clean=clean, corrupt=corrupt, over="neuron", n_controls=2)
    back = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert (back.units, back.candidates, back.kept) == (circuit.units, circuit.candidates, circuit.kept)
    assert back.dataset.equals(circuit.dataset)
    assert back.dataset.attrs == pytest.approx(circuit.dataset.attrs, nan_ok=True)
    np.testing.assert_array_equal(
        back.run(policy, clean=clean, corrupt=corrupt), circuit.run(policy, clean=clean, corrupt=corrupt)
    )
    (tmp_path / "other.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(ConfigError, match="is no circuit"):
        Circuit.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        Circuit.load(tmp_path / "absent.json")
    other = rlm.HookedPolicy(mlp(4, 5, 6, 3).double(), clean)
    with pytest.raises((ConfigError, SiteError)):
        circuit.run(other, clean=clean, corrupt=corrupt)


def test_units_given_by_name_and_by_number_are_the_same_edge():
    policy = rlm.load("zoo:intersection-ego-attention")
    graph = component_graph(policy, units=policy.sites("*.hook_k", over=("head", "entity")))
    named = graph.edge_number((Site("hook_obs"), graph.units[1]))
    entity = graph.units[1].positions(policy.hook_dict[graph.units[1].name])
    numbered = Site(graph.units[1].name, **{axis: place[0] for axis, place in reversed(entity.items())})
    assert graph.edge_number((Site("hook_obs"), numbered)) == named


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "adcd"}, "no method"),
        ({"ablation": "noise"}, "no ablation"),
        ({"n_edges": 3}, "stands instead of a threshold"),
        ({"method": "eap", "n_edges": 3, "threshold": 0.1}, "stands instead of a threshold"),
        ({"method": "eap-ig", "ablation": "zero"}, "straight line"),
        ({"held_out": 0.01}, "cannot be split"),
        ({"held_out": 1.5}, "cannot be split"),
        ({"over": "pixel"}, "no over"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(small, arguments, message):
    policy, clean, corrupt = small
    with pytest.raises(ConfigError, match=message):
        discover_circuit(policy, clean=clean, corrupt=corrupt, **arguments)


def test_pairs_that_do_not_differ_have_nothing_to_explain(small):
    policy, clean, _ = small
    with pytest.raises(MetricError, match="nothing to explain"):
        discover_circuit(policy, clean=clean, corrupt=clean)


def test_the_same_seed_finds_the_same_circuit(small):
    policy, clean, corrupt = small
    first, second = (discover_circuit(policy, clean=clean, corrupt=corrupt, seed=3, n_controls=2) for _ in range(2))
    assert first.kept == second.kept
    assert first.dataset.identical(second.dataset)


@pytest.mark.parametrize("n_edges", [20, 40])
def test_as_many_edges_as_asked_for_carry_something_to_the_output(n_edges):
    known = testbed.random_circuit(3)
    circuit = discover_circuit(
        known.policy, clean=known.clean, corrupt=known.corrupt, method="eap", n_edges=n_edges, units=known.units
    )
    assert n_edges - 3 <= len(circuit.edges) <= n_edges


def test_a_circuit_of_sequences_is_run_and_measured_on_sequences():
    known = testbed.counting_cell()
    runs = {"clean": known.clean[:, :3], "corrupt": known.corrupt[:, :3]}
    circuit = discover_circuit(known.policy, **runs, n_controls=2)
    over_steps = known.policy.unrolled(3)

    assert torch.equal(circuit.run(known.policy, **runs), circuit.run(over_steps, **runs))
    measured, direct = (circuit.evaluate(policy, **runs, n_controls=2) for policy in (known.policy, over_steps))
    assert measured["error"].identical(direct["error"])
