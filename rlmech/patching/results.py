"""What the results of all interventions share: the bound metric of a set of pairs, coordinates, and attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.errors import ConfigError, MetricError, ObservationError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction, bind
from rlmech.metrics.score_metrics import default_metric
from rlmech.patching.sites import group_coordinates
from rlmech.patching.sweeps.sweep import outputs_of
from rlmech.results import plain_attrs
from rlmech.statistics import (
    Clusters,
    Interval,
    Shares,
    bootstrap_mean,
    bootstrap_ratio,
    normalised_recovery,
)
from rlmech.untyped import JsonObject, Variables

SHARE = "fraction"
"""The unit of a metric that says yes or no in each pair, so that its mean is a share."""
Direction = Literal["denoise", "noise"]
CANCELLED = 1e-6
"""A mean below this share of the mean magnitude is what rounding leaves of differences that cancel."""


def bind_pairs(
    policy: HookedPolicy, *, clean: Observation, corrupt: Observation, metric: Metric | MetricFunction | None
) -> BoundMetric:
    """The metric, the action gap if None, bound to the unpatched runs of clean and corrupt observations.

    Raises:
        ObservationError: Clean and corrupt do not pair up.
        MetricError: The metric does not fit the policy.
    """
    coerce_pairs(policy, clean=clean, corrupt=corrupt)
    return bind(
        metric or default_metric(policy.output_kind),
        policy,
        clean=outputs_of(policy, clean),
        corrupt=outputs_of(policy, corrupt),
    )


def coerce_pairs(
    policy: HookedPolicy, *, clean: Observation, corrupt: Observation
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Clean and corrupt observations as the tensors that the graph reads, each compared with the live module.

    Raises:
        ObservationError: They do not pair up.
    """
    arrays, others = policy.coerce(clean), policy.coerce(corrupt)
    n_clean, n_corrupt = arrays[0].shape[0], others[0].shape[0]
    if n_clean != n_corrupt or n_clean == 0:
        raise ObservationError(
            "Clean and corrupt observations do not pair up.",
            given=f"{n_clean} clean and {n_corrupt} corrupt rows",
            expected="as many of one as of the other, at least one",
            fix="give the corrupt counterpart of each clean observation, in the same order",
        )
    return arrays, others


def patching_result(
    policy: HookedPolicy,
    sites: Sequence[Site] | Sequence[tuple[Site, ...]],
    bound: BoundMetric,
    *,
    patched: Float[np.ndarray, "site pair"],
    method: str,
    direction: Direction,
    clusters: Clusters | None = None,
    seed: int,
    estimate: Float[np.ndarray, "site pair"] | None = None,
    more: Mapping[str, object] | None = None,
    more_attrs: Mapping[str, object] | None = None,
) -> xr.Dataset:
    """The result of a method that puts one run's values into the other: effects as normalised recovery, and changes.

    Args:
        policy: The policy.
        sites: The sites, in the order of `patched`.
        bound: The metric, bound to both unpatched runs.
        patched: The metric of the patched runs, in its unit.
        method: What the attributes call it.
        direction: `denoise` where clean values went into corrupt runs, `noise` where corrupt ones into clean runs.
        clusters: A label for each pair; pairs of one label are resampled together.
        seed: Of the bootstrap.
        estimate: The estimated change, where nothing was patched: it stands in the result in the place of `patched`.
        more: Variables of the method's own.
        more_attrs: Attributes of its own.
    """
    assert bound.corrupt is not None  # noqa: S101  # patching always binds both runs
    clean, corrupt = bound.clean.double().cpu().numpy(), bound.corrupt.double().cpu().numpy()
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    recovery = normalised_recovery(
        patched, source=source, base=base, clusters=clusters, seed=seed, shares=bound.unit == SHARE
    )
    change = recovery.change
    unit = {"units": bound.unit}

    def at(values: np.ndarray) -> object:
        return ("site", "pair"), values, unit

    data: Variables = {
        **({"patched": at(patched)} if estimate is None else {"estimate": at(estimate)}),
        "clean": ("pair", clean, unit),
        "corrupt": ("pair", corrupt, unit),
        "effect": ("site", recovery.ratio.estimate, {"units": "1", "long_name": f"recovery of {bound.name}"}),
        "effect_low": ("site", recovery.ratio.low, {"units": "1"}),
        "effect_high": ("site", recovery.ratio.high, {"units": "1"}),
        "change": ("site", change.estimate, unit | {"long_name": f"change of {bound.name}"}),
        "change_low": ("site", change.low, unit),
        "change_high": ("site", change.high, unit),
        "tiny_denominator": ("pair", recovery.tiny),
        **(more or {}),
    }
    what = "clean into corrupt" if direction == "denoise" else "corrupt into clean"
    attrs = sweep_attrs(policy, bound, n_pairs=patched.shape[1], seed=seed) | {
        "method": f"{method}, {direction} ({what})",
        "sign": "1: the patch does all that exchanging the whole input does; 0: nothing",
        "denominator_trustworthy": int(recovery.trustworthy),  # netCDF has no booleans
        **recovery.ratio.attrs,
        **(more_attrs or {}),
    }
    coords = sweep_coords(policy, sites, patched.shape[1])
    return xr.Dataset(data, coords=coords, attrs=plain_attrs(attrs))  # built once: copies cost as much as a sweep


