"""How far a state may move before its action can change: certified from below, attacked from above.

    certified <= true radius <= attacked

From above by gradient steps, from below by linear bounds of boxes of all states together, and between the two by
branch and bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import array, made_by, observed_arrays, readouts
from rlmech.certify.attack import Attack
from rlmech.certify.bounds import ROUNDING, describe
from rlmech.certify.branching import Branching
from rlmech.certify.moves import Move, moved_box, ranges
from rlmech.certify.score_regions import Bounded, Method, ScoreRegions, gap_weights
from rlmech.core.bounds.balls import Ball
from rlmech.core.bounds.intervals import Interval
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ArgumentError, MetricError
from rlmech.results import storable
from rlmech.untyped import Variables

_FIRST = 0.25
"""The share of the attacked radius that is tried first."""
_BELOW = 0.95
"""How far below the radius at which a bound should just hold the next one is tried."""
_ENOUGH = 0.93
"""How near the certified radius is to the next one, relatively, where the search for a state ends."""
_DROP = 1 / 8
"""To the power of the boxes so far: how much smaller the next is at most, where nothing is certified yet."""
_MOST_BOUNDED = 10
"""Boxes of each state that are bounded at most."""
_LEAST = 1e-12
"""Of the radius that is looked at, what is still tried."""
_HALVINGS = 16
_SLACK = 1e-12
"""Of the terms of a linear bound, for the rounding of its sum."""
_INWARD = 1 - 1e-9
"""What a certified radius is taken back by, for the rounding of distances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """States with what moves in each, a row for each question."""

    arrays: tuple[Tensor, ...]
    reach: tuple[Tensor, ...]
    limits: tuple[Interval, ...]
    chosen: Tensor
    radius: Tensor


@explain_misuse
def certified_radius(
    policy: HookedPolicy,
    obs: Observation,
    *,
    move: Move | None = None,
    over: str | Sequence[str] = (),
    limit: float | None = None,
    n_boxes: int = 32,
    method: Method = "linear",
) -> xr.Dataset:
    """How far each state may move before the action can change, and the nearest state found that changes it.

    Args:
        policy: A policy of operations with bounds, see `score_bounds`, that takes the action with the highest score.
        obs: A batch of observations.
        move: What moves, and how far in proportion; all but presence, as the network sees it, by default. Moves stop at
            the end of a feature's range.
        over: Axes of the observation along which each feature, entity or number is asked about by itself: `"entity"`,
            `"feature"`, both, or none for all that moves together.
        limit: The radius up to which is looked; by default where all that moves has a range, the whole of it.
        n_boxes: Boxes that branch and bound spends on each question; 0 for the bounds alone.
        method: How each box is bounded.

    Returns:
        `certified[batch, ...over]`: no state nearer changes the action. `attacked`: the distance of the nearest state
        found that does; infinite where none was found. The true radius lies between. In multiples of the move, which
        is the feature's unit where all that moves has one and moves by 1. `counterexample[batch, ...over, ...]`, as the
        network sees it, NaN where none was found; `counter_action`, its action, -1 for none; `action[batch]`. Where
        `certified` is `limit`, nothing within the limit changes the action. NaN for what does not move, such as a
        vehicle that is not there.

    Raises:
        ObservationError: The observation has no such feature or entity.
        EngineError: The policy runs on the eager engine, or no bound is known of an operation, which is named.
        MetricError: The policy's scores choose no action.
        ArgumentError: There is no such axis, or no limit is known.

    Source:
        Zhang et al. 2018, arXiv 1811.00866, for the bounds; Bunel et al. 2020, *Branch and Bound for Piecewise Linear
        Neural Network Verification*, JMLR 21(42), section 4, for cutting the input; Madry et al. 2018, arXiv
        1706.06083, for the attack.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> states = rlm.record(policy, rlm.make_env(policy.spec), seeds=[0], progress=False).observations[:3]
        >>> move = rlm.certify.Move(features="x", entities=["vehicle_1"])
        >>> found = rlm.certify.certified_radius(policy, states, move=move)  # in metres
        >>> bool((found.certified <= found.attacked).all()), found.certified.attrs["units"]
        (True, 'm')
    """
    policy = policy.fitting(obs)
    if policy.output_kind == "mean_action":
        raise MetricError(
            "The policy's scores choose no action: they are the action.",
            given=policy.output_kind,
            expected="Q-values or logits",
            fix="rlm.certify.score_bounds bounds the action itself in a region",
        )
    move = Move() if move is None else move
    regions, arrays = ScoreRegions(policy), policy.coerce(obs)
    axes = _axes(policy, over)
    reach, limits = move.reach(policy, arrays), ranges(policy, arrays)
    search = _questions(policy, arrays, reach, limits, regions, axes=axes, limit=limit)
    attack = Attack(
        policy,
        lambda observed: _scores(regions, observed),
        arrays=search.arrays,
        reach=search.reach,
        limits=search.limits,
        norm=move.norm,
        chosen=search.chosen,
    )
    attack.run(search.radius)
    certified = _search_radii(regions, search, attack, move, method)
    if n_boxes > 0 and method == "linear":
        certified = Branching(regions, attack, radius=search.radius, certified=certified).run(n_boxes)
    inward = torch.where(certified < search.radius, certified * _INWARD, search.radius)
    certified = torch.minimum(inward, attack.found.distance)
    return _result(policy, obs, move, search, attack, certified, axes=axes, method=method, n_boxes=n_boxes)


