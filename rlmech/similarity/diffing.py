"""What two policies hold in common at a layer, and what only one of them: one dictionary of both layers together.

    [value of a | value of b]  =  sum of few codes x [direction in a | direction in b]

A feature whose direction lies in one policy alone is one that the other does not hold. Both sides are scaled to one
size first. Two fits from different beginnings, for what is not found again is chance. Cost: two dictionaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.many_rows import values_at
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.features.training import Trained, train
from rlmech.patching.sites import choose_sites
from rlmech.results import storable
from rlmech.similarity.policies import check_pair, shared_states
from rlmech.untyped import Variables

ONLY = 0.1
"""The share of a direction's square in one policy up to which a feature is the other's alone."""
N_FITS = 2


@explain_misuse
def joint_dictionary(
    a: HookedPolicy,
    b: HookedPolicy,
    states: Recording | Observation,
    *,
    site: Site | str,
    into: Site | str | None = None,
    n_features: int | None = None,
    k: int = 8,
    n_steps: int = 2000,
    clusters: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    """Learn features of two policies' layers together, and tell which of them only one policy holds.

    Args:
        a: A policy of discrete actions.
        b: Another of the same observations and actions.
        states: A recording of one of them, or observations; a quarter of the episodes fit nothing and score.
        site: Where in a.
        into: Where in b, of any width; None for the same name.
        n_features: Features; None for four times the wider site.
        k: Features that are active in a state.
        n_steps: Steps of training.
        clusters: A label for each state, say its episode, where observations are given.
        seed: Of the split and the fits.

    Returns:
        By `feature`: `share_b`, how much of its direction's square lies in b (0: only in a, 1: only in b, 0.5: as large
        in both); `held_by` in words, `a`, `b` or `both`; `density`, the share of states where it is active, 0 for one
        that is dead; `found_again`, its direction's cosine with the nearest of the second fit; `direction_a` and
        `direction_b`, per unit of the code, in the sites' own units. Of each side `explained_a` and `explained_b`, the
        share of the variance. Scores are of the episodes that fitted nothing.

    Raises:
        ConfigError: Policies that do not go together, one episode only, more features than states, or a site that never
            changes.
        SiteError: No such site.

    Source:
        Lindsey et al. 2024, *Sparse Crosscoders for Cross-Layer Features and Model Diffing*.

    Example:
        >>> import torch, rlmech as rlm
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> found = rlm.similarity.joint_dictionary(
        ...     policy, policy, torch.randn(200, 4), site="1.hook_out", n_features=16, k=2, n_steps=50
        ... )
        >>> set(found["held_by"].values[found["density"].values > 0].tolist())
        {'both'}
    """
    check_pair(a, b)
    (of_a,), (of_b,) = choose_sites(a, [site]), choose_sites(b, [site if into is None else into])
    known = shared_states(a, b, states, clusters)
    labels = np.random.default_rng(seed).permutation(np.unique(known.episode))
    sides = [values_at(p, known.obs, own).flatten(1).float() for p, own in ((a, of_a), (b, of_b))]
    widths = [side.shape[1] for side in sides]
    n = 4 * max(widths) if n_features is None else int(n_features)
    held = torch.as_tensor(np.isin(known.episode, labels[: max(1, len(labels) // 4)]))
    _check(sides, n_labels=len(labels), n_fitting=int((~held).sum()), n=n, k=k, n_steps=n_steps)
    means = [side[~held].mean(0) for side in sides]
    sizes = [(side[~held] - m).square().sum(1).mean().sqrt() for side, m in zip(sides, means, strict=True)]
    scale = (sum(widths) / 2) ** 0.5
    both = torch.cat([(x - m) / s * scale for x, m, s in zip(sides, means, sizes, strict=True)], dim=1)
    fits = [
        train(both[~held], both[~held], n_features=n, k=k, kind="topk", n_steps=n_steps, generator=_generator(seed, j))
        for j in range(N_FITS)
    ]
    first, other = (fit.decoder for fit in fits)
    codes = _codes(fits[0], both[held], k)
    error = (both[held] - codes @ first).split(widths, dim=1)
    total = both[held].split(widths, dim=1)
    in_b = first[:, widths[0] :].square().sum(1) / first.square().sum(1)
    words = np.select([in_b.numpy() < ONLY, in_b.numpy() > 1 - ONLY], ["a", "b"], "both")
    parts = [part * s / scale for part, s in zip(first.split(widths, dim=1), sizes, strict=True)]
    data: Variables = {
        "share_b": ("feature", in_b.numpy(), {"units": "1"}),
        "held_by": ("feature", words),
        "density": ("feature", (codes > 0).float().mean(0).numpy(), {"units": "1"}),
        "found_again": ("feature", (first @ other.T).amax(1).numpy(), {"units": "1"}),
        "direction_a": (("feature", "axis_1"), parts[0].numpy()),
        "direction_b": (("feature", "axis_2"), parts[1].numpy()),
    }
    for name, off, all_ in zip("ab", error, total, strict=True):
        share = 1 - off.square().sum() / all_.square().sum()
        data[f"explained_{name}"] = ((), float(share), {"units": "1"})
    attrs = provenance(a) | {"other_policy": b.fingerprint, "site_a": str(of_a), "site_b": str(of_b), "seed": seed}
    attrs |= {"k": k, "n_steps": n_steps, "n_fitted": int((~held).sum()), "n_tested": int(held.sum())}
    return storable(xr.Dataset(data, coords={"feature": np.arange(n)}), attrs)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 1000 * number)


def _codes(fit: Trained, x: Tensor, k: int) -> Tensor:
    before = (x @ fit.encoder.T + fit.bias).clamp(min=0)
    found = before.topk(k, dim=1)
    return torch.zeros_like(before).scatter(1, found.indices, found.values)


def _check(sides: list[Tensor], *, n_labels: int, n_fitting: int, n: int, k: int, n_steps: int) -> None:
    still = [not bool((side != side[:1]).any()) or not bool(side.isfinite().all()) for side in sides]
    problems = [
        (n_labels < 2, "A dictionary is scored on episodes that it was not fitted on.", "states of one episode",
         "2 episodes or more", "record more episodes"),
        (n > n_fitting, "The dictionary is wider than its data.", f"{n} features for {n_fitting} states that fit it",
         "at least as many states as features, ten times as many to say something",
         "record more episodes, or take fewer features"),
        (not 1 <= k <= n or n_steps < 1, "Some features are active in each state.", f"k={k} of {n}, n_steps={n_steps}",
         "k from 1 to n_features, n_steps from 1", "k=8"),
        (any(still), "A site says nothing that a dictionary could be made of.", "the same or infinite activations",
         "finite activations that vary", "choose other sites, or states that differ"),
    ]  # fmt: skip
    for wrong, message, given, expected, fix in problems:
        if wrong:
            raise ConfigError(message, given=given, expected=expected, fix=fix)
