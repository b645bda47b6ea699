"""Directions of a concept that is given by examples, and how sensitive decisions are to it.

mean difference   mean(with) - mean(without)          lda   inverse covariance within, times that
sensitivity       share of states in which the score rises along the direction (TCAV)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.edit import Edit
from rlmech.core.hook_point import HookPoint
from rlmech.core.interventions import steer
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site, read
from rlmech.errors import ConfigError
from rlmech.metrics.measure import Metric, MetricFunction, bind
from rlmech.metrics.score_metrics import default_metric
from rlmech.patching.sites import choose_sites, site_coordinates
from rlmech.patching.sweeps.sweep import outputs_of
from rlmech.probes.states import activations
from rlmech.results import storable

Way = Literal["mean_difference", "lda"]
SHRINKAGE = 1e-3
"""Share of the mean variance that is added to every variance before the covariance is inverted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A direction at a site that tells examples with a concept from examples without.

    Attributes:
        site: Where.
        target: Its name.
        slope: The direction, flattened: what grows along it is the concept.
        covariance: Of the site's values over all examples, flattened.
        mean: Of the same.
        shape: Of what the site selects.
        spread: Standard deviation of the component along the direction, in lengths of `direction`.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
        >>> obs = torch.randn(100, 3)
        >>> moved = obs + torch.tensor([1.0, 0, 0])
        >>> concept = rlm.probes.concept_direction(policy, positive=moved, negative=obs, site="hook_obs")
        >>> concept.site, concept.shape
        (Site('hook_obs'), (3,))
    """

    site: Site
    target: str
    slope: Float[np.ndarray, " number"] = field(repr=False)
    covariance: Float[np.ndarray, "number number"] = field(repr=False)
    mean: Float[np.ndarray, " number"] = field(repr=False)
    shape: tuple[int, ...]
    spread: float

    def normal(self, of: str | None = None) -> Float[np.ndarray, " number"]:
        """The direction, of length one, flattened; `of` is for probes of several classes."""
        return self.slope / np.linalg.norm(self.slope)

    def direction(self, of: str | None = None) -> Tensor:
        """The direction, of length one, in the site's selected shape."""
        return torch.as_tensor(self.normal()).reshape(self.shape).float()

    def pattern(self, of: str | None = None) -> Tensor:
        """How the site's values move with the component along the direction: covariance times direction, rescaled."""
        unit = self.normal()
        moved = self.covariance @ unit
        return torch.as_tensor(moved / (unit @ moved)).reshape(self.shape).float()

    def edit(self, amount: float = 1.0) -> Edit:
        """An edit that pushes along the concept.

        Args:
            amount: How far, in standard deviations of the component along it over the examples.
        """
        return steer(self.site, self.pattern(), amount * self.spread)


@explain_misuse
def concept_direction(
    policy: HookedPolicy,
    *,
    positive: Observation,
    negative: Observation,
    site: Site | str,
    method: Way = "mean_difference",
    name: str = "concept",
) -> Concept:
    """The direction at a site from examples without a concept to examples with it.

    Args:
        policy: The policy.
        positive: Observations with the concept.
        negative: Observations without it, as alike as can be otherwise.
        site: Where.
        method: `mean_difference`, or `lda`, which takes out what varies in both.
        name: What results call it.

    Raises:
        ConfigError: No such method, fewer than two examples of a kind, or the same mean in both.
        SiteError: No such site.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
        >>> obs = torch.randn(100, 3)
        >>> concept = rlm.probes.concept_direction(
        ...     policy, positive=obs + torch.tensor([1.0, 0, 0]), negative=obs, site="hook_obs"
        ... )
        >>> concept.direction()
        tensor([1., 0., 0.])
    """
    policy = policy.fitting(positive)
    if method not in get_args(Way):
        raise ConfigError(
            f"There is no method {method!r}.",
            given=repr(method),
            expected=f"one of {', '.join(get_args(Way))}",
            fix="method='mean_difference'",
        )
    (chosen,) = choose_sites(policy, [site])
    with_it, without = (activations(policy, obs, chosen) for obs in (positive, negative))
    if min(len(with_it), len(without)) < 2:
        raise ConfigError(
            "A concept is learned from examples with it and without.",
            given=f"{len(with_it)} with and {len(without)} without",
            expected="two or more of each",
            fix="give more observations",
        )
    difference = with_it.mean(0) - without.mean(0)
    everything = np.concatenate([with_it, without])
    scale = np.abs(everything).max(initial=0.0)
    if np.abs(difference).max(initial=0.0) <= 1e-9 * scale or not difference.any():
        raise ConfigError(
            f"The concept {name!r} makes no difference at {chosen}.",
            given="the same mean with it and without",
            expected="values that differ",
            fix="choose another site, or examples that differ in the concept",
        )
    if method == "lda":
        inside = np.concatenate([with_it - with_it.mean(0), without - without.mean(0)])
        covariance = inside.T @ inside / len(inside)
        covariance += SHRINKAGE * (np.trace(covariance) / len(covariance) or 1.0) * np.eye(len(covariance))
        difference = np.linalg.solve(covariance, difference)
    unit = difference / np.linalg.norm(difference)
    covariance = np.cov(everything, rowvar=False, bias=True).reshape(len(unit), len(unit))
    return Concept(
        site=chosen,
        target=name,
        slope=difference,
        covariance=covariance,
        mean=everything.mean(0),
        shape=chosen.block_shape(policy.point(chosen.name)),
        spread=float(np.sqrt(unit @ covariance @ unit)),
    )


