"""Means and ratios of means over pairs, with studentised bootstrap intervals, vectorised over sites.

    recovery = mean_p(patched - base) / mean_p(source - base)

Each resample is measured in units of its own standard error (bootstrap-t), the ends solve Fieller's equation, so that a
ratio whose denominator may be zero is unbounded. An interval is never narrower than t's, with as many degrees of
freedom as there are values that tell of a spread, and longer on the side of the skewness, as Johnson's t is; the
constants were set by simulation. One draw of pairs serves all sites. Cost: two matrix products
[resample pair] x [pair site] and a sort per site. Nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import coo_array
from scipy.special import stdtr, stdtrit

from rlmech.errors import MetricError
from rlmech.statistics.rates import share_difference_interval, share_difference_p, share_interval

FEWEST = 4
"""Pairs, clusters or seeds below which no interval is given: three say nothing that an interval could promise."""

_ELEMENTS_AT_ONCE = 2**21  # 16 MB
_ROUNDING = 1e-12  # values that differ by less, relative to the largest, are the same
_MIXED = 0.5  # pairs of the sample's own variance in each resample's
_SKEW = 1.5  # how much longer the interval is on the side of the skewness, per skewness / sqrt(n)
_SMALL_SAMPLE, _SMALL_SAMPLE_MOST = 12.0, 0.25  # how much longer it is where there are few pairs: 12 / n^2, at most 1/4

Method = Literal["studentised bootstrap", "Wilson's score interval", "Tango's score interval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate per site, with its interval.

    Attributes:
        estimate: The statistic of all pairs.
        low: Lower end; NaN where there are fewer than `FEWEST` pairs. Minus infinity where nothing bounds the
            statistic: a ratio whose denominator is not clear of zero, and nothing but zeros of unknown scale.
        high: Upper end; likewise.
        p: Two-sided p-value that goes with the interval: below 1 - confidence where zero is left out. NaN as the
            ends.
        confidence: Nominal coverage, e.g. 0.95.
        n_pairs: Pairs, or clusters of pairs, that were resampled.
        clustered: Whether they were clusters.
        method: How the ends were found.
        n_resamples: Bootstrap draws; 0 for a score interval.
        seed: Of the generator that drew them.
    """

    estimate: Float[np.ndarray, " site"]
    low: Float[np.ndarray, " site"]
    high: Float[np.ndarray, " site"]
    p: Float[np.ndarray, " site"]
    confidence: float
    n_pairs: int
    clustered: bool
    method: Method
    n_resamples: int
    seed: int

    @property
    def attrs(self) -> dict[str, Any]:
        """How the interval was made, for the attributes of a result."""
        unit = "clusters of pairs" if self.clustered else "pairs"
        few = f"none: {self.n_pairs} {unit} are fewer than the {FEWEST} that an interval takes"
        return {
            "interval": f"{self.method} over {unit}" if self.n_pairs >= FEWEST else few,
            "confidence": self.confidence,
            "n_resampled": self.n_pairs,
            "n_resamples": self.n_resamples,
            "bootstrap_seed": self.seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How much of the way from the base runs to the source runs a patch goes; 0 nothing, 1 all of it, unclipped.

    Attributes:
        ratio: Ratio of means, mean(patched - base) / mean(source - base), with its interval.
        change: Mean of patched - base, in the metric's unit, with its interval.
        per_pair: (patched - base) / (source - base); 0 where both vanish, infinite where only the denominator does.
        denominator: source - base, in the metric's unit.
        tiny: Pairs whose denominator is below `tiny_share` of the denominators' root mean square, or zero: their
            own quotient says nothing, and the ratio of means hardly hears them.
        trustworthy: Whether the mean denominator's interval stays clear of zero; where it does not, the ratio of
            means is noise divided by noise. False where there are too few pairs for an interval.
    """

    ratio: Interval
    change: Interval
    per_pair: Float[np.ndarray, "site pair"]
    denominator: Float[np.ndarray, " pair"]
    tiny: Bool[np.ndarray, " pair"]
    trustworthy: bool


Shares = Literal["shares", "differences"]
"""Values that are yes and no (1 and 0), or differences of such (-1, 0, 1)."""

Clusters = Shaped[np.ndarray, " pair"] | Sequence[int] | Sequence[str]
"""A label for each pair; pairs of one label are resampled together."""


def bootstrap_mean(
    values: Float[np.ndarray, "site pair"],
    *,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    scale: float | None = None,
    shares: Shares | None = None,
) -> Interval:
    """Mean over pairs, per site, with an interval.

    Args:
        values: Any unit.
        clusters: A label for each pair, say its episode: pairs of one label resemble each other, and are resampled
            together. None: every pair by itself.
        confidence: Nominal coverage, between 0 and 1.
        n_resamples: Bootstrap draws.
        seed: Of the draws; the same seed gives the same interval.
        scale: How large a value can be, in the values' unit. It bounds the mean of a site whose pairs all have the same
            value: unseen others have a share of at most 1 - ((1 - confidence) / 2)^(1/n). None: the largest given.
        shares: `shares` where the values are yes and no (1 and 0), `differences` where they are differences of such
            (-1, 0, 1): their means get score intervals, Wilson's and Tango's. None, or other values: as the values
            show themselves to be, for which some must not be zero.

    Returns:
        Estimate and ends in the unit of `values`.

    Raises:
        MetricError: No pairs, NaN among the values, or a confidence that is none.

    Source:
        Efron 1981, *Nonparametric Standard Errors and Confidence Intervals*, Canadian J. Stat. 9 (bootstrap-t);
        Johnson 1978, *Modified t Tests and Confidence Intervals for Asymmetrical Populations*, JASA 73.

    Example:
        >>> import numpy as np
        >>> from rlmech.statistics import bootstrap_mean
        >>> interval = bootstrap_mean(np.array([[1.0, 2.0, 3.0, 2.5]]))
        >>> float(interval.estimate[0]), bool(interval.low[0] < 2 < interval.high[0])
        (2.125, True)
    """
    ones = np.ones(values.shape[-1])
    _check(values, ones, confidence=confidence)
    largest = float(np.abs(values).max(initial=0.0))
    shares = _shares_in(values, shares)
    if shares is not None:
        given: dict[str, Any] = {"clusters": clusters, "confidence": confidence, "seed": seed}
        return _score_interval(values.astype(np.float64), shares, **given)
    draws = _Draws(values, ones, clusters=clusters, n_resamples=n_resamples, seed=seed)
    return draws.interval(confidence=confidence, scale=largest if scale is None else scale)


def bootstrap_ratio(
    numerator: Float[np.ndarray, "site pair"],
    denominator: Float[np.ndarray, " pair"],
    *,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Ratio of means over pairs, per site, with an interval; numerator and denominator are resampled together.

    Args:
        numerator: Any unit.
        denominator: Any unit; the same for every site.
        clusters: A label for each pair, say its episode: pairs of one label resemble each other, and are resampled
            together. None: every pair by itself.
        confidence: Nominal coverage, between 0 and 1.
        n_resamples: Bootstrap draws.
        seed: Of the draws; the same seed gives the same interval.

    Returns:
        Estimate and ends in the units' quotient. A mean denominator of zero gives 0 where the numerator's mean is zero
        too, else an infinity: never a NaN, never a clip. Where the denominator is not clear of zero, neither end is
        bounded.

    Raises:
        MetricError: No pairs, NaN among the values, or a confidence that is none.

    Source:
        Fieller 1954, *Some Problems in Interval Estimation*, JRSS B 16, with bootstrap-t quantiles.
    """
    _check(numerator, denominator, confidence=confidence)
    draws = _Draws(numerator, denominator, clusters=clusters, n_resamples=n_resamples, seed=seed)
    return draws.interval(confidence=confidence, scale=_ratio_scale(numerator, denominator))


def normalised_recovery(
    patched: Float[np.ndarray, "site pair"],
    *,
    source: Float[np.ndarray, " pair"],
    base: Float[np.ndarray, " pair"],
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    tiny_share: float = 0.01,
    shares: bool = False,
) -> Recovery:
    """How far patching takes the metric from the base runs to the source runs, as a ratio of means over pairs.

    Args:
        patched: The metric of the patched runs.
        source: The metric of the runs that the patches were taken from (denoising: clean; noising: corrupt).
        base: The metric of the runs that were patched (denoising: corrupt; noising: clean).
        clusters: A label for each pair, say its episode: pairs of one label resemble each other, and are resampled
            together. None: every pair by itself.
        confidence: Nominal coverage of the intervals.
        n_resamples: Bootstrap draws.
        seed: Of the draws.
        tiny_share: Share of the denominators' root mean square below which a pair is flagged.
        shares: Whether the metric says yes or no (1 or 0): the change is then one of shares, which gets a score
            interval. False: told by the values.

    Returns:
        Dimensionless; 0 where a patch does nothing, 1 where it does all that the whole input does, and beyond either
        where it overshoots or works against it.

    Raises:
        MetricError: No pairs, or NaN among the values.

    Example:
        >>> import numpy as np
        >>> from rlmech.statistics import normalised_recovery
        >>> half = normalised_recovery(np.array([[1.0, 2.0]]), source=np.array([2.0, 4.0]), base=np.zeros(2))
        >>> float(half.ratio.estimate[0]), half.tiny.tolist()
        (0.5, [False, False])
    """
    numerator, denominator = patched.astype(np.float64) - base, source.astype(np.float64) - base
    _check(numerator, denominator, confidence=confidence)
    given: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "seed": seed}
    draws = _Draws(numerator, denominator, **given)
    largest = float(max(np.abs(denominator).max(), np.abs(numerator).max(initial=0.0)))
    kind: Shares = "differences" if base.any() else "shares"
    mean: dict[str, Any] = {"confidence": confidence, "scale": largest, "shares": kind if shares else None}
    if _shares_in(numerator, mean["shares"]) is not None:
        change = bootstrap_mean(numerator, **given, **mean)
    else:  # the same draws serve both
        ones = np.ones(numerator.shape[1])
        own = ones if clusters is None else ones @ membership_of(clusters, len(ones))
        change = draws.over(own).interval(confidence=confidence, scale=largest)
    spread = bootstrap_mean(denominator[None, :], **given, **mean)
    size = np.sqrt(np.mean(denominator**2))
    return Recovery(
        ratio=draws.interval(confidence=confidence, scale=_ratio_scale(numerator, denominator)),
        change=change,
        per_pair=_quotient(numerator, denominator),
        denominator=denominator,
        tiny=(np.abs(denominator) < tiny_share * size) | (denominator == 0),
        trustworthy=bool(spread.low[0] * spread.high[0] > 0),
    )


