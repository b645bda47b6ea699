"""Captum's attributions of action scores and gaps, with names, units, checked baselines and the completeness error.

    error = sum of the attributions - (score - score of the baseline)

Approximate where `exact_integrated_gradients` is exact, and for any network that autograd can go through. Captum is
imported when the first of these is called. Cost: captum's own, `n_steps` forward and backward passes for each action.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.circuits.axes import ObservedArray, Readouts, array, made_by, observed_arrays, readouts
from rlmech.circuits.baselines import baseline_arrays
from rlmech.circuits.labels import score_units
from rlmech.core.hook_point import HookPoint
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError, MissingPackageError, SiteError

_RULE = "riemann_middle"  # the midpoint rule


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
        ObservationError: The baseline has other entities present, or another number of rows.
        MetricError: No such action.

    Source:
        Sundararajan, Taly and Yan 2017, *Axiomatic Attribution for Deep Networks*, arXiv 1703.01365.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.circuits.captum_attribution import integrated_gradients
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = integrated_gradients(policy, torch.ones(1, 4), baseline=torch.zeros(1, 4), n_steps=2)
        >>> found.attribution.dims, bool(abs(found.completeness_error).max() < 1e-6)
        (('batch', 'action', 'feature'), True)
    """
    method = _captum().IntegratedGradients

    def attribute(model: nn.Module, inputs: tuple[Tensor, ...], start: tuple[Tensor, ...], target: int) -> Any:
        return method(model).attribute(inputs, start, target=target, n_steps=n_steps, method=_RULE)

    return _between(policy, obs, baseline, attribute, better=better, worse=worse, n_steps=n_steps, rule=_RULE)


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
        ObservationError: The baseline has other entities present, or another number of rows.
        MetricError: No such action.

    Source:
        Shrikumar, Greenside and Kundaje 2017, *Learning Important Features Through Propagating Activation Differences*,
        arXiv 1704.02685.
    """
    for name, point in policy.points.items():
        if point.kind in ("activation", "pattern", "pool") and _module_at(policy, name) is None:
            raise EngineError(
                "DeepLift replaces the gradients of activation modules, and this network has others.",
                given=f"{name!r}, which is no module that is called once",
                expected="activations as modules, e.g. nn.ReLU, each called once",
                fix="use exact_integrated_gradients, which needs no modules",
            )
    method = _captum().DeepLift

    def attribute(model: nn.Module, inputs: tuple[Tensor, ...], start: tuple[Tensor, ...], target: int) -> Any:
        return method(model).attribute(inputs, start, target=target)

    return _between(policy, obs, baseline, attribute, better=better, worse=worse, rule="rescale")


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
        MetricError: No such action.

    Source:
        Simonyan, Vedaldi and Zisserman 2013, *Deep Inside Convolutional Networks*, arXiv 1312.6034.
    """
    method, rows = _captum().Saliency, readouts(policy, better=better, worse=worse)
    model, inputs = _Scores(policy, rows), _real(policy.coerce(obs), rows)
    with _quiet():
        found = [
            method(model).attribute(tuple(v.clone().requires_grad_() for v in inputs), target=i)
            for i in range(len(rows.names))
        ]
    data = _variables(policy, found, units=f"{score_units(policy)} per unit of observation")
    attrs = made_by(policy, "saliency", completeness="none: a gradient is no share of the score")
    return xr.Dataset(data, coords=_coords(observed_arrays(policy), rows), attrs=attrs)


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
        ObservationError: The baseline has other entities present, or another number of rows.
        MetricError: No such action.

    Source:
        Dhamdhere, Sundararajan and Yan 2018, *How Important Is a Neuron?*, arXiv 1805.12233.
    """
    layer, method = _layer(policy, name), _captum().LayerConductance
    rows = readouts(policy, better=better, worse=worse)
    model, inputs, start = (
        _Scores(policy, rows),
        _real(policy.coerce(obs), rows),
        _baseline(policy, obs, baseline, rows),
    )
    with _quiet():
        found = [
            _only(method(model, layer).attribute(inputs, start, target=i, n_steps=n_steps, method=_RULE))
            for i in range(len(rows.names))
        ]
    point, unit = policy.hook_dict[name], score_units(policy)
    values = torch.stack(found, dim=1).detach()
    total = _change(model, inputs, start)
    dims = ("batch", "action", *point.axes[1:])
    data = {"conductance": array(values, dims, units=unit), **_completeness(values.flatten(2).sum(2), total, unit)}
    coords = {"action": list(rows.names), **_layer_coords(point)}
    attrs = made_by(
        policy, "layer_conductance", hook=name, n_steps=n_steps, rule=_RULE, sign="positive raises the score"
    )
    return xr.Dataset(data, coords=coords, attrs=attrs)


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
        ObservationError: The baseline has other entities present, or another number of rows.
        MetricError: No such action.

    Source:
        Dhamdhere, Sundararajan and Yan 2018, *How Important Is a Neuron?*, arXiv 1805.12233, section 3.
    """
    layer, place = _layer(policy, name), (neuron,) if isinstance(neuron, int) else neuron
    point, captum = policy.hook_dict[name], _captum()
    sizes = point.shape[1:]
    if len(place) != len(sizes) or not all(0 <= i < (size or 0) for i, size in zip(place, sizes, strict=False)):
        raise SiteError(
            f"There is no unit {neuron!r} at {name!r}.",
            given=repr(neuron),
            expected=f"a place along {' '.join(point.axes[1:])}, sizes {list(sizes)}",
            fix="give one number for each of these axes",
        )
    rows = readouts(policy, better=better, worse=worse)
    model, inputs, start = (
        _Scores(policy, rows),
        _real(policy.coerce(obs), rows),
        _baseline(policy, obs, baseline, rows),
    )
    found: list[tuple[Tensor, ...]] = []
    own: list[Tensor] = []
    with _quiet():
        for i in range(len(rows.names)):
            options = {"target": i, "n_steps": n_steps, "method": _RULE}
            through = captum.NeuronConductance(model, layer).attribute(inputs, place, start, **options)
            found.append(tuple(part.detach() for part in through))
            whole = _only(captum.LayerConductance(model, layer).attribute(inputs, start, **options))
            own.append(whole[(slice(None), *place)].detach())
    unit = score_units(policy)
    summed = torch.stack([sum((p.flatten(1).sum(1) for p in parts), torch.zeros(())) for parts in found], dim=1)
    data = _variables(policy, found, units=unit) | _completeness(summed, torch.stack(own, dim=1), unit)
    attrs = made_by(policy, "neuron_conductance", hook=name, neuron=list(place), n_steps=n_steps, rule=_RULE)
    return xr.Dataset(data, coords=_coords(observed_arrays(policy), rows), attrs=attrs)


