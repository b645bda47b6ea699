"""Intervals over pairs: means and ratios of means, with BCa bootstrap intervals, vectorised over sites.

    recovery = mean_p(patched - base) / mean_p(source - base)

The resampling unit is the pair; one draw of pairs serves all sites. Intervals are bias-corrected and accelerated
(Efron 1987), because a ratio of means is skewed; the acceleration comes from the jackknife in closed form. Cost:
one matrix product [resample pair] x [pair site] and a sort per site; memory [site resample]. Nothing is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy.sparse import coo_array

from rlmech.errors import MetricError

_WEIGHTS_AT_ONCE = 2**21  # 16 MB of draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate per site, with its bootstrap interval.

    Attributes:
        estimate: The statistic of all pairs.
        low: Lower end; NaN where there are fewer than two pairs, which bound nothing.
        high: Upper end; likewise.
        confidence: Nominal coverage, e.g. 0.95.
        n_pairs: Pairs, or clusters of pairs, that were resampled.
        clustered: Whether they were clusters.
        n_resamples: Bootstrap draws.
        seed: Of the generator that drew them.
    """

    estimate: Float[np.ndarray, " site"]
    low: Float[np.ndarray, " site"]
    high: Float[np.ndarray, " site"]
    confidence: float
    n_pairs: int
    clustered: bool
    n_resamples: int
    seed: int

    @property
    def attrs(self) -> dict[str, Any]:
        """How the interval was made, for the attributes of a result."""
        return {
            "interval": f"bootstrap over {'clusters of pairs' if self.clustered else 'pairs'}, BCa",
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
            means is noise divided by noise.
    """

    ratio: Interval
    change: Interval
    per_pair: Float[np.ndarray, "site pair"]
    denominator: Float[np.ndarray, " pair"]
    tiny: Bool[np.ndarray, " pair"]
    trustworthy: bool


Clusters = Shaped[np.ndarray, " pair"] | Sequence[int] | Sequence[str]
"""A label for each pair; pairs of one label are resampled together."""


def bootstrap_mean(
    values: Float[np.ndarray, "site pair"],
    *,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over pairs, per site, with a BCa interval.

    Args:
        values: Any unit.
        clusters: A label for each pair, say its episode: pairs of one label resemble each other, and are resampled
            together. None: every pair by itself.
        confidence: Nominal coverage, between 0 and 1.
        n_resamples: Bootstrap draws.
        seed: Of the draws; the same seed gives the same interval.

    Returns:
        Estimate and ends in the unit of `values`.

    Raises:
        MetricError: No pairs, NaN among the values, or a confidence that is none.

    Example:
        >>> import numpy as np
        >>> from rlmech.statistics import bootstrap_mean
        >>> interval = bootstrap_mean(np.array([[1.0, 2.0, 3.0, 2.0]]))
        >>> float(interval.estimate[0]), bool(interval.low[0] < 2 < interval.high[0])
        (2.0, True)
    """
    ones = np.ones(values.shape[-1])
    return bootstrap_ratio(values, ones, clusters=clusters, confidence=confidence, n_resamples=n_resamples, seed=seed)


def bootstrap_ratio(
    numerator: Float[np.ndarray, "site pair"],
    denominator: Float[np.ndarray, " pair"],
    *,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Ratio of means over pairs, per site, with a BCa interval; numerator and denominator are resampled together.

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
        too, else an infinity: never a NaN, never a clip.

    Raises:
        MetricError: No pairs, NaN among the values, or a confidence that is none.

    Source:
        Efron 1987, *Better Bootstrap Confidence Intervals*, JASA 82, 171-185.
    """
    _check(numerator, denominator, confidence=confidence)
    draws = _Draws(numerator, denominator, clusters=clusters, n_resamples=n_resamples, seed=seed)
    return draws.ratio(0, confidence=confidence)


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
    ones = np.ones_like(denominator)
    draws = _Draws(numerator, denominator, ones, clusters=clusters, n_resamples=n_resamples, seed=seed)
    spread = bootstrap_mean(
        denominator[None, :], clusters=clusters, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    size = np.sqrt(np.mean(denominator**2))
    return Recovery(
        ratio=draws.ratio(0, confidence=confidence),
        change=draws.ratio(1, confidence=confidence),
        per_pair=_quotient(numerator, denominator),
        denominator=denominator,
        tiny=(np.abs(denominator) < tiny_share * size) | (denominator == 0),
        trustworthy=bool(spread.low[0] * spread.high[0] > 0),
    )


def wilson(rate: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate out of n.

    Source: Wilson 1927, *Probable Inference, the Law of Succession, and Statistical Inference*.

    Example:
        >>> low, high = wilson(0.0, 100)
        >>> low, round(high, 3)
        (0.0, 0.037)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))  # rounding must not pass the rate


class _Draws:
    """Bootstrap draws of the pairs: the means of a numerator and of some denominators over each, resampled together."""

    def __init__(
        self,
        numerator: Float[np.ndarray, "site pair"],
        *denominators: Float[np.ndarray, " pair"],
        clusters: Clusters | None,
        n_resamples: int,
        seed: int,
    ) -> None:
        self.numerator, self.denominators = numerator.astype(np.float64), np.stack(denominators)
        if clusters is not None:  # a ratio of means is a ratio of sums: the sums over clusters stand in for pairs
            together = _membership(clusters, numerator.shape[1])
            self.numerator, self.denominators = self.numerator @ together, self.denominators @ together
        self.seed, self.clustered = seed, clusters is not None
        self.n_sites, self.n_pairs = self.numerator.shape
        self.means = np.zeros((self.n_sites, n_resamples))
        self.denominator_means = np.zeros((len(denominators), n_resamples))
        generator = np.random.default_rng(seed)
        at_once = max(1, _WEIGHTS_AT_ONCE // self.n_pairs)
        for start in range(0, n_resamples if self.n_pairs > 1 else 0, at_once):
            n_draws = min(at_once, n_resamples - start)
            drawn = generator.integers(self.n_pairs, size=(n_draws, self.n_pairs))
            places = (drawn + self.n_pairs * np.arange(n_draws)[:, None]).ravel()
            counts = np.bincount(places, minlength=n_draws * self.n_pairs)
            weights = counts.reshape(n_draws, self.n_pairs) / self.n_pairs
            own = slice(start, start + n_draws)
            self.means[:, own], self.denominator_means[:, own] = (
                self.numerator @ weights.T,
                self.denominators @ weights.T,
            )

    def ratio(self, which: int, *, confidence: float) -> Interval:
        """The ratio of means to one of the denominators, with its interval."""
        denominator = self.denominators[which]
        estimate = _quotient(self.numerator.mean(1), denominator.mean())
        low, high = np.full(self.n_sites, np.nan), np.full(self.n_sites, np.nan)
        if self.n_pairs > 1:
            resampled = _quotient(self.means, self.denominator_means[which])
            jackknife = _jackknife(self.numerator, denominator)
            low, high = _bca(estimate, resampled, jackknife, confidence=confidence)
        return Interval(
            estimate=estimate,
            low=low,
            high=high,
            confidence=confidence,
            n_pairs=self.n_pairs,
            clustered=self.clustered,
            n_resamples=self.means.shape[1],
            seed=self.seed,
        )


def _membership(clusters: Clusters, n_pairs: int) -> Any:
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


def _jackknife(
    numerator: Float[np.ndarray, "site pair"], denominator: Float[np.ndarray, " pair"]
) -> Float[np.ndarray, "site pair"]:
    """The statistic with each pair left out."""
    return _quotient(numerator.sum(1, keepdims=True) - numerator, denominator.sum() - denominator)


def _bca(
    estimate: Float[np.ndarray, " site"],
    resampled: Float[np.ndarray, "site resample"],
    jackknife: Float[np.ndarray, "site pair"],
    *,
    confidence: float,
) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"]]:
    """Ends of the BCa interval; the percentile interval where bias or acceleration cannot be told."""
    resampled = np.sort(resampled, axis=1)
    n_resamples = resampled.shape[1]
    largest = np.maximum(np.abs(resampled[:, 0]), np.abs(resampled[:, -1]))
    tolerance = 1e-12 * np.where(np.isfinite(largest), largest, 0.0)  # a mean denominator of zero draws infinities
    below = (resampled < (estimate - tolerance)[:, None]).mean(1)
    tied = (resampled <= (estimate + tolerance)[:, None]).mean(1) - below
    share = np.clip(below + tied / 2, 0.5 / n_resamples, 1 - 0.5 / n_resamples)
    bias = torch.special.ndtri(torch.from_numpy(share)).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = jackknife.mean(1, keepdims=True) - jackknife
        squared = deviation * deviation
        acceleration = (squared * deviation).sum(1) / (6 * squared.sum(1) ** 1.5)
    acceleration = np.where(np.isfinite(acceleration), acceleration, 0.0)
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + NormalDist().inv_cdf(tail)
        level = torch.special.ndtr(torch.from_numpy(bias + z / (1 - acceleration * z))).numpy()
        ends.append(_quantile(resampled, level))
    return ends[0], ends[1]


def _quantile(
    ordered: Float[np.ndarray, "site resample"], level: Float[np.ndarray, " site"]
) -> Float[np.ndarray, " site"]:
    place = level * (ordered.shape[1] - 1)
    lower = np.floor(place).astype(int)
    upper = np.minimum(lower + 1, ordered.shape[1] - 1)
    below = np.take_along_axis(ordered, lower[:, None], 1)[:, 0]
    above = np.take_along_axis(ordered, upper[:, None], 1)[:, 0]
    with np.errstate(invalid="ignore"):  # between two infinities there is nothing to go along
        return np.where(below == above, below, below + (place - lower) * (above - below))


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
