"""The component graph of a policy: units, and the edges along which one unit's value reaches another directly.

    u -> v  where an element of v depends on one of u along the traced graph and past no other unit

A unit is a site, e.g. `Site("attention_layer.hook_k", head=1, entity=3)`. The skip around an attention layer is an edge
of its own, because nothing stands on it. What no unit covers is part of the unit that reads it. Cost: one boolean pass
over the graph (`dependence`), and a small program for each hook point.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.dependence import push_dependence
from rlmech.core.graph import Graph, Node
from rlmech.core.hook_point import HookPoint
from rlmech.core.layout import Layout
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import SiteError, nearest
from rlmech.patching.sweeps.independence import refuse_unfit

Edge = tuple[Site, Site]
"""(sender, receiver)."""
Values = Mapping[int, Tensor]
"""By stage, the value with the batch first."""
Fragment = Callable[[Sequence[Tensor], Values], Tensor]
"""(observation arrays, values of the parent stages) -> the stage's value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """A node of the traced graph with the units that stand on it.

    Attributes:
        node: The node.
        layout: How its value is shown, the batch first.
        units: Numbers of its units.
        masks: Which elements each of them is, `[unit …]`.
        parents: Stages whose units its own depend on directly.
    """

    node: Node
    layout: Layout
    units: tuple[int, ...]
    masks: Bool[Tensor, "unit ..."]
    parents: tuple[int, ...] = ()

    @property
    def covered(self) -> Bool[Tensor, ...]:
        """The elements that belong to some unit."""
        return self.masks.any(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ComponentGraph:
    """Units of a policy and the edges between them; made by `component_graph`.

    Attributes:
        policy: The policy.
        units: The units, each after those that it depends on.
        edges: Pairs of numbers of units, (sender, receiver), by receiver.
        stages: The units by node, in an order in which they can be computed.
    """

    policy: HookedPolicy
    units: tuple[Site, ...]
    edges: tuple[tuple[int, int], ...]
    stages: tuple[Stage, ...]

    @cached_property
    def stage_of(self) -> dict[int, int]:
        """The stage of each unit."""
        return {unit: number for number, stage in enumerate(self.stages) for unit in stage.units}

    @cached_property
    def mask_of(self) -> dict[int, Tensor]:
        """The elements of each unit in its stage's value."""
        return {unit: mask for stage in self.stages for unit, mask in zip(stage.units, stage.masks, strict=True)}

    @cached_property
    def incoming(self) -> dict[int, list[int]]:
        """For each unit, the numbers of the edges into it."""
        found: dict[int, list[int]] = {unit: [] for unit in range(len(self.units))}
        for number, (_, receiver) in enumerate(self.edges):
            found[receiver].append(number)
        return found

    @cached_property
    def outputs(self) -> dict[str, int]:
        """The stages of the policy's outputs, by hook name."""
        nodes = {stage.node: number for number, stage in enumerate(self.stages)}
        return {name: nodes[p.address.node] for name, p in self.policy.points.items() if p.kind == "output"}

    @property
    def names(self) -> list[str]:
        """The units in words, e.g. `attention_layer.hook_k head=1 entity=vehicle_3`."""
        return [unit_name(self.policy.hook_dict[unit.name], unit) for unit in self.units]

    def edge_number(self, edge: Edge) -> int:
        """The number of an edge.

        Raises:
            SiteError: There is no such edge; nothing is ever passed over in silence.
        """
        try:
            numbers = [self._unit_numbers[self._key(site)] for site in edge]
            return self._edge_numbers[numbers[0], numbers[1]]
        except KeyError:
            name = f"{edge[0]!r} -> {edge[1]!r}"
            known = [f"{self.units[a]!r} -> {self.units[b]!r}" for a, b in self.edges]
            close = nearest(name, known)
            raise SiteError(
                "The component graph has no such edge.",
                given=name,
                expected=f"one of {len(known)} edges between its units",
                fix=f"did you mean {close[0]}?" if close else "component_graph(policy, units=…) lists units and edges",
            ) from None

    def values(self, arrays: Sequence[Tensor]) -> dict[int, Tensor]:
        """The values of all stages in the run of some observations."""
        program = self.policy.graph_engine.program(returned=[stage.node for stage in self.stages])
        computed = program(arrays, (), ())
        return {i: s.layout.show(v) for i, (s, v) in enumerate(zip(self.stages, computed, strict=True))}

    def fragment(self, number: int) -> Fragment:
        """The part of the policy between a stage and its parents."""
        stage = self.stages[number]
        parents = [(i, self.stages[i]) for i in stage.parents]
        whole = [(i, parent) for i, parent in parents if bool(parent.covered.all())]
        partly = [(i, parent) for i, parent in parents if not bool(parent.covered.all())]
        engine = self.policy.graph_engine
        program = engine.program(
            returned=(stage.node,), given=[p.node for _, p in whole], hooked=[p.node for _, p in partly]
        )

        def run(arrays: Sequence[Tensor], values: Values) -> Tensor:
            given = [parent.layout.restore(values[i]) for i, parent in whole]
            return stage.layout.show(program(arrays, given, [_written(p, values[i]) for i, p in partly])[0])

        return run

    @cached_property
    def _unit_numbers(self) -> dict[object, int]:
        return {self._key(unit): number for number, unit in enumerate(self.units)}

    @cached_property
    def _edge_numbers(self) -> dict[tuple[int, int], int]:
        return {edge: number for number, edge in enumerate(self.edges)}

    def _key(self, site: Site) -> object:
        """Sites are equal that select the same positions, whether by number or by name."""
        return site.name, frozenset(site.positions(self.policy.point(site.name)).items())


