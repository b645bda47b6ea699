"""Activation patching: what each site does to a metric when its value is taken from the other run.

Denoising puts clean activations into corrupt runs (is the site sufficient?), noising the other way round (is it
necessary?). Exact. What a patch brings is in-distribution for its site, not for what it meets there.
Source: Heimersheim and Nanda 2024, *How to use and interpret activation patching*, arXiv 2404.15255.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.patching.jobs import Place, activations_of, no_ops, run_groups, scheme
from rlmech.patching.results import Direction, bind_pairs, patching_result, unknown_choice
from rlmech.patching.sites import Groups, choose_groups
from rlmech.results import storable
from rlmech.statistics import Clusters

OF_PAIRS = ("clean", "corrupt", "tiny_denominator")
"""Variables that belong to the pairs, and are the same in both directions."""


@explain_misuse
def activation_patching(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    sites: Groups = "auto",
    metric: Metric | MetricFunction | None = None,
    direction: Direction | Literal["both"] = "denoise",
    clusters: Clusters | None = None,
    seed: int = 0,
    journal: Place | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Patch each site from one run into the other, pair by pair.

    Args:
        policy: The policy.
        clean: Observations, one row per pair; of a recurrent policy also sequences `[pair step ...]`, whose last step
            is measured: sites then say which step they stand in, `Site("lstm.hook_h", step=3)`.
        corrupt: Their counterparts, row by row.
        sites: `auto` (what the metric's outputs depend on: the value head's units only for a metric that reads the
            value), a hook name or glob, or a list of sites; a tuple of sites in the list is patched together.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs, for continuous
            actions how far they go from one run's to the other's, `action_shift()`.
        direction: `denoise`: clean activations into corrupt runs (sufficiency); `noise`: corrupt ones into clean runs
            (necessity); `both`, along a dimension `condition`.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the bootstrap.
        journal: A directory that keeps what is finished; the same call goes on from there after an interruption.
        progress: Whether to draw a progress bar.

    Returns:
        Dimensions `site` and `pair`. `patched[site, pair]`, `clean[pair]`, `corrupt[pair]` in the metric's unit;
        `change[site]`, the mean of patched - base in that unit; `effect[site]`, the normalised recovery
        mean(patched - base) / mean(source - base): 0 nothing, 1 all that the whole input does, never clipped; each
        with `_low` and `_high`, 95 % bootstrap over pairs. `tiny_denominator[pair]` flags pairs that say nothing, and
        `no_op[site, pair]` patches that cannot have changed anything: the same activation on both sides, or a vehicle
        that the base run masks (patch `hook_mask` with it to let it be seen).

    Raises:
        ObservationError: Clean and corrupt do not pair up.
        SiteError, MetricError: A site or the metric does not fit the policy.
        EngineError: The network couples the rows of a batch.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = rlm.activation_patching(policy, clean=torch.rand(16, 4), corrupt=torch.rand(16, 4))
        >>> dict(result.sizes)
        {'site': 8, 'pair': 16}
    """
    if direction not in ("denoise", "noise", "both"):
        raise unknown_choice("direction", direction, ("denoise", "noise", "both"))
    policy = policy.fitting(clean)
    if direction == "both":
        return _both(
            policy,
            clean=clean,
            corrupt=corrupt,
            sites=sites,
            metric=metric,
            clusters=clusters,
            seed=seed,
            journal=journal,
            progress=progress,
        )
    groups = choose_groups(policy, sites, metric=metric)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    swept = run_groups(
        policy,
        base,
        groups,
        sources=[activations_of(policy, source, groups)],
        metric=bound,
        what=direction,
        journal=journal,
        progress=progress,
    )
    return patching_result(
        policy,
        groups,
        bound,
        patched=swept.measured.numpy(),
        method="activation patching",
        direction=direction,
        clusters=clusters,
        seed=seed,
        more=no_ops(swept),
        more_attrs=scheme(swept),
    )


def _both(policy: HookedPolicy, *, journal: Place | None, **given: Any) -> xr.Dataset:
    """Denoising and noising of the same pairs along a dimension `condition`."""
    directions: tuple[Direction, Direction] = ("denoise", "noise")
    results = [
        activation_patching(policy, direction=direction, journal=journal and Path(journal) / direction, **given)
        for direction in directions
    ]
    joined = xr.concat(
        results,
        dim="condition",
        data_vars=[name for name in results[0].data_vars if name not in OF_PAIRS],  # also where both are NaN alike
        coords="minimal",
        compat="equals",
        combine_attrs="drop_conflicts",
    )
    method = "activation patching, denoise (clean into corrupt) and noise (corrupt into clean)"
    return storable(joined.assign_coords(condition=list(directions)), {"method": method})
