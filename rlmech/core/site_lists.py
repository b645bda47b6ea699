"""Hook names as lists of sites: one for each position along some axes, each step, or what nobody had to name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rlmech.core.attention import AttentionBlocks
from rlmech.core.names import HookPoints, NameChooser, Names
from rlmech.core.site import Site
from rlmech.core.unrolled import at_step, in_step


def sites_along(points: HookPoints, names: Sequence[str], over: Sequence[str] = ()) -> list[Site]:
    """A site for each position of some hook points along some axes.

    Raises:
        SiteError: A point lacks one of the axes.
    """
    sites: list[Site] = []
    for name in names:
        point = points[name]
        ranges = [point.labels.get(axis) or range(point.size(axis)) for axis in over]
        for choice in itertools.product(*ranges):
            sites.append(Site(name, **dict(zip(over, choice, strict=True))))
    return sites


def sites_in_time(points: HookPoints, names: Names, over: Sequence[str]) -> Iterator[Site]:
    """The same for an unrolled policy, `step` among the axes, by the names that its points have in each step.

    Raises:
        SiteError: A name matches nothing, or a point lacks one of the axes.
    """
    inner = dict.fromkeys(name for number, name in map(in_step, points) if number is not None)
    whole = [name for name, point in points.items() if "step" in point.axes]
    choose = NameChooser(points.network, [*whole, *inner], left_out=points.left_out)
    for name in choose(names):
        steps = [k for k, own in map(in_step, points) if own == name and k is not None] if name in inner else None
        point = points[name if steps is None else at_step(name, steps[0])]
        ranges = [
            steps if axis == "step" and steps is not None else point.labels.get(axis) or range(point.size(axis))
            for axis in over
        ]
        for choice in itertools.product(*ranges):
            yield Site(name, **dict(zip(over, choice, strict=True)))


def automatic_sites(points: HookPoints, attention: AttentionBlocks) -> list[Site]:
    """Heads and entities where there is attention, else every hidden neuron and channel, those of states included."""
    if attention:
        heads = sites_along(points, [block.names["z"] for block in attention.values()], ("head",))
        embeddings = _last_of_each_module(
            [n for n, p in points.items() if p.kind == "activation" and "entity" in p.axes]
        )
        return heads + sites_along(points, embeddings, ("entity",))
    inside = {n: p for n, p in points.items() if p.kind in ("activation", "state") and not n.endswith("_pre")}
    hidden = [n for n, p in inside.items() if p.axes[-1] == "neuron"]
    channels = [n for n, p in inside.items() if "channel" in p.axes]
    chosen = sites_along(points, channels, ("channel",)) + sites_along(points, hidden, ("neuron",))
    return chosen or [Site(name) for name, point in points.items() if point.kind in ("linear", "observation")]


def _last_of_each_module(names: Sequence[str]) -> list[str]:
    last: dict[str, str] = {}
    for name in names:
        last[name.rsplit(".", 2)[0]] = name
    return list(last.values())
