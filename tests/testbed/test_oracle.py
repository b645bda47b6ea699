"""The oracle of known circuits: edges and paths by brute force, proved against the networks themselves."""

import pytest
import torch

import rlmech.testbed as testbed
from rlmech.core.interventions import patch
from rlmech.core.site import Site
from rlmech.errors import ObservationError, SiteError
from tests.testbed.policies import POLICIES, make

EXACT = {"rtol": 0.0, "atol": 1e-11}
"""Sums of a few hundred float64 numbers of size 1 to 1e3, in another order."""


@pytest.mark.parametrize("name", POLICIES)
def test_without_an_exchanged_edge_the_equations_are_the_network(name):
    known = make(name)
    for base, other in ((known.clean, known.corrupt), (known.corrupt, known.clean)):
        found = testbed.brute_force(known, base=base, other=other, edges=())
        torch.testing.assert_close(found, known.policy(base).detach(), **EXACT)


@pytest.mark.parametrize("name", POLICIES)
def test_every_unit_has_the_value_that_the_network_gives_it(name):
    known = make(name)
    _, cache = known.policy.run_with_cache(known.clean)
    for unit, value in testbed.unit_values(known, known.clean).items():
        point = known.policy.point(unit.name)
        seen = cache[unit.name][unit.index(point)].reshape(len(known.clean)).detach()
        torch.testing.assert_close(value, seen, **EXACT, msg=lambda text, unit=unit: f"{unit}: {text}")


@pytest.mark.parametrize("name", POLICIES)
def test_all_edges_or_those_into_the_scores_or_those_out_of_the_observation_give_the_other_run(name):
    known = make(name)
    wanted = known.policy(known.clean).detach()
    inputs = frozenset(edge for edge in known.all_edges if edge[0] in known.inputs)
    outputs = frozenset(edge for edge in known.all_edges if edge[1] in known.outputs)
    for edges in (known.all_edges, inputs, outputs):
        found = testbed.brute_force(known, base=known.corrupt, other=known.clean, edges=edges)
        torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("name", POLICIES)
def test_exchanging_the_edges_out_of_a_unit_is_patching_it_in_the_network(name):
    known = make(name)
    for base, other in ((known.clean, known.corrupt), (known.corrupt, known.clean)):
        _, cache = known.policy.run_with_cache(other)
        for unit in known.units[:: max(1, len(known.units) // 12)]:
            if unit in known.outputs:
                continue
            with known.policy.edited([patch(unit, source=cache)]):
                wanted = known.policy(base).detach()
            edges = frozenset(edge for edge in known.all_edges if edge[0] == unit)
            found = testbed.brute_force(known, base=base, other=other, edges=edges)
            torch.testing.assert_close(found, wanted, **EXACT, msg=lambda text, unit=unit: f"{unit}: {text}")


@pytest.mark.parametrize("name", ["cancellation", "random_circuit"])
def test_all_paths_from_a_unit_are_all_edges_out_of_it(name):
    known = make(name)
    for unit in (*known.inputs[:2], *known.hidden[:3]):
        paths = [path for score in known.outputs for path in testbed.paths_between(known, unit, score)]
        along = testbed.brute_force_paths(known, base=known.corrupt, other=known.clean, paths=paths)
        out = frozenset(edge for edge in known.all_edges if edge[0] == unit)
        patched = testbed.brute_force(known, base=known.corrupt, other=known.clean, edges=out)
        torch.testing.assert_close(along, patched, **EXACT)


def test_a_path_leaves_the_unit_between_as_it_is_for_all_other_readers():
    known = testbed.cancellation()
    light, h1, h2, slower = known.inputs[0], known.hidden[0], known.hidden[2], known.outputs[0]
    base = known.policy(known.corrupt).detach()[:, 0]

    def effect(*paths):
        scores = testbed.brute_force_paths(known, base=known.corrupt, other=known.clean, paths=paths)
        return (scores[:, 0] - base).tolist()[0]

    assert effect((light, h1, slower)) == 1
    assert effect((light, h1, h2, slower)) == -1
    assert effect((light, h1, slower), (light, h1, h2, slower)) == 0
    swapped = testbed.brute_force(known, base=known.corrupt, other=known.clean, edges={(light, h1)})
    assert (swapped[:, 0] - base).tolist()[0] == 0


def test_paths_that_reach_a_score_by_different_edges_add_up_even_where_one_starts_inside_the_other():
    known = make("random_circuit")
    score = known.outputs[0]
    longest = [path for x in known.inputs for path in testbed.paths_between(known, x, score) if len(path) >= 4]
    before = known.policy(known.corrupt).detach()

    def effect(*paths):
        return testbed.brute_force_paths(known, base=known.corrupt, other=known.clean, paths=paths) - before

    tried = 0
    for path in longest:
        direct = (path[1], score)
        if direct in known.all_edges:
            tried += 1
            torch.testing.assert_close(effect(path, direct), effect(path) + effect(direct), **EXACT)
    assert tried


def test_what_is_no_edge_no_path_or_no_pair_is_refused_with_what_would_be():
    known = testbed.cancellation()
    light, slower = known.inputs[0], known.outputs[0]
    rows = {"base": known.clean, "other": known.corrupt}
    with pytest.raises(SiteError, match=r"does not read Site\('hook_obs', feature=0\)"):
        testbed.brute_force(known, **rows, edges={(light, slower)})
    with pytest.raises(SiteError, match="no unit of this policy's circuit"):
        testbed.brute_force(known, **rows, edges={(light, Site("first.hook_out", neuron=0))})
    with pytest.raises(SiteError, match="A path ends at a score"):
        testbed.brute_force_paths(known, **rows, paths=[(light, known.hidden[0])])
    with pytest.raises(SiteError, match="does not read"):
        testbed.brute_force_paths(known, **rows, paths=[(light, slower)])
    with pytest.raises(SiteError, match="no unit"):
        list(testbed.paths_between(known, Site("hook_obs"), slower))
    with pytest.raises(ObservationError, match="do not pair up"):
        testbed.brute_force(known, base=known.clean, other=known.corrupt[:1], edges=())