def _scores(regions: ScoreRegions, observed: Sequence[Tensor]) -> Tensor:
    program = regions.policy.graph_engine.program(returned=[regions.address.node])
    return regions.address.layout.show(program(tuple(observed), (), ())[0])


def _axes(policy: HookedPolicy, over: str | Sequence[str]) -> tuple[str, ...]:
    named = (over,) if isinstance(over, str) else tuple(over)
    dims = observed_arrays(policy)
    known = dims[0].dims if len(dims) == 1 else ()
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ArgumentError(
            f"The observation has no axis {unknown[0]!r}.",
            given=f"over={over!r}",
            expected=f"axes among {list(known)}" if known else "none: the observation is a dict",
            fix="over='entity', over=('entity', 'feature'), or leave it out",
        )
    return tuple(name for name in known if name in named)


def _questions(
    policy: HookedPolicy,
    arrays: Sequence[Tensor],
    reach: Sequence[Tensor],
    limits: Sequence[Interval],
    regions: ScoreRegions,
    *,
    axes: tuple[str, ...],
    limit: float | None,
) -> _Search:
    """A row for each state and each position along the axes that are asked about one by one."""
    n, masks = len(arrays[0]), _masks(policy, axes)
    count = len(masks)

    def repeated(value: Tensor) -> Tensor:
        return value.repeat_interleave(count, dim=0)

    each = [repeated(by) for by in reach]
    if axes:
        each = [each[0] * masks.repeat(n, *(1,) * (masks.ndim - 1)).to(each[0])]
    ends = [Interval(repeated(x.low), repeated(x.high)) for x in limits]
    rows = tuple(repeated(value) for value in arrays)
    chosen = regions.scores(rows).argmax(-1) if len(rows[0]) else torch.zeros(0, dtype=torch.long)
    return _Search(
        arrays=rows,
        reach=tuple(each),
        limits=tuple(ends),
        chosen=chosen,
        radius=_limits(rows, each, ends, limit),
    )


def _masks(policy: HookedPolicy, axes: tuple[str, ...]) -> Tensor:
    observed = observed_arrays(policy)
    if not axes:
        return torch.ones(1, 1)
    node = policy.graph_engine.graph.inputs[0]
    shape = list(node.sizes[1:])
    kept = [axis in axes for axis in observed[0].dims]
    count = 1
    for size, keep in zip(shape, kept, strict=True):
        count *= size if keep else 1
    numbers = torch.arange(count).view(*(size if keep else 1 for size, keep in zip(shape, kept, strict=True)))
    return numbers.expand(*shape)[None] == torch.arange(count).view(-1, *(1,) * len(shape))


