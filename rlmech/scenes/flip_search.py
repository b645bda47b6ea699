"""The smallest change of an entity's state that makes the policy act otherwise, found in the simulator.

min |d| such that argmax of the scores at state + d differs from that at the state, for each entity and quantity and
both signs: the first crossing of a coarse grid, then bisection. Scores are not monotone in d: two flips within one
grid step are missed, so a smaller change may exist below the step, none above it. Cost: a second for six vehicles.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.provenance import provenance
from rlmech.errors import SceneError
from rlmech.results import storable
from rlmech.scenes.probe import (
    Probe,
    RowOrder,
    action_names,
    actions_of,
    check_quantities,
    named_entities,
)
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.env import acting_in
from rlmech.simulators.highway.staging.changes import check_numbers
from rlmech.simulators.staging import Staging

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy
    from rlmech.scenes.scene import Scene

SIGNS = {"less": -1.0, "more": 1.0}


@dataclass(slots=True, kw_only=True)
class _Search:
    """One entity, quantity and sign: the change that keeps the action, and the one that flips it."""

    entity: int
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
    vehicles: Sequence[int | str] | None = None,
    objects: Sequence[int | str] | None = None,
    quantities: Sequence[str] | None = None,
    ranges: Mapping[str, float] | None = None,
    tolerances: Mapping[str, float] | None = None,
    n_grid: int = 24,
    rows: RowOrder = "own",
    edits: Sequence[Edit] = (),
) -> xr.Dataset:
    """Find the smallest change of each entity's state that flips the policy's action.

    Args:
        policy: A policy with discrete actions.
        scene: Where it decides.
        vehicles: On a road, numbers; by default all that are in the observation, the ego among them.
        objects: In a grid, numbers; by default all that are there, the agent among them.
        quantities: On a road `along` (metres on its way), `sideways` (metres to the right), `speed`, `heading`; in a
            grid `x`, `y` (cells) and of the agent `direction` (quarter turns). All by default.
        ranges: By quantity the largest change tried; by default 30 m, 4 m, 10 m/s, 0.5 rad, and in a grid 32 cells, 2
            quarter turns.
        tolerances: By quantity how near the flip is found; by default 0.01 m, 0.01 m/s, 0.001 rad, and whole cells.
        n_grid: Steps of the grid on each side; whole numbers are tried one by one.
        rows: `own`: what the environment would show, sorted anew, where passing another vehicle can flip the action
            by the order alone. `aligned`: every vehicle stays in its row.
        edits: Edits of the policy's activations.

    Returns:
        Dimensions `vehicle` (in a grid `object`), `quantity` and `direction` (`less`, `more`). `change`: signed, in
        the coordinate `unit`; it flips the action, NaN where nothing in range does. `keeps`: the largest change tried
        below it that does not, at most a tolerance smaller. `action`: what it flips to, empty for nothing. `reachable`
        and `reasons` of the changed state. `smallest`, over `vehicle` and `quantity`: the smaller of both directions.

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
    policy = acting_in(policy, scene.stage.env, drives=False)
    entity = simulator_of(scene.stage.env).entity
    known = scene.staging.quantities
    searched = list(scene.staging.searched if quantities is None else quantities)
    settings = _settings(scene.staging, searched, ranges, tolerances, n_grid)
    probe = Probe(scene, rows=rows)
    numbers = _numbers(scene, entity, {"vehicle": vehicles, "object": objects})
    states = {number: probe.state(number) for number in numbers}
    searches = [
        _Search(entity=number, quantity=quantity, sign=sign, here=states[number].get(quantity, np.nan))
        for number, quantity, sign in itertools.product(numbers, searched, SIGNS)
    ]
    with policy.edited(edits):
        base = int(actions_of(policy, [scene.observed_in(_rows(scene, probe, rows))])[0])
        _scan(policy, probe, [one for one in searches if np.isfinite(one.here)], base, settings)
        wide = [one for one in searches if np.isfinite(one.flips) and not known[one.quantity].whole]
        _bisect(policy, probe, wide, base, settings)
    names = action_names(policy, scene)
    result = _dataset(probe, searches, {entity: numbers, "quantity": searched}, names)
    units = {name: known[name].unit for name in searched}
    return storable(
        result.assign_coords(unit=("quantity", list(units.values()))),
        {
            "action": names[base],
            "rows": rows,
            "method": "first crossing of a grid, then bisection; whole numbers one by one",
            "grid_step": ", ".join(f"{name} {settings[name].step:.4g} {units[name]}".rstrip() for name in searched),
            "tolerance": ", ".join(f"{name} {settings[name].near:.4g} {units[name]}".rstrip() for name in searched),
            "range": ", ".join(f"{name} {settings[name].limit:.4g} {units[name]}".rstrip() for name in searched),
            "scene": scene.describe(),
            **provenance(policy),
        },
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a quantity is searched: the largest change, how near the flip is found, and how many steps lead there."""

    limit: float
    near: float
    n_steps: int

    @property
    def step(self) -> float:
        return self.limit / self.n_steps

    @property
    def sizes(self) -> np.ndarray:
        return self.limit * np.arange(1, self.n_steps + 1) / self.n_steps


def _numbers(scene: Scene, entity: str, given: Mapping[str, Sequence[int | str] | None]) -> list[int]:
    """The numbers of who is searched, by the simulator's own word."""
    named = named_entities(entity, given, ending="s", form="[...]")
    numbers = list(scene.rows or scene.stage.numbers) if named is None else [scene.number(one) for one in named]
    return sorted(dict.fromkeys(numbers))


def _rows(scene: Scene, probe: Probe, order: RowOrder) -> Mapping[int, int]:
    """The rows of the unchanged state."""
    if order == "own" or not scene.base_rows:
        return scene.stage.in_sight
    return probe.look(0, {}).rows


def _settings(
    staging: Staging,
    quantities: Sequence[str],
    ranges: Mapping[str, float] | None,
    tolerances: Mapping[str, float] | None,
    n_grid: int,
) -> dict[str, _Setting]:
    for names in (quantities, ranges or (), tolerances or ()):
        check_quantities(list(names), staging.searched)
    known = {name: staging.quantities[name] for name in staging.searched}
    limits = {name: one.reach for name, one in known.items()} | dict(ranges or {})
    near = {name: one.tolerance for name, one in known.items()} | dict(tolerances or {})
    check_numbers(**limits)
    wrong = [
        name for name in quantities if not 0 < near[name] < limits[name] + (1 if known[name].whole else 0)
    ]  # of whole numbers the range may be a single step
    if wrong or n_grid < 1 or not quantities:
        raise SceneError(
            "There is nothing to search, or no room to.",
            given=f"ranges {limits}, tolerances {near}, n_grid={n_grid}, quantities {list(quantities)}",
            expected="0 < tolerance < range for each quantity, and a step of the grid",
            fix=f"give {wrong[0]} a larger range or a smaller tolerance" if wrong else "name a quantity; n_grid=24",
        )
    return {
        name: _Setting(limits[name], near[name], int(limits[name]) if one.whole else n_grid)
        for name, one in known.items()
    }


def _scan(
    policy: HookedPolicy, probe: Probe, searches: list[_Search], base: int, settings: Mapping[str, _Setting]
) -> None:
    """Bracket the first flip of each search between two steps of the grid; states that cannot be are passed over."""
    tried = [(one, size) for one in searches for size in settings[one.quantity].sizes]
    looks = [probe.look(one.entity, one.changes(size)) for one, size in tried]
    there = [place for place, look in enumerate(looks) if look.observation is not None]
    actions = np.full(len(tried), base)
    if there:
        actions[there] = actions_of(policy, [looks[place].observation for place in there])
    for (one, size), look, action in zip(tried, looks, actions, strict=True):
        if np.isfinite(one.flips) or look.observation is None:
            continue
        if action == base:
            one.keeps = float(size)
        else:
            one.flips, one.action = float(size), int(action)


def _bisect(
    policy: HookedPolicy, probe: Probe, searches: list[_Search], base: int, settings: Mapping[str, _Setting]
) -> None:
    """Halve all brackets together until each is as narrow as its tolerance."""
    while wide := [one for one in searches if one.flips - one.keeps > settings[one.quantity].near]:
        middles = [(one.keeps + one.flips) / 2 for one in wide]
        looks = [probe.look(one.entity, one.changes(middle)) for one, middle in zip(wide, middles, strict=True)]
        actions = actions_of(policy, [look.observation for look in looks])
        for one, middle, action in zip(wide, middles, actions, strict=True):
            if action == base:
                one.keeps = middle
            else:
                one.flips, one.action = middle, int(action)


def _dataset(probe: Probe, searches: list[_Search], over: Mapping[str, Sequence[Any]], names: list[str]) -> xr.Dataset:
    shape = (*(len(one) for one in over.values()), len(SIGNS))
    found = [bool(np.isfinite(one.flips)) for one in searches]
    reasons = [
        "; ".join(probe.look(one.entity, one.changes(one.flips), judge=True).reasons)
        if flips
        else "no flip in range"
        if np.isfinite(one.here)
        else "it has no such quantity"
        for one, flips in zip(searches, found, strict=True)
    ]
    change = np.array([SIGNS[one.sign] * one.flips for one in searches]).reshape(shape)
    keeps = np.array([SIGNS[one.sign] * one.keeps if np.isfinite(one.flips) else np.nan for one in searches])
    dims = (*over, "direction")
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
    return xr.Dataset(data, coords={**{name: list(one) for name, one in over.items()}, "direction": list(SIGNS)})
