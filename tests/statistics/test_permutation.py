"""Exact tests and corrections, against scipy and against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, permutation_test

from rlmech.statistics import exact_test, holm, permutation

DIFFERENCES = arrays(float, st.integers(2, 8), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0]))


@settings(max_examples=60, deadline=None)
@given(DIFFERENCES)
def test_it_is_scipys_test_of_all_signs(differences: np.ndarray) -> None:
    if not differences.any():
        assert exact_test(differences) == 1
        return
    told = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert exact_test(differences) == pytest.approx(told.pvalue, abs=1e-12)


def test_two_valued_outcomes_are_tested_by_mcnemar() -> None:
    differences = np.r_[np.ones(9), -np.ones(2), np.zeros(50)]
    assert exact_test(differences) == pytest.approx(binomtest(9, 11).pvalue)


def test_drawn_signs_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(0.6, 1, 13)
    exact = exact_test(differences)
    monkeypatch.setattr(permutation, "MOST_ENUMERATED", 0)
    monkeypatch.setattr(permutation, "_AT_ONCE", 13 * 1000)
    assert 0.01 < exact < 0.5
    assert exact_test(differences) == pytest.approx(exact, abs=4 * np.sqrt(exact / 100_000))
    assert exact_test(np.full(40, 1.0) + np.arange(40)) == pytest.approx(1 / 100_000), "never zero"


def test_the_level_is_kept() -> None:
    rng = np.random.default_rng(1)
    p = np.array([exact_test(rng.standard_t(3, 9)) for _ in range(1500)])
    for level in (0.05, 0.2):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level / 1500))


@given(arrays(float, st.integers(1, 6), elements=st.floats(0, 1)))
def test_holms_correction_is_its_definition(p: np.ndarray) -> None:
    order = np.argsort(p, kind="stable")
    expected = np.empty_like(p)
    for rank, place in enumerate(order):
        expected[place] = min(1, max((len(p) - k) * p[order[k]] for k in range(rank + 1)))
    assert holm(p) == pytest.approx(expected)
