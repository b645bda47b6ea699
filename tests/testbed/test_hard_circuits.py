"""Circuits that are hard to find: they are circuits, and each kind hides what it says."""

from __future__ import annotations

from functools import cache

import pytest

import rlmech as rlm
from rlmech import testbed
from rlmech.errors import ConfigError
from tests.testbed.test_random_circuit import edge_effects


@cache
def made(kind: testbed.hard_circuits.Kind, seed: int = 0) -> testbed.KnownPolicy:
    return testbed.hard_circuit(kind, seed)


@pytest.mark.parametrize("kind", testbed.KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_circuit_is_sufficient_and_all_of_it_is_necessary(kind, seed):
    assert testbed.prove_circuit(made(kind, seed)).holds


@pytest.mark.parametrize("kind", testbed.KINDS)
def test_the_network_has_the_scores_of_its_equations(kind):
    known = made(kind)
    scores = testbed.brute_force(known, base=known.clean, other=known.corrupt, edges=[])
    assert float((scores - known.policy(known.clean)).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("kind", testbed.KINDS)
def test_alone_some_edge_outside_the_circuit_does_more_than_some_edge_of_it(kind):
    known = made(kind)
    effects = edge_effects(known, known.clean, known.corrupt)
    outside = max(effect for edge, effect in effects.items() if edge not in known.edges)
    inside = min(effect for edge, effect in effects.items() if edge in known.edges)
    assert outside > 3 * inside


def test_without_twins_no_edge_outside_the_circuit_does_anything():
    known = testbed.hard_circuit("cancelling", n_twins=0)
    effects = edge_effects(known, known.clean, known.corrupt)
    assert max(effect for edge, effect in effects.items() if edge not in known.edges) < 1e-12


def test_the_same_seed_draws_the_same_circuit_and_another_seed_another():
    first, same, other = (testbed.hard_circuit("weak", seed).policy.fingerprint for seed in (3, 3, 4))
    assert first == same != other


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'redundant'"):
        testbed.hard_circuit("redundancy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="out of its range"):
        testbed.hard_circuit("weak", n_pairs=3)


def test_no_method_tells_the_edges_of_hard_circuits_from_all_others():
    scored = rlm.edges.score_discovery({"cancelling": testbed.hard_circuit("cancelling", n_pairs=16)})
    assert float(scored["auroc"].max()) < 0.9
    assert int(scored["n_false_found"].min()) >= 12  # the twins, by every method
