"""Activation patching and ablation sweeps: what each site does to a metric, with an interval over pairs.

Denoising puts clean activations into corrupt runs (is the site sufficient?), noising the other way round (is it
necessary?). Exact. What a patch brings is in-distribution for its site, not for what it meets there.
Source: Heimersheim and Nanda 2024, *How to use and interpret activation patching*, arXiv 2404.15255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor

from rlmech.core.cache import ActivationCache
from rlmech.core.edit import Edit, mean_ablation, resample_ablation, zero_ablation
from rlmech.core.hook_point import HookPoint
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.interventions.metrics import Metric, MetricFunction, action_gap, bind
from rlmech.interventions.results import (
    Direction,
    bind_pairs,
    patching_result,
    sweep_attrs,
    sweep_coords,
    unknown_choice,
)
from rlmech.interventions.sites import Sites, choose_sites
from rlmech.interventions.statistics import bootstrap_mean
from rlmech.interventions.sweep import outputs_of, run_sweep

Ablation = Literal["zero", "mean", "resample"]


def activation_patching(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    sites: Sites = "auto",
    metric: Metric | MetricFunction | None = None,
    direction: Direction = "denoise",
    seed: int = 0,
    on_site: Callable[[int], None] = lambda n: None,
) -> xr.Dataset:
    """Patch each site from one run into the other, pair by pair.

    Args:
        policy: The policy.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        sites: `auto`, a hook name or glob, or a list of sites.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
        direction: `denoise`: clean activations into corrupt runs; `noise`: corrupt ones into clean runs.
        seed: Of the bootstrap.
        on_site: Called with the number of sites finished since the last call, for a progress bar.

    Returns:
        Dimensions `site` and `pair`. `patched[site, pair]`, `clean[pair]`, `corrupt[pair]` in the metric's unit;
        `shift[site]`, the mean of patched - base in that unit; `effect[site]`, the normalised recovery
        mean(patched - base) / mean(source - base): 0 nothing, 1 all that the whole input does, never clipped; each
        with `_low` and `_high`, 95 % bootstrap over pairs. `tiny_denominator[pair]` flags pairs that say nothing.

    Raises:
        ObservationError: Clean and corrupt do not pair up.
        SiteError, MetricError: A site or the metric does not fit the policy.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = rlm.activation_patching(policy, clean=torch.rand(16, 4), corrupt=torch.rand(16, 4))
        >>> dict(result.sizes)
        {'site': 8, 'pair': 16}
    """
    if direction not in ("denoise", "noise"):
        raise unknown_choice("direction", direction, ("denoise", "noise"))
    chosen = choose_sites(policy, sites)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    names = list(dict.fromkeys(site.name for site in chosen))
    with torch.no_grad():
        _, cache = policy.run_with_cache(source, names)
    patched = run_sweep(
        policy, base, chosen, replacement=lambda point, _: cache[point.name], metric=bound, on_site=on_site
    )
    return patching_result(
        policy, chosen, bound, patched=patched.numpy(), method="activation patching", direction=direction, seed=seed
    )


def ablation_sweep(
    policy: HookedPolicy,
    obs: Observation,
    *,
    sites: Sites = "auto",
    kind: Ablation = "mean",
    metric: Metric | MetricFunction | None = None,
    reference: Observation | ActivationCache | None = None,
    seed: int = 0,
    on_site: Callable[[int], None] = lambda n: None,
) -> xr.Dataset:
    """Ablate each site in turn.

    Args:
        policy: The policy.
        obs: Observations, one row per run.
        sites: `auto`, a hook name or glob, or a list of sites.
        kind: `zero`, `mean` (over the reference) or `resample` (a random reference row for each run).
        metric: What is measured; None for the gap between the unedited run's best action and its runner-up.
        reference: Observations or a cache that mean and resample ablation draw from; None for `obs` itself.
        seed: Of the resampled rows and of the bootstrap.
        on_site: Called with the number of sites finished since the last call, for a progress bar.

    Returns:
        Dimensions `site` and `pair` (a pair is a run and its ablated twin): `patched[site, pair]`, `baseline[pair]` and
        `effect[site]`, the mean of patched - baseline, in the metric's unit, with `effect_low` and `effect_high`,
        95 % bootstrap over runs.

    Raises:
        SiteError, EditError, MetricError: Something does not fit the policy.
    """
    if kind not in ("zero", "mean", "resample"):
        raise unknown_choice("kind", kind, ("zero", "mean", "resample"))
    chosen = choose_sites(policy, sites)
    bound = bind(metric or action_gap(), policy, clean=outputs_of(policy, obs))
    names = list(dict.fromkeys(site.name for site in chosen))
    cache: ActivationCache | None = reference if isinstance(reference, ActivationCache) else None
    if cache is None and kind != "zero":
        with torch.no_grad():
            _, cache = policy.run_with_cache(obs if reference is None else reference, names)
    ablations = {name: _ablation(name, kind, cache, seed) for name in names}

    def replacement(point: HookPoint, value: Tensor) -> Tensor:
        return ablations[point.name].bind(point)(value.clone(), hook=point)

    patched = run_sweep(policy, obs, chosen, replacement=replacement, metric=bound, on_site=on_site).numpy()
    baseline = bound.clean.double().cpu().numpy()
    effect = bootstrap_mean(patched - baseline, seed=seed)
    data: dict[str, Any] = {
        "patched": (("site", "pair"), patched, {"units": bound.unit}),
        "baseline": ("pair", baseline, {"units": bound.unit}),
        "effect": ("site", effect.estimate, {"units": bound.unit, "long_name": f"change of {bound.name}"}),
        "effect_low": ("site", effect.low, {"units": bound.unit}),
        "effect_high": ("site", effect.high, {"units": bound.unit}),
    }
    described = "zero" if kind == "zero" else "the observations themselves" if reference is None else "given"
    attrs = sweep_attrs(policy, bound, n_pairs=patched.shape[1], seed=seed) | {
        "method": f"{kind} ablation",
        "reference": described,
        "sign": "positive: ablation raises the metric",
        **effect.attrs,
    }
    return xr.Dataset(data, coords=sweep_coords(policy, chosen, patched.shape[1]), attrs=attrs)


def _ablation(name: str, kind: Ablation, cache: ActivationCache | None, seed: int) -> Edit:
    if cache is None or kind == "zero":
        return zero_ablation(name)
    return (
        mean_ablation(name, reference=cache) if kind == "mean" else resample_ablation(name, reference=cache, seed=seed)
    )
