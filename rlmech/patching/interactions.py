"""Pairwise interactions: what two sites do together beyond what each does alone.

    synergy(a, b) = m(a and b) - m(a) - m(b) + m(neither)

Zero for sites that act additively; positive where the metric needs both (AND), negative where either suffices (OR, a
backup). Exact. Cost: a sweep over all pairs of sites, n (n - 1) / 2 jobs and n more.
Source: the second-order term of the Shapley-Taylor expansion, Dhamdhere et al. 2020, arXiv 1902.05622.
"""

from __future__ import annotations

import itertools

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import SiteError
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.patching.activations import activation_patching
from rlmech.patching.results import Direction
from rlmech.patching.sites import Sites, choose_sites, site_coordinates
from rlmech.results import storable
from rlmech.statistics import Clusters, bootstrap_mean
from rlmech.untyped import Variables


@explain_misuse
def pairwise_interactions(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    sites: Sites = "auto",
    metric: Metric | MetricFunction | None = None,
    direction: Direction = "denoise",
    clusters: Clusters | None = None,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """The synergy of each two sites under activation patching.

    Args:
        policy: The policy.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        sites: At least two sites, apart from one another, as in `activation_patching`.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
        direction: `denoise` or `noise`, as in `activation_patching`.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the bootstrap.
        progress: Whether to draw a progress bar.

    Returns:
        Dimensions `site` (each two sites, the earlier one first) and `pair`: `synergy[site, pair]`, the metric with
        both patched, `patched[site, pair]`, and with one, `first_alone` and `second_alone`, all in the metric's unit;
        `effect[site]`, the mean synergy, with `effect_low` and `effect_high`, 95 % bootstrap over pairs. Coordinates of
        the two sites start with `first_` and `second_`.

    Raises:
        SiteError: Fewer than two sites, or two of them overlap.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
        >>> sites = policy.sites("hook_obs", over="feature")
        >>> clean, corrupt = torch.rand(16, 3), torch.rand(16, 3)
        >>> found = rlm.patching.pairwise_interactions(policy, clean=clean, corrupt=corrupt, sites=sites)
        >>> bool(abs(found["effect"]).max() < 1e-6)
        True
    """
    chosen = choose_sites(policy, sites, metric=metric)
    if len(chosen) < 2:
        raise SiteError(
            "An interaction is between two sites.",
            given=f"{len(chosen)} site",
            expected="at least two",
            fix='give several, e.g. policy.sites("*.hook_z", over="head")',
        )
    couples = list(itertools.combinations(range(len(chosen)), 2))
    both: list[Site | tuple[Site, ...]] = [(chosen[i], chosen[j]) for i, j in couples]
    result = activation_patching(
        policy,
        clean=clean,
        corrupt=corrupt,
        sites=[*chosen, *both],
        metric=metric,
        direction=direction,
        seed=seed,
        progress=progress,
    )
    patched = result["patched"].values
    alone, together = patched[: len(chosen)], patched[len(chosen) :]
    base = result["corrupt" if direction == "denoise" else "clean"].values
    first, second = alone[[i for i, _ in couples]], alone[[j for _, j in couples]]
    synergy = together - first - second + base
    effect = bootstrap_mean(synergy, clusters=clusters, seed=seed)
    unit = {"units": result["patched"].attrs["units"]}
    data: Variables = {
        "synergy": (("site", "pair"), synergy, unit | {"long_name": f"synergy in {result.attrs['metric']}"}),
        "patched": (("site", "pair"), together, unit),
        "first_alone": (("site", "pair"), first, unit),
        "second_alone": (("site", "pair"), second, unit),
        "clean": result["clean"],
        "corrupt": result["corrupt"],
        "effect": ("site", effect.estimate, unit | {"long_name": f"mean synergy in {result.attrs['metric']}"}),
        "effect_low": ("site", effect.low, unit),
        "effect_high": ("site", effect.high, unit),
    }
    coordinates: dict[str, object] = {"site": np.arange(len(couples)), "pair": result["pair"]}
    for which, places in (("first", [i for i, _ in couples]), ("second", [j for _, j in couples])):
        for name, (_, values) in site_coordinates(policy, chosen).items():
            coordinates[f"{which}_{name}"] = ("site", values[places])
    attrs = result.attrs | {
        "method": f"pairwise interactions of {result.attrs['method']}",
        "sign": "0: additive; positive: more together than the sum of both alone; negative: less",
        **effect.attrs,
    }
    return storable(xr.Dataset(data, coords=coordinates), attrs)