def _written(parent: Stage, value: Tensor) -> Callable[[Tensor], Tensor]:
    """An interceptor that sets what belongs to units, and leaves what belongs to none."""

    def intercept(computed: Tensor) -> Tensor:
        return parent.layout.restore(torch.where(parent.covered, value, parent.layout.show(computed)))

    return intercept


def unit_name(point: HookPoint, site: Site) -> str:
    """A unit in words, with the spec's names where it has them.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.components import unit_name
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(3, 4))
        >>> unit_name(policy.hook_dict["hook_obs"], rlm.Site("hook_obs", feature=2))
        'hook_obs feature=2'
    """
    parts = [site.name]
    for axis, positions in site.positions(point).items():
        labels = point.labels.get(axis)
        parts.append(f"{axis}={'+'.join(str(labels[i] if labels else i) for i in positions)}")
    return " ".join(parts)


@explain_misuse
def component_graph(policy: HookedPolicy, *, units: Sequence[Site]) -> ComponentGraph:
    """Find the edges between units of a policy.

    Args:
        policy: The policy, on the graph engine.
        units: Sites that do not overlap; `choose_units` makes them. Observations and outputs of which none is named
            are added whole. Of an observation named in part, the rest stays at the base run's; outputs must be whole.

    Raises:
        SiteError: A site does not fit the policy, or two overlap, or an output is covered in part.
        EngineError: The policy runs on the eager engine, or rows of a batch depend on each other.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.components import component_graph
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> graph = component_graph(policy, units=policy.sites("1.hook_out", over="neuron"))
        >>> len(graph.units), len(graph.edges)
        (10, 16)
    """
    refuse_unfit(policy)
    stages, ordered = _stages(policy, _completed(policy, units))
    edges = _edges(policy, stages, len(ordered))
    stage_of = {unit: number for number, stage in enumerate(stages) for unit in stage.units}
    parents: dict[int, set[int]] = {number: set() for number in range(len(stages))}
    for sender, receiver in edges:
        parents[stage_of[receiver]].add(stage_of[sender])
    device = next((parameter.device for parameter in policy.module.parameters()), torch.device("cpu"))
    with_parents = tuple(
        replace(stage, masks=stage.masks.to(device), parents=tuple(sorted(parents[i])))
        for i, stage in enumerate(stages)
    )
    return ComponentGraph(policy=policy, units=tuple(ordered), edges=tuple(edges), stages=with_parents)


def head_layouts(policy: HookedPolicy) -> dict[Node, Layout]:
    """For the node of each attention's per-head results, the layout of the heads' outputs that it reads."""
    blocks = policy.attention.values()
    return {
        policy.points[block.names["result"]].address.node: policy.points[block.names["z"]].address.layout
        for block in blocks
        if block.names.get("result") in policy.points
    }


