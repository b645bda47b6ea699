"""Discovery methods scored on known circuits: by hand on gates, and by the laws of ROC curves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rlmech import edges, testbed
from rlmech.edges.method_scores import RATES
from rlmech.errors import ConfigError, MetricError


@pytest.fixture(scope="module")
def scored():
    circuits = {"and": testbed.and_gate(), "or": testbed.or_gate(), "program": testbed.known_program("histogram")}
    return edges.score_discovery(circuits)


def test_denoising_finds_an_or_and_noising_an_and(scored):
    found = scored["n_true_found"].sel(circuit=["and", "or"], found_by=["patching denoise", "patching noise"])
    assert found.values.tolist() == [[1, 5], [5, 1]]


def test_exact_methods_find_a_program_whole_and_gradients_stop_at_its_tables(scored):
    one = scored.sel(circuit="program")
    for name in ("patching denoise", "patching noise", "acdc"):
        assert float(one["auroc"].sel(found_by=name)) == 1
        assert int(one["n_true_found"].sel(found_by=name)) == int(one["n_true"]) == 6
    assert int(one["n_true_found"].sel(found_by="eap noise")) == 1
    assert int(one["n_false_found"].max()) == 0


def test_an_roc_curve_rises_from_0_to_1_and_has_the_area_that_is_told(scored):
    curves = scored["sensitivity"].transpose("circuit", "found_by", "rate").values
    assert (np.diff(curves, axis=-1) >= -1e-12).all()
    assert (curves[..., -1] == 1).all()
    areas = np.trapezoid(curves, RATES, axis=-1)
    np.testing.assert_allclose(areas, scored["auroc"].values, atol=0.01)  # told at 101 rates


def test_scores_of_patching_are_those_of_brute_force():
    known = testbed.hard_circuit("mixed")
    found = edges.score_edges(known, methods=["patching noise"])
    index = {(a, b): i for i, (a, b) in enumerate(zip(found.sender.values, found.receiver.values, strict=True))}
    before = known.policy(known.clean).detach()
    gap = before - known.policy(known.corrupt).detach()
    whole = float((gap[:, 0] - gap[:, 1]).abs().mean())
    names = dict(zip(known.units, _names(known), strict=True))
    for edge in sorted(known.all_edges, key=str)[::7]:
        change = testbed.brute_force(known, base=known.clean, other=known.corrupt, edges={edge}) - before
        effect = float((change[:, 0] - change[:, 1]).abs().mean()) / whole
        score = found.score.values[0, index[names[edge[0]], names[edge[1]]]]
        assert score == pytest.approx(effect if effect > 1e-9 else 0, abs=1e-12)


def _names(known):
    from rlmech.edges.components import unit_name

    return [unit_name(known.policy.hook_dict[unit.name], unit) for unit in known.units]


def test_what_cannot_be_scored_is_refused():
    known = testbed.and_gate()
    with pytest.raises(ConfigError, match="eap-ig"):
        edges.score_edges(known, methods=["eap-igg"])  # type: ignore[list-item]
    with pytest.raises(ConfigError):
        edges.score_edges(known, methods=[])
    with pytest.raises(ConfigError, match="no circuit"):
        edges.score_discovery({})
    with pytest.raises(MetricError, match="do not differ"):
        edges.score_edges(dataclasses.replace(known, corrupt=known.clean), methods=["patching noise"])
