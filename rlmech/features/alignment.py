"""Distributed alignment search: along which directions of a site a causal variable stands, learned by interchanges.

    value of the base run + P (value of the source run - value of the base run),   P the projection on the subspace

A subspace of each size is learned so that the action becomes what the causal model says; the size is the smallest that
does as well as any on episodes that taught nothing, and what is reported is of further episodes. Approximate: found by
gradient descent, and known only as far as the activations vary. Cost: `n_steps` passes forward and back for each size
and each control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.directions import exchange_along
from rlmech.core.edit import Edit
from rlmech.core.hook_point import HookPoint
from rlmech.core.interventions import Reference, subspace_patch
from rlmech.core.many_rows import rows_of, scores_of, values_at
from rlmech.core.masked import open_actions
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site, read, write
from rlmech.errors import ConfigError
from rlmech.features.pairs import InterchangePairs
from rlmech.nets.untrained import untrained
from rlmech.patching.sites import choose_sites, site_coordinates
from rlmech.patching.sweeps.independence import refuse_train_mode
from rlmech.results import storable
from rlmech.statistics import bootstrap_mean
from rlmech.untyped import Variables

CONTROLS = ("aligned", "random_subspace", "arbitrary_labels", "untrained", "unchanged", "whole_site")
FLOORS = CONTROLS[1:5]
"""What the aligned subspace must do better than."""
_BATCH = 256
_RATE = 0.05
_SHARPER = 20.0
"""How much smaller the temperature of the loss is at the end than at the beginning, where it is the scores' spread: a
wide one finds the way, a narrow one the border between two actions, which is all that the expected actions tell of."""
_AS_GOOD = 0.01
"""Accuracy by which a smaller subspace may be worse than the best and still be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlignedSubspace:
    """Directions of a site that carry a causal variable, and how well they do beside the controls.

    Attributes:
        site: Where.
        basis: Orthonormal directions `[direction ...]`, each of the site's selected shape; goes into `subspace_patch`.
        result: See `align_subspace`.
        says: The same in words.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.planted_subspace(n_idle=0)
        >>> pairs = rlm.features.InterchangePairs(base=known.base, source=known.source, expected=known.expected)
        >>> found = rlm.features.align_subspace(known.policy, pairs, site=known.site, sizes=[2], n_controls=1)
        >>> found.basis.shape
        torch.Size([2, 4])
    """

    site: Site
    basis: Float[Tensor, "direction ..."] = field(repr=False)
    result: xr.Dataset = field(repr=False)
    says: str

    def edit(self, source: Reference) -> Edit:
        """The interchange of the variable: the base runs' component in the subspace becomes the source runs'."""
        return subspace_patch(self.site, self.basis, source=source)