def _limits(arrays: Sequence[Tensor], reach: Sequence[Tensor], ends: Sequence[Interval], limit: float | None) -> Tensor:
    """How far is looked: the given radius, or as far as anything that moves can."""
    n = len(arrays[0])
    if limit is not None:
        if not 0 < limit < float("inf"):
            raise ArgumentError(
                "The limit is no radius.", given=limit, expected="more than 0, and finite", fix="limit=10.0"
            )
        return torch.full((n,), float(limit), dtype=torch.float64)
    found = torch.zeros(n, dtype=torch.float64)
    for at, by, end in zip(arrays, reach, ends, strict=True):
        far = torch.maximum(end.high - at.double(), at.double() - end.low)
        moving = by > 0
        share = torch.where(moving, far / torch.where(moving, by, 1.0), 0.0).flatten(1)
        found = torch.maximum(found, torch.where(share.isfinite(), share, 0.0).amax(1))
        if bool((moving & far.isinf()).flatten(1).any(1).any()) and not bool(found.any()):
            raise ArgumentError(
                "How far is looked is not known: what moves has no range.",
                given="limit=None",
                expected="a radius, for the policy's spec gives these features no range",
                fix="limit=1.0",
            )
    return found


def _search_radii(
    regions: ScoreRegions, search: _Search, attack: Attack, move: Move, method: Method
) -> Float[Tensor, " batch"]:
    """The largest radius at which the bounds alone certify, nearly; 0 where none was found.

    All states' boxes are bounded together, at radii of their own. A linear bound that fails in its box still certifies
    what lies nearer, and says at which radius it would just hold: a few boxes a state do.
    """
    certified = torch.zeros_like(search.radius)
    moving = torch.stack([(by > 0).flatten(1).any(1) for by in search.reach]).any(0)
    open_ = moving & (search.radius > 0)
    high = torch.minimum(attack.found.distance, search.radius)
    whole = attack.found.distance.isinf()  # perhaps all of it holds
    radius = torch.where(whole, search.radius, high * _FIRST)
    for turn in range(1, 1 + _MOST_BOUNDED):
        rows = open_.nonzero()[:, 0]
        if not len(rows):
            break
        tried = radius[rows]
        holds, inner, predicted = _bounded(regions, search, rows, tried, move, method)
        certified[rows] = torch.maximum(certified[rows], torch.where(holds, tried, inner))
        high[rows] = torch.where(holds, high[rows], torch.minimum(high[rows], tried))
        # far beyond the end a bound foretells one that is too near
        floor = torch.where(certified[rows] > 0, (certified[rows] * high[rows]).sqrt(), high[rows] * _DROP**turn)
        following = torch.where(holds, predicted, torch.maximum(predicted, floor))
        radius[rows] = following = torch.minimum(following, high[rows]) * _BELOW
        more = (certified[rows] < following * _ENOUGH) & (certified[rows] < search.radius[rows])
        open_[rows] = more & (following > search.radius[rows] * _LEAST)
    return certified