def cluster_labels(clusters: Clusters, n_pairs: int) -> Int[np.ndarray, " pair"]:
    """Clusters as numbers from 0, one for each pair.

    Raises:
        MetricError: There is not one label for each pair.
    """
    labels = np.asarray(clusters)
    if labels.shape != (n_pairs,):
        raise MetricError(
            "Clusters label the pairs.",
            given=f"labels of shape {list(labels.shape)} for {n_pairs} pairs",
            expected=f"one label for each of the {n_pairs} pairs",
            fix='give e.g. the episode of each pair: clusters=recording.steps["episode"]',
        )
    return np.unique(labels, return_inverse=True)[1].reshape(n_pairs)


def ratio_of_means(
    numerator: Float[np.ndarray, "site pair"],
    denominator: Float[np.ndarray, " pair"],
    *,
    clusters: Clusters | None,
    seed: int,
) -> Interval:
    """A ratio of means over pairs that never shows a number where the mean of the denominators is zero.

    There it is 1 for a numerator that agrees with the denominator pair by pair, which is all that can be said, and NaN
    for any other.

    Args:
        numerator: By site and pair.
        denominator: By pair.
        clusters: A label for each pair; pairs of one label are resampled together.
        seed: Of the bootstrap.

    Example:
        >>> import numpy as np
        >>> from rlmech.patching.results import ratio_of_means
        >>> cancelling = np.array([1.0, -1.0, 2.0, -2.0])
        >>> ratio_of_means(np.stack([cancelling, abs(cancelling)]), cancelling, clusters=None, seed=0).estimate
        array([ 1., nan])
    """
    interval = bootstrap_ratio(numerator, denominator, clusters=clusters, seed=seed)
    size = np.abs(denominator).mean()
    same = (np.abs(numerator - denominator) <= CANCELLED * size).all(1)
    if np.abs(denominator.mean()) > CANCELLED * size:
        return interval
    ends = [np.where(same, 1.0, np.nan) for _ in range(3)]
    return replace(interval, estimate=ends[0], low=ends[1], high=ends[2])


def mean_change(
    bound: BoundMetric,
    patched: Float[np.ndarray, "site pair"],
    base: Float[np.ndarray, " pair"],
    *,
    clusters: Clusters | None,
    seed: int,
) -> Interval:
    """The mean of patched - base over pairs, with its interval: a score interval where the metric says yes or no.

    Args:
        bound: The metric.
        patched: Of the patched runs, in its unit.
        base: Of the unpatched runs.
        clusters: A label for each pair; pairs of one label are resampled together.
        seed: Of the bootstrap.
    """
    shares: Shares | None = None if bound.unit != SHARE else "differences" if base.any() else "shares"
    change, scale = patched - base, float(max(np.abs(patched).max(initial=0.0), np.abs(base).max(initial=0.0)))
    return bootstrap_mean(change, clusters=clusters, seed=seed, scale=scale, shares=shares)


def sweep_attrs(policy: HookedPolicy, bound: BoundMetric, *, n_pairs: int, seed: int) -> dict[str, object]:
    """What is needed to read and redo a result."""
    return {
        "metric": bound.name,
        "metric_units": bound.unit,
        "n_pairs": n_pairs,
        "seed": seed,
        **provenance(policy),
    }


def sweep_coords(policy: HookedPolicy, sites: Sequence[Site] | Sequence[tuple[Site, ...]], n_pairs: int) -> JsonObject:
    """The coordinates of `site` and `pair`, for single sites or for groups of them."""
    single = bool(sites) and isinstance(sites[0], Site)
    groups: tuple[Any, ...] = tuple((site,) for site in sites) if single else tuple(sites)
    return {"site": np.arange(len(groups)), "pair": np.arange(n_pairs), **group_coordinates(policy, groups)}


def unknown_choice(what: str, given: object, known: tuple[str, ...]) -> ConfigError:
    """The error for an alternative that does not exist."""
    return ConfigError(
        f"There is no {what} {given!r}.",
        given=repr(given),
        expected=f"one of {', '.join(known)}",
        fix=f"{what}={known[0]!r}",
    )
