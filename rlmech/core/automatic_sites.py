"""The sites that are looked at where nobody names any: heads and entities where there is attention, else neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlmech.core.site import Site

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy


def automatic_sites(policy: HookedPolicy) -> list[Site]:
    """Heads and entities where there is attention, else every hidden neuron and channel, those of states included."""
    points = policy.hook_dict
    if policy.attention:
        heads = [site for block in policy.attention.values() for site in policy.sites(block.names["z"], over=("head",))]
        embeddings = _last_of_each_module(
            [n for n, p in points.items() if p.kind == "activation" and "entity" in p.axes]
        )
        return heads + [site for name in embeddings for site in policy.sites(name, over=("entity",))]
    inside = {n: p for n, p in points.items() if p.kind in ("activation", "state") and not n.endswith("_pre")}
    hidden = [n for n, p in inside.items() if p.axes[-1] == "neuron"]
    channels = [n for n, p in inside.items() if "channel" in p.axes]
    neurons = [site for name in hidden for site in policy.sites(name, over=(points[name].axes[-1],))]
    chosen = [site for name in channels for site in policy.sites(name, over=("channel",))] + neurons
    return chosen or [Site(name) for name, point in points.items() if point.kind in ("linear", "observation")]


def _last_of_each_module(names: Sequence[str]) -> list[str]:
    last: dict[str, str] = {}
    for name in names:
        last[name.rsplit(".", 2)[0]] = name
    return list(last.values())
