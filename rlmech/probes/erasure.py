"""LEACE: take out of a site all that linear readouts can find of a target, of several columns at once, by least change.

    value - W^- P W (value - mean)     W = whitening of the value's covariance, P = projection on W cov(value, target)

Afterwards the value and the target do not covary, so that no linear probe does better than a constant. Exact on the
states that it is fitted on. Cost: one eigendecomposition [number number].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.edit import Edit
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.patching.sites import choose_sites
from rlmech.probes.states import recorded
from rlmech.probes.targets import Labels, Target, read_targets

_LEAST = 1e-10
"""Of the largest variance along a direction, what a direction must have to be whitened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearErasure:
    """What an edit of `erase_targets` does to a value: `value - (value - mean) taken given`, flattened."""

    mean: Float[Tensor, " number"] = field(repr=False)
    taken: Float[Tensor, "number column"] = field(repr=False)
    given: Float[Tensor, "column number"] = field(repr=False)

    def __repr__(self) -> str:
        made = hashlib.sha256(b"".join(part.numpy().tobytes() for part in (self.mean, self.taken, self.given)))
        return f"LinearErasure({self.taken.shape[1]} columns, {made.hexdigest()[:16]})"

    def __call__(self, value: Tensor) -> Tensor:
        """The new value, rows first."""
        mean, taken, given = (part.to(value) for part in (self.mean, self.taken, self.given))
        flat = value.flatten(1)
        return (flat - (flat - mean) @ taken @ given).reshape(value.shape)


@explain_misuse
def erase_targets(
    policy: HookedPolicy,
    recording: Recording,
    *,
    target: Target | Iterable[Target] | Mapping[str, Target],
    site: Site | str,
) -> Edit:
    """An edit that takes everything linear about one target, or several together, out of a site.

    Args:
        policy: The policy that was recorded.
        recording: Its episodes.
        target: As in `fit_probe`, one value a step: a class is one column for each of its classes.
        site: Where.

    Returns:
        An edit for passes, sweeps and whole episodes. On the recorded steps that have a value, the site's value and all
        columns then do not covary; steps in which any target has no value are left out.

    Raises:
        ConfigError: A constant target, one of several values a step, no step at which all targets have a value, or
            nothing at the site that covaries with them.
        SiteError: No such site.

    Source:
        Belrose et al. 2023, *LEACE: Perfect linear concept erasure in closed form*, arXiv 2306.03819, theorem 4.3.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(8), progress=False)
        >>> both = {"angle": lambda r: r.observations[:, 2], "speed": lambda r: r.observations[:, 1]}
        >>> edit = rlm.probes.erase_targets(policy, recording, target=both, site="hook_obs")
        >>> with policy.edited(edit):
        ...     _, cache = policy.run_with_cache(torch.as_tensor(recording.observations))
        >>> bool(cache["hook_obs"][:, 1:3].std(0).max() < 1e-3)  # nothing of either is left
        True
    """
    (chosen,) = choose_sites(policy, [site])
    recording.check_policy(policy)
    labels = read_targets(recording, target, step_offset=0)
    columns, there = _columns(labels)
    value = recorded(policy, recording, chosen)[there]
    mean = value.mean(0)
    centred, z = value - mean, (columns - columns.mean(0)) / columns.std(0).clip(1e-300)
    sizes, directions = np.linalg.eigh(centred.T @ centred / len(value))
    kept = sizes > _LEAST * max(float(sizes[-1]), np.finfo(float).tiny)
    root, axes = np.sqrt(sizes[kept]), directions[:, kept]
    shared = (axes / root).T @ (centred.T @ z / len(value))  # whitened: correlations
    left, strength, _ = np.linalg.svd(shared, full_matrices=False)
    left = left[:, strength > 1e-9 * np.sqrt(len(labels))]
    if not left.shape[1]:
        raise ConfigError(
            f"There is nothing to erase at {chosen}.",
            given=f"no covariance with {', '.join(repr(one.name) for one in labels)}",
            expected="a site that holds something linear of the target",
            fix="rlm.probes.fit_probe says at which sites it can be read",
        )
    mapping = LinearErasure(
        mean=torch.as_tensor(mean),
        taken=torch.as_tensor(axes / root @ left),
        given=torch.as_tensor((axes * root @ left).T.copy()),
    )
    return Edit(site=chosen, kind="map", mapping=mapping)


def _columns(labels: list[Labels]) -> tuple[Float[np.ndarray, "row column"], np.ndarray]:
    """The targets' columns, and the steps in which all have a value."""
    several = [one.name for one in labels if one.values.ndim > 1]
    there = np.flatnonzero(np.all([np.isfinite(one.values) for one in labels if one.values.ndim == 1], axis=0))
    if several or not len(there):
        raise ConfigError(
            "Erasure takes one value a step of each target, at some steps of all of them.",
            given=f"several values a step of {several[0]!r}" if several else "no step at which all have a value",
            expected="one value a step",
            fix="rlm.probes.of_entity(column, row=1) takes one entity's",
        )
    parts = [
        one.values[there, None] if one.kind == "number" else np.eye(len(one.classes))[one.values[there].astype(int)]
        for one in labels
    ]
    columns = np.concatenate(parts, axis=1)
    return columns[:, columns.std(0) > 0], there
