"""The affine map that a policy is on each observation's own linear region.

    scores = J x + c,        J the gradient with the gates and attention patterns as they are, c what remains

Cost: a forward pass and a backward pass for each action, in chunks that stay in the processor's cache. Exact where the
policy is piecewise linear with its patterns frozen, which is checked operation by operation; what bends is refused.
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
from rlmech.attribution.regions import FROZEN, POSITION, gate_reads, margins_of, name_type, region_ids, region_names
from rlmech.circuits.frozen import Frozen, freeze
from rlmech.circuits.labels import score_units
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.results import storable

ROWS_AT_ONCE = 512
"""Rows of a chunk."""


@explain_misuse
def local_affine(policy: HookedPolicy, obs: Observation) -> xr.Dataset:
    """The exact affine map of each observation's own linear region: scores = J x + c.

    Args:
        policy: A policy that is piecewise linear but for its attention, whose patterns and masks are frozen.
        obs: A batch of observations.

    Returns:
        `jacobian[batch, action, ...observation axes]` in the scores' unit for each unit of the observation as the
        network sees it (`jacobian_<key>` with axes `<axis>_<key>` for each array of a dict observation),
        `offset[batch, action]` in the scores' unit, and `region[batch]`, a hash of the sides of all gates, the same for
        two observations exactly where all gates are (but for a collision, of probability 2^-64). With attention, rows
        of one region can have different maps, for their patterns differ. `margin[batch]`, `nearest_gate[batch]` and
        `nearest_position[batch]` say how far it is to the region's border and which gate turns there, as
        `region_margins` does; they cost far more than the maps, and are computed when they are first looked at.

    Raises:
        EngineError: The policy runs on the eager engine, or something on the way bends between its gates.
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
    scores_at = scores_of(policy)
    frozen = freeze(policy, (scores_at.node,))
    reads, rows = gate_reads(frozen), readouts(policy, better=None, worse=None)
    arrays = policy.coerce(obs)
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
    data |= _margins(policy, frozen, arrays)
    attrs = made_by(policy, "local_affine", frozen=FROZEN, exact="on the observation's own linear region")
    return storable(xr.Dataset(data, coords=coords), attrs)


def _margins(policy: HookedPolicy, frozen: Frozen, arrays: Sequence[Tensor]) -> dict[str, xr.Variable]:
    kept = tuple(array.detach().clone() for array in arrays)
    later, n = Later(policy, lambda: margins_of(policy, kept)), (len(kept[0]),)
    parameter = next(policy.module.parameters(), kept[0])
    number = np.dtype(str(parameter.dtype).removeprefix("torch."))
    return {
        "margin": later.variable("margin", ("batch",), n, number, {"units": "1"}),
        "nearest_gate": later.variable("nearest_gate", ("batch",), n, name_type(frozen), {}),
        "nearest_position": later.variable("nearest_position", ("batch",), n, POSITION, {}),
    }
