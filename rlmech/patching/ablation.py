"""Ablation and steering sweeps: what each site does to a metric when it is taken away, or pushed along a vector.

Zero ablation leaves the distribution of most activations; mean, resample and optimal ablation do so less, and no two of
them ask the same question: name which. Exact.
Source: Li and Janson 2024, *Optimal ablation for interpretability*, arXiv 2409.09951, for what each of them measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.cache import ActivationCache
from rlmech.core.edit import Edit
from rlmech.core.interventions import mean_ablation, resample_ablation, steer, zero_ablation
from rlmech.core.masked import is_masked
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site, as_site
from rlmech.errors import EditError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction, bind
from rlmech.metrics.score_metrics import action_gap, action_score, default_metric
from rlmech.patching.jobs import Place, edited_activations, names_of, no_ops, run_groups, scheme
from rlmech.patching.optimal import optimal_constants
from rlmech.patching.results import mean_change, sweep_attrs, sweep_coords, unknown_choice
from rlmech.patching.sites import Groups, choose_groups
from rlmech.patching.sweeps.sweep import Source, Swept, outputs_of
from rlmech.results import storable
from rlmech.statistics import Clusters

Ablation = Literal["zero", "mean", "resample", "optimal"]


@explain_misuse
def ablation_sweep(
    policy: HookedPolicy,
    obs: Observation,
    *,
    sites: Groups = "auto",
    kind: Ablation = "mean",
    metric: Metric | MetricFunction | None = None,
    reference: Observation | ActivationCache | None = None,
    clusters: Clusters | None = None,
    seed: int = 0,
    journal: Place | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Ablate each site in turn.

    Args:
        policy: The policy.
        obs: Observations, one row per run; of a recurrent policy also sequences, whose last step is measured.
        sites: `auto`, a hook name or glob, or a list of sites; a tuple of sites in the list is ablated together.
        kind: `zero`, `mean` (over the reference), `resample` (a random reference row for each run) or `optimal` (the
            constant that changes the scores least, trained on the reference).
        metric: What is measured; None for the gap between the unedited run's best action and its runner-up, for
            continuous actions how far they move, `action_shift()`.
        reference: Observations, or for mean and resample ablation a cache, that the replacement is made from; None
            for `obs` itself.
        clusters: A label for each run, say its episode: runs of one label are resampled together. None: every run by
            itself, which makes intervals too narrow where runs resemble each other.
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

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = rlm.ablation_sweep(policy, torch.rand(16, 4), sites=policy.sites("1.hook_out", over="neuron"))
        >>> dict(result.sizes), result["effect"].attrs["units"]
        ({'site': 8, 'pair': 16}, 'return')
    """
    if kind not in ("zero", "mean", "resample", "optimal"):
        raise unknown_choice("kind", kind, ("zero", "mean", "resample", "optimal"))
    policy = policy.fitting(obs)
    policy.coerce(obs)  # compares the live module, once
    measured = metric or default_metric(policy.output_kind)
    groups = choose_groups(policy, sites, metric=measured)
    bound = bind(measured, policy, clean=outputs_of(policy, obs))
    described = "zero" if kind == "zero" else "the observations themselves" if reference is None else "given"
    if kind == "optimal":
        sources, source_of = _optimal(policy, obs if reference is None else reference, groups)
    else:
        sources, source_of = [_ablations(policy, obs, reference, groups, kind, seed)], None
    swept = run_groups(
        policy,
        obs,
        groups,
        sources=sources,
        metric=bound,
        what=kind,
        source_of=source_of,
        journal=journal,
        progress=progress,
    )
    result = _ablation_result(policy, groups, bound, swept, clusters=clusters, seed=seed)
    return storable(result, {"method": f"{kind} ablation", "reference": described})


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
            _, cache = policy.run_with_cache(obs if reference is None else reference, names_of(groups))
    return edited_activations(policy, obs, {name: _ablation(name, kind, cache, seed) for name in names_of(groups)})


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


