"""Which sites a sweep runs over, and how its result names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from rlmech.arguments import explain_misuse
from rlmech.core.graph import Node
from rlmech.core.hook_point import HookPoint
from rlmech.core.policy import HookedPolicy
from rlmech.core.recent import Recent
from rlmech.core.site import Site
from rlmech.core.unrolled import in_step, located
from rlmech.errors import SiteError
from rlmech.metrics.measure import Metric, MetricFunction, Reads, as_metric

Sites = str | Site | Sequence[Site | str]
Groups = str | Site | Sequence[Site | str | Sequence[Site]]
"""Sites, and groups of sites that are replaced together."""

CHOICES = 64
"""Choices of sites that a policy remembers, the last used ones."""
_chosen: WeakKeyDictionary[HookedPolicy, Recent[tuple[object, ...], list[Site]]] = WeakKeyDictionary()
_groups: WeakKeyDictionary[HookedPolicy, Recent[tuple[object, ...], list[tuple[Site, ...]]]] = WeakKeyDictionary()
Coordinates = dict[str, tuple[str, np.ndarray]]
COORDINATES = 16
"""Sets of jobs whose coordinates a policy keeps, the last used ones."""
_coordinates: WeakKeyDictionary[HookedPolicy, Recent[tuple[tuple[Site, ...], ...], Coordinates]] = WeakKeyDictionary()


def choose_sites(policy: HookedPolicy, sites: Sites, *, metric: Metric | MetricFunction | None = None) -> list[Site]:
    """The sites of a sweep.

    Args:
        policy: The policy.
        sites: `auto` for the sensible grid; a hook name or glob for whole points; or a list of sites and names.
        metric: What is measured: `auto` leaves out what none of the outputs that it reads depends on, as the units of
            an actor-critic's critic where scores are measured. None: a metric of the scores.

    Raises:
        SiteError: A name or a selection does not fit the policy, or nothing is selected.
    """
    given = sites if isinstance(sites, str | Site) else tuple(sites)
    reads = "scores" if metric is None else as_metric(metric).reads
    remembered = _chosen.setdefault(policy, Recent(CHOICES))
    return list(remembered.get((given, reads), lambda: _choose(policy, given, reads)))


def _choose(policy: HookedPolicy, sites: str | Site | tuple[Site | str, ...], reads: Reads) -> list[Site]:
    if isinstance(sites, str):
        chosen = _automatic(policy, reads) if sites == "auto" else policy.sites(sites)
    elif isinstance(sites, Site):
        chosen = [sites]
    else:
        chosen = [found for site in sites for found in ([site] if isinstance(site, Site) else policy.sites(site))]
    if not chosen:
        raise SiteError(
            "There is no site to sweep over.",
            given="an empty selection",
            expected="at least one site",
            fix='sites="auto", or policy.sites("*.hook_z", over=("head",))',
        )
    chosen = [located(site, policy.hook_dict) for site in chosen]
    for site in chosen:
        site.positions(policy.point(site.name))  # raises where it does not fit
    return chosen


def _of_numbers(policy: HookedPolicy) -> list[Site]:
    """The automatic sites without whole numbers that are observed, which have no mean and no gradient."""
    sites = policy.sites("auto")
    real = [
        site
        for site in sites
        if (dtype := policy.points[site.name].address.node.dtype) is None or dtype.is_floating_point
    ]
    return real or sites


def choose_groups(
    policy: HookedPolicy, sites: Groups, *, metric: Metric | MetricFunction | None = None
) -> list[tuple[Site, ...]]:
    """The jobs of a sweep: single sites, and groups of sites that are replaced together.

    Raises:
        SiteError: A name or a selection does not fit the policy, two sites of a group overlap, or nothing is selected.
    """
    items: tuple[Any, ...] = () if isinstance(sites, str | Site) else tuple(sites)
    if list in set(map(type, items)):
        items = tuple(tuple(item) if isinstance(item, list) else item for item in items)
    given = sites if isinstance(sites, str | Site) else items
    reads = "scores" if metric is None else as_metric(metric).reads
    remembered = _groups.setdefault(policy, Recent(CHOICES))  # the same groups are found again by identity
    return list(remembered.get((given, reads), lambda: _group(policy, given, metric)))


def _group(policy: HookedPolicy, sites: Any, metric: Metric | MetricFunction | None) -> list[tuple[Site, ...]]:
    if isinstance(sites, str | Site) or all(isinstance(item, str | Site) for item in sites):
        return [(site,) for site in choose_sites(policy, sites, metric=metric)]
    groups: list[tuple[Site, ...]] = []
    for item in sites:
        if isinstance(item, str | Site):
            groups += [(site,) for site in choose_sites(policy, [item])]
        else:
            groups.append(tuple(choose_sites(policy, list(item))))
            _refuse_overlap(policy, groups[-1])
    return groups


@explain_misuse
def sliding_windows(sites: Sequence[Site], *, size: int) -> list[tuple[Site, ...]]:
    """Groups of neighbouring sites, each `size` of them: what a few do together that none does alone.

    Args:
        sites: Sites in their order, e.g. `policy.sites(name, over="entity")`.
        size: Sites in a window.

    Example:
        >>> import rlmech as rlm
        >>> rlm.patching.sliding_windows([rlm.Site("0.hook_out", neuron=i) for i in range(4)], size=3)[1]
        (Site('0.hook_out', neuron=1), Site('0.hook_out', neuron=2), Site('0.hook_out', neuron=3))
    """
    if not 1 <= size <= len(sites):
        raise SiteError(
            "A window holds at least one site and at most all of them.",
            given=f"size={size} for {len(sites)} sites",
            expected=f"1 to {len(sites)}",
            fix="choose a smaller window, or give more sites",
        )
    return [tuple(sites[start : start + size]) for start in range(len(sites) - size + 1)]


def _refuse_overlap(policy: HookedPolicy, group: Sequence[Site]) -> None:
    for place, site in enumerate(group):
        point = policy.point(site.name)
        for other in group[:place]:
            if other.name == site.name and bool((site.mask(point) & other.mask(point)).any()):
                raise SiteError(
                    "Two sites of one job overlap.",
                    given=f"{other} and {site}",
                    expected="sites that share no element",
                    fix="select the positions once: one site with several positions, or sites apart",
                )


def group_coordinates(policy: HookedPolicy, groups: Sequence[tuple[Site, ...]]) -> Coordinates:
    """Coordinates along `site` for jobs; those of a group are joined with ` & `."""

    def make() -> Coordinates:
        single = all(len(group) == 1 for group in groups)
        return site_coordinates(policy, [group[0] for group in groups]) if single else _joined(policy, groups)

    return _coordinates.setdefault(policy, Recent(COORDINATES)).get(tuple(groups), make)


def _joined(policy: HookedPolicy, groups: Sequence[tuple[Site, ...]]) -> Coordinates:
    columns = [site_coordinates(policy, list(group)) for group in groups]
    names = list(dict.fromkeys(name for column in columns for name in column))
    joined: Coordinates = {}
    for name in names:
        values = [" & ".join(_shown(column, name)) for column in columns]
        joined[name] = ("site", np.array(values))
    return joined


def _shown(column: Coordinates, name: str) -> list[str]:
    values = list(dict.fromkeys(str(value) for value in column[name][1])) if name in column else []
    return [value for value in values if value not in ("", "-1")]


def site_coordinates(policy: HookedPolicy, sites: Sequence[Site]) -> Coordinates:
    """Coordinates along `site`: `hook`, and one for each axis that some site selects on, -1 or empty elsewhere."""
    placed = [in_step(site.name) if policy.n_steps else (None, site.name) for site in sites]
    coordinates = {"hook": ("site", np.array([name for _, name in placed], dtype=str))}
    if any(step is not None for step, _ in placed):
        coordinates["step"] = ("site", np.array([-1 if step is None else step for step, _ in placed]))
    axes = dict.fromkeys(axis for site in sites for axis, _ in site.selection)
    for axis in axes:
        if axis in coordinates:  # the step of some, by name, and of others along an axis
            numbers = [
                _written(policy.point(s.name), s, axis) if k is None else k
                for s, (k, _) in zip(sites, placed, strict=True)
            ]
            coordinates[axis] = ("site", np.array(numbers))
            continue
        values = [_written(policy.point(site.name), site, axis) for site in sites]
        if all(isinstance(value, int) for value in values):
            coordinates[axis] = ("site", np.array(values))
        else:
            coordinates[axis] = ("site", np.array([str(v) if v != -1 else "" for v in values]))
    return coordinates


def _written(point: HookPoint, site: Site, axis: str) -> int | str:
    positions = site.positions(point).get(axis)
    if positions is None:
        return -1
    labels = point.labels.get(axis)
    names: list[int | str] = [labels[i] if labels else i for i in positions]
    return names[0] if len(names) == 1 else "+".join(map(str, names))


def _automatic(policy: HookedPolicy, reads: Reads) -> list[Site]:
    """The sensible grid; where none of it is measured, as behind a critic that is not asked, whole points that are."""
    chosen = _measured(policy, _of_numbers(policy), reads)
    whole = [Site(name) for name, point in policy.hook_dict.items() if point.kind in ("linear", "observation")]
    return chosen or _measured(policy, whole, reads)


def _measured(policy: HookedPolicy, sites: Sequence[Site], reads: Reads) -> list[Site]:
    """Those of some sites that an output which a metric reads depends on."""
    outputs = [name for name, point in policy.points.items() if point.kind == "output"]
    wanted = {"scores": outputs[:1], "value": outputs[1:], "both": outputs}[reads]  # the scores come first
    if policy.engine != "graph":
        return list(sites)
    ends = [policy.points[name].address.node for name in wanted]
    names = dict.fromkeys(site.name for site in sites)
    leading = {name for name in names if _leads(policy, policy.points[name].address.node, ends)}
    return [site for site in sites if site.name in leading]


def _leads(policy: HookedPolicy, start: Node, ends: Sequence[Node]) -> bool:
    return start in ends or bool(set(ends).intersection(policy.graph_engine.graph.behind({start}, ends)))
