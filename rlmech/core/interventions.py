"""The interventions: each function makes the `Edit` that sets, adds, exchanges or takes out something at a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.cache import ActivationCache
from rlmech.core.edit import Edit, EditKind, value_of_rows
from rlmech.core.observation import Observation
from rlmech.core.site import Site, as_site
from rlmech.errors import EditError

Reference = Observation | Mapping[str, Tensor]
"""Observations, or a cache of a run on them."""


@explain_misuse
def zero_ablation(site: Site | str) -> Edit:
    """Set the site to zero.

    Zero is off-distribution for most activations: prefer mean or resample ablation, and do not take one for another.

    Args:
        site: Where.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> with policy.edited(rlm.zero_ablation(rlm.Site("hook_q_values", action=0))):
        ...     bool((policy(torch.rand(3, 4))[:, 0] == 0).all())
        True
    """
    return Edit(site=as_site(site), kind="zero")


@explain_misuse
def mean_ablation(site: Site | str, *, reference: Reference) -> Edit:
    """Set the site to its mean over reference states.

    Args:
        site: Where.
        reference: Observations, or a cache of them that holds the site's hook point.

    Raises:
        SiteError: The reference lacks the hook point.
        EditError: The point holds truth values, which have no mean; or the reference is neither.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> edit = rlm.mean_ablation("hook_obs", reference=torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]]))
        >>> with policy.edited(edit):
        ...     policy.run_with_cache(torch.rand(1, 4))[1]["hook_obs"]
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    return _put("mean", site, reference)


@explain_misuse
def resample_ablation(site: Site | str, *, reference: Reference, seed: int = 0) -> Edit:
    """Set the site, row by row, to its value in a random reference state.

    Args:
        site: Where.
        reference: Observations, or a cache of them that holds the site's hook point.
        seed: Seed of the draws, which go on from call to call within one `policy.edited`.

    Raises:
        SiteError: The reference lacks the hook point.
        EditError: The reference is neither observations nor a cache.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> with policy.edited(rlm.resample_ablation("hook_obs", reference=torch.ones(3, 4))):
        ...     policy.run_with_cache(torch.rand(1, 4))[1]["hook_obs"]
        tensor([[1., 1., 1., 1.]])
    """
    return _put("resample", site, reference, seed=seed)


@explain_misuse
def patch(site: Site | str, *, source: Reference) -> Edit:
    """Set the site to its value in another run, row by row.

    Args:
        site: Where.
        source: The other run, with as many rows as the batch that will be patched: observations, or a cache of them.

    Raises:
        SiteError: The source lacks the hook point.
        EditError: The source is neither observations nor a cache.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> clean, corrupt = torch.rand(2, 3, 4)
        >>> with policy.edited(rlm.patch("hook_obs", source=clean)):
        ...     print(bool((policy(corrupt) == policy.module(clean)).all()))
        True
    """
    return _put("patch", site, source)


@explain_misuse
def steer(site: Site | str, vector: Tensor, coefficient: float = 1.0) -> Edit:
    """Add a vector, times a coefficient, to the site.

    Args:
        site: Where.
        vector: Of the selected shape, without the batch and without axes at a single position; or one of the
            point's last axis, which is added at every selected position.
        coefficient: Factor of the vector.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> with policy.edited(rlm.steer("hook_obs", torch.tensor([1.0, 0, 0, 0]), 2.0)):
        ...     policy.run_with_cache(torch.zeros(1, 4))[1]["hook_obs"]
        tensor([[2., 0., 0., 0.]])
    """
    return Edit(site=as_site(site), kind="steer", value=torch.as_tensor(vector).detach(), coefficient=coefficient)


@explain_misuse
def subspace_patch(site: Site | str, basis: Tensor, *, source: Reference) -> Edit:
    """Set the site's component in a linear subspace to that of another run, row by row, and keep the rest.

    Exact: a full basis gives `patch`, an empty one changes nothing.

    Args:
        site: Where.
        basis: A direction of the selected shape (without the batch and without axes at a single position), or several
            along a first axis. They need not be orthogonal; those that depend on others add nothing.
        source: The other run, with as many rows as the batch that will be patched: observations, or a cache of them.

    Source:
        Geiger et al. 2024, *Finding Alignments Between Interpretable Causal Variables and Distributed Neural
        Representations*, arXiv 2303.02536, section 3 (distributed interchange intervention).

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.core.interventions import subspace_patch
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> _, cache = policy.run_with_cache(torch.ones(1, 4))
        >>> with policy.edited([subspace_patch("hook_obs", torch.tensor([0.0, 1, 0, 0]), source=cache)]):
        ...     policy.run_with_cache(torch.tensor([[2.0, 0, 0, 0]]))[1]["hook_obs"]
        tensor([[2., 1., 0., 0.]])
    """
    return _put("subspace", site, source, basis=torch.as_tensor(basis).detach())


def _put(kind: EditKind, site: Site | str, run: Any, **more: Any) -> Edit:
    """An edit that puts in what a run has at the site: of observations, once a policy is there to compute it."""
    site = as_site(site)
    if isinstance(run, ActivationCache) or (isinstance(run, Mapping) and site.name in run):
        return Edit(site=site, kind=kind, value=value_of_rows(site, kind, run[site.name]), **more)
    if isinstance(run, Mapping | Tensor | np.ndarray | list):
        return Edit(site=site, kind=kind, observations=np.asarray(run) if isinstance(run, list) else run, **more)
    raise EditError(
        f"The {kind} edit at {site} takes its value from observations, or from a cache of them.",
        given=f"a {type(run).__name__}",
        expected="observations, one row each, or a cache",
        fix=f"policy.run_with_cache(obs, {site.name!r})[1]",
    )


@explain_misuse
def erase(site: Site | str, normal: Tensor, *, mean: Tensor, along: Tensor | None = None) -> Edit:
    """Take out of the site what a linear readout reads: for every input it then reads what it reads of the mean.

        value - along (normal . (value - mean)) / (normal . along)

    With `along` = covariance times normal (`Probe.pattern`) it is the smallest change that leaves nothing of the
    readout, nor of anything that a linear readout could find in its place (LEACE); with None it is the orthogonal one.

    Args:
        site: Where.
        normal: The readout's slope, of the selected shape; or of the point's last axis, for every position.
        mean: Mean value of the site, of the same shape.
        along: Direction that the value is moved along.

    Raises:
        EditError: The direction does not change what is read, or the shapes differ.

    Source:
        Belrose et al. 2023, *LEACE: Perfect linear concept erasure in closed form*, arXiv 2306.03819, for one readout.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
        >>> first = torch.tensor([1.0, 0, 0])
        >>> with policy.edited(rlm.erase("hook_obs", first, mean=torch.zeros(3))):
        ...     policy.run_with_cache(torch.ones(1, 3))[1]["hook_obs"]
        tensor([[0., 1., 1.]])
    """
    normal, mean = torch.as_tensor(normal).detach().double(), torch.as_tensor(mean).detach().double()
    along = normal if along is None else torch.as_tensor(along).detach().double()
    overlap = float((normal * along).sum()) if normal.shape == along.shape == mean.shape else 0.0
    if overlap == 0:
        raise EditError(
            "There is nothing to erase along that direction.",
            given=f"a normal of shape {list(normal.shape)}, a direction of {list(along.shape)}, a mean of "
            f"{list(mean.shape)}, and an overlap of {overlap:g}",
            expected="three tensors of one shape, and a direction that changes what is read",
            fix="along=probe.pattern(), or leave it out",
        )
    return Edit(site=as_site(site), kind="erase", basis=torch.stack([normal, along / overlap, mean]))