def node_mask(policy: HookedPolicy, site: Site) -> Bool[Tensor, ...]:
    """The elements of a site in its node's own shape, for a batch of one."""
    layout = replace(policy.points[site.name].address.layout, negate=False)
    return layout.restore(site.mask(policy.point(site.name))[None])


def _completed(policy: HookedPolicy, units: Sequence[Site]) -> list[Site]:
    named = {policy.points[policy.point(site.name).name].address.node for site in units}
    ends = {p.address.node: name for name, p in policy.points.items() if p.kind in ("observation", "output")}
    added = [Site(name) for node, name in ends.items() if node not in named]
    return [*units, *added]


def _stages(policy: HookedPolicy, units: Sequence[Site]) -> tuple[list[Stage], list[Site]]:
    """The units by node, in the order in which nodes are computed."""
    graph = policy.graph_engine.graph
    by_node: dict[Node, list[Site]] = {}
    for site in units:
        by_node.setdefault(policy.points[policy.point(site.name).name].address.node, []).append(site)
    outputs = {p.address.node for p in policy.points.values() if p.kind == "output"}
    rank = _ranks(graph, [*outputs, *by_node], list(by_node))
    stages: list[Stage] = []
    ordered: list[Site] = []
    for node in sorted(by_node, key=lambda node: rank[node]):
        here = by_node[node]
        layout = replace(policy.points[here[0].name].address.layout, negate=False)
        masks = torch.stack([layout.show(node_mask(policy, site))[0] for site in here])
        _check_cover(here, masks, whole=node in outputs)
        numbers = tuple(range(len(ordered), len(ordered) + len(here)))
        stages.append(Stage(node=node, layout=layout, units=numbers, masks=masks))
        ordered.extend(here)
    return stages, ordered


def _ranks(graph: Graph, ends: Sequence[Node], replaced: Sequence[Node]) -> dict[Node, int]:
    return {node: place for place, node in enumerate(graph.computed_order(ends, replaced=replaced))}


def _check_cover(sites: Sequence[Site], masks: Tensor, *, whole: bool) -> None:
    count = masks.sum(0)
    if bool((count > 1).any()):
        a, b = next(
            (sites[i], sites[j])
            for i, j in itertools.combinations(range(len(sites)), 2)
            if bool((masks[i] & masks[j]).any())
        )
        raise SiteError(
            "Two units overlap.",
            given=f"{a!r} and {b!r}",
            expected="units that have no element in common",
            fix="leave one of them out, or select other positions",
        )
    empty = ~masks.reshape(len(sites), -1).any(1)
    if bool(empty.any()):
        raise SiteError(
            "A unit is empty.",
            given=repr(sites[int(empty.nonzero()[0, 0])]),
            expected="at least one position",
            fix="select some",
        )
    if whole and bool((count == 0).any()):
        raise SiteError(
            "The units cover only part of the policy's output.",
            given=", ".join(map(repr, sites)),
            expected="all of it, as one unit or several",
            fix=f"Site({sites[0].name!r}), or none at all: it is added whole",
        )


def _edges(policy: HookedPolicy, stages: Sequence[Stage], n_units: int) -> list[tuple[int, int]]:
    here = {stage.node: stage for stage in stages}
    edges: list[tuple[int, int]] = []

    def block(node: Node, mask: Tensor | None) -> Tensor | None:
        stage = here.get(node)
        if stage is None:
            return mask
        sizes = [-size * n_units if size < 0 else size for size in node.sizes]
        shown = stage.layout.show(torch.zeros(sizes, dtype=torch.bool) if mask is None else mask)
        for unit, elements in zip(stage.units, stage.masks, strict=True):
            reached = (shown & elements).reshape(n_units, -1).any(1)
            edges.extend((int(sender), unit) for sender in reached.nonzero()[:, 0])
        onwards = shown & ~stage.covered
        for unit, elements in zip(stage.units, stage.masks, strict=True):
            onwards[unit] |= elements
        return stage.layout.restore(onwards)

    push_dependence(
        policy.graph_engine.graph,
        [stage.node for stage in stages],
        n_rows=n_units,
        replaced=list(here),
        block=block,
        head_layouts=head_layouts(policy),
    )
    return edges
