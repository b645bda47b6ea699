"""The heads' ablations, offline on recorded states and in closed loop on the same seeds."""

from __future__ import annotations

import itertools
from pathlib import Path

import xarray as xr

import rlmech as rlm

POLICY = "zoo:intersection-ego-attention"
FIRST_SEED = 100_000  # those that the policy's card is measured on
FIRST_REFERENCE_SEED = 300_000  # whose states the means are taken over


def heads_of(policy: rlm.HookedPolicy) -> list[tuple[int, ...]]:
    """Every head, and every pair of heads."""
    (block,) = policy.attention.values()
    heads = range(block.n_heads)
    return [*((head,) for head in heads), *itertools.combinations(heads, 2)]


def site_of(policy: rlm.HookedPolicy, heads: tuple[int, ...]) -> rlm.Site:
    """Where some heads' outputs are."""
    (path,) = policy.attention
    return rlm.Site(f"{path}.hook_z", head=heads)


def conditions_of(policy: rlm.HookedPolicy, reference: rlm.ActivationCache) -> dict[str, list[rlm.Edit]]:
    """Each head and pair set to its mean, and each head set to zero."""
    found: dict[str, list[rlm.Edit]] = {}
    for heads in heads_of(policy):
        named = f"{'heads' if len(heads) > 1 else 'head'} {' + '.join(map(str, heads))}"
        site = site_of(policy, heads)
        found[f"{named} mean"] = [rlm.mean_ablation(site, reference=reference)]
        if len(heads) == 1:
            found[f"{named} zero"] = [rlm.zero_ablation(site)]
    return found


def driven(
    policy: rlm.HookedPolicy, *, n_seeds: int, n_reference: int, path: Path, workers: int
) -> tuple[xr.Dataset, dict[str, list[rlm.Edit]]]:
    """Every condition on every seed, beside the unedited policy; goes on where it was stopped."""
    env = rlm.make_env("intersection-v2")
    first = FIRST_REFERENCE_SEED
    seen = rlm.record(policy, env, seeds=range(first, first + n_reference), path=path / "reference", workers=workers)
    _, reference = policy.run_with_cache(seen.observations, "*.hook_z")
    edits = conditions_of(policy, reference)
    seeds = range(FIRST_SEED, FIRST_SEED + n_seeds)
    result = rlm.compare_rollouts(policy, env, conditions=edits, seeds=seeds, path=path / "driven", workers=workers)
    return result, edits
