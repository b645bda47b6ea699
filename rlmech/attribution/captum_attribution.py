"""Captum's attributions of action scores and gaps, with names, units, checked baselines and the completeness error.

    error = sum of the attributions - (score - score of the baseline)

Approximate where `exact_integrated_gradients` is exact, and for any network that autograd can go through. Captum is
imported when the first of these is called. Cost: captum's own, `n_steps` forward and backward passes for each action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from rlmech.arguments import explain_misuse
from rlmech.attribution.captum_model import (
    MIDPOINT_RULE,
    ReadoutModule,
    baseline_rows,
    captum_methods,
    change_of,
    completeness,
    coordinates,
    inputs_of,
    module_at,
    quiet,
    variables,
)
from rlmech.attribution.readouts import made_by, observed_arrays, readouts
from rlmech.circuits.labels import score_units
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError
from rlmech.results import storable


@explain_misuse
def integrated_gradients(
    policy: HookedPolicy,
    obs: Observation,
    *,
    baseline: Observation,
    better: int | str | None = None,
    worse: int | str | None = None,
    n_steps: int = 50,
) -> xr.Dataset:
    """Captum's integrated gradients, by the midpoint rule.

    Args:
        policy: The policy.
        obs: A batch of observations.
        baseline: Where the line starts: as many rows, or one row for all, with the same entities present.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.
        n_steps: Points on the line.

    Returns:
        In the unit of the scores, positive raises the score: `attribution[batch, action, ...observation axes]`
        (`attribution_<key>` for each array of a dict observation), `total[batch, action]`, the score less the
        baseline's, and `completeness_error[batch, action]`, the attributions' sum less `total`.

    Raises:
        MissingPackageError: Captum is not installed.
        ObservationError: The baseline has other entities present, or another number of rows; or observations are whole
            numbers that the network looks up, which have no gradient.
        MetricError: No such action.

    Source:
        Sundararajan, Taly and Yan 2017, *Axiomatic Attribution for Deep Networks*, arXiv 1703.01365.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.captum_attribution import integrated_gradients
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = integrated_gradients(policy, torch.ones(1, 4), baseline=torch.zeros(1, 4), n_steps=2)
        >>> found.attribution.dims, bool(abs(found.completeness_error).max() < 1e-6)
        (('batch', 'action', 'feature'), True)
    """
    policy = policy.fitting(obs)
    method = captum_methods().IntegratedGradients

    def attribute(model: nn.Module, inputs: tuple[Tensor, ...], start: tuple[Tensor, ...], target: int) -> Any:
        return method(model).attribute(inputs, start, target=target, n_steps=n_steps, method=MIDPOINT_RULE)

    return _between(policy, obs, baseline, attribute, better=better, worse=worse, n_steps=n_steps, rule=MIDPOINT_RULE)


@explain_misuse
def deep_lift(
    policy: HookedPolicy,
    obs: Observation,
    *,
    baseline: Observation,
    better: int | str | None = None,
    worse: int | str | None = None,
) -> xr.Dataset:
    """Captum's DeepLift (rescale rule), for networks whose activations are modules.

    Captum replaces the gradients of activation modules only; a network that calls `torch.relu` would silently get
    gradient times input, and is refused.

    Args:
        policy: A policy whose activations are all modules, each called once.
        obs: A batch of observations.
        baseline: The reference: as many rows, or one row for all, with the same entities present.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.

    Returns:
        As `integrated_gradients`.

    Raises:
        EngineError: An activation is no module of its own.
        MissingPackageError: Captum is not installed.
        ObservationError: The baseline has other entities present, or another number of rows; or observations are whole
            numbers that the network looks up, which have no gradient.
        MetricError: No such action.

    Source:
        Shrikumar, Greenside and Kundaje 2017, *Learning Important Features Through Propagating Activation Differences*,
        arXiv 1704.02685.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> from rlmech.attribution import deep_lift
        >>> obs = torch.rand(4, 4)
        >>> found = deep_lift(policy, obs, baseline=obs.mean(0, keepdim=True), better=0, worse=1)
        >>> found.attribution.dims
        ('batch', 'action', 'feature')
    """
    policy = policy.fitting(obs)
    for name, point in policy.points.items():
        if point.kind in ("activation", "pattern", "pool") and module_at(policy, name) is None:
            raise EngineError(
                "DeepLift replaces the gradients of activation modules, and this network has others.",
                given=f"{name!r}, which is no module that is called once",
                expected="activations as modules, e.g. nn.ReLU, each called once",
                fix="use exact_integrated_gradients, which needs no modules",
            )
    method = captum_methods().DeepLift

    def attribute(model: nn.Module, inputs: tuple[Tensor, ...], start: tuple[Tensor, ...], target: int) -> Any:
        return method(model).attribute(inputs, start, target=target)

    return _between(policy, obs, baseline, attribute, better=better, worse=worse, rule="rescale")


@explain_misuse
def saliency(
    policy: HookedPolicy, obs: Observation, *, better: int | str | None = None, worse: int | str | None = None
) -> xr.Dataset:
    """Captum's saliency: the size of the gradient. It is no share of the score, and has no completeness to err from.

    Args:
        policy: The policy.
        obs: A batch of observations.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.

    Returns:
        `attribution[batch, action, ...observation axes]`, the absolute gradient, in the scores' unit for each unit of
        the observation as the network sees it.

    Raises:
        MissingPackageError: Captum is not installed.
        ObservationError: Whole numbers that the network looks up, which have no gradient.
        MetricError: No such action.

    Source:
        Simonyan, Vedaldi and Zisserman 2013, *Deep Inside Convolutional Networks*, arXiv 1312.6034.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> from rlmech.attribution import saliency
        >>> saliency(policy, torch.rand(4, 4)).attribution.dims
        ('batch', 'action', 'feature')
    """
    policy = policy.fitting(obs)
    method, rows = captum_methods().Saliency, readouts(policy, better=better, worse=worse)
    model = ReadoutModule(policy, rows)
    inputs = inputs_of(model, policy, obs)
    with quiet():
        found = [
            method(model).attribute(tuple(v.clone().requires_grad_() for v in inputs), target=i)
            for i in range(len(rows.names))
        ]
    data = variables(policy, found, units=f"{score_units(policy)} per unit of observation")
    attrs = made_by(policy, "saliency", completeness="none: a gradient is no share of the score")
    return storable(xr.Dataset(data, coords=coordinates(observed_arrays(policy), rows)), attrs)


def _between(
    policy: HookedPolicy,
    obs: Observation,
    baseline: Observation,
    attribute: Callable[[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], int], Any],
    *,
    better: int | str | None,
    worse: int | str | None,
    **how: Any,
) -> xr.Dataset:
    """An attribution of what lies between a baseline and the observation."""
    rows = readouts(policy, better=better, worse=worse)
    model = ReadoutModule(policy, rows)
    inputs, start = inputs_of(model, policy, obs), baseline_rows(model, policy, obs, baseline)
    with quiet():
        found = [
            tuple(part.detach() for part in attribute(model, inputs, start, target))
            for target in range(len(rows.names))
        ]
    unit = score_units(policy)
    summed = torch.stack([sum((p.flatten(1).sum(1) for p in parts), torch.zeros(())) for parts in found], dim=1)
    data = variables(policy, found, units=unit) | completeness(summed, change_of(model, inputs, start), unit)
    attrs = made_by(policy, "captum", **how, sign="positive raises the score")
    return storable(xr.Dataset(data, coords=coordinates(observed_arrays(policy), rows)), attrs)
