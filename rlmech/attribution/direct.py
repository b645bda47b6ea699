"""What an activation adds to the action scores by itself, the rest of the network as it is on that observation.

    contribution[u] = a[u] d score / d a[u],        score = sum_u contribution[u] + offset

The gradient is taken with later gates and attention patterns frozen, so the split is exact. The analogue of direct
logit attribution, with the gates in place of the final norm's scale. Cost: a forward pass, a backward pass per action.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import Readouts, array, made_by, readouts, scores_of
from rlmech.attribution.regions import FROZEN
from rlmech.circuits.frozen import Frozen, freeze
from rlmech.circuits.labels import score_units
from rlmech.core.masked import weighed
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site, as_site
from rlmech.errors import SiteError
from rlmech.results import storable

ROWS_AT_ONCE = 512
"""Rows of a chunk."""


@explain_misuse
def direct_action_attribution(
    policy: HookedPolicy,
    obs: Observation,
    site: Site | str,
    *,
    better: int | str | None = None,
    worse: int | str | None = None,
) -> xr.Dataset:
    """What each unit of a hook point adds to each action's score, through the rest of the network as it is gated.

    Exact where everything behind the point is piecewise linear with its attention patterns frozen.

    Args:
        policy: The policy.
        obs: A batch of observations.
        site: A hook point; with a selection, the units that it selects.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.

    Returns:
        In the unit of the scores, positive raises the score: `contribution[batch, action, ...the hook point's axes]`;
        `offset[batch, action]`, what is left: later biases, ways that lead past the point, units not selected; and
        `total[batch, action]`, the sum of both, the policy's score.

    Raises:
        SiteError: No such point, or it acts on the scores through frozen attention patterns only, or not at all.
        EngineError: The policy runs on the eager engine, or something behind the point bends between its gates.
        MetricError: No such action.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; nostalgebraist 2020, *interpreting GPT:
        the logit lens*.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.direct import direct_action_attribution
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> site = rlm.Site("features_extractor.attention_layer.hook_z", head=2)
        >>> direct_action_attribution(policy, torch.rand(5, 15, 7), site).contribution.shape
        (5, 3, 1, 1, 16)
    """
    policy = policy.fitting(obs)
    site = as_site(site)
    point = policy.hook_dict[site.name]
    positions = site.positions(point)
    rows = readouts(policy, better=better, worse=worse)
    frozen = behind(policy, site.name)
    parts: list[tuple[Tensor, Tensor]] = []
    total: list[Tensor] = []
    arrays = policy.coerce(obs)
    for start in range(0, max(1, len(arrays[0])), ROWS_AT_ONCE):
        part = tuple(value[start : start + ROWS_AT_ONCE] for value in arrays)
        value, slopes, scores = slopes_behind(frozen, site.name, part, rows)
        contribution = value[:, None] * slopes
        for axis, chosen in positions.items():
            contribution = contribution.index_select(
                point.axes.index(axis) + 1, torch.tensor(chosen, device=value.device)
            )
        total.append(scores)
        parts.append((contribution, scores - contribution.flatten(2).sum(2)))
    unit, lead = score_units(policy), ("batch", "action")
    data = {
        "contribution": array(torch.cat([part[0] for part in parts]), (*lead, *point.axes[1:]), units=unit),
        "offset": array(torch.cat([part[1] for part in parts]), lead, units=unit),
        "total": array(torch.cat(total), lead, units=unit),
    }
    coords: dict[str, object] = {"action": list(rows.names)}
    for axis in point.axes[1:]:
        names = point.labels.get(axis) or tuple(range(point.size(axis)))
        coords[axis] = [names[i] for i in positions.get(axis, range(len(names)))]
    attrs = made_by(
        policy, "direct_action_attribution", site=repr(site), frozen=FROZEN, sign="positive raises the score"
    )
    return storable(xr.Dataset(data, coords=coords), attrs)


def behind(policy: HookedPolicy, name: str) -> Frozen:
    """The policy from a hook point to its scores, all else held as it is.

    Raises:
        SiteError: The point acts on the scores through frozen attention patterns only, or not at all; or it holds no
            real numbers, or the scores themselves.
    """
    point = policy.hook_dict[name]
    node, scores = policy.points[name].address.node, scores_of(policy).node
    real = node.dtype is not None and node.dtype.is_floating_point
    if point.kind == "output" or node is scores or not real:
        raise _no_way(name, "what it holds are the scores themselves" if real else "it holds no real numbers")
    frozen = freeze(policy, (scores,), given=(node,), vary="given")
    if scores not in frozen.varying:
        raise _no_way(name, "it acts on them through attention patterns only, which are frozen, or not at all")
    return frozen


def slopes_behind(frozen: Frozen, name: str, arrays: Sequence[Tensor], rows: Readouts) -> tuple[Tensor, Tensor, Tensor]:
    """A point's value, the gradient there of each readout, and the readouts: on each row's own gates.

    Returns:
        Value `[batch ...]`, gradient `[batch readout ...]`, both in the point's axes, and readouts `[batch readout]`.
    """
    policy = frozen.policy
    address, scores_at = policy.points[name].address, scores_of(policy)
    program = policy.graph_engine.program(returned=(address.node,))
    with torch.no_grad():
        value = program(arrays, (), ())[0]
    leaf = value.detach().clone().requires_grad_()
    with torch.enable_grad():
        scores = scores_at.layout.show(frozen.run(arrays, (scores_at.node,), given=(leaf,))[scores_at.node])
    slopes = [
        torch.autograd.grad(scores, leaf, weight.expand_as(scores), retain_graph=True)[0] for weight in rows.weights
    ]
    shown = torch.stack([address.layout.show(slope) for slope in slopes], dim=1)
    return address.layout.show(value), shown, weighed(scores.detach(), rows.weights)


def flat(values: Tensor) -> np.ndarray:
    """Rows of all numbers of a point, in double precision."""
    return values.detach().flatten(1).double().cpu().numpy()


def _no_way(name: str, why: str) -> SiteError:
    return SiteError(
        f"{name!r} has no direct way to the scores: {why}.",
        given=repr(name),
        expected="a hook point whose value goes on to the scores, e.g. a layer's output, hook_v, hook_z, hook_attn_out",
        fix="pattern_effects and activation_patching see what goes through the patterns",
    )
