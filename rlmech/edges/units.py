"""Which units a component graph has: the sensible grid of a policy, or the sites that a user names.

With attention: the observation and the embeddings by entity, q, k and v by head and entity, the mask by key, z by head,
hidden layers after it whole. Without: the observation by feature (or entity, or channel), hidden activations by channel
or neuron. Scores are one unit. Nothing is run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlmech.arguments import explain_misuse
from rlmech.axes import Axis
from rlmech.core.graph import Node
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.edges.components import ComponentGraph, component_graph
from rlmech.patching.results import unknown_choice
from rlmech.patching.sites import choose_sites

Units = str | Site | Sequence[Site | str]
Over = Literal["layer", "neuron"]
_OBSERVATION: tuple[Axis, ...] = ("entity", "channel", "feature")


@explain_misuse
def choose_units(policy: HookedPolicy, *, units: Units = "auto", over: Over = "layer") -> ComponentGraph:
    """The component graph over a policy's units.

    Args:
        policy: The policy, on the graph engine.
        units: `auto` for the sensible grid; a hook name or glob; or a list of sites and names. Observations and
            outputs of which none is named are added whole.
        over: With `auto`: hidden activations as whole layers (`layer`), or `neuron` by neuron; convolutional ones are
            always taken by channel.

    Raises:
        SiteError: A site does not fit the policy, or two overlap.
        EngineError: The policy runs on the eager engine, or is in train mode with dropout or batch norm.

    Example:
        >>> import rlmech as rlm
        >>> from rlmech.edges.units import choose_units
        >>> graph = choose_units(rlm.load("zoo:intersection-ego-attention"))
        >>> len(graph.units), graph.names[-1]
        (176, 'hook_q_values')
    """
    if over not in ("layer", "neuron"):
        raise unknown_choice("over", over, ("layer", "neuron"))
    chosen = _automatic(policy, over) if isinstance(units, str) and units == "auto" else choose_sites(policy, units)
    return component_graph(policy, units=chosen)


def _automatic(policy: HookedPolicy, over: Over) -> list[Site]:
    chosen: list[Site] = []
    taken: set[Node] = {point.address.node for point in policy.points.values() if point.kind == "output"}
    attention = {name for block in policy.attention.values() for name in block.names.values()}
    by_entity = _last_by_module(policy) if policy.attention else set[str]()
    for name, point in policy.hook_dict.items():
        axes = _axes(policy, name, attention=attention, by_entity=by_entity, over=over)
        node = policy.points[name].address.node
        if axes is None or node in taken:
            continue
        taken.add(node)
        chosen.extend(policy.sites(name, over=axes) if axes else [Site(point.name)])
    return chosen


def _axes(
    policy: HookedPolicy, name: str, *, attention: set[str], by_entity: set[str], over: Over
) -> tuple[Axis, ...] | None:
    """The axes along which a point is split into units; None where it has none."""
    point = policy.hook_dict[name]
    match point.kind:
        case "observation":
            split: list[Axis] = [axis for axis in _OBSERVATION if axis in point.axes]
            return tuple(split[:1])
        case "query" | "key" | "value":
            return ("head", "entity")
        case "z":
            return ("head",)
        case "mask":
            return ("key",) if "key" in point.axes else ()
        case "activation" if name not in attention:
            if "entity" in point.axes:
                return ("entity",) if name in by_entity else None
            if "channel" in point.axes:
                return ("channel",)
            return ("neuron",) if over == "neuron" and "neuron" in point.axes else ()
        case "recurrent":
            return ()
        case _:
            return None


def _last_by_module(policy: HookedPolicy) -> set[str]:
    """Of activations with entities, the last one of each module: an embedding, not the layers inside it."""
    last: dict[str, str] = {}
    for name, point in policy.hook_dict.items():
        if point.kind == "activation" and "entity" in point.axes:
            last[name.rsplit(".", 2)[0]] = name
    return set(last.values())
