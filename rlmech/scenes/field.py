"""Fields: what a policy does, or computes, over states of one entity, before and after an edit.

Each cell is the scene with one entity in another state, observed in the simulator; the forward passes are batched.
Exact at the cells, silent between them. Cost: about a millisecond a cell, and one batch of forward passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from rlmech.arguments import explain_misuse
from rlmech.core.masked import is_masked
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.errors import SceneError
from rlmech.results import storable
from rlmech.scenes.probe import (
    CHUNK,
    Look,
    Probe,
    RowOrder,
    action_names,
    batched,
    check_discrete,
    check_quantities,
    check_values,
    named_entities,
    scores_of,
)
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.env import acting_in

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy
    from rlmech.scenes.scene import Scene

Measure = Literal["action"] | tuple[str, str] | Site


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is measured of each cell."""

    measure: Measure
    toward: int | None
    names: list[str]
    entity: str

    @property
    def title(self) -> str:
        if self.measure == "action":
            return "action"
        if isinstance(self.measure, Site):
            where = ", ".join(f"{axis} {choice}" for axis, choice in self.measure.selection)
            to = f" to {self.entity} {self.toward}" if self.toward is not None else ""
            return f"{self.measure.name}{f' ({where})' if where else ''}{to}"
        return f"{self.measure[0]} - {self.measure[1]}"


@explain_misuse
def scene_field(
    policy: HookedPolicy,
    scene: Scene,
    *,
    over: Mapping[str, Sequence[float] | np.ndarray],
    vehicle: int | str | None = None,
    object: int | str | None = None,
    measure: Measure = "action",
    toward: int | None = None,
    edited: Scene | None = None,
    rows: RowOrder = "own",
    edits: Sequence[Edit] = (),
) -> xr.Dataset:
    """Measure a policy over two quantities of the state of one vehicle, or of one object of a grid.

    Args:
        policy: The policy.
        scene: The scene around which the vehicle is varied.
        over: Two quantities with increasing values: on a road `along` and `sideways` in m from where the vehicle is,
            `x` and `y` in m, `speed` in m/s, `heading` in rad; in a grid the cell's `x` and `y`, and of the agent its
            `direction` in quarter turns from right; the first runs down the rows, the second across.
        vehicle: On a road, which, by number or "ego", who is the default.
        object: In a grid, which, by number or "agent", which is the default.
        measure: `"action"`; two actions, for the gap of their scores, the first less the second; or a `Site`, for the
            mean of what it selects, e.g. `Site("attention_layer.hook_pattern", head=2, query=0)`.
        toward: With a `Site` that has keys or entities, the number of the vehicle whose row is read, cell by cell.
        edited: The scene after an edit; the field is then measured in it too, and the difference taken.
        rows: `own`: as the environment would show each state; `aligned`: every vehicle stays in its row.
        edits: Edits of the policy's activations.

    Returns:
        Dimensions `condition` (`before`, and `after` where there is an edited scene) and the two quantities. `value`
        of the measure (an action's number; NaN where `toward` is not in the observation, or there is no such state);
        `action`, the best action's number, -1 where there is no such state; `reachable`. With an edited scene
        `difference`, after less before; of actions 1 where they differ. In the attributes: of `action` the actions'
        names as JSON, of each quantity `here`, the entity's own state, and of the dataset what was measured.

    Raises:
        SceneError: No such vehicle or quantity, values that are no grid, a measure that does not fit, no road.
        SiteError: The policy has no such site.

    Example:
        >>> import rlmech as rlm
        >>> from rlmech.scenes import Scene, scene_field
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> scene = Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> field = scene_field(policy, scene, over={"speed": [20, 25, 30], "along": [-10, 0, 10]})
        >>> field.value.dims
        ('condition', 'speed', 'along')
    """
    policy = acting_in(policy, scene.stage.env, drives=False)
    entity = simulator_of(scene.stage.env).entity
    whom = _whom(scene, entity, {"vehicle": vehicle, "object": object})
    known = scene.staging.quantities
    check_quantities(list(over), list(known))
    axes = check_values(over)
    _check_axes(scene, axes)
    plan = _plan(policy, scene, measure, toward, entity)
    scenes = {"before": scene} | ({} if edited is None else {"after": edited})
    shape = (len(scenes), *(values.size for values in axes.values()))
    values, actions = np.zeros((2, len(scenes), shape[1] * shape[2]))
    reachable = np.zeros(values.shape, dtype=bool)
    with policy.edited(edits):
        for place, one in enumerate(scenes.values()):
            probe, number = Probe(one, rows=rows), one.number(whom)
            cells = [dict(zip(axes, cell, strict=True)) for cell in itertools.product(*axes.values())]
            looks = [probe.look(number, cell, judge=True) for cell in cells]
            values[place], actions[place] = _measured(policy, looks, plan)
            reachable[place] = [not look.reasons for look in looks]
    dims = ("condition", *axes)
    data: dict[str, Any] = {
        "value": (dims, values.reshape(shape), {"long_name": plan.title}),
        "action": (dims, actions.reshape(shape).astype(int), {"names": plan.names}),
        "reachable": (dims, reachable.reshape(shape)),
    }
    if edited is not None:
        apart = (actions[1] != actions[0]).astype(float) if measure == "action" else values[1] - values[0]
        data["difference"] = (dims[1:], apart.reshape(shape[1:]), {"long_name": f"{plan.title}: after less before"})
    here = _here(Probe(scene), scene.number(whom), axes)
    return storable(
        xr.Dataset(
            data,
            coords={"condition": list(scenes)}
            | {
                name: (name, one, {"units": known[name].unit, "long_name": known[name].meaning, "here": here[name]})
                for name, one in axes.items()
            },
        ),
        {
            "measure": plan.title,
            "kind": "action" if measure == "action" else "site" if isinstance(measure, Site) else "gap",
            entity: scene.number(whom),
            "rows": rows,
            "before": scene.describe(),
            "after": "" if edited is None else edited.describe(),
            **provenance(policy),
        },
    )


