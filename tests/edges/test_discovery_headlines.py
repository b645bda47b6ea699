"""Discovery ends, its headline says what its denominator allows, and clusters stay together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.edges.circuit_evaluation import random_circuit_edges
from rlmech.edges.discover import discover_circuit
from rlmech.edges.path import path_patching
from rlmech.edges.scores import edge_attribution
from rlmech.edges.scrubbing import causal_scrubbing
from rlmech.edges.single import edge_patching
from rlmech.edges.units import choose_units
from rlmech.errors import ConfigError, MetricError
from rlmech.metrics.score_metrics import action_score
from rlmech.patching.results import ratio_of_means
from rlmech.patching.subspace import interchange_intervention
from tests.networks import mlp


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return rlm.HookedPolicy(mlp(4, 6, 3).double(), torch.rand(2, 4, dtype=torch.float64))


@pytest.fixture(scope="module")
def states():
    return torch.rand(24, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_discovery_ends_where_edges_lie_on_no_path_from_the_observation():
    net = mlp(1, 2, 2)
    with torch.no_grad():
        net[0].weight[:], net[0].bias[:] = (
            torch.tensor([[1.0], [0.0]]),
            torch.tensor([0.0, 1.0]),
        )  # neuron 1: a constant
        net[2].weight[:], net[2].bias[:] = torch.tensor([[1.0, 0.5], [0.0, 0.0]]), 0.0
    x = torch.rand(8, 1) + 0.5
    hooked = rlm.HookedPolicy(net, x)
    found = discover_circuit(
        hooked, clean=x, corrupt=x.flip(0), over="neuron", ablation="zero", metric=action_score(0), held_out=0
    )
    assert len(found.kept) == 3
    assert float(found.dataset["faithfulness"]) == pytest.approx(1)


@pytest.mark.parametrize("consistent", [True, False])
def test_random_circuits_have_any_size_up_to_the_whole_graph_and_never_more(policy, consistent):
    graph = choose_units(policy, over="neuron")
    n = len(graph.edges)
    for size in (0, 1, 2, 5, n - 1, n, n + 10):
        edges = random_circuit_edges(graph, size, seed=[0, size], consistent=consistent)
        assert len(edges) <= size
    assert len(random_circuit_edges(graph, n + 10, seed=[0], consistent=consistent)) == n


@pytest.mark.parametrize("shift", [1, 3])
def test_the_full_circuit_is_faithful_even_where_the_mean_difference_cancels(policy, states, shift):
    """The same rows in another order: the mean of policy - ablated is rounding."""
    circuit = discover_circuit(
        policy, clean=states, corrupt=states.roll(shift, 0), over="neuron", metric=action_score(0), threshold=0.0,
        held_out=0, n_controls=2,
    )  # fmt: skip
    assert len(circuit.kept) == len(circuit.candidates)
    assert float(circuit.dataset["faithfulness"]) == float(circuit.dataset["completeness"]) == 1
    assert not circuit.dataset.attrs["denominator_trustworthy"]
    assert "faithfulness says nothing" in repr(circuit)
    assert "error 0.00" in repr(circuit)


def test_a_part_of_the_circuit_has_no_faithfulness_where_the_denominator_cancels_but_has_an_error(policy, states):
    circuit = discover_circuit(
        policy, clean=states, corrupt=states.flip(0), over="neuron", metric=action_score(0), method="eap",
        n_edges=8, held_out=0, n_controls=2,
    )  # fmt: skip
    assert np.isnan(float(circuit.dataset["faithfulness"]))
    assert np.isfinite(float(circuit.dataset["error"]))
    assert "inf" not in repr(circuit)
    assert "nan" not in repr(circuit)


def test_a_headline_with_a_clear_denominator_is_the_faithfulness_with_its_interval(policy, states):
    circuit = discover_circuit(
        policy, clean=states + 2, corrupt=states, over="neuron", metric=action_score(0), threshold=0.0, n_controls=0
    )
    assert circuit.dataset.attrs["denominator_trustworthy"]
    assert circuit.headline == "faithfulness 1.00 [1.00, 1.00]"


def test_a_ratio_of_means_is_the_plain_one_where_the_denominator_is_clear():
    numerator, denominator = np.array([[1.0, 2.0, 3.0]]), np.array([2.0, 3.0, 4.0])
    assert ratio_of_means(numerator, denominator, clusters=None, seed=0).estimate == pytest.approx([2 / 3])


def test_no_cluster_has_pairs_on_both_sides_of_the_split(policy, states):
    """Twelve episodes of two rows each: what is measured holds whole episodes, a third of them."""
    episodes = np.repeat(np.arange(12), 2)
    circuit = discover_circuit(
        policy, clean=states, corrupt=torch.rand_like(states), metric=action_score(0), clusters=episodes,
        held_out=1 / 3, n_controls=0,
    )  # fmt: skip
    measured = circuit.dataset["policy"].values
    with torch.no_grad():
        scores = policy(states)[:, 0].numpy()
    held = np.isin(scores, measured)
    assert held.sum() == 8
    np.testing.assert_array_equal(held[::2], held[1::2])
    assert circuit.dataset.attrs["n_resampled"] == 4


def test_one_cluster_cannot_be_split(policy, states):
    with pytest.raises(ConfigError, match="1 clusters"):
        discover_circuit(policy, clean=states, corrupt=states.flip(0), clusters=["a"] * 24)


def wide(result, name):
    return float((result[f"{name}_high"] - result[f"{name}_low"]).max())


def test_every_interval_over_pairs_takes_clusters_and_copies_of_a_pair_count_once(policy, states):
    """Four copies of each of six rows: as clusters they give the interval of the six rows alone, near enough."""
    clean = states[:6].repeat(4, 1) + 1
    corrupt = states[6:12].repeat(4, 1)
    labels = [f"episode {i % 6}" for i in range(24)]
    pairs = {"clean": clean, "corrupt": corrupt, "metric": action_score(0)}
    calls = {
        "change": [
            lambda **c: edge_patching(policy, **pairs, **c),
            lambda **c: edge_attribution(policy, **pairs, **c),
            lambda **c: path_patching(policy, **pairs, sender="hook_obs", receiver="1.hook_out", **c),
        ],
        "error": [lambda **c: causal_scrubbing(policy, obs=clean, hypothesis=[], metric=action_score(0), **c)],
        "unchanged": [lambda **c: interchange_intervention(policy, base=clean, source=corrupt, site="1.hook_out", **c)],
    }
    for name, functions in calls.items():
        for function in functions:
            apart, together = function(), function(clusters=labels)
            assert together.attrs["n_resampled"] == 6
            assert apart.attrs["n_resampled"] == 24
            if name == "change":
                assert wide(together, name) > 1.4 * wide(apart, name)
    with pytest.raises(MetricError, match="one label for each"):
        edge_patching(policy, **pairs, clusters=[0, 1])