@explain_misuse
def concept_sensitivity(
    policy: HookedPolicy,
    obs: Observation,
    concept: Concept,
    *,
    reference: Observation,
    metric: Metric | MetricFunction | None = None,
    n_controls: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """TCAV: in what share of states does the metric rise along the concept, and is that more than chance concepts do?

    Args:
        policy: The policy.
        obs: Observations whose decisions are asked about.
        concept: From `concept_direction`.
        reference: Observations that random concepts are made of: two random halves of them each.
        metric: What is measured; None for the policy's default (the action gap, or the change of the action).
        n_controls: Random concepts.
        seed: Of their draws.

    Returns:
        Dimensions `site` (one), `batch` and `control`: `derivative[site, batch]` along the unit direction, in the
        metric's unit per unit of the activation; `score[site]`, the share of states where it is positive;
        `control_score[site, control]` of the random concepts; `p[site]`, two-sided, the rank of the score among them.

    Raises:
        MetricError: The metric has no gradient.
        ConfigError: Fewer than two controls.

    Source:
        Kim et al. 2018, *Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation
        Vectors*, arXiv 1711.11279.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Linear(3, 2)
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 3))
        >>> obs = torch.randn(50, 3)
        >>> concept = rlm.probes.concept_direction(
        ...     policy, positive=obs + net.weight.detach()[0], negative=obs, site="hook_obs"
        ... )
        >>> found = rlm.probes.concept_sensitivity(
        ...     policy, obs, concept, reference=obs, metric=rlm.metrics.action_score(0)
        ... )
        >>> float(found["score"].item())
        1.0
    """
    policy = policy.fitting(obs)
    if n_controls < 2:
        raise ConfigError(
            "Chance is told by random concepts.",
            given=f"n_controls={n_controls}",
            expected="2 or more",
            fix="n_controls=100",
        )
    bound = bind(metric or default_metric(policy.output_kind), policy, clean=outputs_of(policy, obs))
    gradient = _gradient(policy, obs, concept.site, bound)
    along = gradient @ concept.normal()
    rng = np.random.default_rng(seed)
    values = activations(policy, reference, concept.site)
    if len(values) < 4:
        raise ConfigError(
            "Random concepts are made of a reference.",
            given=f"{len(values)} observations",
            expected="four or more",
            fix="give the recording's observations",
        )
    scores = np.empty(n_controls)
    for number in range(n_controls):
        order = rng.permutation(len(values))
        half = len(values) // 2
        scores[number] = (gradient @ _unit(values[order[:half]].mean(0) - values[order[half:]].mean(0)) > 0).mean()
    score = float((along > 0).mean())
    above, below = int((scores >= score).sum()), int((scores <= score).sum())
    p = min(1.0, 2 * (1 + min(above, below)) / (1 + n_controls))
    data: dict[str, Any] = {
        "derivative": (("site", "batch"), along[None], {"units": bound.unit}),
        "score": ("site", [score], {"units": "1"}),
        "control_score": (("site", "control"), scores[None], {"units": "1"}),
        "p": ("site", [p], {"units": "1"}),
    }
    coords = {"site": [0], "batch": np.arange(len(along)), "control": np.arange(n_controls)}
    attrs = provenance(policy) | {
        "metric": bound.name,
        "concept": concept.target,
        "seed": seed,
        "n_controls": n_controls,
    }
    return storable(xr.Dataset(data, coords={**coords, **site_coordinates(policy, [concept.site])}), attrs)


def _gradient(policy: HookedPolicy, obs: Observation, site: Site, bound: Any) -> Float[np.ndarray, "batch number"]:
    """The metric's gradient at the site, row by row."""
    if not bound.differentiable:
        raise ConfigError(
            "Sensitivity needs a metric with a gradient.",
            given=f"the metric {bound.name}",
            expected="e.g. action_gap, action_score, policy_kl",
            fix="metric=rlm.metrics.action_gap()",
        )
    leaves: list[Tensor] = []

    def keep(tensor: Tensor, hook: HookPoint) -> Tensor:
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        scores = policy.run_with_hooks(obs, fwd_hooks=[(site.name, keep)])
        (slope,) = torch.autograd.grad(bound(scores).sum(), leaves[-1])
    return read(slope, site.index(policy.point(site.name))).flatten(1).double().cpu().numpy()


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector
