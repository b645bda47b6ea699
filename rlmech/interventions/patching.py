"""Activation patching, ablation and steering sweeps: what each site does to a metric, with an interval over pairs.

Denoising puts clean activations into corrupt runs (is the site sufficient?), noising the other way round (is it
necessary?). Exact. What a patch brings is in-distribution for its site, not for what it meets there.
Source: Heimersheim and Nanda 2024, *How to use and interpret activation patching*, arXiv 2404.15255.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.core.cache import ActivationCache
from rlmech.core.edit import Edit, Site, mean_ablation, resample_ablation, steer, zero_ablation
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EditError
from rlmech.interventions.metrics import BoundMetric, Metric, MetricFunction, action_gap, bind
from rlmech.interventions.optimal import optimal_constants
from rlmech.interventions.results import (
    Direction,
    bind_pairs,
    patching_result,
    sweep_attrs,
    sweep_coords,
    unknown_choice,
)
from rlmech.interventions.sites import Groups, choose_groups
from rlmech.interventions.statistics import bootstrap_mean
from rlmech.interventions.sweeps.journal import Journal, digest
from rlmech.interventions.sweeps.sweep import Source, Swept, outputs_of, run_sweep
from rlmech.progress import progress_bar

Ablation = Literal["zero", "mean", "resample", "optimal"]
Place = str | os.PathLike[str]


def activation_patching(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    sites: Groups = "auto",
    metric: Metric | MetricFunction | None = None,
    direction: Direction | Literal["both"] = "denoise",
    seed: int = 0,
    journal: Place | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Patch each site from one run into the other, pair by pair.

    Args:
        policy: The policy.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        sites: `auto`, a hook name or glob, or a list of sites; a tuple of sites in the list is patched together.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
        direction: `denoise`: clean activations into corrupt runs (sufficiency); `noise`: corrupt ones into clean runs
            (necessity); `both`, along a dimension `condition`.
        seed: Of the bootstrap.
        journal: A directory that keeps what is finished; the same call goes on from there after an interruption.
        progress: Whether to draw a progress bar.

    Returns:
        Dimensions `site` and `pair`. `patched[site, pair]`, `clean[pair]`, `corrupt[pair]` in the metric's unit;
        `shift[site]`, the mean of patched - base in that unit; `effect[site]`, the normalised recovery
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
    if direction == "both":
        return _both(
            policy,
            clean=clean,
            corrupt=corrupt,
            sites=sites,
            metric=metric,
            seed=seed,
            journal=journal,
            progress=progress,
        )
    groups = choose_groups(policy, sites)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    swept = _swept(policy, base, groups, [_activations(policy, source, groups)], bound, journal, progress, direction)
    patched = swept.measured.numpy()
    result = patching_result(
        policy, groups, bound, patched=patched, method="activation patching", direction=direction, seed=seed
    )
    return _with_no_ops(result, swept)


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
        data_vars="different",
        coords="minimal",
        compat="equals",
        combine_attrs="drop_conflicts",
    )
    method = "activation patching, denoise (clean into corrupt) and noise (corrupt into clean)"
    return joined.assign_coords(condition=list(directions)).assign_attrs(method=method)


def ablation_sweep(
    policy: HookedPolicy,
    obs: Observation,
    *,
    sites: Groups = "auto",
    kind: Ablation = "mean",
    metric: Metric | MetricFunction | None = None,
    reference: Observation | ActivationCache | None = None,
    seed: int = 0,
    journal: Place | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Ablate each site in turn.

    Args:
        policy: The policy.
        obs: Observations, one row per run.
        sites: `auto`, a hook name or glob, or a list of sites; a tuple of sites in the list is ablated together.
        kind: `zero`, `mean` (over the reference), `resample` (a random reference row for each run) or `optimal` (the
            constant that changes the scores least, trained on the reference).
        metric: What is measured; None for the gap between the unedited run's best action and its runner-up.
        reference: Observations, or for mean and resample ablation a cache, that the replacement is made from; None
            for `obs` itself.
        seed: Of the resampled rows and of the bootstrap.
        journal: A directory that keeps what is finished; the same call goes on from there after an interruption.
        progress: Whether to draw a progress bar.

    Returns:
        Dimensions `site` and `pair` (a pair is a run and its ablated twin): `patched[site, pair]`, `baseline[pair]` and
        `effect[site]`, the mean of patched - baseline, in the metric's unit, with `effect_low` and `effect_high`,
        95 % bootstrap over runs; `no_op[site, pair]` as in `activation_patching`.

    Raises:
        SiteError, EditError, MetricError: Something does not fit the policy.
        EngineError: The network couples the rows of a batch.
    """
    if kind not in ("zero", "mean", "resample", "optimal"):
        raise unknown_choice("kind", kind, ("zero", "mean", "resample", "optimal"))
    groups = choose_groups(policy, sites)
    bound = bind(metric or action_gap(), policy, clean=outputs_of(policy, obs))
    described = "zero" if kind == "zero" else "the observations themselves" if reference is None else "given"
    if kind == "optimal":
        sources, source_of = _optimal(policy, obs if reference is None else reference, groups)
    else:
        sources, source_of = [_ablations(policy, obs, reference, groups, kind, seed)], None
    swept = _swept(policy, obs, groups, sources, bound, journal, progress, kind, source_of)
    result = _ablation_result(policy, groups, bound, swept, seed=seed)
    return result.assign_attrs({"method": f"{kind} ablation", "reference": described})


