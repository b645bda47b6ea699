"""Bootstrap draws of pairs or clusters, and the studentised intervals of a ratio of means that they give.

One draw of pairs serves all sites. Cost: two matrix products [resample pair] x [pair site] and a sort per site.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import coo_array
from scipy.special import stdtr, stdtrit

from rlmech.errors import MetricError
from rlmech.statistics.interval import FEWEST, Interval

_ELEMENTS_AT_ONCE = 2**21  # 16 MB
_ROUNDING = 1e-12  # values that differ by less, relative to the largest, are the same
_MIXED = 0.5  # pairs of the sample's own variance in each resample's
_SKEW = 1.5  # how much longer the interval is on the side of the skewness, per skewness / sqrt(n)
_SMALL_SAMPLE, _SMALL_SAMPLE_MOST = 12.0, 0.25  # how much longer it is where there are few pairs: 12 / n^2, at most 1/4

Clusters = Shaped[np.ndarray, " pair"] | Sequence[int] | Sequence[str]
"""A label for each pair; pairs of one label are resampled together."""


class Draws:
    """Bootstrap draws of the pairs, or of clusters, whose sums stand in place of the pairs' values."""

    def __init__(
        self,
        numerator: Float[np.ndarray, "site pair"],
        denominator: Float[np.ndarray, " pair"],
        *,
        clusters: Clusters | None,
        n_resamples: int,
        seed: int,
    ) -> None:
        self.numerator, self.denominator = numerator.astype(np.float64), denominator.astype(np.float64)
        if clusters is not None:  # a ratio of means is a ratio of sums: the sums over clusters stand in for pairs
            together = membership_of(clusters, numerator.shape[1])
            self.numerator, self.denominator = self.numerator @ together, self.denominator @ together
        self.proportional = bool(np.ptp(denominator) > 0)
        self.seed, self.n_resamples, self.clustered = seed, n_resamples, clusters is not None
        self.n_sites, self.n_pairs = self.numerator.shape
        self._weights: Float[np.ndarray, "resample pair"] | None = None

    @property
    def weights(self) -> Float[np.ndarray, "resample pair"]:
        """How often each pair is drawn, as a share of all."""
        if self._weights is None:
            generator = np.random.default_rng(self.seed)
            counts = np.empty((self.n_resamples, self.n_pairs), dtype=np.float32)  # twice as fast; draws are noise
            at_once = max(1, _ELEMENTS_AT_ONCE // self.n_pairs)
            for start in range(0, self.n_resamples, at_once):
                n_draws = min(at_once, self.n_resamples - start)
                drawn = generator.integers(self.n_pairs, size=(n_draws, self.n_pairs))
                places = (drawn + self.n_pairs * np.arange(n_draws)[:, None]).ravel()
                counted = np.bincount(places, minlength=n_draws * self.n_pairs)
                counts[start : start + n_draws] = counted.reshape(n_draws, self.n_pairs)
            counts /= self.n_pairs
            self._weights = counts
            return counts
        return self._weights

    def over(self, counts: Float[np.ndarray, " pair"]) -> Draws:
        """The same draws of the same numerator over the number of pairs (in each cluster): its mean."""
        twin = copy(self)
        twin.denominator, twin.proportional = counts, False
        return twin

    def interval(self, *, confidence: float, scale: float) -> Interval:
        """The ratio of means with its interval; `scale` as for `bootstrap_mean`, in the ratio's unit."""
        low, high, p = (np.full(self.n_sites, np.nan) for _ in range(3))
        if self.n_pairs >= FEWEST:
            at_once = max(1, _ELEMENTS_AT_ONCE // max(self.n_resamples, 1))
            for start in range(0, self.n_sites, at_once):
                own = slice(start, start + at_once)
                low[own], high[own], p[own] = self._ends(self.numerator[own], scale, confidence)
        return Interval(
            estimate=quotient(self.numerator.mean(1), self.denominator.mean()),
            low=low,
            high=high,
            p=p,
            confidence=confidence,
            n_pairs=self.n_pairs,
            clustered=self.clustered,
            method="studentised bootstrap",
            n_resamples=self.n_resamples,
            seed=self.seed,
        )

    def _ends(
        self, numerator: Float[np.ndarray, "site pair"], scale: float, confidence: float
    ) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"], Float[np.ndarray, " site"]]:
        """Ends and p-values of some sites."""
        n, mean = self.n_pairs, self.denominator.mean()
        if mean == 0:  # nothing bounds a quotient whose denominator may have either sign
            return np.full(len(numerator), -np.inf), np.full(len(numerator), np.inf), np.ones(len(numerator))
        numerator, denominator = numerator / mean, self.denominator / mean
        ratio = numerator.mean(1)
        rest = numerator - ratio[:, None] * denominator
        rest = rest - rest.mean(1, keepdims=True)  # zero but for rounding
        noise = _ROUNDING * np.maximum(np.abs(numerator).max(1), np.abs(ratio) * np.abs(denominator).max())
        still = np.abs(rest).max(1) <= noise
        squared = rest * rest
        variance = np.where(still, 1.0, squared.mean(1))
        skewness = np.where(still, 0.0, (squared * rest).mean(1) / variance**1.5)
        drawn = self._studentised(rest / np.sqrt(variance)[:, None])
        tail = (1 - confidence) / 2
        freedom = _freedom(rest, noise)
        quantiles = stdtrit(np.arange(1, n), 1 - tail)[freedom - 1]
        small = 1 + min(_SMALL_SAMPLE_MOST, _SMALL_SAMPLE / n**2)
        stretch = 1 + _SKEW * np.abs(skewness) / np.sqrt(n)
        below, above = small * np.where(skewness < 0, stretch, 1.0), small * np.where(skewness > 0, stretch, 1.0)
        lowest, highest = _quantiles(drawn, tail)
        spread = variance / (n - 1)
        covariance, own = (rest @ denominator) / n / (n - 1), float(denominator.var() / (n - 1))
        low = ratio - _root(below * np.maximum(highest, quantiles), spread, covariance, own, sign=-1)
        high = ratio + _root(above * np.maximum(-lowest, quantiles), spread, covariance, own, sign=1)
        # p: the largest tail whose interval still holds zero
        side = np.where(ratio > 0, below, above)
        at_zero = np.sqrt(np.maximum(spread + 2 * ratio * covariance + ratio**2 * own, 0))
        size = np.divide(np.abs(ratio), at_zero * side, out=np.zeros(len(ratio)), where=at_zero > 0)
        drawn *= np.where(ratio > 0, 1, -1)[:, None].astype(np.float32)
        beyond = np.count_nonzero(drawn >= size[:, None].astype(np.float32), axis=1) / self.n_resamples
        p = np.minimum(1, 2 * np.maximum(beyond, stdtr(freedom, -size)))
        return self._unvaried(ratio, still, scale, tail, (low, high, p))

    def _studentised(self, rest: Float[np.ndarray, "site pair"]) -> Float[np.ndarray, "site resample"]:
        """The resampled means in units of their own standard error, of values with mean 0 and variance 1.

        A resample of equal values has no spread, and would be infinitely far off: half a pair of the sample's own
        variance is mixed into each resample's.
        """
        n = self.n_pairs
        rest = rest.astype(np.float32)
        means = rest @ self.weights.T
        spread = (rest * rest) @ self.weights.T
        spread -= means * means
        spread *= n
        spread += _MIXED
        spread *= 1 / ((n + _MIXED) * (n - 1))
        np.maximum(spread, 1e-30, out=spread)
        np.sqrt(spread, out=spread)
        means /= spread
        return means

    def _unvaried(
        self,
        ratio: Float[np.ndarray, " site"],
        still: Bool[np.ndarray, " site"],
        scale: float,
        tail: float,
        found: tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"], Float[np.ndarray, " site"]],
    ) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"], Float[np.ndarray, " site"]]:
        """Where all values are the same: the share of unseen others, times how far they may lie.

        Numerators in proportion to denominators that vary are more than that: each pair says the same of the ratio.
        """
        low, high, p = found
        n = self.n_pairs
        half = (1 - tail ** (1 / n)) * scale if scale > 0 else np.inf
        half = np.where((ratio != 0) & self.proportional, 0.0, half)
        reach = np.minimum(np.abs(ratio) / scale, 1.0) if scale > 0 else np.ones(len(ratio))
        same = np.minimum(1, 2 * (1 - reach) ** n) if scale > 0 else np.ones(len(ratio))
        return (
            np.where(still, ratio - half, low),
            np.where(still, ratio + half, high),
            np.where(still, same, p),
        )


def membership_of(clusters: Clusters, n_pairs: int) -> Any:
    """Which pair is in which cluster, [pair cluster], sparse."""
    labels = np.asarray(clusters)
    if labels.shape != (n_pairs,):
        raise MetricError(
            "Clusters label the pairs.",
            given=f"labels of shape {list(labels.shape)} for {n_pairs} pairs",
            expected=f"one label for each of the {n_pairs} pairs",
            fix='give e.g. the episode of each pair: clusters=recording.steps["episode"]',
        )
    _, cluster = np.unique(labels, return_inverse=True)
    return coo_array((np.ones(n_pairs), (np.arange(n_pairs), cluster))).tocsr()


def quotient(numerator: Any, denominator: Any) -> Float[np.ndarray, "*shape"]:
    """A ratio that is 0 where both vanish, and infinite where only the denominator does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.asarray(numerator / np.asarray(denominator))
    return np.where((np.asarray(numerator) == 0) & (np.asarray(denominator) == 0), 0.0, quotient)


def _freedom(rest: Float[np.ndarray, "site pair"], noise: Float[np.ndarray, " site"]) -> Int[np.ndarray, " site"]:
    """Degrees of freedom: values that are not the most frequent one, for only those tell of the spread."""
    ordered = np.sort(rest, axis=1)
    n = ordered.shape[1]
    parted = np.diff(ordered, axis=1) > noise[:, None]
    if parted.all():
        return np.full(len(rest), n - 1)
    runs = np.zeros((len(rest), n), dtype=np.int64)
    runs[:, 1:] = np.where(parted, np.arange(1, n), 0)
    longest = (np.arange(n) - np.maximum.accumulate(runs, axis=1)).max(1) + 1
    return np.clip(n - longest, 1, n - 1)


def _root(
    quantile: Float[np.ndarray, " site"],
    spread: Float[np.ndarray, " site"],
    covariance: Float[np.ndarray, " site"],
    own: float,
    *,
    sign: int,
) -> Float[np.ndarray, " site"]:
    """How far an end lies from the ratio: d with d^2 = q^2 (spread - 2 d covariance + d^2 own), Fieller's equation."""
    squared = quantile**2
    room = 1 - squared * own
    with np.errstate(divide="ignore", invalid="ignore"):
        far = (np.sqrt(squared**2 * covariance**2 + room * squared * spread) - sign * squared * covariance) / room
    return np.where(room > 0, far, np.inf)  # the denominator may be zero: nothing bounds the quotient


def _quantiles(
    drawn: Float[np.ndarray, "site resample"], tail: float
) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"]]:
    """The lowest and the highest value that a tail of the draws lies beyond."""
    n = drawn.shape[1]
    at = max(0, int(np.floor(tail * n)) - 1)
    ordered = np.sort(drawn, axis=1)  # on 32 bits half as long as a partition at the two places
    return ordered[:, at], ordered[:, n - 1 - at]