def _bounded(
    regions: ScoreRegions, search: _Search, rows: Tensor, radius: Tensor, move: Move, method: Method
) -> tuple[Bool[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Whether the action is certified within a radius of some rows, within which smaller one, and where it may end."""
    arrays, reach = ([each[rows] for each in part] for part in (search.arrays, search.reach))
    ends = [Interval(end.low[rows], end.high[rows]) for end in search.limits]
    ball, box = None, moved_box(arrays, reach, radius, ends)
    centre: Sequence[Tensor] = [array.double() for array in arrays]
    if move.norm != "inf":
        ball = Ball(norm=int(move.norm), radii=tuple(by * radius.view(-1, *(1,) * (by.ndim - 1)) for by in reach))
    else:
        centre = [end.low + (end.high - end.low) / 2 for end in box]
    chosen = search.chosen[rows]
    weights = gap_weights(chosen, regions.n_actions)
    own = torch.nn.functional.one_hot(chosen, regions.n_actions).T.bool()
    found = regions.lower(centre, box, weights, method=method, ball=ball)
    holds = ((found.low > 0) | own).all(0)
    scores = regions.scores(arrays).double()
    lead = (scores.gather(1, chosen[:, None]) - scores).T  # infinite over an action that may not be taken
    inner = torch.zeros_like(radius)
    at_state = found.base
    if found.slopes:
        at_state = found.base + _along(found.slopes, [a.double() - c for a, c in zip(arrays, centre, strict=True)])
        inner = _inner_radius(found, own, arrays, reach, radius, ends, centre)
    # lead - linear t - rest t^2 at t radii; an interval loses in proportion
    linear = (at_state - found.low if found.slopes else lead - found.low).clamp(min=0)
    rest = (lead - at_state).clamp(min=0) if found.slopes else torch.zeros_like(lead)
    root = 2 * lead / (linear + (linear**2 + 4 * rest * lead).clamp(min=0).sqrt()).clamp(min=1e-300)
    predicted = torch.where(own | lead.isinf(), torch.inf, root).amin(0) * radius
    return holds, inner, predicted


def _inner_radius(
    found: Bounded,
    own: Tensor,
    arrays: Sequence[Tensor],
    reach: Sequence[Tensor],
    radius: Tensor,
    ends: Sequence[Interval],
    centre: Sequence[Tensor],
) -> Float[Tensor, " row"]:
    """Up to which smaller radius linear bounds, which hold in the whole box, are positive."""
    low, high = torch.zeros_like(radius), torch.ones_like(radius)
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        least, size = found.base, found.base.abs()
        for place, (slope, at) in enumerate(zip(found.slopes, centre, strict=True)):
            (box,) = moved_box(arrays[place : place + 1], reach[place : place + 1], radius * share, [ends[place]])
            terms = slope.clamp(min=0) * (box.low - at) + slope.clamp(max=0) * (box.high - at)
            least, size = least + terms.flatten(2).sum(2), size + terms.abs().flatten(2).sum(2)
        holds = ((least - _SLACK * size > 0) | own).all(0)
        low, high = torch.where(holds, share, low), torch.where(holds, high, share)
    return low * radius


def _along(slopes: Sequence[Tensor], moves: Sequence[Tensor]) -> Float[Tensor, "bound batch"]:
    return torch.stack([(slope * by).flatten(2).sum(2) for slope, by in zip(slopes, moves, strict=True)]).sum(0)


def _result(
    policy: HookedPolicy,
    obs: Observation,
    move: Move,
    search: _Search,
    attack: Attack,
    certified: Tensor,
    *,
    axes: tuple[str, ...],
    method: Method,
    n_boxes: int,
) -> xr.Dataset:
    observed = observed_arrays(policy)
    sizes = [len(observed[0].coords[axis]) for axis in axes]
    n = len(certified) // max(1, int(torch.Size(sizes).numel()))
    moving = torch.stack([(by > 0).flatten(1).any(1) for by in search.reach]).any(0)
    found = attack.found
    unit = move.unit(policy) if move.amounts else "as the network sees it"

    def shaped(value: Tensor) -> Tensor:
        return value.reshape(n, *sizes, *value.shape[1:])

    dims = ("batch", *axes)
    data: Variables = {
        "certified": array(shaped(torch.where(moving, certified, torch.nan)), dims, units=unit),
        "attacked": array(shaped(torch.where(moving, found.distance, torch.nan)), dims, units=unit),
        "counter_action": array(shaped(found.action), dims, units="1"),
        "action": array(shaped(search.chosen).reshape(n, -1)[:, 0], ("batch",), units="1"),
        "limit": array(shaped(torch.where(moving, search.radius, torch.nan)), dims, units=unit),
    }
    coords: Variables = {axis: observed[0].coords[axis] for axis in axes}
    for one, value in zip(observed, found.arrays, strict=True):
        hit = (found.action >= 0).view(-1, *(1,) * (value.ndim - 1))
        real = value if value.is_floating_point() else value.double()
        names = [f"{dim}_" if dim in axes else dim for dim in one.dims]
        data[one.named("counterexample")] = array(
            shaped(torch.where(hit, real, torch.nan)), (*dims, *names), units="as the network sees it"
        )
        coords |= {name: one.coords[dim] for name, dim in zip(names, one.dims, strict=True)}
    attrs = made_by(
        policy,
        "certified_radius",
        bounds=method,
        n_boxes=n_boxes,
        move=describe(policy, move),
        norm=move.norm,
        action_names=list(readouts(policy, better=None, worse=None).names),
        rounding=ROUNDING,
    )
    return storable(xr.Dataset(data, coords=coords), attrs)