def _ablations(
    policy: HookedPolicy,
    obs: Observation,
    reference: Observation | ActivationCache | None,
    groups: Sequence[tuple[Site, ...]],
    kind: Literal["zero", "mean", "resample"],
    seed: int,
) -> Source:
    cache: ActivationCache | None = reference if isinstance(reference, ActivationCache) else None
    if cache is None and kind != "zero":
        with torch.no_grad():
            _, cache = policy.run_with_cache(obs if reference is None else reference, _names(groups))
    return _edited(policy, obs, {name: _ablation(name, kind, cache, seed) for name in _names(groups)})


def _optimal(
    policy: HookedPolicy, reference: Observation | ActivationCache, groups: Sequence[tuple[Site, ...]]
) -> tuple[list[Source], list[int]]:
    """Trained constants; sites that do not overlap share a source."""
    several = next((group for group in groups if len(group) > 1), None)
    if several is not None or isinstance(reference, ActivationCache):
        raise EditError(
            "Optimal constants are trained for single sites, by running the policy.",
            given=f"the group {several}" if several is not None else "a cache as the reference",
            expected="single sites, and observations as the reference",
            fix="ablate the sites one by one, with reference=observations",
        )
    constants = optimal_constants(policy, reference, sites=[group[0] for group in groups])
    sources: list[dict[str, Tensor]] = []
    taken: list[dict[str, Tensor]] = []
    source_of: list[int] = []
    for (site,) in groups:
        mask = site.mask(policy.point(site.name))
        free = [i for i, used in enumerate(taken) if site.name not in used or not bool((used[site.name] & mask).any())]
        place = free[0] if free else len(sources)
        if not free:
            sources.append({})
            taken.append({})
        own = constants.values[site]
        sources[place][site.name] = torch.where(mask.to(own.device), own, sources[place].get(site.name, own))
        taken[place][site.name] = mask | taken[place].get(site.name, torch.zeros_like(mask))
        source_of.append(place)
    return [dict(source) for source in sources], source_of


