"""Planted circuits: what is planted counts, what is not does not; and the score of those who look for it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

import rlmech.testbed as testbed
from rlmech.core.site import Site
from rlmech.errors import ConfigError


def edge_effects(known, base, other):
    """Mean size of the change of the gap when each edge alone carries the other run's value."""
    before = known.policy(base).detach()
    effects = {}
    for edge in known.all_edges:
        change = testbed.brute_force(known, base=base, other=other, edges={edge}) - before
        effects[edge] = float((change[:, 0] - change[:, 1]).abs().mean())
    return effects


@pytest.mark.parametrize("seed", range(8))
def test_each_planted_edge_alone_moves_the_gap_more_than_any_other_edge_does(seed):
    known = testbed.random_circuit(seed)
    for base, other in ((known.clean, known.corrupt), (known.corrupt, known.clean)):
        effects = edge_effects(known, base, other)
        planted = [effect for edge, effect in effects.items() if edge in known.edges]
        others = [effect for edge, effect in effects.items() if edge not in known.edges]
        assert min(planted) >= 0.05
        assert max(others) < min(planted)
        assert testbed.edge_auroc(effects, known.edges) == 1


@pytest.mark.parametrize("seed", range(4))
def test_every_planted_edge_lies_on_a_planted_path_from_a_feature_to_the_first_score(seed):
    known = testbed.random_circuit(seed)
    forward, backward = set(known.inputs), {known.outputs[0]}
    for unit in known.units:
        if any(source in forward and target == unit for source, target in known.edges):
            forward.add(unit)
    for unit in reversed(known.units):
        if any(source == unit and target in backward for source, target in known.edges):
            backward.add(unit)
    assert all(source in forward and target in backward for source, target in known.edges)


def test_all_hidden_units_are_alive_and_some_strong_edges_lead_nowhere():
    known = testbed.random_circuit(1)
    values = testbed.unit_values(known, known.clean)
    assert all(0 < (values[unit] > 0).double().mean() < 1 for unit in known.hidden)
    on_circuit = {unit for edge in known.edges for unit in edge}
    weight = dict(zip(known.units, range(len(known.units)), strict=True))
    aside = [unit for unit in known.hidden if unit not in on_circuit and unit.name.startswith("hidden.0.")]
    assert aside
    first = known.policy.module.get_parameter("hidden.0.0.weight").detach().abs()
    for unit in aside:
        read = first[weight[unit] - len(known.inputs)]
        assert read[read > 0].min() >= 0.5


def test_the_same_seed_draws_the_same_policy_and_another_seed_another():
    first, same, other = (testbed.random_circuit(seed) for seed in (3, 3, 4))
    assert first.policy.fingerprint == same.policy.fingerprint != other.policy.fingerprint
    assert first.edges == same.edges
    assert torch.equal(first.clean, same.clean)


def test_shape_density_and_number_of_pairs_are_as_asked():
    known = testbed.random_circuit(0, n_features=3, width=5, n_layers=2, n_paths=2, background=1.0, n_pairs=7)
    assert (len(known.inputs), len(known.hidden), len(known.outputs)) == (3, 10, 2)
    assert known.clean.shape == known.corrupt.shape == (7, 3)
    sparse = testbed.random_circuit(0, background=0.0)
    in_circuit = {target for _, target in sparse.edges}
    assert all(edge in sparse.edges for edge in sparse.all_edges if edge[1] in in_circuit)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="at least one of width"):
        testbed.random_circuit(0, width=0)
    with pytest.raises(ConfigError, match="sparse and weak"):
        testbed.random_circuit(0, background=1.5)
    with pytest.raises(ConfigError, match="not negative"):
        testbed.random_circuit(-1)
    with pytest.raises(ConfigError, match="every planted edge counts"):
        testbed.random_circuit(0, n_paths=40, n_layers=6, width=3, n_pairs=1)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_the_area_under_the_curve_is_the_mann_whitney_statistic_of_scipy(planted, others):
    edges = [(Site("hook_obs", feature=i), Site("hook_q_values", action=0)) for i in range(len(planted + others))]
    scores = dict(zip(edges, map(float, planted + others), strict=True))
    wanted = mannwhitneyu(planted, others).statistic / (len(planted) * len(others))
    assert testbed.edge_auroc(scores, edges[: len(planted)]) == pytest.approx(wanted, abs=1e-12)


def test_scores_that_cannot_be_ranked_are_refused():
    a, b = ((Site("hook_obs", feature=i), Site("hook_q_values", action=0)) for i in range(2))
    for scores, planted in (({a: 1.0}, {a}), ({a: 1.0}, set()), ({a: np.nan, b: 1.0}, {b}), ({b: 0.0}, {a})):
        with pytest.raises(ConfigError, match="do not tell planted edges from others"):
            testbed.edge_auroc(scores, planted)
