"""Bounds on a policy's scores and action gaps in a region around each state, sound for every state in it.

    low <= score(x) <= high,   gap(x) = score of the chosen action - score of another >= gap_low       for all x in it

Rounding in the policy's own precision and in the bounds' is inside them. Not exact: the true extremes lie within.
"""

from __future__ import annotations

from typing import get_args

import torch
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import array, made_by, readouts
from rlmech.certify.moves import Move, region_of
from rlmech.certify.score_regions import Method, ScoreRegions, gap_weights
from rlmech.circuits.labels import score_units
from rlmech.core.bounds.boxes import Box
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ArgumentError
from rlmech.results import storable

ROUNDING = "outward: each operation's rounding in the policy's precision, and 1e-12 of the terms for the bound's own"


@explain_misuse
def score_bounds(
    policy: HookedPolicy,
    obs: Observation,
    *,
    box: Box | Move,
    action: int | str | None = None,
    method: Method = "linear",
) -> xr.Dataset:
    """What the scores and the action gaps can be in a region around each state.

    Args:
        policy: A policy of linear layers, convolutions, ReLU-like and smooth activations, max-pools, products and
            attention, which is not frozen.
        obs: A batch of observations.
        box: The region: a `Move`, in the features' own units, or a box as `local_affine` takes it, as the network sees
            the observation.
        action: The action whose lead over the others is asked for; each state's own by default.
        method: `linear` for lines walked back to the observation, `interval` for intervals alone, which cost as much
            as a few passes and are far wider.

    Returns:
        `low[batch, action]` and `high[batch, action]` in the scores' unit; `gap_low[batch, action]`, by how much the
        score of the action in question exceeds this one's at least, 0 for itself; `chosen[batch]`, its number; and
        `certified[batch]`, whether it has the highest score everywhere in the region. Sound: no state of the region
        leaves the bounds, rounding in the policy's own precision included. Not exact.

    Raises:
        ObservationError: The region does not fit, leaves a feature's range, or lets a vehicle come and go.
        EngineError: The policy runs on the eager engine, or no bound is known of an operation, which is named.
        MetricError: There is no such action.

    Source:
        Zhang et al. 2018, *Efficient Neural Network Robustness Certification with General Activation Functions*, arXiv
        1811.00866, section 3; Xu et al. 2020, arXiv 2002.12920, on graphs.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> states = rlm.record(policy, rlm.make_env(policy.spec), seeds=[0], progress=False).observations
        >>> near = rlm.certify.Move(features={"x": 0.1, "y": 0.01}, clipped=True)
        >>> found = rlm.certify.score_bounds(policy, states, box=near)
        >>> scores = policy(states).detach().numpy()
        >>> bool(((found.low <= scores) & (scores <= found.high)).all())
        True
    """
    policy = policy.fitting(obs)
    if method not in get_args(Method):
        raise ArgumentError(
            f"There is no method {method!r}.",
            given=repr(method),
            expected="'linear' or 'interval'",
            fix="method='linear'",
        )
    regions, arrays = ScoreRegions(policy), policy.coerce(obs)
    ends, ball = region_of(policy, arrays, box)
    n, rows = len(arrays[0]), readouts(policy, better=None, worse=None)
    scores = regions.scores(arrays)
    given = None if action is None else policy.spec.action_number(action, n_actions=regions.n_actions)
    chosen = scores.argmax(-1) if given is None else torch.full((n,), given, device=scores.device)
    unit = torch.eye(regions.n_actions, dtype=torch.float64, device=scores.device)[:, None].expand(-1, n, -1)
    weights = torch.cat([unit, -unit, gap_weights(chosen, regions.n_actions)])
    low, below, gap = regions.lower(arrays, ends, weights, method=method, ball=ball).low.split(regions.n_actions)
    own = torch.nn.functional.one_hot(chosen, regions.n_actions).bool()
    gap = torch.where(own, 0.0, gap.T)
    units = score_units(policy)
    data = {
        "low": array(low.T, ("batch", "action"), units=units),
        "high": array(-below.T, ("batch", "action"), units=units),
        "gap_low": array(gap, ("batch", "action"), units=units),
        "chosen": array(chosen, ("batch",), units="1"),
        "certified": array((own | (gap > 0)).all(-1), ("batch",), units="1"),
    }
    attrs = made_by(policy, "score_bounds", bounds=method, region=describe(policy, box), rounding=ROUNDING)
    return storable(xr.Dataset(data, coords={"action": list(rows.names)}), attrs)


def describe(policy: HookedPolicy, box: Box | Move) -> str:
    """A region in words."""
    if not isinstance(box, Move):
        return "a box as the network sees the observation"
    names = {feature.name: feature.unit for feature in policy.spec.features}
    moves = [f"{name} by {by:g} {names.get(str(name), '')}".strip() for name, by in box.amounts.items()]
    whom = "" if box.entities is None else f" of {', '.join(map(str, box.entities))}"
    return f"{', '.join(moves) or 'all but presence by 1 as the network sees it'}{whom}, norm {box.norm}"