@explain_misuse
def align_subspace(
    policy: HookedPolicy,
    pairs: InterchangePairs,
    *,
    site: Site | str,
    sizes: Sequence[int] = (1, 2, 4, 8),
    n_steps: int = 300,
    n_controls: int = 2,
    seed: int = 0,
) -> AlignedSubspace:
    """Learn the subspace of a site along which a causal variable is exchanged, beside what else could be learned.

    Args:
        policy: A policy of discrete actions.
        pairs: Base and source runs, and what an interchange of the variable leads to; `interchange_pairs` draws them.
        site: Where.
        sizes: Numbers of directions to try, each below the site's size.
        n_steps: Steps of Adam for each subspace.
        n_controls: Draws of each control.
        seed: Of the split, the beginnings, the controls and the bootstrap.

    Returns:
        The subspace, and `result`: `accuracy[control]`, the share of the test pairs whose action becomes the expected
        one, with `_low`, `_high` (95 %, over clusters), for `aligned`; `random_subspace` of the same size;
        `arbitrary_labels`, learned and tested with the expected actions shuffled; `untrained`, learned in networks of
        the same shape with fresh weights for the same expected actions; `unchanged`, without intervention; and
        `whole_site`, which is exchanged as a whole. `advantage[control]`, aligned less control, likewise;
        `accuracy_by_size[size]` on the pairs that chose the size; the numbers of pairs in the attributes.

    Raises:
        ConfigError: Fewer than four clusters (episodes), a size that the site does not have, nothing that the
            interchange changes, or several choices.
        SiteError, MetricError, EngineError: As of `interchange_intervention`.

    Source:
        Geiger et al. 2024, *Finding Alignments Between Interpretable Causal Variables and Distributed Neural
        Representations*, arXiv 2303.02536.

    Example:
        >>> import rlmech as rlm, scipy.linalg
        >>> known = rlm.testbed.planted_subspace(n_idle=2)
        >>> pairs = rlm.features.InterchangePairs(base=known.base, source=known.source, expected=known.expected)
        >>> found = rlm.features.align_subspace(known.policy, pairs, site=known.site, sizes=[1, 2, 3], n_controls=1)
        >>> angles = scipy.linalg.subspace_angles(found.basis.T, known.basis.T)
        >>> found.basis.shape[0], bool(angles.max() < 0.09)
        (2, True)
    """
    (chosen,) = choose_sites(policy, [site])
    runs = _Runs.of(policy, chosen, pairs)
    size = runs.change.shape[1]
    wanted = sorted({int(number) for number in sizes if number < size}) if all(s >= 1 for s in sizes) else []
    if not wanted or n_controls < 1 or n_steps < 1:
        raise ConfigError(
            "A subspace has at least one direction and fewer than the site has numbers.",
            given=f"sizes={list(sizes)} at {chosen}, which has {size}; n_controls={n_controls}, n_steps={n_steps}",
            expected=f"sizes from 1 to {size - 1}, n_controls and n_steps from 1",
            fix="sizes=[1, 2], or choose a wider site",
        )
    fitting, choosing, testing = _split(runs.clusters, seed)
    generator = torch.Generator().manual_seed(seed)
    learn = _Learner(n_steps=n_steps, generator=generator)
    bases = {number: learn(runs, fitting, number, runs.expected) for number in wanted}
    on_choosing = {number: runs.hits(basis, choosing, runs.expected) for number, basis in bases.items()}
    number = _smallest(on_choosing, runs.clusters[choosing])
    hits = {"aligned": runs.hits(bases[number], testing, runs.expected)}
    drawn = [torch.linalg.qr(torch.randn(size, number, generator=generator).double()).Q.T for _ in range(n_controls)]
    hits["random_subspace"] = _mean([runs.hits(basis, testing, runs.expected) for basis in drawn])
    shuffled = [runs.expected[torch.randperm(len(runs.expected), generator=generator)] for _ in range(n_controls)]
    hits["arbitrary_labels"] = _mean(
        [runs.hits(learn(runs, fitting, number, labels), testing, labels) for labels in shuffled]
    )
    twins = [
        _Runs.of(untrained(policy, seed + 1 + k), chosen, pairs, expected=runs.expected) for k in range(n_controls)
    ]
    hits["untrained"] = _mean(
        [twin.hits(learn(twin, fitting, number, runs.expected), testing, runs.expected) for twin in twins]
    )
    hits["unchanged"] = (runs.before[testing] == runs.expected[testing]).double().numpy()
    hits["whole_site"] = runs.hits(torch.eye(size, dtype=torch.float64), testing, runs.expected)
    result = _dataset(runs, hits, on_choosing, testing, seed=seed)
    says = _words(result)
    told = {"size": number, "says": says, "n_fitted": len(fitting), "n_choosing": len(choosing)}
    told |= {
        "n_tested": len(testing),
        "n_clusters": len(np.unique(runs.clusters[testing])),
        "n_steps": n_steps,
        "n_controls": n_controls,
        "seed": seed,
    }
    basis = bases[number].reshape(number, *chosen.block_shape(policy.point(chosen.name)))
    result = storable(result, provenance(policy) | {"method": "distributed alignment search", **told})
    return AlignedSubspace(site=chosen, basis=basis, result=result, says=says)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """Base runs of one policy, what changes at the site when the source takes over, and what is expected then."""

    policy: HookedPolicy
    site: Site
    base: Any
    change: Tensor
    """`[pair number]`, source minus base."""
    before: Tensor
    expected: Tensor
    clusters: np.ndarray
    scale: float

    @classmethod
    def of(cls, policy: HookedPolicy, site: Site, pairs: InterchangePairs, *, expected: Tensor | None = None) -> _Runs:
        _refuse(policy)
        base, source = values_at(policy, pairs.base, site), values_at(policy, pairs.source, site)
        scores = scores_of(policy, pairs.base)
        shown = open_actions(scores)
        spread = (scores.masked_fill(~shown, 0) - scores.masked_fill(~shown, 0).mean(1, keepdim=True)).std()
        change = torch.where(source == base, torch.zeros_like(base), source - base)
        if not bool(change.any()):
            raise ConfigError(
                f"The interchange changes nothing at {site}.",
                given=f"{len(scores)} pairs with the same activation in base and source",
                expected="pairs that differ there",
                fix="draw pairs of different states, or choose another site",
            )
        return cls(
            policy=policy,
            site=site,
            base=pairs.base,
            change=change.flatten(1).double(),
            before=scores.argmax(-1).cpu(),
            expected=pairs.actions(policy) if expected is None else expected,
            clusters=pairs.labels(),
            scale=float(spread) or 1.0,
        )

    def scores(self, basis: Tensor, rows: np.ndarray) -> Tensor:
        """The scores after the interchange in the subspace; they have a gradient where the basis has."""
        index = self.site.index(self.policy.point(self.site.name))
        change = self.change[torch.as_tensor(rows)]

        def exchange(tensor: Tensor, hook: HookPoint) -> Tensor:
            value = read(tensor, index)
            moved = exchange_along(basis, value, value.detach() + change.reshape(value.shape).to(value))
            return write(tensor.clone(), index, moved)

        return self.policy.run_with_hooks(rows_of(self.base, rows), fwd_hooks=[(self.site.name, exchange)])

    def hits(self, basis: Tensor, rows: np.ndarray, expected: Tensor) -> np.ndarray:
        """Which pairs do what is expected, 1 or 0."""
        with torch.no_grad():
            done = torch.cat([self.scores(basis, part).argmax(-1).cpu() for part in _parts(rows)])
        return (done == expected[torch.as_tensor(rows)]).double().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learner:
    """Gradient descent on subspaces; a subspace is the span of any matrix of full rank, made orthonormal by QR."""

    n_steps: int
    generator: torch.Generator

    def __call__(self, runs: _Runs, rows: np.ndarray, size: int, expected: Tensor) -> Float[Tensor, "direction number"]:
        width = runs.change.shape[1]
        free = torch.randn(width, size, generator=self.generator, dtype=torch.float64).requires_grad_()
        adam = torch.optim.Adam([free], lr=_RATE)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.n_steps)
        with torch.enable_grad():
            for step in range(self.n_steps):
                temperature = runs.scale / _SHARPER ** (step / self.n_steps)
                drawn = torch.randint(len(rows), (min(_BATCH, len(rows)),), generator=self.generator)
                part = rows[drawn.numpy()]
                scores = runs.scores(torch.linalg.qr(free).Q.T, part) / temperature
                loss = torch.nn.functional.cross_entropy(scores, expected[torch.as_tensor(part)].to(scores.device))
                (free.grad,) = torch.autograd.grad(loss, free)
                adam.step()
                slower.step()
        return torch.linalg.qr(free.detach()).Q.T