def steering_sweep(
    policy: HookedPolicy,
    obs: Observation,
    *,
    site: Site | str,
    direction: Tensor | np.ndarray,
    coefficients: Sequence[float] | Float[np.ndarray, " condition"],
    metric: Metric | MetricFunction | None = None,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Add a direction to a site in growing doses.

    Args:
        policy: The policy.
        obs: Observations, one row per run.
        site: Where.
        direction: Of the selected shape, without the batch and without axes at a single position.
        coefficients: Factors of the direction.
        metric: What is measured; None for the gap between the unedited run's best action and its runner-up.
        seed: Of the bootstrap.
        progress: Whether to draw a progress bar.

    Returns:
        As of `ablation_sweep`, one `site` for each dose, with the coordinate `coefficient`.

    Raises:
        SiteError, EditError, MetricError: Something does not fit the policy.
    """
    site = Site(site) if isinstance(site, str) else site
    groups = [(site,)] * len(coefficients)
    bound = bind(metric or action_gap(), policy, clean=outputs_of(policy, obs))
    doses = [
        _edited(policy, obs, {site.name: steer(site, torch.as_tensor(direction), coefficient=float(dose))})
        for dose in coefficients
    ]
    swept = _swept(policy, obs, groups, doses, bound, None, progress, "steering", range(len(doses)))
    result = _ablation_result(policy, groups, bound, swept, seed=seed)
    result = result.assign_coords(coefficient=("site", np.asarray(coefficients, dtype=np.float64)))
    return result.assign_attrs({"method": "steering", "sign": "positive: the dose raises the metric"})


def _names(groups: Sequence[tuple[Site, ...]]) -> list[str]:
    return list(dict.fromkeys(site.name for group in groups for site in group))


def _activations(policy: HookedPolicy, obs: Observation, groups: Sequence[tuple[Site, ...]]) -> Source:
    with torch.no_grad():
        return policy.run_with_cache(obs, _names(groups))[1]


def _edited(policy: HookedPolicy, obs: Observation, edits: dict[str, Edit]) -> Source:
    """What some edits make of the base run's activations."""
    with torch.no_grad():
        _, cache = policy.run_with_cache(obs, list(edits))
    bound = {name: edit.bind(policy.point(name)) for name, edit in edits.items()}
    return {name: replace(cache[name].clone(), hook=policy.point(name)) for name, replace in bound.items()}


def _swept(
    policy: HookedPolicy,
    obs: Observation,
    groups: Sequence[tuple[Site, ...]],
    sources: Sequence[Source],
    bound: BoundMetric,
    journal: Place | None,
    progress: bool,  # noqa: FBT001  # internal; the public functions take it by name
    what: str,
    source_of: Sequence[int] | None = None,
) -> Swept:
    kept = None
    if journal is not None:
        identity: dict[str, Any] = {
            "policy": policy.fingerprint,
            "observations": digest(policy.coerce(obs)),
            "sources": digest([value for source in sources for value in source.values()]),
            "metric": (bound.name, digest([bound.clean])),
            "sites": groups,
            "method": what,
        }
        kept = Journal(journal, identity=identity)
    with progress_bar(what, len(groups), enabled=progress) as advance:
        return run_sweep(
            policy, obs, groups, sources=sources, metric=bound, source_of=source_of, journal=kept, on_jobs=advance
        )


def _ablation_result(
    policy: HookedPolicy, groups: Sequence[tuple[Site, ...]], bound: BoundMetric, swept: Swept, *, seed: int
) -> xr.Dataset:
    patched, baseline = swept.measured.numpy(), bound.clean.double().cpu().numpy()
    effect = bootstrap_mean(patched - baseline, seed=seed)
    data: dict[str, Any] = {
        "patched": (("site", "pair"), patched, {"units": bound.unit}),
        "baseline": ("pair", baseline, {"units": bound.unit}),
        "effect": ("site", effect.estimate, {"units": bound.unit, "long_name": f"change of {bound.name}"}),
        "effect_low": ("site", effect.low, {"units": bound.unit}),
        "effect_high": ("site", effect.high, {"units": bound.unit}),
    }
    attrs = sweep_attrs(policy, bound, n_pairs=patched.shape[1], seed=seed) | {
        "sign": "positive: ablation raises the metric",
        **effect.attrs,
    }
    result = xr.Dataset(data, coords=sweep_coords(policy, groups, patched.shape[1]), attrs=attrs)
    return _with_no_ops(result, swept)


def _with_no_ops(result: xr.Dataset, swept: Swept) -> xr.Dataset:
    no_op = (("site", "pair"), ~swept.active.numpy(), {"long_name": "the replacement cannot have changed anything"})
    schemes = ", ".join(f"{n} {name}" for name, n in swept.schemes.items())
    return result.assign(no_op=no_op).assign_attrs(scheme=schemes)


def _ablation(name: str, kind: Literal["zero", "mean", "resample"], cache: ActivationCache | None, seed: int) -> Edit:
    if cache is None or kind == "zero":
        return zero_ablation(name)
    return (
        mean_ablation(name, reference=cache) if kind == "mean" else resample_ablation(name, reference=cache, seed=seed)
    )
