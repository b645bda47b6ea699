"""Claims checked in a region around each state: proved, refuted with an example, or undecided with what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import array, made_by, observed_arrays
from rlmech.certify.bounds import ROUNDING, describe
from rlmech.certify.claims import Claim
from rlmech.certify.deciding import PROVED, REFUTED, UNDECIDED, decide
from rlmech.certify.moves import Move, region_of
from rlmech.certify.score_regions import ScoreRegions
from rlmech.core.bounds.boxes import Box
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ArgumentError
from rlmech.results import storable

VERDICTS = {PROVED: "proved", REFUTED: "refuted", UNDECIDED: "undecided"}


@explain_misuse
def check(policy: HookedPolicy, obs: Observation, *, box: Box | Move, claim: Claim, n_boxes: int = 128) -> xr.Dataset:
    """Whether a claim holds for every state of a region around each state.

    Args:
        policy: A policy of operations with bounds, see `score_bounds`.
        obs: A batch of observations.
        box: The region: a `Move` of norm `inf`, in the features' own units, or a box as the network sees it.
        claim: `Takes`, `Never`, `Monotone` or `Mirrored`.
        n_boxes: Boxes that branch and bound spends on each state.

    Returns:
        `verdict[batch]`: `proved`, for every state of the region, rounding included; `refuted`, by the state
        `example[batch, ...]`, put through the policy itself (NaN where there is none); or `undecided`, where
        `remaining[batch]` is the share of the region's volume in which it is open, 0 elsewhere. `boxes[batch]` counts
        what was spent.

    Raises:
        ObservationError: The region does not fit the observation, leaves a feature's range, or is no box.
        EngineError: No bound is known of an operation, which is named.
        MetricError: There is no such action.

    Source:
        Bunel et al. 2020, *Branch and Bound for Piecewise Linear Neural Network Verification*, JMLR 21(42), section 4.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 2))
        >>> claim = rlm.certify.Takes(0)
        >>> states = torch.tensor([[1.0, 0.0], [0.3, 0.0]])
        >>> rlm.certify.check(policy, states, box=0.4, claim=claim).verdict.values.tolist()
        ['proved', 'refuted']
    """
    policy = policy.fitting(obs)
    if n_boxes < 1:
        raise ArgumentError("A proof takes a box.", given=f"n_boxes={n_boxes}", expected="1 or more", fix="n_boxes=128")
    regions, arrays = ScoreRegions(policy), policy.coerce(obs)
    ends, ball = region_of(policy, arrays, box)
    if ball is not None:
        raise ArgumentError(
            "Branch and bound cuts boxes, and this region is a ball.",
            given=f"norm {ball.norm}",
            expected="norm='inf'",
            fix="Move(..., norm='inf'), which holds the ball",
        )
    found = decide(regions, claim, states=arrays, box=ends, n_boxes=n_boxes)
    data: dict[str, Any] = {
        "verdict": ("batch", np.array([VERDICTS[int(v)] for v in found.verdict], dtype="<U9")),
        "remaining": array(torch.where(found.verdict == UNDECIDED, found.remaining, 0.0), ("batch",), units="1"),
        "boxes": array(found.spent, ("batch",), units="1"),
    }
    coords: dict[str, Any] = {}
    for one, value in zip(observed_arrays(policy), found.arrays, strict=True):
        hit = (found.verdict == REFUTED).view(-1, *(1,) * (value.ndim - 1))
        real = value if value.is_floating_point() else value.double()
        data[one.named("example")] = array(
            torch.where(hit, real, torch.nan), ("batch", *one.dims), units="as the network sees it"
        )
        coords |= one.coords
    attrs = made_by(
        policy, "check", claim=claim.words(), region=describe(policy, box), n_boxes=n_boxes, rounding=ROUNDING
    )
    return storable(xr.Dataset(data, coords=coords), attrs)