def _shares_in(values: Float[np.ndarray, "site pair"], said: Shares | None) -> Shares | None:
    """Whether values are shares or differences of them; None: neither."""
    sizes = np.abs(values)
    if not ((sizes == 0) | (sizes == 1)).all() or (said is None and not sizes.any()):
        return None
    return "differences" if said == "differences" or bool((values < 0).any()) else "shares"


def _score_interval(
    values: Float[np.ndarray, "site pair"],
    shares: Shares,
    *,
    clusters: Clusters | None,
    confidence: float,
    seed: int,
) -> Interval:
    """The interval of shares or of their differences."""
    together = None if clusters is None else membership_of(clusters, values.shape[1])
    n = values.shape[1] if together is None else together.shape[1]
    given: dict[str, Any] = {"membership": together}
    low, high, p = (np.full(len(values), np.nan) for _ in range(3))
    if n >= FEWEST:
        ends = share_difference_interval if shares == "differences" else share_interval
        low, high = ends(values, confidence=confidence, **given)
        p = share_difference_p(values, **given)
    return Interval(
        estimate=values.mean(1),
        low=low,
        high=high,
        p=p,
        confidence=confidence,
        n_pairs=n,
        clustered=clusters is not None,
        method="Tango's score interval" if shares == "differences" else "Wilson's score interval",
        n_resamples=0,
        seed=seed,
    )


