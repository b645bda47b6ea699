"""The smallest change of a vehicle's state that makes the policy act otherwise, found in the simulator.

min |d| such that argmax of the scores at state + d differs from that at the state, for each vehicle and quantity and
both signs: the first crossing of a coarse grid, then bisection. Scores are not monotone in d: two flips within one
grid step are missed, so a smaller change may exist below the step, none above it. Cost: a second for six vehicles.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import SceneError
from rlmech.results import storable
from rlmech.scenes.probe import (
    UNITS,
    Probe,
    RowOrder,
    action_names,
    actions_of,
    check_quantities,
)
from rlmech.simulators.env import check_fit
from rlmech.simulators.highway.staging.changes import check_numbers
from rlmech.simulators.highway.staging.editable import Named

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy
    from rlmech.scenes.scene import Scene

QUANTITIES = ("along", "sideways", "speed", "heading")
RANGES = {"along": 30.0, "sideways": 4.0, "speed": 10.0, "heading": 0.5}
TOLERANCES = {"along": 0.01, "sideways": 0.01, "speed": 0.01, "heading": 0.001}
SIGNS = {"less": -1.0, "more": 1.0}


@dataclass(slots=True, kw_only=True)
class _Search:
    """One vehicle, quantity and sign: the change that keeps the action, and the one that flips it."""

    vehicle: int
    quantity: str
    sign: str
    here: float
    keeps: float = 0.0
    flips: float = np.nan
    action: int = -1

    def changes(self, size: float) -> dict[str, float]:
        return {self.quantity: self.here + SIGNS[self.sign] * size}


@explain_misuse
def smallest_change(
    policy: HookedPolicy,
    scene: Scene,
    *,
    vehicles: Sequence[Named] | None = None,
    quantities: Sequence[str] = QUANTITIES,
    ranges: Mapping[str, float] | None = None,
    tolerances: Mapping[str, float] | None = None,
    n_grid: int = 24,
    rows: RowOrder = "own",
    edits: Sequence[Edit] = (),
) -> xr.Dataset:
    """Find the smallest change of each vehicle's state that flips the policy's action.

    Args:
        policy: A policy with discrete actions.
        scene: Where it decides.
        vehicles: Numbers; by default all that are in the observation, the ego among them.
        quantities: `along` (metres on its way), `sideways` (metres to the right), `speed`, `heading`.
        ranges: By quantity the largest change tried, in m, m/s or rad; by default 30 m, 4 m, 10 m/s, 0.5 rad.
        tolerances: By quantity how near the flip is found; by default 0.01 m, 0.01 m/s, 0.001 rad.
        n_grid: Steps of the grid on each side.
        rows: `own`: what the environment would show, sorted anew, where passing another vehicle can flip the action
            by the order alone. `aligned`: every vehicle stays in its row.
        edits: Edits of the policy's activations.

    Returns:
        Dimensions `vehicle`, `quantity` and `direction` (`less`, `more`). `change`: signed, in the coordinate `unit`;
        it flips the action, NaN where nothing in range does. `keeps`: the change at most a tolerance smaller that does
        not. `action`: what it flips to, empty for nothing. `reachable` and `reasons` of the changed state. `smallest`,
        over `vehicle` and `quantity`: the smaller of both directions.

    Raises:
        SceneError: No such vehicle or quantity, a range that is none, continuous actions, no road.
        EnvironmentFitError: The environment's spaces do not fit the policy.

    Example:
        >>> import rlmech as rlm
        >>> from rlmech.scenes import Scene, smallest_change
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> scene = Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> flips = smallest_change(policy, scene, vehicles=[0, 1], quantities=["along"], n_grid=6)
        >>> dict(flips.sizes)
        {'vehicle': 2, 'quantity': 1, 'direction': 2}
    """
    check_fit(policy, scene.stage.env)
    limits, near = _settings(quantities, ranges, tolerances, n_grid)
    probe = Probe(scene, rows=rows)
    numbers = (
        [scene.number(one) for one in vehicles] if vehicles is not None else list(scene.rows or scene.stage.numbers)
    )
    numbers = sorted(dict.fromkeys(numbers))
    searches = [
        _Search(vehicle=number, quantity=quantity, sign=sign, here=probe.state(number)[quantity])
        for number, quantity, sign in itertools.product(numbers, quantities, SIGNS)
    ]
    with policy.edited(edits):
        base = int(actions_of(policy, [scene.observed_in(_rows(scene, probe, rows))])[0])
        _scan(policy, probe, searches, base, limits, n_grid)
        _bisect(policy, probe, [search for search in searches if np.isfinite(search.flips)], base, near)
    result = _dataset(probe, searches, numbers, list(quantities), action_names(policy, scene))
    names = action_names(policy, scene)
    return storable(
        result,
        {
            "action": names[base],
            "rows": rows,
            "method": "first crossing of a grid, then bisection",
            "grid_step": ", ".join(f"{name} {limits[name] / n_grid:.4g} {UNITS[name]}" for name in quantities),
            "tolerance": ", ".join(f"{name} {near[name]:.4g} {UNITS[name]}" for name in quantities),
            "range": ", ".join(f"{name} {limits[name]:.4g} {UNITS[name]}" for name in quantities),
            "scene": scene.describe(),
            "policy": policy.fingerprint,
            "rlmech": version("rlmech"),
        },
    )


def _rows(scene: Scene, probe: Probe, order: RowOrder) -> Mapping[int, int]:
    """The rows of the unchanged state."""
    if order == "own" or not scene.base_rows:
        return scene.stage.in_sight
    return probe.look(0, {}).rows


def _settings(
    quantities: Sequence[str],
    ranges: Mapping[str, float] | None,
    tolerances: Mapping[str, float] | None,
    n_grid: int,
) -> tuple[dict[str, float], dict[str, float]]:
    for names in (quantities, ranges or (), tolerances or ()):
        check_quantities(list(names), QUANTITIES)
    limits, near = RANGES | dict(ranges or {}), TOLERANCES | dict(tolerances or {})
    check_numbers(**limits)
    wrong = [name for name in quantities if not 0 < near[name] < limits[name]]
    if wrong or n_grid < 1 or not quantities:
        raise SceneError(
            "There is nothing to search, or no room to.",
            given=f"ranges {limits}, tolerances {near}, n_grid={n_grid}, quantities {list(quantities)}",
            expected="0 < tolerance < range for each quantity, and a step of the grid",
            fix=f"give {wrong[0]} a larger range or a smaller tolerance" if wrong else "name a quantity; n_grid=24",
        )
    return limits, near


def _scan(
    policy: HookedPolicy, probe: Probe, searches: list[_Search], base: int, limits: Mapping[str, float], n_grid: int
) -> None:
    """Bracket the first flip of each search between two steps of the grid."""
    steps = np.arange(1, n_grid + 1) / n_grid
    looks = [probe.look(one.vehicle, one.changes(limits[one.quantity] * step)) for one in searches for step in steps]
    actions = actions_of(policy, [look.observation for look in looks]).reshape(len(searches), n_grid)
    for one, found in zip(searches, actions, strict=True):
        flipped = np.flatnonzero(found != base)
        if flipped.size:
            first = int(flipped[0])
            one.keeps = limits[one.quantity] * (steps[first - 1] if first else 0.0)
            one.flips, one.action = limits[one.quantity] * steps[first], int(found[first])


def _bisect(policy: HookedPolicy, probe: Probe, searches: list[_Search], base: int, near: Mapping[str, float]) -> None:
    """Halve all brackets together until each is as narrow as its tolerance."""
    while wide := [one for one in searches if one.flips - one.keeps > near[one.quantity]]:
        middles = [(one.keeps + one.flips) / 2 for one in wide]
        looks = [probe.look(one.vehicle, one.changes(middle)) for one, middle in zip(wide, middles, strict=True)]
        actions = actions_of(policy, [look.observation for look in looks])
        for one, middle, action in zip(wide, middles, actions, strict=True):
            if action == base:
                one.keeps = middle
            else:
                one.flips, one.action = middle, int(action)


def _dataset(
    probe: Probe, searches: list[_Search], numbers: list[int], quantities: list[str], names: list[str]
) -> xr.Dataset:
    shape = (len(numbers), len(quantities), len(SIGNS))
    found = [bool(np.isfinite(one.flips)) for one in searches]
    reasons = [
        "; ".join(probe.look(one.vehicle, one.changes(one.flips), judge=True).reasons) if flips else "no flip in range"
        for one, flips in zip(searches, found, strict=True)
    ]
    change = np.array([SIGNS[one.sign] * one.flips for one in searches]).reshape(shape)
    keeps = np.array([SIGNS[one.sign] * one.keeps if np.isfinite(one.flips) else np.nan for one in searches])
    dims = ("vehicle", "quantity", "direction")
    less, more = np.moveaxis(np.where(np.isnan(change), np.inf, np.abs(change)), -1, 0)
    smallest = np.where(less < more, change[..., 0], change[..., 1])
    data: dict[str, Any] = {
        "change": (dims, change, {"long_name": "smallest change that flips the action"}),
        "keeps": (dims, keeps.reshape(shape), {"long_name": "largest change tried below it that does not"}),
        "action": (dims, np.array([names[one.action] if one.action >= 0 else "" for one in searches]).reshape(shape)),
        "reachable": (dims, np.array([not reason for reason in reasons]).reshape(shape)),
        "reasons": (dims, np.array(reasons).reshape(shape)),
        "smallest": (dims[:2], smallest, {"long_name": "smaller of the two directions"}),
    }
    return xr.Dataset(
        data,
        coords={
            "vehicle": numbers,
            "quantity": quantities,
            "direction": list(SIGNS),
            "unit": ("quantity", [UNITS[name] for name in quantities]),
        },
    )
