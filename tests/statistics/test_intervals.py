"""Intervals cover what they promise, by simulation, and say so where they cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest

from rlmech.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    largest_spread,
    n_for_half_width,
    normalised_recovery,
    share_difference_interval,
    wilson,
)
from rlmech.statistics.draws import Draws, _freedom

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
N_SIMULATED = 2000
LEAST = 0.93 - 0.011  # nominal 0.95; two standard errors of the simulation below the promise


def mostly_zero(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.85, 0.0, rng.normal(1, 1, shape))


def mostly_zero_and_skewed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.85, 0.0, rng.exponential(1, shape))


DATA: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(1, 2, shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(0, 1, shape), float(np.exp(0.5))),
    "differences of lognormal data": (lambda rng, s: rng.lognormal(0, 1, s) - rng.lognormal(0, 1, s), 0.0),
    "mostly zero": (mostly_zero, 0.15),
    "mostly zero and skewed": (mostly_zero_and_skewed, 0.15),
    "at the top": (lambda rng, shape: 500 - 100 * mostly_zero(rng, shape), 485.0),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("n", [8, 10, 14, 20, 66])
def test_the_interval_of_a_mean_covers_at_least_93_times_in_100(kind: str, n: int) -> None:
    draw, mean = DATA[kind]
    interval = bootstrap_mean(draw(np.random.default_rng(n), (N_SIMULATED, n)), n_resamples=1000)
    assert ((interval.low <= mean) & (mean <= interval.high)).mean() >= LEAST


@pytest.mark.parametrize("n", [8, 20, 66])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_interval_of_a_recovery_covers_at_least_93_times_in_100(n: int, *, noisy: bool) -> None:
    rng, hits = np.random.default_rng(n), 0
    for seed in range(400):
        size = rng.normal(2, 1, n) if noisy else rng.lognormal(0, 0.5, n)
        patched = size * rng.normal(0.5, 0.3, n)
        ratio = normalised_recovery(patched[None], source=size, base=np.zeros(n), seed=seed, n_resamples=500).ratio
        hits += bool(ratio.low[0] <= 0.5 <= ratio.high[0])
    assert hits / 400 >= 0.93 - 0.025


@pytest.mark.parametrize("n_clusters", [4, 8, 20])
def test_few_clusters_are_enough_for_an_honest_interval(n_clusters: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N_SIMULATED, n_clusters, 1)) + rng.normal(size=(N_SIMULATED, n_clusters, 10))
    labels = np.repeat(np.arange(n_clusters), 10)
    interval = bootstrap_mean(values.reshape(N_SIMULATED, -1), clusters=labels, n_resamples=1000)
    assert ((interval.low <= 0) & (interval.high >= 0)).mean() >= LEAST


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_pairs_give_no_interval_and_say_so(n: int) -> None:
    for values in (np.arange(n, dtype=float)[None] + 2, np.zeros((1, n))):
        interval = bootstrap_mean(values, shares="shares" if not values.any() else None)
        assert np.isnan([interval.low[0], interval.high[0], interval.p[0]]).all()
        assert interval.attrs["interval"].startswith(f"none: {n} pairs are fewer than the 4")


def test_three_clusters_give_no_interval_however_many_pairs_they_hold() -> None:
    values = np.random.default_rng(0).normal(size=(1, 300))
    assert np.isnan(bootstrap_mean(values, clusters=np.repeat([0, 1, 2], 100)).low[0])


def test_an_interval_leaves_zero_out_exactly_where_its_p_value_is_small() -> None:
    rng = np.random.default_rng(2)
    for n in (5, 8, 30):
        values = np.concatenate([rng.normal(0.6, 1, (400, n)), rng.exponential(1, (400, n)) - 0.5])
        interval = bootstrap_mean(values)
        left_out = (interval.low > 0) | (interval.high < 0)
        clear = np.abs(interval.p - 0.05) > 0.003  # two thousand draws tell p to a thousandth
        assert np.array_equal(left_out[clear], (interval.p < 0.05)[clear])


def test_nothing_but_zeros_is_bounded_by_what_may_not_have_been_seen() -> None:
    interval = bootstrap_mean(np.zeros((1, 20)), scale=10.0)
    unseen = 1 - 0.025 ** (1 / 20)
    assert interval.high[0] == pytest.approx(10 * unseen)
    assert interval.low[0] == pytest.approx(-10 * unseen)
    assert np.isposinf(bootstrap_mean(np.zeros((1, 20))).high[0]), "zeros of unknown scale bound nothing"


def test_a_ratio_whose_denominator_may_be_zero_is_unbounded() -> None:
    rng = np.random.default_rng(0)
    interval = bootstrap_ratio(rng.normal(1, 1, (1, 30)), rng.normal(0, 1, 30))
    assert np.isneginf(interval.low[0])
    assert np.isposinf(interval.high[0])


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (75, 500), (500, 500)])
def test_wilsons_interval_is_scipys(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    ones = np.r_[np.ones(hits), np.zeros(n - hits)][None]
    interval = bootstrap_mean(ones, shares="shares")
    assert (interval.low[0], interval.high[0]) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("up", "down", "n"), [(12, 1, 44), (1, 3, 8), (0, 5, 20)])
def test_tangos_ends_are_where_the_score_is_the_quantile(up: int, down: int, n: int) -> None:
    ends = share_difference_interval(np.r_[np.ones(up), -np.ones(down), np.zeros(n - up - down)][None])
    for end in (float(ends[0][0]), float(ends[1][0])):
        q = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]  # the share of -1, given that of 1 is q + end
        likelihood = up * np.log(q + end) + down * np.log(q) + (n - up - down) * np.log(1 - 2 * q - end)
        likeliest = q[likelihood.argmax()]
        score = ((up - down) / n - end) / np.sqrt((2 * likeliest + end - end**2) / n)
        assert abs(score) == pytest.approx(1.959964, abs=2e-3)


def test_tangos_interval_of_no_change_is_its_closed_form() -> None:
    low, high = share_difference_interval(np.zeros((1, 44)))
    assert (-low[0], high[0]) == pytest.approx((1.959964**2 / (44 + 1.959964**2),) * 2, abs=1e-6)


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.1), (0.02, 0.07), (0.3, 0.3)])
@pytest.mark.parametrize("n", [8, 20, 66])
def test_differences_of_rates_are_covered(before: float, after: float, n: int) -> None:
    rng = np.random.default_rng(n)
    shape = (N_SIMULATED, n)
    interval = bootstrap_mean((rng.random(shape) < after) * 1.0 - (rng.random(shape) < before), shares="differences")
    assert ((interval.low <= after - before) & (after - before <= interval.high)).mean() >= LEAST


def test_no_event_is_never_an_interval_of_no_width() -> None:
    shares, differences = (bootstrap_mean(np.zeros((1, 8)), shares=kind) for kind in ("shares", "differences"))
    assert (shares.low[0], differences.low[0] < 0) == (0, True)
    assert shares.high[0] > 0.3
    assert differences.high[0] > 0.3


def test_copies_of_each_state_make_the_interval_of_a_rate_no_narrower() -> None:
    hits = (np.random.default_rng(0).random((3, 40)) < 0.3) * 1.0
    once = bootstrap_mean(hits)
    copied = bootstrap_mean(hits.repeat(10, axis=1), clusters=np.repeat(np.arange(40), 10))
    assert (copied.high - copied.low >= once.high - once.low).all()


def test_as_many_seeds_as_asked_for_give_the_width_asked_for() -> None:
    rng = np.random.default_rng(2)
    n = n_for_half_width(3.0, half_width=0.4)
    halves = [1.96 * rng.normal(0, 3, n).std(ddof=1) / np.sqrt(n) for _ in range(200)]
    assert np.mean(halves) == pytest.approx(0.4, rel=0.03)


def test_the_largest_spread_is_at_least_the_true_one_as_often_as_it_says() -> None:
    values = np.random.default_rng(0).normal(0, 3, (4000, 6))
    assert (largest_spread(values, scale=10.0) >= 3).mean() == pytest.approx(0.95, abs=0.012)
    assert largest_spread(np.zeros((1, 6)), scale=2.0)[0] > 0.5, "no difference seen is not no difference"


def test_the_tails_are_those_of_the_sorted_studentised_means():
    generator = np.random.default_rng(0)
    values = generator.lognormal(size=(7, 30))
    draws = Draws(values, np.ones(30), clusters=None, n_resamples=400, seed=3)
    found = draws.interval(confidence=0.95, scale=1.0)
    counts = draws.counts.astype(np.float64).T
    rest = values - values.mean(1, keepdims=True)
    variance = rest.var(1)
    for site in range(7):
        means = counts @ rest[site] / 30
        spread = (counts @ rest[site] ** 2 / 30 - means**2) * 30 + variance[site] / 2
        studentised = np.sort(means / np.sqrt(spread / (30.5 * 29)))
        longer = 1 + 1.5 * abs((rest[site] ** 3).mean() / variance[site] ** 1.5) / np.sqrt(30)
        small, error, t = 1 + 12 / 900, np.sqrt(variance[site] / 29), 2.0452296
        np.testing.assert_allclose(
            values[site].mean() - found.low[site], error * small * max(studentised[-10], t), rtol=1e-4
        )
        np.testing.assert_allclose(
            found.high[site] - values[site].mean(), error * small * longer * max(-studentised[9], t), rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["normal", "lognormal", "mostly zero"])
def test_intervals_of_many_pairs_cover_whether_pairs_or_groups_of_them_are_drawn(kind):
    generator, n = np.random.default_rng(1), 400
    values = {"normal": generator.normal(size=(600, n)), "lognormal": generator.lognormal(size=(600, n))}
    values["mostly zero"] = values["lognormal"] * (generator.random((600, n)) < 0.1)
    mean = {"normal": 0.0, "lognormal": np.exp(0.5), "mostly zero": 0.1 * np.exp(0.5)}[kind]
    interval = bootstrap_mean(values[kind], n_resamples=1000)
    covered = np.mean((interval.low <= mean) & (mean <= interval.high))
    assert 0.93 <= covered <= 0.999
    assert interval.n_pairs == n


def test_of_many_pairs_the_most_frequent_value_does_not_tell_of_the_spread():
    values = np.zeros((1, 1000))
    values[0, :20] = np.arange(20) + 1.0
    few = _freedom(values, np.full(1, 1e-12))
    assert few.tolist() == [20]
    assert _freedom(np.arange(1000.0)[None], np.full(1, 1e-12)).tolist() == [999]