def _split(clusters: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that teach, that choose the size, and that are reported: half, a quarter and a quarter of the clusters."""
    labels = np.random.default_rng(seed).permutation(np.unique(clusters))
    if len(labels) < 4:
        raise ConfigError(
            "A subspace is learned, chosen and tested on different episodes.",
            given=f"pairs of {len(labels)} episodes",
            expected="4 or more, 16 for an interval",
            fix="record more episodes",
        )
    n = len(labels) // 4
    parts = labels[2 * n :], labels[n : 2 * n], labels[:n]
    first, second, third = (np.flatnonzero(np.isin(clusters, part)) for part in parts)
    return first, second, third


def _smallest(hits: dict[int, np.ndarray], clusters: np.ndarray) -> int:
    """The smallest size that is as good as the best, within one standard error of their difference over clusters."""
    best = max(hits, key=lambda size: (hits[size].mean(), -size))
    _, number = np.unique(clusters, return_inverse=True)
    for size in sorted(hits):
        worse = np.bincount(number, hits[best] - hits[size]) / np.bincount(number)
        error = worse.std(ddof=1) / np.sqrt(len(worse)) if len(worse) > 1 else 0.0
        if worse.mean() <= max(_AS_GOOD, error):
            return size
    return best


def _dataset(
    runs: _Runs, hits: dict[str, np.ndarray], by_size: dict[int, np.ndarray], testing: np.ndarray, *, seed: int
) -> xr.Dataset:
    rows = np.stack([hits[name] for name in CONTROLS])
    clusters = runs.clusters[testing]
    data: Variables = {}
    for name, values in (("accuracy", rows), ("advantage", rows[0] - rows)):
        found = bootstrap_mean(values, clusters=clusters, seed=seed)
        for suffix, part in (("", found.estimate), ("_low", found.low), ("_high", found.high)):
            data[name + suffix] = ("control", part, {"units": "fraction"})
    data["accuracy_by_size"] = ("size", [float(one.mean()) for one in by_size.values()], {"units": "fraction"})
    coords: Variables = {"control": list(CONTROLS), "size": list(by_size)}
    where = {name: values[0] for name, (_, values) in site_coordinates(runs.policy, [runs.site]).items()}
    return xr.Dataset(data, coords=coords).assign_coords(where)


def _words(result: xr.Dataset) -> str:
    low = result["advantage_low"]
    if not np.isfinite(low.sel(control="unchanged")):
        return "too few episodes for an interval"
    behind = [name.replace("_", " ") for name in FLOORS if not float(low.sel(control=name)) > 0]
    if not behind:
        return "moves the variable, better than every control"
    return f"no better than {', '.join(behind)}"


def _mean(hits: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(hits, axis=0)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) // 4096)))


def _refuse(policy: HookedPolicy) -> None:
    if policy.output_kind == "mean_action" or policy.choices is not None:
        raise ConfigError(
            "An alignment is learned from which action is done.",
            given="continuous actions" if policy.output_kind == "mean_action" else "several choices",
            expected="discrete actions, one choice",
            fix="policy.choice(name) is one of several choices alone",
        )
    refuse_train_mode(policy)
