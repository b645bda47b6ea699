"""How unusual an edited activation is: its distance from the activations that occur.

    mahalanobis = sqrt((x - mean) Sigma^-1 (x - mean)),  Sigma the shrunk covariance;  nearest = min |x - reference row|

x is the whole vector of the edited point, not only the part that was edited. Distances are compared with those of
reference rows that were held out, so that a percentile of 50 is usual. Cost: a forward pass of each batch, and per
point a singular value decomposition of [reference size]. It says nothing about what the network does with x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.cache import ActivationCache
from rlmech.core.edit import Edit
from rlmech.core.interventions import patch
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.errors import ConfigError, ObservationError, SiteError
from rlmech.patching.results import sweep_coords
from rlmech.patching.sites import Sites, choose_sites
from rlmech.results import storable

FEWEST_ROWS = 4
"""Reference rows below which neither half says anything."""


@explain_misuse
def off_manifold_distance(
    policy: HookedPolicy,
    *,
    base: Observation,
    reference: Observation | ActivationCache,
    source: Observation | None = None,
    sites: Sites = "auto",
    edits: Sequence[Edit] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """How far each patched (or otherwise edited) activation lies from the reference activations of its hook point.

    Args:
        policy: The policy.
        base: Observations of the runs that are edited, one row per pair.
        reference: Observations, or a cache, that say what is usual; at least 4 rows, better several times the size of
            the point. One half gives mean, covariance and neighbours, the other the distances to compare with.
        source: Counterparts that patches are taken from, row by row; not with `edits`.
        sites: The sites to patch: `auto`, a hook name or glob, or a list; each is judged alone.
        edits: Edits of any kind to judge instead, each alone.
        seed: Of the reference's split.

    Returns:
        Dimensions `site` and `pair`. `distance[site, pair]`, the Mahalanobis distance with the Ledoit-Wolf covariance,
        in standard deviations; `nearest[site, pair]`, the Euclidean distance from the nearest reference row, in the
        activation's unit; `percentile` and `nearest_percentile`: the share of held-out reference rows that lie nearer,
        in percent.

    Raises:
        ObservationError: Base and source do not pair up, or the reference has too few rows.
        SiteError, EditError: A site or an edit does not fit the policy.
        ConfigError: Both source and edits are given, or neither.

    Source:
        Mahalanobis distance: Lee et al. 2018, arXiv 1807.03888, section 2. Covariance: Ledoit and Wolf 2004, *A
        well-conditioned estimator for large-dimensional covariance matrices*, J. Multivariate Analysis 88, 365-411.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.patching.manifold import off_manifold_distance
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> obs = torch.rand(200, 4)
        >>> steered = rlm.steer("1.hook_out", torch.ones(8), 50.0)
        >>> found = off_manifold_distance(policy, base=obs[:5], reference=obs[5:], edits=[steered])
        >>> found["percentile"].to_numpy().tolist()
        [[100.0, 100.0, 100.0, 100.0, 100.0]]
    """
    policy = policy.fitting(base)
    if (source is None) == (edits is None):
        raise ConfigError(
            "It is either patches from a source or edits that are judged.",
            given="both source and edits" if edits is not None else "neither source nor edits",
            expected="one of them",
            fix="give source=... with sites, or edits=[...]",
        )
    chosen = choose_sites(policy, sites) if edits is None else choose_sites(policy, [edit.site for edit in edits])
    names = list(dict.fromkeys(site.name for site in chosen))
    _refuse_discrete(policy, names)
    with torch.no_grad():
        _, before = policy.run_with_cache(base, names)
        judged = _patches(policy, chosen, source, n_pairs=len(before[names[0]])) if edits is None else edits
        usual = reference if isinstance(reference, ActivationCache) else policy.run_with_cache(reference, names)[1]
        manifolds = {name: _Manifold.fit(usual[name], seed=seed) for name in names}
        measured: list[_Distances] = []
        for edit in judged:
            point = policy.point(edit.site.name)
            value = edit.on(policy).bind(point)(before[point.name].clone(), hook=point)
            measured.append(manifolds[point.name].measure(value))
    dims = ("site", "pair")
    data = {
        "distance": (dims, np.stack([d.mahalanobis for d in measured]), {"units": "standard deviations"}),
        "percentile": (dims, np.stack([d.percentile for d in measured]), {"units": "percent"}),
        "nearest": (dims, np.stack([d.nearest for d in measured]), {"units": "activation"}),
        "nearest_percentile": (dims, np.stack([d.nearest_percentile for d in measured]), {"units": "percent"}),
    }
    attrs = provenance(policy) | {
        "method": "off-manifold distance of " + ("patches" if edits is None else "edits"),
        "n_reference": len(usual[names[0]]),
        "shrinkage": ", ".join(f"{name}: {manifold.shrinkage:.3g}" for name, manifold in manifolds.items()),
        "sign": "percentile 50: as usual as a held-out reference row; 100: farther off than any",
        "seed": seed,
    }
    return storable(xr.Dataset(data, coords=sweep_coords(policy, chosen, len(before[names[0]]))), attrs)


def _patches(policy: HookedPolicy, sites: Sequence[Site], source: Observation | None, *, n_pairs: int) -> list[Edit]:
    assert source is not None  # noqa: S101  # checked by the caller
    _, cache = policy.run_with_cache(source, list(dict.fromkeys(site.name for site in sites)))
    n_source = len(cache[sites[0].name])
    if n_source != n_pairs or n_pairs == 0:
        raise ObservationError(
            "Base and source observations do not pair up.",
            given=f"{n_pairs} base and {n_source} source rows",
            expected="as many of one as of the other, at least one",
            fix="give the source counterpart of each base observation, in the same order",
        )
    return [patch(site, source=cache) for site in sites]


def _refuse_discrete(policy: HookedPolicy, names: Sequence[str]) -> None:
    for name in names:
        dtype = policy.points[name].address.node.dtype
        if dtype is not None and not dtype.is_floating_point:
            raise SiteError(
                f"There are no distances at {name!r}.",
                given=f"an activation of dtype {dtype}",
                expected="a floating-point activation",
                fix="leave it out",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Distances:
    mahalanobis: Float[np.ndarray, " pair"]
    nearest: Float[np.ndarray, " pair"]
    percentile: Float[np.ndarray, " pair"]
    nearest_percentile: Float[np.ndarray, " pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifold:
    """What is usual at one point: a Gaussian and the rows themselves, and how far off held-out rows are."""

    mean: Float[Tensor, " size"]
    axes: Float[Tensor, "axis size"]
    variances: Float[Tensor, " axis"]
    """Along the axes, shrunk."""
    floor: float
    """The variance in every direction that no reference row varies in."""
    shrinkage: float
    rows: Float[Tensor, "row size"]
    usual: Mapping[str, Float[np.ndarray, " _"]]

    @classmethod
    def fit(cls, activations: Tensor, *, seed: int) -> _Manifold:
        rows = _vectors(activations)
        if len(rows) < FEWEST_ROWS:
            raise ObservationError(
                "The reference is too small to say what is usual.",
                given=f"{len(rows)} rows",
                expected=f"at least {FEWEST_ROWS}, better hundreds",
                fix="give more reference observations",
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)
        fitted, held_out = rows[order[::2]], rows[order[1::2]]
        mean = fitted.mean(0)
        shrinkage, scale = ledoit_wolf(fitted)
        _, sizes, axes = torch.linalg.svd(fitted - mean, full_matrices=False)
        manifold = cls(
            mean=mean,
            axes=axes,
            variances=(1 - shrinkage) * sizes**2 / len(fitted) + shrinkage * scale,
            floor=shrinkage * scale,
            shrinkage=shrinkage,
            rows=fitted,
            usual={},
        )
        usual = {"mahalanobis": manifold._mahalanobis(held_out), "nearest": manifold._nearest(held_out)}
        return cls(
            mean=mean, axes=axes, variances=manifold.variances, floor=manifold.floor, shrinkage=shrinkage, rows=fitted,
            usual={name: np.sort(distances) for name, distances in usual.items()},
        )  # fmt: skip

    def measure(self, activations: Tensor) -> _Distances:
        rows = _vectors(activations)
        mahalanobis, nearest = self._mahalanobis(rows), self._nearest(rows)
        return _Distances(
            mahalanobis=mahalanobis,
            nearest=nearest,
            percentile=_percentile(mahalanobis, self.usual["mahalanobis"]),
            nearest_percentile=_percentile(nearest, self.usual["nearest"]),
        )

    def _mahalanobis(self, rows: Tensor) -> np.ndarray:
        centred = rows - self.mean
        along = centred @ self.axes.T
        outside = (centred - along @ self.axes).square().sum(1)
        squared = torch.where(along == 0, 0, along.square() / self.variances).sum(1)
        tiny = torch.finfo(rows.dtype).eps ** 2 * centred.square().sum(1)  # rounding of the projection
        squared += torch.where(outside <= 64 * tiny, 0, outside / self.floor if self.floor > 0 else torch.inf)
        return squared.sqrt().cpu().numpy()

    def _nearest(self, rows: Tensor) -> np.ndarray:
        return torch.cdist(rows, self.rows, compute_mode="donot_use_mm_for_euclid_dist").amin(1).cpu().numpy()


def ledoit_wolf(rows: Float[Tensor, "row size"]) -> tuple[float, float]:
    """The shrinkage of a covariance towards a multiple of the identity, and that multiple.

    The estimate is (1 - shrinkage) * S + shrinkage * scale * I, S the covariance with divisor n.

    Args:
        rows: At least two observations.

    Returns:
        Shrinkage, 0 to 1, and scale, the mean variance.

    Source:
        Ledoit and Wolf 2004, *A well-conditioned estimator for large-dimensional covariance matrices*,
        Journal of Multivariate Analysis 88, section 3.

    Example:
        >>> import torch
        >>> from rlmech.patching.manifold import ledoit_wolf
        >>> ledoit_wolf(torch.tensor([[1.0], [-1.0]]))  # one dimension: nothing to shrink towards
        (0.0, 1.0)
    """
    centred = rows - rows.mean(0)
    n, size = centred.shape
    scale = float(centred.square().sum()) / (n * size)
    products = centred @ centred.T / n if n < size else centred.T @ centred / n
    squares = float(products.square().sum())  # |S|^2, the same for both products
    dispersion = squares / size - scale**2
    fourth = float(centred.square().sum(1).square().sum()) / n
    noise = (fourth - squares) / (n * size)
    if dispersion <= 0:
        return 0.0, scale
    return min(max(noise / dispersion, 0.0), 1.0), scale


def _vectors(activations: Tensor) -> Tensor:
    """Rows as vectors in double precision; a masked score, -inf, counts as -1e9, so that a change of mask is far."""
    flat = activations.reshape(activations.shape[0], -1).double()
    return torch.nan_to_num(flat, neginf=-1e9, posinf=1e9)


def _percentile(distances: np.ndarray, usual: np.ndarray) -> np.ndarray:
    below, upto = np.searchsorted(usual, distances, side="left"), np.searchsorted(usual, distances, side="right")
    return 100 * (below + upto) / (2 * len(usual))