def _ratio_scale(numerator: Float[np.ndarray, "site pair"], denominator: Float[np.ndarray, " pair"]) -> float:
    """How large one pair's share of a ratio can be: the largest that was seen, over the mean denominator."""
    mean = abs(float(denominator.mean()))
    largest = max(float(np.abs(denominator).max()), float(np.abs(numerator).max(initial=0.0)))
    return largest / mean if mean > 0 else 0.0


class _Draws:
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

    def over(self, counts: Float[np.ndarray, " pair"]) -> _Draws:
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
            estimate=_quotient(self.numerator.mean(1), self.denominator.mean()),
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


def _quotient(numerator: Any, denominator: Any) -> Float[np.ndarray, "*shape"]:
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


def _check(
    numerator: Float[np.ndarray, "site pair"], denominator: Float[np.ndarray, " pair"], *, confidence: float
) -> None:
    if numerator.shape[1] == 0 or not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        raise MetricError(
            "An interval needs pairs, and a finite number for each.",
            given=f"values {list(numerator.shape)}, {int((~np.isfinite(numerator)).sum())} of them not finite",
            expected="[site pair] with at least one pair",
            fix="look at the pair whose metric is NaN or infinite",
        )
    if not 0 < confidence < 1:
        raise MetricError(
            "A confidence is a share.", given=confidence, expected="a number between 0 and 1", fix="confidence=0.95"
        )
