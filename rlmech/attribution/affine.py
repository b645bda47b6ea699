"""The affine map that a policy is on each observation's own linear region, or its tangent where there are curves.

    scores = J x + c,        J the gradient with the gates and attention patterns as they are, c what remains

Cost: a forward pass and a backward pass for each action, in chunks that stay in the processor's cache. Exact where the
policy is piecewise linear with its patterns frozen, which is checked operation by operation. With a box, also a bound
on what the map leaves over in it; that costs a backward pass for each neuron before a gate or a curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.on_access import Later
from rlmech.attribution.readouts import array, as_variables, made_by, observed_arrays, readouts, scores_of
from rlmech.attribution.regions import (
    FROZEN,
    POSITION,
    before_squashing,
    gate_reads,
    margins_of,
    name_type,
    region_ids,
    region_names,
)
from rlmech.attribution.remainders import remainder_bounds
from rlmech.circuits.frozen import Frozen, freeze
from rlmech.circuits.labels import score_units
from rlmech.core.bounds.boxes import Box, box_around
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.results import storable

ROWS_AT_ONCE = 512
"""Rows of a chunk."""
_KINDS: dict[str, dict[str, object]] = {
    "affine": {"kind": "affine", "exact": 1, "valid": "on the observation's own linear region"},
    "tangent": {"kind": "tangent", "exact": 0, "valid": "at the observation; remainder_bound for a box around it"},
}


@explain_misuse
def local_affine(policy: HookedPolicy, obs: Observation, *, box: Box | None = None) -> xr.Dataset:
    """The affine map of each observation's own linear region, or the tangent where the policy is curved: J x + c.

    Args:
        policy: A policy whose layers are linear, gated or curved (tanh, GELU...); patterns and masks are frozen.
        obs: A batch of observations.
        box: Where a bound on the map's error is asked for, in the observation's own units: a radius around each number;
            radii that broadcast to the observation (0 for what is fixed); a tuple `(low, high)` of arrays that hold the
            observation; or a mapping from feature names to radii, of a dict observation from its keys to any of these.

    Returns:
        `jacobian[batch, action, ...observation axes]` in the scores' unit for each unit of the observation as the
        network sees it (`jacobian_<key>` with axes `<axis>_<key>` for each array of a dict observation),
        `offset[batch, action]` in the scores' unit, and `region[batch]`, a hash of the sides of all gates, the same for
        two observations exactly where all gates are (but for a collision, of probability 2^-64). With attention, rows
        of one region can have different maps, for their patterns differ. `margin[batch]`, `nearest_gate[batch]` and
        `nearest_position[batch]` say how far it is to the region's border and which gate turns there, as
        `region_margins` does; they cost far more than the maps, and are computed when they are first looked at.

        With a box also `remainder_bound[batch, action]`, in the scores' unit: |score - (J x + c)| is nowhere in the box
        larger, of the policy with its patterns frozen, gates that turn in it and rounding in the policy's own precision
        included; `rounding_bound[batch, action]` is the part of it that is rounding. Sound, not exact: the true
        largest error is smaller, two to ten times on small networks.
        The attribute `kind` is `affine`, and `exact` 1, where the map is that of a linear region; `tangent`, and
        `exact` 0, where curves are on the way: the map is then exact at the observation alone, and there are no margins
        unless the only curves squash the scores themselves.

    Raises:
        EngineError: The policy runs on the eager engine, or something on the way bends that is no curve of each number;
            with a box, no bound is known of an operation.
        ObservationError: The box does not fit the observation, or leaves it out.
        AttentionError: A softmax is on the way that belongs to no verified attention block.

    Source:
        Montúfar et al. 2014, *On the Number of Linear Regions of Deep Neural Networks*, arXiv 1402.1869, section 2.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.affine import local_affine
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> obs = torch.rand(6, *policy.hook_dict["hook_obs"].shape[1:])
        >>> map = local_affine(policy, obs)
        >>> again = (map.jacobian * obs.numpy()[:, None]).sum(map.jacobian.dims[2:]) + map.offset
        >>> bool(abs(again.values - policy(obs).detach().numpy()).max() < 1e-4)
        True
    """
    policy = policy.fitting(obs)
    scores_at = scores_of(policy)
    frozen = freeze(policy, (scores_at.node,), curves="tangent")
    reads, rows = gate_reads(frozen), readouts(policy, better=None, worse=None)
    arrays = policy.coerce(obs)
    boxes = None if box is None else box_around(policy, arrays, box)
    slopes: list[list[torch.Tensor]] = [[] for _ in arrays]
    offsets: list[torch.Tensor] = []
    regions: list[torch.Tensor] = []
    for start in range(0, max(1, len(arrays[0])), ROWS_AT_ONCE):
        part = as_variables([value[start : start + ROWS_AT_ONCE] for value in arrays], policy)
        with torch.enable_grad():
            values = frozen.run(part, (*reads, scores_at.node))
            scores = scores_at.layout.show(values[scores_at.node])
        gradients = [
            torch.autograd.grad(scores, part, weight.expand_as(scores), retain_graph=True, materialize_grads=True)
            for weight in rows.weights
        ]
        jacobians = [torch.stack(each, dim=1) for each in zip(*gradients, strict=True)]
        offset = scores.detach()
        for variable, jacobian, collected in zip(part, jacobians, slopes, strict=True):
            offset = offset - (jacobian * variable.detach()[:, None]).flatten(2).sum(2)
            collected.append(jacobian)
        offsets.append(offset)
        regions.append(torch.from_numpy(region_ids(frozen, {k: v.detach() for k, v in values.items()}).copy()))
    unit = score_units(policy)
    data = {
        "offset": array(torch.cat(offsets), ("batch", "action"), units=unit),
        "region": ("batch", region_names(torch.cat(regions).numpy())),
    }
    coords: dict[str, object] = {"action": list(rows.names)}
    for observed, collected in zip(observed_arrays(policy), slopes, strict=True):
        dims = ("batch", "action", *observed.dims)
        data[observed.named("jacobian")] = array(torch.cat(collected), dims, units=f"{unit} per unit of observation")
        coords |= observed.coords
    if not frozen.curves or not freeze(policy, (before_squashing(policy),), curves="tangent").curves:
        data |= _margins(policy, frozen, arrays)
    if boxes is not None:
        jacobians = [torch.cat(collected) for collected in slopes]
        bound, rounding = remainder_bounds(frozen, scores_at, arrays, boxes, jacobians, torch.cat(offsets))
        data["remainder_bound"] = array(bound, ("batch", "action"), units=unit)
        data["rounding_bound"] = array(rounding, ("batch", "action"), units=unit)
    attrs = made_by(policy, "local_affine", frozen=FROZEN, **_KINDS["tangent" if frozen.curves else "affine"])
    return storable(xr.Dataset(data, coords=coords), attrs)


def _margins(policy: HookedPolicy, frozen: Frozen, arrays: Sequence[Tensor]) -> dict[str, xr.Variable]:
    kept = tuple(array.detach().clone() for array in arrays)
    later, n = Later(policy, lambda: margins_of(policy, kept)), (len(kept[0]),)
    parameter = next(policy.module.parameters(), kept[0])
    name = str(parameter.dtype).removeprefix("torch.")
    number = np.dtype("float32" if name == "bfloat16" else name)  # numpy has no bfloat16
    return {
        "margin": later.variable("margin", ("batch",), n, number, {"units": "1"}),
        "nearest_gate": later.variable("nearest_gate", ("batch",), n, name_type(frozen), {}),
        "nearest_position": later.variable("nearest_position", ("batch",), n, POSITION, {}),
    }
