"""Captum's conductance: how much of the change from a baseline flows through the units of a layer, and from where.

    error = sum of the conductances - (score - score of the baseline)

Approximate; captum hooks modules, so that a layer must be one. Cost: captum's own, `n_steps` forward and backward
passes for each action.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

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
    layer_coordinates,
    layer_of,
    only,
    quiet,
    variables,
)
from rlmech.attribution.readouts import array, made_by, observed_arrays, readouts
from rlmech.circuits.labels import score_units
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import SiteError
from rlmech.results import storable


@explain_misuse
def layer_conductance(
    policy: HookedPolicy,
    obs: Observation,
    name: str,
    *,
    baseline: Observation,
    better: int | str | None = None,
    worse: int | str | None = None,
    n_steps: int = 50,
) -> xr.Dataset:
    """Captum's conductance of a layer's units: how much of the change from the baseline flows through each.

    Args:
        policy: The policy.
        obs: A batch of observations.
        name: Hook name of what a module puts out, e.g. `q_net.1.hook_out`.
        baseline: Where the line starts: as many rows, or one row for all, with the same entities present.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.
        n_steps: Points on the line.

    Returns:
        `conductance[batch, action, ...the hook point's axes]`, `total[batch, action]` and
        `completeness_error[batch, action]`, all in the unit of the scores. The error is large where a way leads past
        the layer.

    Raises:
        SiteError: The hook point is not what one module, called once, puts out.
        MissingPackageError: Captum is not installed.
        ObservationError: The baseline has other entities present, or another number of rows; or observations are whole
            numbers that the network looks up, which have no gradient.
        MetricError: No such action.

    Source:
        Dhamdhere, Sundararajan and Yan 2018, *How Important Is a Neuron?*, arXiv 1805.12233.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> from rlmech.attribution import layer_conductance
        >>> obs = torch.rand(4, 4)
        >>> sorted(layer_conductance(policy, obs, "1.hook_out", baseline=obs.mean(0, keepdim=True)).data_vars)
        ['completeness_error', 'conductance', 'total']
    """
    policy = policy.fitting(obs)
    layer, method = layer_of(policy, name), captum_methods().LayerConductance
    rows = readouts(policy, better=better, worse=worse)
    model = ReadoutModule(policy, rows)
    inputs, start = inputs_of(model, policy, obs), baseline_rows(model, policy, obs, baseline)
    with quiet():
        found = [
            only(method(model, layer).attribute(inputs, start, target=i, n_steps=n_steps, method=MIDPOINT_RULE))
            for i in range(len(rows.names))
        ]
    point, unit = policy.hook_dict[name], score_units(policy)
    values = torch.stack(found, dim=1).detach()
    total = change_of(model, inputs, start)
    dims = ("batch", "action", *point.axes[1:])
    data = {"conductance": array(values, dims, units=unit), **completeness(values.flatten(2).sum(2), total, unit)}
    coords = {"action": list(rows.names), **layer_coordinates(point)}
    attrs = made_by(
        policy, "layer_conductance", hook=name, n_steps=n_steps, rule=MIDPOINT_RULE, sign="positive raises the score"
    )
    return storable(xr.Dataset(data, coords=coords), attrs)


@explain_misuse
def neuron_conductance(
    policy: HookedPolicy,
    obs: Observation,
    name: str,
    *,
    neuron: int | tuple[int, ...],
    baseline: Observation,
    better: int | str | None = None,
    worse: int | str | None = None,
    n_steps: int = 50,
) -> xr.Dataset:
    """Captum's conductance of one unit, by what it comes from in the observation.

    Args:
        policy: The policy.
        obs: A batch of observations.
        name: Hook name of what a module puts out.
        neuron: The unit's place along the hook point's axes without the batch.
        baseline: Where the line starts: as many rows, or one row for all, with the same entities present.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.
        n_steps: Points on the line.

    Returns:
        `attribution[batch, action, ...observation axes]`, `total[batch, action]`, the unit's own conductance, and
        `completeness_error[batch, action]`, the attributions' sum less that; all in the unit of the scores.

    Raises:
        SiteError: The hook point is not what one module, called once, puts out; or it has no such unit.
        MissingPackageError: Captum is not installed.
        ObservationError: The baseline has other entities present, or another number of rows; or observations are whole
            numbers that the network looks up, which have no gradient.
        MetricError: No such action.

    Source:
        Dhamdhere, Sundararajan and Yan 2018, *How Important Is a Neuron?*, arXiv 1805.12233, section 3.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> from rlmech.attribution import neuron_conductance
        >>> obs = torch.rand(4, 4)
        >>> neuron_conductance(policy, obs, "1.hook_out", neuron=2, baseline=obs.mean(0, keepdim=True)).attribution.dims
        ('batch', 'action', 'feature')
    """
    policy = policy.fitting(obs)
    layer, place = layer_of(policy, name), (neuron,) if isinstance(neuron, int) else neuron
    point, captum = policy.hook_dict[name], captum_methods()
    sizes = point.shape[1:]
    if len(place) != len(sizes) or not all(0 <= i < (size or 0) for i, size in zip(place, sizes, strict=False)):
        raise SiteError(
            f"There is no unit {neuron!r} at {name!r}.",
            given=repr(neuron),
            expected=f"a place along {' '.join(point.axes[1:])}, sizes {list(sizes)}",
            fix="give one number for each of these axes",
        )
    rows = readouts(policy, better=better, worse=worse)
    model = ReadoutModule(policy, rows)
    inputs, start = inputs_of(model, policy, obs), baseline_rows(model, policy, obs, baseline)
    found: list[tuple[Tensor, ...]] = []
    own: list[Tensor] = []
    with quiet():
        for i in range(len(rows.names)):
            options = {"target": i, "n_steps": n_steps, "method": MIDPOINT_RULE}
            through = captum.NeuronConductance(model, layer).attribute(inputs, place, start, **options)
            found.append(tuple(part.detach() for part in through))
            whole = only(captum.LayerConductance(model, layer).attribute(inputs, start, **options))
            own.append(whole[(slice(None), *place)].detach())
    unit = score_units(policy)
    summed = torch.stack([sum((p.flatten(1).sum(1) for p in parts), torch.zeros(())) for parts in found], dim=1)
    data = variables(policy, found, units=unit) | completeness(summed, torch.stack(own, dim=1), unit)
    attrs = made_by(policy, "neuron_conductance", hook=name, neuron=list(place), n_steps=n_steps, rule=MIDPOINT_RULE)
    return storable(xr.Dataset(data, coords=coordinates(observed_arrays(policy), rows)), attrs)