class _Scores(nn.Module):
    """The policy's own module, its scores combined into the numbers that are explained."""

    def __init__(self, policy: HookedPolicy, rows: Readouts) -> None:
        super().__init__()
        self.module, self.weights = policy.module, rows.weights
        self.keys = [observed.key for observed in observed_arrays(policy)]

    def forward(self, *arrays: Tensor) -> Float[Tensor, "batch readout"]:
        """Every readout of a batch."""
        single = self.keys == [""]
        scores = self.module(arrays[0] if single else dict(zip(self.keys, arrays, strict=True)))
        return (scores[0] if isinstance(scores, tuple) else scores) @ self.weights.T


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
    model, inputs, start = (
        _Scores(policy, rows),
        _real(policy.coerce(obs), rows),
        _baseline(policy, obs, baseline, rows),
    )
    with _quiet():
        found = [
            tuple(part.detach() for part in attribute(model, inputs, start, target))
            for target in range(len(rows.names))
        ]
    unit = score_units(policy)
    summed = torch.stack([sum((p.flatten(1).sum(1) for p in parts), torch.zeros(())) for parts in found], dim=1)
    data = _variables(policy, found, units=unit) | _completeness(summed, _change(model, inputs, start), unit)
    attrs = made_by(policy, "captum", **how, sign="positive raises the score")
    return xr.Dataset(data, coords=_coords(observed_arrays(policy), rows), attrs=attrs)


def _change(model: nn.Module, inputs: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return model(*inputs) - model(*start)


def _completeness(summed: Tensor, total: Tensor, unit: str) -> dict[str, xr.DataArray]:
    lead = ("batch", "action")
    return {"total": array(total, lead, units=unit), "completeness_error": array(summed - total, lead, units=unit)}


def _variables(policy: HookedPolicy, found: Sequence[Sequence[Tensor]], *, units: str) -> dict[str, xr.DataArray]:
    data: dict[str, xr.DataArray] = {}
    for place, observed in enumerate(observed_arrays(policy)):
        values = torch.stack([parts[place] for parts in found], dim=1)
        data[observed.named("attribution")] = array(values, ("batch", "action", *observed.dims), units=units)
    return data


def _coords(observed: Sequence[ObservedArray], rows: Readouts) -> dict[str, Any]:
    coords: dict[str, Any] = {"action": list(rows.names)}
    for each in observed:
        coords |= each.coords
    return coords


def _layer_coords(point: HookPoint) -> dict[str, Any]:
    return {axis: list(point.labels[axis]) for axis in point.axes[1:] if axis in point.labels}


def _real(arrays: Sequence[Tensor], rows: Readouts) -> tuple[Tensor, ...]:
    return tuple(value if value.is_floating_point() else value.to(rows.weights.dtype) for value in arrays)


def _baseline(policy: HookedPolicy, obs: Observation, baseline: Observation, rows: Readouts) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in _real(baseline_arrays(policy, obs, baseline), rows))


def _only(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _module_at(policy: HookedPolicy, name: str) -> nn.Module | None:
    """The module that alone puts out what a hook point shows, if it is called once."""
    point = policy.points[name]
    path, scope = name.removesuffix(".hook_out"), point.address.node.scope
    if path == name or "@" in scope or not scope or not scope.endswith(path) or not point.address.layout.is_identity:
        return None
    if any(other.startswith(f"{path}@") for other in policy.points):
        return None
    module = policy.module.get_submodule(scope)
    return None if any(True for _ in module.children()) else module


def _layer(policy: HookedPolicy, name: str) -> nn.Module:
    point = policy.hook_dict[name]  # an unknown name is refused with the nearest ones
    module = _module_at(policy, name)
    if module is None:
        modules = [each for each in policy.points if _module_at(policy, each) is not None]
        raise SiteError(
            f"Captum's layer methods hook modules, and {point.name!r} is not what one module, called once, puts out.",
            given=repr(name),
            expected=f"one of {modules}",
            fix="use direct_action_attribution, which takes any hook point",
        )
    return module


@contextmanager
def _quiet() -> Generator[None]:
    """Captum announces the hooks that it sets and takes off again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _captum() -> ModuleType:
    try:
        with _quiet():
            import captum.attr
    except ImportError as error:
        raise MissingPackageError(
            "This needs captum.",
            given="no package 'captum'",
            expected="captum 0.7 or later",
            fix='pip install "rlmech[captum]", or use exact_integrated_gradients, which does without',
        ) from error
    return captum.attr
