"""What the results of all interventions share: the bound metric of a set of pairs, coordinates, and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from rlmech.core.edit import Site
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, ObservationError
from rlmech.interventions.metrics import BoundMetric, Metric, MetricFunction, action_gap, bind
from rlmech.interventions.sites import site_coordinates
from rlmech.interventions.sweep import outputs_of


def bind_pairs(
    policy: HookedPolicy, *, clean: Observation, corrupt: Observation, metric: Metric | MetricFunction | None
) -> BoundMetric:
    """The metric, the action gap if None, bound to the unpatched runs of clean and corrupt observations.

    Raises:
        ObservationError: Clean and corrupt do not pair up.
        MetricError: The metric does not fit the policy.
    """
    n_clean, n_corrupt = policy.coerce(clean)[0].shape[0], policy.coerce(corrupt)[0].shape[0]
    if n_clean != n_corrupt or n_clean == 0:
        raise ObservationError(
            "Clean and corrupt observations do not pair up.",
            given=f"{n_clean} clean and {n_corrupt} corrupt rows",
            expected="as many of one as of the other, at least one",
            fix="give the corrupt counterpart of each clean observation, in the same order",
        )
    return bind(metric or action_gap(), policy, clean=outputs_of(policy, clean), corrupt=outputs_of(policy, corrupt))


def sweep_attrs(policy: HookedPolicy, bound: BoundMetric, *, n_pairs: int, seed: int) -> dict[str, Any]:
    """What is needed to read and redo a result."""
    return {
        "metric": bound.name,
        "metric_units": bound.unit,
        "n_pairs": n_pairs,
        "seed": seed,
        "policy": policy.fingerprint,
        "engine": policy.engine,
        "rlmech": version("rlmech"),
    }


def sweep_coords(policy: HookedPolicy, sites: Sequence[Site], n_pairs: int) -> dict[str, Any]:
    """The coordinates of `site` and `pair`."""
    return {"site": np.arange(len(sites)), "pair": np.arange(n_pairs), **site_coordinates(policy, sites)}


def unknown_choice(what: str, given: object, known: tuple[str, ...]) -> ConfigError:
    """The error for an alternative that does not exist."""
    return ConfigError(
        f"There is no {what} {given!r}.",
        given=repr(given),
        expected=f"one of {', '.join(known)}",
        fix=f"{what}={known[0]!r}",
    )
