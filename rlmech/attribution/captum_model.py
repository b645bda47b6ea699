"""What captum is run on, and how its answers are named: the policy's module, its layers, baselines and results."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.attribution.baselines import baseline_arrays
from rlmech.attribution.readouts import ObservedArray, Readouts, array, observed_arrays
from rlmech.core.conditions import conditions, keys_of
from rlmech.core.hook_point import HookPoint
from rlmech.core.masked import less, weighed
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import MissingPackageError, ObservationError, SiteError

MIDPOINT_RULE = "riemann_middle"


class ReadoutModule(nn.Module):
    """What the policy runs, its scores combined into the numbers that are explained.

    An array that the scores do not read has the gradient zero, not none; so has an action mask, which is held.
    """

    def __init__(self, policy: HookedPolicy, rows: Readouts) -> None:
        super().__init__()
        self.module, self.weights = policy.scored_module, rows.weights
        self.keys = [observed.key for observed in observed_arrays(policy)]
        self.held = keys_of(conditions(policy.graph_engine.graph)) if policy.engine == "graph" else frozenset[str]()

    def forward(self, *arrays: Tensor) -> Float[Tensor, "batch readout"]:
        """Every readout of a batch."""
        nothing = sum((value.flatten(1)[:, :0].sum(1, keepdim=True) for value in arrays), torch.zeros(()))
        return weighed(self.scores(arrays), self.weights) + nothing

    def scores(self, arrays: Sequence[Tensor]) -> Tensor:
        """The action scores of a batch."""
        arrays = [value.bool() if key in self.held else value for key, value in zip(self.keys, arrays, strict=True)]
        scores = self.module(arrays[0] if self.keys == [""] else dict(zip(self.keys, arrays, strict=True)))
        return scores[0] if isinstance(scores, tuple) else scores

    def real(self, arrays: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The arrays, whole numbers as real ones."""
        return tuple(value if value.is_floating_point() else value.to(self.weights.dtype) for value in arrays)


def change_of(model: nn.Module, inputs: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """The readouts less the baseline's."""
    with torch.no_grad():
        return less(model(*inputs), model(*start))


def completeness(summed: Tensor, total: Tensor, unit: str) -> dict[str, xr.DataArray]:
    """`total`, and the attributions' sum less it."""
    lead = ("batch", "action")
    return {"total": array(total, lead, units=unit), "completeness_error": array(summed - total, lead, units=unit)}


def variables(policy: HookedPolicy, found: Sequence[Sequence[Tensor]], *, units: str) -> dict[str, xr.DataArray]:
    """An attribution for each array of the observation, from the parts of each readout."""
    data: dict[str, xr.DataArray] = {}
    for place, observed in enumerate(observed_arrays(policy)):
        values = torch.stack([parts[place] for parts in found], dim=1)
        data[observed.named("attribution")] = array(values, ("batch", "action", *observed.dims), units=units)
    return data


def coordinates(observed: Sequence[ObservedArray], rows: Readouts) -> dict[str, Any]:
    """Names along the observation's axes and the readouts."""
    coords: dict[str, Any] = {"action": list(rows.names)}
    for each in observed:
        coords |= each.coords
    return coords


def layer_coordinates(point: HookPoint) -> dict[str, Any]:
    """Names along a hook point's axes, where it has any."""
    return {axis: list(point.labels[axis]) for axis in point.axes[1:] if axis in point.labels}


def inputs_of(model: ReadoutModule, policy: HookedPolicy, obs: Observation) -> tuple[Tensor, ...]:
    """What captum attributes to: the observation's arrays, whole numbers as real ones.

    Raises:
        ObservationError: Whole numbers that no gradient reaches, for the network looks them up.
    """
    arrays = policy.coerce(obs)
    real = model.real(arrays)
    for place, (key, value) in enumerate(zip(model.keys, arrays, strict=True)):
        if (
            key not in model.held
            and not value.is_floating_point()
            and not _is_reached(model, arrays, real[place], place)
        ):
            raise ObservationError(
                "The observation is whole numbers that the network looks up, as a one-hot row or an embedding: the "
                "scores have no gradient with respect to them.",
                given=f"{value.dtype}" + (f" at {key!r}" if key else ""),
                expected="an observation of real numbers",
                fix="rlm.attribution_patching or rlm.ablation_sweep, at hook points behind the lookup",
            )
    return real


def _is_reached(model: ReadoutModule, arrays: Sequence[Tensor], real: Tensor, place: int) -> bool:
    """Whether a gradient gets to an array of whole numbers that are taken for real ones."""
    variable = real[:2].detach().clone().requires_grad_()
    given = [value[:2] for value in arrays]
    given[place] = variable
    try:
        scores = model.scores(given)
    except (RuntimeError, TypeError, IndexError):  # an index must be a whole number
        return False
    if not scores.requires_grad:
        return False
    found = cast("tuple[Tensor | None, ...]", torch.autograd.grad(scores.sum(), variable, allow_unused=True))
    return found[0] is not None


def baseline_rows(
    model: ReadoutModule, policy: HookedPolicy, obs: Observation, baseline: Observation
) -> tuple[Tensor, ...]:
    """The checked baseline, one row for each observation."""
    return tuple(value.contiguous() for value in model.real(baseline_arrays(policy, obs, baseline)))


def only(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The tensor, also where captum gives a tuple of one."""
    return value[0] if isinstance(value, tuple) else value


def module_at(policy: HookedPolicy, name: str) -> nn.Module | None:
    """The module that alone puts out what a hook point shows, if it is called once."""
    point = policy.points[name]
    path, scope = name.removesuffix(".hook_out"), point.address.node.scope
    if path == name or "@" in scope or not scope or not scope.endswith(path) or not point.address.layout.is_identity:
        return None
    if any(other.startswith(f"{path}@") for other in policy.points):
        return None
    module = policy.scored_module.get_submodule(scope)
    return None if any(True for _ in module.children()) else module


def layer_of(policy: HookedPolicy, name: str) -> nn.Module:
    """The module whose output a hook point shows.

    Raises:
        SiteError: The hook point is not what one module, called once, puts out.
    """
    point = policy.hook_dict[name]  # an unknown name is refused with the nearest ones
    module = module_at(policy, name)
    if module is None:
        modules = [each for each in policy.points if module_at(policy, each) is not None]
        raise SiteError(
            f"Captum's layer methods hook modules, and {point.name!r} is not what one module, called once, puts out.",
            given=repr(name),
            expected=f"one of {modules}" if modules else "a module's own output, of which this network has none",
            fix="use direct_action_attribution where what follows is piecewise linear, else activation_patching: both "
            "take any hook point",
        )
    return module


@contextmanager
def quiet() -> Generator[None]:
    """Captum announces the hooks that it sets and takes off again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def captum_methods() -> ModuleType:
    """Captum's attribution methods.

    Raises:
        MissingPackageError: Captum is not installed.
    """
    try:
        with quiet():
            import captum.attr
    except ImportError as error:
        raise MissingPackageError(
            "This needs captum.",
            given="no package 'captum'",
            expected="captum 0.7 or later",
            fix='pip install "rlmech[captum]", or use exact_integrated_gradients, which does without',
        ) from error
    return captum.attr
