"""Interchange interventions: does a site, or a linear subspace of it, carry what a causal model says it carries?

    accuracy = share of pairs whose action becomes the expected one when the site's value is taken from the source run

Cost: three forward passes of all pairs, and one for each placebo direction. Exact. A high accuracy says that the site
can carry the variable, not that nothing else does; the placebo says what any direction of that size would have done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.edit import Edit
from rlmech.core.interventions import patch, subspace_patch
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site, read, write
from rlmech.errors import ConfigError, MetricError, ObservationError, SiteError
from rlmech.patching.results import sweep_coords
from rlmech.patching.sites import choose_sites
from rlmech.patching.sweeps.independence import refuse_train_mode
from rlmech.results import storable
from rlmech.statistics import Clusters, Interval, bootstrap_mean


@explain_misuse
def interchange_intervention(
    policy: HookedPolicy,
    *,
    base: Observation,
    source: Observation,
    site: Site | str,
    basis: Tensor | None = None,
    expected: Sequence[int | str] | Int[np.ndarray, " pair"] | None = None,
    n_controls: int = 20,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Put a site's value in the source run into the base run, and compare the actions with a causal model's.

    Args:
        policy: A policy of discrete actions.
        base: Observations, one row per pair.
        source: Their counterparts, row by row.
        site: Where.
        basis: A direction, or several along a first axis, as in `subspace_patch`; None for all of the site.
        expected: Per pair, the action (number or name) that the causal model gives for the base input with the
            variable taken from the source; None for the source run's own actions.
        n_controls: Random directions per pair, each moving the site as far as the intervention did.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the placebo's directions and of the bootstrap.

    Returns:
        Dimensions `site` (one) and `pair`. `action[site, pair]`, `expected[pair]`, `base_action[pair]` (numbers);
        `accuracy[site]`, the share of pairs with action = expected; `placebo[site]`, the same for random directions;
        `unchanged[site]`, the same without any intervention; each with `_low` and `_high`, 95 % bootstrap over pairs.

    Raises:
        ObservationError: Base, source and expected do not pair up.
        SiteError, EditError: The site or the basis does not fit the policy.
        MetricError: The actions are continuous, or an expected one does not exist.
        EngineError: The network is in train mode, where rows depend on each other or on chance.

    Source:
        Geiger et al. 2021, *Causal Abstractions of Neural Networks*, arXiv 2106.02997, section 3; Geiger et al. 2024,
        arXiv 2303.02536.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.patching.subspace import interchange_intervention
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> base, source = torch.randn(2, 32, 4)
        >>> interchange_intervention(policy, base=base, source=source, site="hook_obs")["accuracy"].item()
        1.0
    """
    policy = policy.fitting(base)
    (chosen,) = choose_sites(policy, [site])
    names = [chosen.name]
    _refuse(policy, chosen, n_controls=n_controls)
    with torch.no_grad():
        base_scores, before = policy.run_with_cache(base, names)
        source_scores, cache = policy.run_with_cache(source, names)
        if len(base_scores) != len(source_scores) or len(base_scores) == 0:
            raise _unpaired(f"{len(base_scores)} base and {len(source_scores)} source rows")
        wanted = source_scores.argmax(-1) if expected is None else _actions(policy, expected, like=base_scores)
        edit = patch(chosen, source=cache) if basis is None else subspace_patch(chosen, basis, source=cache)
        found = _edited_actions(policy, base, edit)
        moved = edit.bind(policy.point(chosen.name))(before[chosen.name].clone(), hook=policy.point(chosen.name))
        placebo = _placebo(policy, base, chosen, before[chosen.name], moved, n_controls=n_controls, seed=seed)
    rates = {
        "accuracy": _rate((found == wanted)[None], clusters=clusters, seed=seed),
        "placebo": _rate((placebo == wanted).double().mean(0)[None], clusters=clusters, seed=seed),
        "unchanged": _rate((base_scores.argmax(-1) == wanted)[None], clusters=clusters, seed=seed),
    }
    data: dict[str, Any] = {
        "action": (("site", "pair"), found[None].cpu().numpy()),
        "expected": ("pair", wanted.cpu().numpy()),
        "base_action": ("pair", base_scores.argmax(-1).cpu().numpy()),
    }
    for name, rate in rates.items():
        for suffix, value in (("", rate.estimate), ("_low", rate.low), ("_high", rate.high)):
            data[name + suffix] = ("site", value, {"units": "fraction"})
    attrs = provenance(policy) | {
        "method": "interchange intervention" + ("" if basis is None else " on a linear subspace"),
        "expected": "the source run's actions" if expected is None else "given",
        "n_controls": n_controls,
        "seed": seed,
        **rates["accuracy"].attrs,
    }
    return storable(xr.Dataset(data, coords=sweep_coords(policy, [chosen], len(wanted))), attrs)


def _edited_actions(policy: HookedPolicy, obs: Observation, edit: Edit) -> Int[Tensor, " pair"]:
    with policy.edited([edit]):
        return policy(obs).argmax(-1)


def _placebo(
    policy: HookedPolicy, obs: Observation, site: Site, before: Tensor, moved: Tensor, *, n_controls: int, seed: int
) -> Int[Tensor, "draw pair"]:
    """Actions after moving the site in random directions, pair by pair as far as the intervention moved it."""
    point = policy.point(site.name)
    index = site.index(point)
    generator = torch.Generator().manual_seed(seed)
    start, end = read(before, index), read(moved, index)
    rows = torch.where(end == start, torch.zeros_like(start), end - start).reshape(len(before), -1)
    actions: list[Tensor] = []
    for _ in range(n_controls):
        direction = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        step = direction * (rows.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True))
        value = write(before.clone(), index, start + step.reshape(start.shape))
        actions.append(_edited_actions(policy, obs, patch(site, source={site.name: value})))
    return torch.stack(actions)


def _rate(hits: Tensor, *, clusters: Clusters | None, seed: int) -> Interval:
    return bootstrap_mean(hits.double().cpu().numpy(), clusters=clusters, seed=seed, shares="shares")


def _actions(policy: HookedPolicy, expected: Sequence[int | str] | np.ndarray, *, like: Tensor) -> Tensor:
    numbers = [policy.spec.action_number(item, n_actions=like.shape[-1]) for item in expected]
    if len(numbers) != len(like):
        raise _unpaired(f"{len(numbers)} expected actions for {len(like)} pairs")
    return torch.tensor(numbers, device=like.device)


def _unpaired(given: str) -> ObservationError:
    return ObservationError(
        "Base, source and expected actions do not pair up.",
        given=given,
        expected="as many of each, at least one",
        fix="give the source counterpart and the expected action of each base observation, in the same order",
    )


def _refuse(policy: HookedPolicy, site: Site, *, n_controls: int) -> None:
    if n_controls < 1:
        raise ConfigError("A placebo needs directions.", given=n_controls, expected="at least 1", fix="n_controls=20")
    dtype = policy.points[site.name].address.node.dtype
    if dtype is not None and not dtype.is_floating_point:
        raise SiteError(
            f"There are no directions at {site.name!r}.",
            given=f"an activation of dtype {dtype}",
            expected="a floating-point activation",
            fix="use activation_patching there",
        )
    if policy.choices is not None:
        raise policy.choices.several("An interchange intervention", policy.spec.choices)
    if policy.output_kind == "mean_action":
        raise MetricError(
            "An interchange intervention counts discrete actions, and this policy's are continuous.",
            given="a policy of mean_action",
            expected="a policy of q_values or logits",
            fix="use activation_patching with the metric action_shift()",
        )
    refuse_train_mode(policy)
