"""The strongest ablations driven through whole episodes, beside the same episodes untouched.

Sites are those whose mean ablation changes most actions offline; each drives the first few seeds of the recording. The
episode shown is the one whose return changes most under the ablation whose mean does; the page says that it is not a
typical one. Cost: those episodes, which share simulation until they part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from rlmech.core.edit import Edit
from rlmech.core.interventions import mean_ablation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes.compare import compare_rollouts
from rlmech.episodes.comparison import BASELINE
from rlmech.episodes.recorder import record
from rlmech.episodes.recording import Recording
from rlmech.first_look.neurons import unit_sites
from rlmech.metrics.score_metrics import action_flip
from rlmech.patching.ablation import ablation_sweep

if TYPE_CHECKING:
    import gymnasium as gym

MOST_HEADS = 4  # that drive: each costs as many episodes again, less what is shared
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """Ablations that drove, and the episode to show.

    Attributes:
        result: What `compare_rollouts` returned, a condition an ablation.
        sites: The site of each condition.
        condition: The condition of the episode shown; empty where no ablation ever changed an action.
        seed: Its seed; None likewise.
        edited: The episode as driven under that condition, with the attention recorded; None likewise.
    """

    result: xr.Dataset
    sites: dict[str, Site]
    condition: str
    seed: int | None
    edited: Recording | None


def drive(
    policy: HookedPolicy,
    env: gym.Env[Any, Any],
    recording: Recording,
    *,
    block: str | None,
    neurons: xr.Dataset | None,
    n_seeds: int,
    names: list[str],
    workers: int = 1,
    progress: bool = True,
) -> Driven | None:
    """Drive the recording's first seeds with heads (without attention: a neuron) at their mean.

    Args:
        policy: The policy.
        env: The environment of the recording.
        recording: Its episodes untouched; the means are taken over their states.
        block: Path of the attention block, or None.
        neurons: Without attention, the neurons ranked.
        n_seeds: How many seeds to drive.
        names: Hook points to record of the episode shown.
        workers: Processes.
        progress: Whether to draw a progress bar.

    Returns:
        The comparison and the episode to show; None for a policy that has neither heads nor neurons.
    """
    sites = strongest(policy, recording, block, neurons)
    if not sites:
        return None
    conditions = ablations(policy, recording, sites)
    seeds = [int(seed) for seed in recording.episodes["seed"]][:n_seeds]
    result = compare_rollouts(policy, env, conditions=conditions, seeds=seeds, workers=workers, progress=progress)
    condition, seed = most_changed(result)
    edited = None
    if seed is not None:
        edited = record(policy, env, seeds=[seed], edits=conditions[condition], names=names, progress=False)
    return Driven(result=result, sites=sites, condition=condition, seed=seed, edited=edited)


def strongest(
    policy: HookedPolicy, recording: Recording, block: str | None, neurons: xr.Dataset | None
) -> dict[str, Site]:
    """The sites whose mean ablation changes most decisions in the recorded states, by name: heads, or else a neuron."""
    if block is not None:
        sites = policy.sites(policy.attention[block].names["z"], over=("head",))
        effect = ablation_sweep(policy, recording.observations, sites=sites, kind="mean", metric=action_flip())[
            "effect"
        ]
        first = np.argsort(-effect.values, kind="stable")[:MOST_HEADS]
        return {_named(sites[place]): sites[place] for place in sorted(int(place) for place in first)}
    if neurons is None:
        return {}
    best = neurons.isel(site=0)
    site = next(
        one
        for one in unit_sites(policy)
        if one.name == str(best["hook"].item()) and all(best[axis].item() == at for axis, at in one.selection)
    )
    return {_named(site): site}


def ablations(policy: HookedPolicy, recording: Recording, sites: dict[str, Site]) -> dict[str, list[Edit]]:
    """Each site at its mean over the recorded states."""
    with torch.no_grad():
        _, cache = policy.run_with_cache(recording.observations, sorted({site.name for site in sites.values()}))
    return {name: [mean_ablation(site, reference=cache)] for name, site in sites.items()}


def most_changed(result: xr.Dataset) -> tuple[str, int | None]:
    """The condition that moves the mean return most, and there the seed whose return changes most.

    Among equals the seed that parts first. Where no condition ever takes another action there is none.
    """
    parts = result["divergence"].notnull()
    moved = [str(name) for name in result["condition"].values if bool(parts.sel(condition=name).any())]
    if not moved:
        return "", None
    condition = max(moved, key=lambda name: abs(float(result["delta_return"].sel(condition=name))))
    change = np.abs((result["return"].sel(condition=condition) - result["return"].sel(condition=BASELINE)).values)
    step = result["divergence"].sel(condition=condition).values
    candidates = np.flatnonzero(np.isfinite(step))
    best = min(candidates, key=lambda place: (-change[place], step[place]))
    return condition, int(result["seed"].values[best])


def _named(site: Site) -> str:
    return ", ".join(f"{axis} {position}" for axis, position in site.selection)
