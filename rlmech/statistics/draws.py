"""Bootstrap draws of pairs or clusters, and the studentised intervals of a ratio of means that they give.

One draw of pairs serves all sites, and all results of as many pairs. Cost: two matrix products [resample pair] x
[pair site]; the draws' tails are sorted only of sites whose tails are longer than t's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import coo_array
from scipy.special import stdtr, stdtrit

from rlmech.errors import MetricError
from rlmech.statistics.interval import FEWEST, Interval

_ELEMENTS_AT_ONCE = 2**20
_ELEMENTS_IN_CACHE = 2**18  # a megabyte
_MOST_SORTED = 256  # values of a site among which the most frequent one is looked for
_ORDER = 0x0DDE  # seed of the order in which pairs are put into groups, the same for all results
_MOST_RESAMPLED = 128  # pairs; of more, random groups of them are resampled
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
        self.numerator, self.denominator = numerator.astype(np.float64, copy=False), denominator.astype(np.float64)
        if clusters is not None:  # a ratio of means is a ratio of sums: the sums over clusters stand in for pairs
            together = membership_of(clusters, numerator.shape[1])
            self.numerator, self.denominator = self.numerator @ together, self.denominator @ together
        self.proportional = bool(np.ptp(denominator) > 0)
        self.seed, self.n_resamples, self.clustered = seed, n_resamples, clusters is not None
        self.n_sites, self.n_pairs = self.numerator.shape
        self._counts: Float[np.ndarray, "pair resample"] | None = None
        self._memory = _Memory()

    @property
    def counts(self) -> Float[np.ndarray, "pair resample"]:
        """How often each pair, or each group of pairs, is drawn; on 32 bits, which are twice as fast."""
        if self._counts is None:
            self._counts = _counts(self.seed, self.n_resamples, min(self.n_pairs, _MOST_RESAMPLED))
        return self._counts

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
        seen = _Residuals(numerator, self.denominator / mean, mean)
        ratio, spread, covariance = seen.ratio, seen.variance / (n - 1), seen.covariance / (n - 1)
        own = float((self.denominator / mean).var() / (n - 1))
        tail = (1 - confidence) / 2
        freedom, places = np.unique(seen.freedom, return_inverse=True)
        quantiles = stdtrit(freedom, 1 - tail)[places]
        small = 1 + min(_SMALL_SAMPLE_MOST, _SMALL_SAMPLE / n**2)
        stretch = 1 + _SKEW * np.abs(seen.skewness) / np.sqrt(n)
        below, above = (
            small * np.where(seen.skewness < 0, stretch, 1.0),
            small * np.where(seen.skewness > 0, stretch, 1.0),
        )
        # p: the largest tail whose interval still holds zero
        side = np.where(ratio > 0, below, above)
        at_zero = np.sqrt(np.maximum(spread + 2 * ratio * covariance + ratio**2 * own, 0))
        size = np.divide(np.abs(ratio), at_zero * side, out=np.zeros(len(ratio)), where=at_zero > 0)
        turned = np.where(ratio < 0, np.float32(-1), np.float32(1))  # towards where the estimate lies
        inner, outer, beyond = self._tails(seen.standardised * turned[:, None], tail, quantiles, size)
        low = ratio - _root(below * np.where(ratio < 0, inner, outer), spread, covariance, own, sign=-1)
        high = ratio + _root(above * np.where(ratio < 0, outer, inner), spread, covariance, own, sign=1)
        p = np.minimum(1, 2 * np.maximum(beyond / self.n_resamples, stdtr(seen.freedom, -size)))
        return self._unvaried(ratio, seen.still, scale, tail, (low, high, p))

    def _tails(
        self,
        rest: Float[np.ndarray, "site pair"],
        tail: float,
        quantiles: Float[np.ndarray, " site"],
        size: Float[np.ndarray, " site"],
    ) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"], Int[np.ndarray, " site"]]:
        """What the resampled means say, each in units of its own standard error.

        A resample of equal values has no spread, and would be infinitely far off: half a pair of the sample's own
        variance is mixed into each resample's.

        Args:
            rest: Values with mean 0 and variance 1.
            tail: Share of the draws beyond a quantile.
            quantiles: t's quantile of each site.
            size: A size for each site.

        Returns:
            How far the lower and the upper quantile lie from 0, t's where it lies further; and how many draws lie
            beyond the size.
        """
        rest, (n, n_draws) = self._grouped(rest), self.counts.shape
        unit = np.float32(np.sqrt((n + _MIXED) * (n - 1) / n))
        limits, sizes = ((far / unit).astype(np.float32)[:, None] for far in (quantiles, size))
        last = max(0, int(np.floor(tail * n_draws)) - 1)
        lowest, highest, beyond = quantiles.copy(), quantiles.copy(), np.zeros(len(rest), dtype=np.int64)
        buffers = self._memory.of((3, min(max(1, _ELEMENTS_IN_CACHE // n_draws), len(rest)), n_draws))
        for start in range(0, len(rest), at_once := buffers.shape[1]):
            own = slice(start, start + at_once)
            drawn, squares, spread = buffers[:, : len(rest[own])]
            np.matmul(rest[own] / np.float32(np.sqrt(n)), self.counts, out=drawn)
            np.matmul(rest[own] ** 2 + np.float32(_MIXED / n), self.counts, out=squares)  # n pairs are drawn each time
            np.multiply(drawn, drawn, out=spread)
            np.subtract(squares, spread, out=spread)
            drawn /= np.sqrt(spread, out=spread)
            beyond[own] = _count(drawn >= sizes[own])
            far = np.flatnonzero(_count(drawn > limits[own]) > last)  # elsewhere t's quantile lies further
            if len(far):
                highest[start + far] = (
                    unit * np.partition(drawn[far], n_draws - 1 - last, axis=1)[:, n_draws - 1 - last]
                )
            far = np.flatnonzero(_count(drawn < -limits[own]) > last)
            if len(far):
                lowest[start + far] = -unit * np.partition(drawn[far], last, axis=1)[:, last]
        return lowest, highest, beyond

    def _grouped(self, rest: Float[np.ndarray, "site pair"]) -> Float[np.ndarray, "site group"]:
        """Values with mean 0 and variance 1 of what is resampled: the pairs, or sums over random groups of them.

        A mean is skewed, and hangs together with its own standard error, as much over sums as over what is summed: the
        studentised means of both are alike but for terms of order one over the number of groups. The cost of a draw
        then no longer grows with the pairs.
        """
        n_sites, n = rest.shape
        if n <= _MOST_RESAMPLED:
            return rest
        order = _shuffled(n)
        starts = np.arange(_MOST_RESAMPLED) * n // _MOST_RESAMPLED
        sums = np.empty((n_sites, _MOST_RESAMPLED), dtype=np.float32)
        at_once = max(1, _ELEMENTS_IN_CACHE // n)
        for start in range(0, n_sites, at_once):
            own = slice(start, start + at_once)
            np.add.reduceat(rest[own].take(order, axis=1), starts, axis=1, out=sums[own])
        spread = sums.std(1, keepdims=True)
        return sums / np.where(spread > 0, spread, 1)

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


class _Memory:
    """Arrays that several intervals use one after the other: fresh memory costs as much as what is computed in it."""

    def __init__(self) -> None:
        self._array = np.empty(0, dtype=np.float32)

    def of(self, shape: tuple[int, ...]) -> Any:
        """An array of a shape, of whatever was in it."""
        size = math.prod(shape)
        if self._array.size < size:
            self._array = np.empty(size, dtype=np.float32)
        return self._array[:size].reshape(shape)


class _Residuals:
    """What each site's pairs tell of a ratio of means: numerators less ratio times denominators, and their moments.

    Args:
        numerator: Of some sites.
        denominator: With mean 1.
        mean: What the numerators are still to be divided by.

    Attributes:
        ratio: Ratio of means.
        still: Whether all pairs say the same, but for rounding.
        variance: Of the residuals; 1 where they are still.
        skewness: Of the residuals; 0 where they are still.
        covariance: Of residuals and denominators.
        freedom: Values that tell of the spread.
        standardised: The residuals with variance 1, on 32 bits.
    """

    def __init__(
        self, numerator: Float[np.ndarray, "site pair"], denominator: Float[np.ndarray, " pair"], mean: float
    ) -> None:
        n_sites, n = numerator.shape
        self.ratio, self.variance, self.skewness, self.covariance = (np.zeros(n_sites) for _ in range(4))
        self.still, self.freedom = np.zeros(n_sites, dtype=bool), np.full(n_sites, n - 1)
        self.standardised = np.empty((n_sites, n), dtype=np.float32)
        at_once = max(1, _ELEMENTS_IN_CACHE // n)
        for start in range(0, n_sites, at_once):
            self._add(slice(start, start + at_once), numerator[start : start + at_once] / mean, denominator)

    def _add(self, own: slice, values: Float[np.ndarray, "site pair"], denominator: Float[np.ndarray, " pair"]) -> None:
        ratio = values.mean(1)
        noise = _ROUNDING * np.maximum(np.abs(values).max(1), np.abs(ratio) * np.abs(denominator).max())
        rest = values
        rest -= ratio[:, None] * denominator
        rest -= rest.mean(1, keepdims=True)  # zero but for rounding
        still = np.abs(rest).max(1) <= noise
        squared = rest * rest
        variance = np.where(still, 1.0, squared.mean(1))
        self.ratio[own], self.still[own], self.variance[own] = ratio, still, variance
        self.covariance[own] = (rest @ denominator) / len(denominator)
        squared *= rest
        self.skewness[own] = np.where(still, 0.0, squared.mean(1) / variance**1.5)
        np.divide(rest, np.sqrt(variance)[:, None], out=self.standardised[own], casting="same_kind")
        self.freedom[own] = _freedom(rest, noise)


@lru_cache(maxsize=8)
def _counts(seed: int, n_resamples: int, n: int) -> Float[np.ndarray, "drawn resample"]:
    """How often each of n is drawn in each resample."""
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n)
    return counts.astype(np.float32).T


def _count(found: Bool[np.ndarray, "site draw"]) -> Int[np.ndarray, " site"]:
    """How many of each row are true; several times as fast as a sum of truth values."""
    return np.bitwise_count(np.packbits(found, axis=1)).sum(1, dtype=np.int64)


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


def quotient(numerator: object, denominator: object) -> Float[np.ndarray, "*shape"]:
    """A ratio that is 0 where both vanish, and infinite where only the denominator does."""
    denominator = np.asarray(denominator)
    if denominator.all():
        return np.asarray(numerator / denominator)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.asarray(numerator / denominator)
    return np.where((np.asarray(numerator) == 0) & (denominator == 0), 0.0, quotient)


def _freedom(rest: Float[np.ndarray, "site pair"], noise: Float[np.ndarray, " site"]) -> Int[np.ndarray, " site"]:
    """Degrees of freedom: values that are not the most frequent one, for only those tell of the spread.

    Of many pairs, that value is looked for among a random part of them, and counted among all: one that is not found
    so is too rare to count.
    """
    n = rest.shape[1]
    ordered = np.sort(rest if n <= _MOST_SORTED else rest[:, _shuffled(n)[:_MOST_SORTED]], axis=1)
    length = ordered.shape[1]
    parted = np.diff(ordered, axis=1) > noise[:, None]
    longest = np.ones(len(rest), dtype=np.int64)
    tied = np.flatnonzero(~parted.all(1))
    if len(tied):
        runs = np.zeros((len(tied), length), dtype=np.int64)
        runs[:, 1:] = np.where(parted[tied], np.arange(1, length), 0)
        lengths = np.arange(length) - np.maximum.accumulate(runs, axis=1)
        if n <= _MOST_SORTED:
            longest[tied] = lengths.max(1) + 1
        else:
            value = ordered[tied, lengths.argmax(1)]
            longest[tied] = np.count_nonzero(np.abs(rest[tied] - value[:, None]) <= noise[tied, None], axis=1)
    return np.clip(n - longest, 1, n - 1)


@lru_cache(maxsize=8)
def _shuffled(n: int) -> Int[np.ndarray, " n"]:
    """The numbers below n in one order at random."""
    return np.random.default_rng(_ORDER).permutation(n)


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