def _whom(scene: Scene, entity: str, given: Mapping[str, int | str | None]) -> int | str:
    """Who is varied, by the simulator's own word; the agent by default."""
    named = named_entities(entity, given)
    return scene.staging.agent if named is None else named


def _here(probe: Probe, number: int, axes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """An entity's own quantities, of which it needs those that are varied."""
    state = probe.state(number)
    if missing := [name for name in axes if name not in state]:
        raise SceneError(
            f"It has no quantity {missing[0]!r} to vary.",
            given=f"number {number}",
            expected=f"some of {list(state)}",
            fix="vary another, or another entity: scene.entities shows them",
        )
    return state


def _check_axes(scene: Scene, axes: Mapping[str, np.ndarray]) -> None:
    fixed = [bool(quantities & set(axes)) for quantities in scene.staging.apart]
    if len(axes) != 2 or sum(fixed) > 1:
        pair = " and ".join(list(scene.staging.quantities)[:2])
        raise SceneError(
            "A field runs over two quantities that do not fix the same thing.",
            given=list(axes),
            expected=f"two, e.g. {pair}",
            fix="leave the others as they are: move it first, with scene.move",
        )


def _plan(policy: HookedPolicy, scene: Scene, measure: Measure, toward: int | None, entity: str) -> _Plan:
    names = action_names(policy, scene)
    check_discrete(policy)
    if isinstance(measure, Site):
        point = policy.point(measure.name)
        measure.positions(point)  # raises where it has none such
        free = [axis for axis in ("key", "entity") if axis in point.axes and axis not in dict(measure.selection)]
        if toward is not None and not free:
            raise SceneError(
                f"This site does not say what is computed of another {entity}.",
                given=f"toward={toward}, {measure!r} with axes {' '.join(point.axes)}",
                expected="a site with an axis key or entity that is not selected",
                fix="leave toward out, or name e.g. a hook_pattern",
            )
        if toward is not None:
            scene.number(toward)
    elif measure != "action" and not (len(measure) == 2 and all(name in names for name in measure)):
        raise SceneError(
            "This cannot be measured over a field.",
            given=repr(measure),
            expected=f"'action', a Site, or two of the actions {names}",
            fix=f"e.g. measure=({names[-1]!r}, {names[0]!r})",
        )
    elif toward is not None:
        raise SceneError(
            f"An action is not toward a {entity}.",
            given=f"toward={toward}",
            expected="None",
            fix="give a Site as measure",
        )
    return _Plan(measure=measure, toward=toward, names=names, entity=entity)


def _measured(
    policy: HookedPolicy, looks: Sequence[Look], plan: _Plan
) -> tuple[Float[np.ndarray, pair], Float[np.ndarray, pair]]:
    """The measure, and the best action's number, of every cell; NaN and -1 where there is no such state."""
    there = [place for place, look in enumerate(looks) if look.observation is not None]
    values, actions = np.full(len(looks), np.nan), np.full(len(looks), -1.0)
    if there:
        values[there], actions[there] = _measured_there(policy, [looks[place] for place in there], plan)
    return values, actions


def _measured_there(
    policy: HookedPolicy, looks: Sequence[Look], plan: _Plan
) -> tuple[Float[np.ndarray, pair], Float[np.ndarray, pair]]:
    observations = [look.observation for look in looks]
    scores = scores_of(policy, observations)
    actions = scores.argmax(-1).astype(float)
    if isinstance(plan.measure, Site):
        return _read(policy, looks, plan.measure, plan.toward), actions
    if plan.measure == "action":
        return actions, actions
    better, worse = (plan.names.index(name) for name in plan.measure)
    pair = scores[:, [better, worse]].astype(float)
    pair[is_masked(torch.from_numpy(pair)).numpy()] = np.nan  # there is no gap to an action that may not be taken
    return pair[:, 0] - pair[:, 1], actions


def _read(policy: HookedPolicy, looks: Sequence[Look], site: Site, toward: int | None) -> Float[np.ndarray, pair]:
    """The mean of what a site selects, or of what it says of one vehicle's row."""
    point = policy.point(site.name)
    parts: list[np.ndarray] = []
    for start in range(0, len(looks), CHUNK):
        some = looks[start : start + CHUNK]
        with torch.no_grad():
            _, cache = policy.run_with_cache(batched([look.observation for look in some]), names=site.name)
        value = cache[site.name].double().cpu().numpy()
        for axis, positions in site.positions(point).items():
            value = np.take(value, positions, axis=point.axes.index(axis))  # type: ignore[arg-type]
        if toward is None:
            parts.append(value.reshape(len(some), -1).mean(-1))
            continue
        chosen = dict(site.selection)
        axis = next(name for name in ("key", "entity") if name in point.axes and name not in chosen)
        standing = np.array([look.rows.get(toward, -1) for look in some])
        by_row = np.moveaxis(value, point.axes.index(axis), 1)[np.arange(len(some)), standing]  # type: ignore[arg-type]
        parts.append(np.where(standing < 0, np.nan, by_row.reshape(len(some), -1).mean(-1)))
    return np.concatenate(parts)