@explain_misuse
def steering_sweep(
    policy: HookedPolicy,
    obs: Observation,
    *,
    site: Site | str,
    vector: Tensor | np.ndarray,
    coefficients: Sequence[float] | Float[np.ndarray, " condition"],
    metric: Metric | MetricFunction | None = None,
    clusters: Clusters | None = None,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Add a vector to a site in growing doses.

    Args:
        policy: The policy.
        obs: Observations, one row per run.
        site: Where.
        vector: Of the selected shape, without the batch and without axes at a single position.
        coefficients: Factors of the vector.
        metric: What is measured; None for the gap between the two actions that the vector moves farthest apart, the
            same two for every run, so that runs which prefer different actions do not cancel (for continuous actions
            the component that it moves most). They are chosen by the mean change of scores under the largest dose on
            these same runs, so that its effect is never against the vector: name the metric when you report it.
        clusters: A label for each run, say its episode: runs of one label are resampled together. None: every run by
            itself, which makes intervals too narrow where runs resemble each other.
        seed: Of the bootstrap.
        progress: Whether to draw a progress bar.

    Returns:
        As of `ablation_sweep`, one `site` for each dose, with the coordinate `coefficient`.

    Raises:
        SiteError, EditError, MetricError: Something does not fit the policy.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> from rlmech.patching import steering_sweep
        >>> given = {"site": "1.hook_out", "vector": torch.ones(8), "coefficients": [0.0, 1.0, 2.0]}
        >>> dict(steering_sweep(policy, torch.rand(16, 4), **given).sizes)
        {'site': 3, 'pair': 16}
    """
    policy = policy.fitting(obs)
    site = as_site(site)
    groups = [(site,)] * len(coefficients)
    policy.coerce(obs)  # compares the live module, once
    edits = [steer(site, torch.as_tensor(vector), coefficient=float(dose)) for dose in coefficients]
    measured = metric or _moved_most(policy, obs, edits)
    bound = bind(measured, policy, clean=outputs_of(policy, obs))
    doses = [edited_activations(policy, obs, {site.name: edit}) for edit in edits]
    swept = run_groups(
        policy,
        obs,
        groups,
        sources=doses,
        metric=bound,
        what="steering",
        source_of=range(len(doses)),
        progress=progress,
    )
    result = _ablation_result(policy, groups, bound, swept, clusters=clusters, seed=seed)
    result = result.assign_coords(coefficient=("site", np.asarray(coefficients, dtype=np.float64)))
    return storable(result, {"method": "steering", "sign": "positive: the dose raises the metric"})


def _moved_most(policy: HookedPolicy, obs: Observation, edits: Sequence[Edit]) -> Metric:
    """The gap between the two actions that the largest dose moves farthest apart on average."""
    if not edits or policy.choices is not None:  # of several choices one is asked for
        return default_metric(policy.output_kind)
    largest = max(edits, key=lambda edit: (abs(edit.coefficient), edit.coefficient))
    with torch.no_grad():
        before = policy(obs)
        with policy.edited([largest]):
            change = (policy(obs) - before).double().nan_to_num(0, 0, 0).mean(0)  # masked scores: -inf in both
    shown = ~is_masked(before).any(0)
    if shown.sum() < 2 and policy.output_kind != "mean_action":
        return action_gap()  # which fixes two open actions in each row
    change = change if largest.coefficient >= 0 else -change  # raised by the vector, not by its opposite
    if policy.output_kind == "mean_action":
        return action_score(int(change.abs().argmax()))
    raised = int(change.masked_fill(~shown, -torch.inf).argmax())
    lowered = int(change.masked_fill(~shown, torch.inf).argmin())
    return action_gap() if raised == lowered else action_gap(raised, lowered)


def _ablation_result(
    policy: HookedPolicy,
    groups: Sequence[tuple[Site, ...]],
    bound: BoundMetric,
    swept: Swept,
    *,
    clusters: Clusters | None,
    seed: int,
) -> xr.Dataset:
    patched, baseline = swept.measured.numpy(), bound.clean.double().cpu().numpy()
    effect = mean_change(bound, patched, baseline, clusters=clusters, seed=seed)
    data: dict[str, Any] = {
        "patched": (("site", "pair"), patched, {"units": bound.unit}),
        "baseline": ("pair", baseline, {"units": bound.unit}),
        "effect": ("site", effect.estimate, {"units": bound.unit, "long_name": f"change of {bound.name}"}),
        "effect_low": ("site", effect.low, {"units": bound.unit}),
        "effect_high": ("site", effect.high, {"units": bound.unit}),
        **no_ops(swept),
    }
    attrs = sweep_attrs(policy, bound, n_pairs=patched.shape[1], seed=seed) | {
        "sign": "positive: ablation raises the metric",
        **effect.attrs,
        **scheme(swept),
    }
    return storable(xr.Dataset(data, coords=sweep_coords(policy, groups, patched.shape[1])), attrs)


def _ablation(name: str, kind: Literal["zero", "mean", "resample"], cache: ActivationCache | None, seed: int) -> Edit:
    if cache is None or kind == "zero":
        return zero_ablation(name)
    return (
        mean_ablation(name, reference=cache) if kind == "mean" else resample_ablation(name, reference=cache, seed=seed)
    )
