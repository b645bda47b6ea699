"""Means and ratios of means over pairs, with studentised bootstrap intervals, vectorised over sites.

    recovery = mean_p(patched - base) / mean_p(source - base)

Each resample is measured in units of its own standard error (bootstrap-t), the ends solve Fieller's equation, so that a
ratio whose denominator may be zero is unbounded. An interval is never narrower than t's, with as many degrees of
freedom as there are values that tell of a spread, and longer on the side of the skewness, as Johnson's t is; the
constants were set by simulation. One draw of pairs serves all sites; of more than 128 pairs, random groups are drawn
(`Draws`). Cost: two matrix products [resample pair] x [pair site], and a selection per site. Nothing is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from rlmech.errors import MetricError
from rlmech.statistics.draws import Clusters, Draws, membership_of, quotient
from rlmech.statistics.interval import FEWEST, Interval
from rlmech.statistics.rates import share_difference_interval, share_difference_p, share_interval
from rlmech.untyped import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How much of the way from the base runs to the source runs a patch goes; 0 nothing, 1 all of it, unclipped.

    Attributes:
        ratio: Ratio of means, mean(patched - base) / mean(source - base), with its interval.
        change: Mean of patched - base, in the metric's unit, with its interval.
        moved: patched - base, in the metric's unit.
        denominator: source - base, in the metric's unit.
        tiny: Pairs whose denominator is below `tiny_share` of the denominators' root mean square, or zero: their
            own quotient says nothing, and the ratio of means hardly hears them.
        trustworthy: Whether the mean denominator's interval stays clear of zero; where it does not, the ratio of
            means is noise divided by noise. False where there are too few pairs for an interval.
    """

    ratio: Interval
    change: Interval
    moved: Float[np.ndarray, "site pair"]
    denominator: Float[np.ndarray, " pair"]
    tiny: Bool[np.ndarray, " pair"]
    trustworthy: bool

    @property
    def per_pair(self) -> Float[np.ndarray, "site pair"]:
        """(patched - base) / (source - base); 0 where both vanish, infinite where only the denominator does."""
        return quotient(self.moved, self.denominator)


Shares = Literal["shares", "differences"]
"""Values that are yes and no (1 and 0), or differences of such (-1, 0, 1)."""


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
        given: JsonObject = {"clusters": clusters, "confidence": confidence, "seed": seed}
        return _score_interval(values.astype(np.float64), shares, **given)
    draws = Draws(values, ones, clusters=clusters, n_resamples=n_resamples, seed=seed)
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
    draws = Draws(numerator, denominator, clusters=clusters, n_resamples=n_resamples, seed=seed)
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
    numerator, denominator = patched.astype(np.float64, copy=False) - base, source.astype(np.float64) - base
    _check(numerator, denominator, confidence=confidence)
    given: JsonObject = {"clusters": clusters, "n_resamples": n_resamples, "seed": seed}
    draws = Draws(numerator, denominator, **given)
    largest = float(max(np.abs(denominator).max(), np.abs(numerator).max(initial=0.0)))
    kind: Shares = "differences" if base.any() else "shares"
    mean: JsonObject = {"confidence": confidence, "scale": largest, "shares": kind if shares else None}
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
        moved=numerator,
        denominator=denominator,
        tiny=(np.abs(denominator) < tiny_share * size) | (denominator == 0),
        trustworthy=bool(spread.excludes_zero[0]),
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
    given: JsonObject = {"membership": together}
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
