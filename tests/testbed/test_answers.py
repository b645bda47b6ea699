"""The answers that the testbed's policies carry, against the oracle, against hooks and against autograd."""

import dataclasses

import pytest
import torch

import rlmech.testbed as testbed
from rlmech.core.interventions import zero_ablation
from rlmech.core.site import Site
from rlmech.errors import ConfigError
from rlmech.testbed import Equation
from tests.testbed.policies import POLICIES, make

BY_HAND = tuple(name for name in POLICIES if name != "random_circuit")
EXACT = {"rtol": 0.0, "atol": 1e-10}


def gap(known, scores):
    better, worse = (known.policy.spec.index("action", name) for name in (known.better, known.worse))
    return scores[:, better] - scores[:, worse]


def runs(known, experiment):
    """Base and source of an experiment."""
    return (
        (known.clean, known.corrupt)
        if "noise" in experiment and "denoise" not in experiment
        else (
            known.corrupt,
            known.clean,
        )
    )


def answers(known, experiment, kind):
    found = {key: value for key, value in known.answers.get(experiment, {}).items() if isinstance(key, kind)}
    return [(key, value, lambda text, key=key: f"{experiment} {key}: {text}") for key, value in found.items()]


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("experiment", ["denoise", "noise"])
def test_the_answer_of_an_edge_is_what_brute_force_finds(name, experiment):
    known = make(name)
    base, source = runs(known, experiment)
    for edge, answer, message in answers(known, experiment, tuple):
        scores = testbed.brute_force(known, base=base, other=source, edges={edge})
        effect = gap(known, scores) - gap(known, known.policy(base).detach())
        torch.testing.assert_close(effect, answer, **EXACT, msg=message)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("experiment", ["denoise", "noise"])
def test_the_answer_of_a_unit_is_what_brute_force_finds_along_all_its_edges(name, experiment):
    known = make(name)
    base, source = runs(known, experiment)
    for site, answer, message in answers(known, experiment, Site):
        if site not in known.units or site in known.outputs:
            continue
        edges = {edge for edge in known.all_edges if edge[0] == site}
        effect = gap(known, testbed.brute_force(known, base=base, other=source, edges=edges) - known.policy(base))
        torch.testing.assert_close(effect.detach(), answer, **EXACT, msg=message)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_answer_of_zeroing_is_what_an_edit_finds(name):
    known = make(name)
    for site, answer, message in answers(known, "zero", Site):
        with known.policy.edited([zero_ablation(site)]):
            scores = known.policy(known.clean)
        torch.testing.assert_close(
            gap(known, scores - known.policy(known.clean)).detach(), answer, **EXACT, msg=message
        )


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("experiment", ["attribute_denoise", "attribute_noise"])
def test_the_answer_of_an_attribution_is_gradient_times_difference(name, experiment):
    known = make(name)
    base, source = runs(known, experiment)
    _, cache = known.policy.run_with_cache(source)
    for site, answer, message in answers(known, experiment, Site):
        kept = {}

        def keep(value, hook, kept=kept):
            kept[hook.name] = value.detach().clone().requires_grad_()
            return kept[hook.name]

        scores = known.policy.run_with_hooks(base, fwd_hooks=[(site.name, keep)])
        (gradient,) = torch.autograd.grad(gap(known, scores).sum(), kept[site.name])
        mask = site.mask(known.policy.point(site.name))
        first_order = (gradient * (cache[site.name] - kept[site.name]) * mask).flatten(1).sum(1)
        torch.testing.assert_close(first_order.detach(), answer, **EXACT, msg=message)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_float64_names_its_actions_and_is_the_same_for_the_same_seed(name):
    known = make(name)
    again = testbed.random_circuit(0) if name == "random_circuit" else getattr(testbed, name)()
    assert {p.dtype for p in known.policy.parameters()} == {known.clean.dtype} == {torch.float64}
    assert {known.better, known.worse} <= set(known.policy.spec.actions)
    assert known.policy.fingerprint == again.policy.fingerprint
    assert torch.equal(known.clean, again.clean)
    assert torch.equal(known.corrupt, again.corrupt)


@pytest.mark.parametrize("name", POLICIES)
def test_every_unit_is_a_single_number_and_every_score_is_a_unit(name):
    known = make(name)
    assert all(unit.mask(known.policy.point(unit.name)).sum() == 1 for unit in known.units)
    assert len(known.outputs) == len(known.policy.spec.actions)
    assert set(known.units) == {*known.inputs, *known.hidden, *known.outputs}


@pytest.mark.parametrize("name", POLICIES)
def test_leaving_out_everything_but_the_circuit_changes_no_gap_where_the_rest_leads_nowhere(name):
    known = make(name)
    rest = known.all_edges - known.edges
    scores = testbed.brute_force(known, base=known.clean, other=known.corrupt, edges=rest)
    change = gap(known, scores - known.policy(known.clean)).detach().abs()
    assert change.max() < (0.5 if name == "random_circuit" else 1e-10)  # its background is weak, not absent
    whole = testbed.brute_force(known, base=known.clean, other=known.corrupt, edges=known.edges)
    assert gap(known, whole - known.policy(known.corrupt)).detach().abs().max() < (
        0.5 if name == "random_circuit" else 1e-10
    )


@pytest.mark.parametrize("name", ["brake", "and_gate", "or_gate", "backup", "cancellation"])
def test_a_small_policy_answers_for_all_its_units_and_edges(name):
    known = make(name)
    for experiment in ("denoise", "noise"):
        assert known.all_edges <= set(known.answers[experiment])
    for experiment in ("denoise", "noise", "zero", "attribute_denoise", "attribute_noise"):
        assert {*known.inputs, *known.hidden} <= set(known.answers[experiment])


def test_the_larger_policies_answer_for_what_they_say_they_do():
    grids, scenes = make("matched_filter"), make("nearest_vehicle")
    for experiment in ("denoise", "noise"):
        past_filters = {edge for edge in grids.all_edges if edge[0] not in grids.inputs}
        assert {*grids.hidden, *past_filters} <= set(grids.answers[experiment])
        of_vehicles = {unit for unit in scenes.hidden if unit.name.startswith(("others_", "output_"))}
        assert {*of_vehicles, *scenes.inputs[4:]} <= set(scenes.answers[experiment])
        assert of_vehicles <= set(scenes.answers[f"attribute_{experiment}"])


def test_the_heads_of_the_nearest_vehicle_policy_are_one_hot_and_the_decoy_is_alive():
    known = make("nearest_vehicle")
    _, cache = known.policy.run_with_cache(known.clean)
    pattern = cache["attention_layer.hook_pattern"].detach()
    assert ((pattern == 0) | (pattern == 1)).all()
    assert (pattern[:, 0] != pattern[:, 1]).any()
    assert (cache["attention_layer.hook_z"][:, 0, 1, 0] > 10).double().mean() > 0.5
    assert (pattern[:, 0, 0, 0] == 1).any()  # scenes without a vehicle in the lane


def test_equations_out_of_order_and_edges_that_are_none_are_refused():
    known = testbed.cancellation()
    with pytest.raises(ConfigError, match="not in order"):
        dataclasses.replace(known, equations=known.equations[::-1])
    with pytest.raises(ConfigError, match="it stands there twice"):
        dataclasses.replace(known, equations=(*known.equations, Equation(unit=known.units[0])))
    with pytest.raises(ConfigError, match="no edge of the network"):
        dataclasses.replace(known, edges=frozenset({(known.inputs[0], known.outputs[0])}))
