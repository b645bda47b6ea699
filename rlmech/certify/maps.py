"""Action maps with proofs: which action a policy takes in each cell over two features, for every state of the cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import array, made_by, readouts
from rlmech.certify.bounds import ROUNDING
from rlmech.certify.claims import Takes
from rlmech.certify.deciding import PROVED, REFUTED, decide
from rlmech.certify.moves import Move, present, ranges
from rlmech.certify.score_regions import ScoreRegions
from rlmech.core.bounds.intervals import Interval
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError
from rlmech.results import storable


@explain_misuse
def certified_map(
    policy: HookedPolicy,
    obs: Observation,
    *,
    over: Mapping[str, Sequence[float]],
    entity: str | int | None = None,
    n_boxes: int = 16,
) -> xr.Dataset:
    """The action in each cell over two features of a state, proved for the whole cell where it can be.

    Args:
        policy: A policy of operations with bounds, see `score_bounds`, of one array of features.
        obs: One observation, a batch of one.
        over: Two features and the edges of their cells, ascending, in the feature's unit; the first one down the rows.
        entity: Whose features they are, by name or number, where the observation has entities.
        n_boxes: Boxes that branch and bound spends on each cell.

    Returns:
        Over the two features, named by them, at the cells' middles: `action`, the number of the action taken in the
        middle; `state`, 1 where it is taken in the whole cell (proved), -1 where another is taken somewhere in it (a
        state was found), 0 where neither is known. `edges_<feature>`; `entity_<feature>[entity]`, where the others are,
        NaN for absent ones. Attribute `here`: the two values of the state itself.

    Raises:
        ObservationError: There is no such feature or entity, it is absent, or the cells leave the feature's range.
        EngineError: No bound is known of an operation, which is named.

    Source:
        Bunel et al. 2020, *Branch and Bound for Piecewise Linear Neural Network Verification*, JMLR 21(42), section 4.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> states = rlm.record(policy, rlm.make_env(policy.spec), seeds=[0], progress=False).observations[:1]
        >>> cells = {"vx": [-2.0, 0.0, 2.0], "x": [20.0, 21.0]}
        >>> rlm.certify.certified_map(policy, states, over=cells, entity="vehicle_1", n_boxes=4).action.shape
        (2, 1)
    """
    policy = policy.fitting(obs)
    regions, arrays = ScoreRegions(policy), policy.coerce(obs)
    names, edges = _cells(over)
    if len(arrays) != 1 or len(arrays[0]) != 1:
        raise ObservationError(
            "A map is of one state.",
            given=f"{len(arrays[0])} states, {len(arrays)} arrays each",
            expected="a batch of one, of one array",
            fix="obs[:1]",
        )
    (state,) = arrays
    moving = Move(features=list(names), entities=None if entity is None else [entity])
    (reach,) = moving.reach(policy, arrays)
    if not bool((reach > 0).any()) or int((reach > 0).sum()) != 2:
        raise ObservationError(
            "The two features of the map are not two numbers of the state.",
            given=f"{int((reach > 0).sum())} numbers, entity={entity!r}",
            expected="two features of one entity that is there",
            fix="entity='vehicle_1'",
        )
    places = [_number(policy, state, reach, name) for name in names]
    cells = [_as_seen(policy, name, each) for name, each in zip(names, edges, strict=True)]
    low, high = _boxes(state, places, cells)
    _check(policy, state, names, low, high, edges)
    n = len(low)
    middle = (low + (high - low) / 2).to(state.dtype)
    action = regions.scores([middle]).argmax(-1)
    claim = Takes(tuple(action.tolist()))
    found = decide(regions, claim, states=[middle], box=[Interval(low, high)], n_boxes=n_boxes)
    shape = tuple(len(each) - 1 for each in edges)
    kind = torch.where(found.verdict == PROVED, 1, torch.where(found.verdict == REFUTED, -1, 0))
    data: dict[str, Any] = {
        "action": array(action.reshape(shape), names, units="1"),
        "state": array(kind.reshape(shape), names, units="1"),
        "boxes": array(found.spent.reshape(shape), names, units="1"),
    }
    coords: dict[str, Any] = {}
    spec = policy.spec
    for name, each, place in zip(names, edges, places, strict=True):
        feature = spec.features[spec.index("feature", name)]
        here = feature.physical(state.double().flatten()[place : place + 1].numpy())
        said = {"units": feature.unit or "1", "here": float(here[0])}
        coords[name] = (name, (each[1:] + each[:-1]) / 2, said)
        data[f"edges_{name}"] = (f"edge_{name}", each, {"units": feature.unit or "1"})
        if state.ndim == 3:
            column = feature.physical(state[0, :, spec.index("feature", name)].double().numpy())
            there = present(policy, state)
            data[f"entity_{name}"] = ("entity", column if there is None else np.where(there[0].numpy(), column, np.nan))
    if state.ndim == 3:
        coords["entity"] = list(spec.entities) if spec.entities else np.arange(state.shape[1])
    attrs = made_by(
        policy,
        "certified_map",
        entity="" if entity is None else str(entity),
        action_names=list(readouts(policy, better=None, worse=None).names),
        n_boxes=n_boxes,
        proved=float((kind == 1).double().mean()) if n else 0.0,
        relative=spec.relative,
        rounding=ROUNDING,
    )
    return storable(xr.Dataset(data, coords=coords), attrs)


def _cells(over: Mapping[str, Sequence[float]]) -> tuple[tuple[str, str], list[np.ndarray]]:
    edges = [np.asarray(each, dtype=np.float64) for each in over.values()]
    good = all(each.ndim == 1 and len(each) > 1 and bool((np.diff(each) > 0).all()) for each in edges)
    if len(over) != 2 or not good:
        raise ObservationError(
            "A map is over two features, each with the edges of its cells.",
            given={name: np.shape(each) for name, each in over.items()},
            expected="two features, edges ascending",
            fix="over={'y': np.linspace(-10, 10, 21), 'x': np.linspace(-20, 20, 41)}",
        )
    first, second = over
    return (first, second), edges


def _number(policy: HookedPolicy, state: Tensor, reach: Tensor, name: str) -> int:
    """Where in a flat state a feature of the moving entity stands."""
    column = torch.zeros(state.shape[-1], dtype=torch.bool)
    column[policy.spec.index("feature", name)] = True
    return int(((reach[0] > 0) & column).flatten().nonzero()[0, 0])


def _as_seen(policy: HookedPolicy, name: str, edges: np.ndarray) -> Tensor:
    feature = policy.spec.features[policy.spec.index("feature", name)]
    return torch.as_tensor(feature.normalised(edges), dtype=torch.float64)


def _boxes(state: Tensor, places: Sequence[int], cells: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    shape = tuple(len(each) - 1 for each in cells)
    flat = state.double().flatten()
    low, high = (flat.expand(*shape, -1).clone() for _ in range(2))
    rows, columns = cells
    low[..., places[0]], high[..., places[0]] = rows[:-1, None], rows[1:, None]
    low[..., places[1]], high[..., places[1]] = columns[:-1], columns[1:]
    return low.reshape(-1, *state.shape[1:]), high.reshape(-1, *state.shape[1:])


def _check(
    policy: HookedPolicy, state: Tensor, names: Sequence[str], low: Tensor, high: Tensor, edges: Sequence[np.ndarray]
) -> None:
    (limit,) = ranges(policy, [state])
    if bool((low < limit.low - 1e-6).any()) or bool((high > limit.high + 1e-6).any()):
        features = [policy.spec.features[policy.spec.index("feature", name)] for name in names]
        raise ObservationError(
            "The cells leave a feature's range: no state is there.",
            given={name: (float(each[0]), float(each[-1])) for name, each in zip(names, edges, strict=True)},
            expected={feature.name: (feature.low, feature.high) for feature in features},
            fix="edges within the range",
        )
