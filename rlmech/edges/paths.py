"""Which hook points path patching freezes between a sender and its receivers, worked out on the traced graph.

Between them lie many points. One that every path runs through stays free, for frozen it would cut them all; one that
another path bypasses is frozen, unless the user lets the path run `through` it. Dominance is decided for the sender's
own elements, by asking for each point whether a path is left without it. Cost: a few boolean passes over the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlmech.core.dependence import push_dependence
from rlmech.core.graph import Node
from rlmech.core.layout import Layout
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.edges.components import head_layouts
from rlmech.errors import SiteError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Where a site lies: its node, how that is shown, and which elements of one shown row it selects."""

    node: Node
    layout: Layout
    mask: Tensor

    @classmethod
    def of(cls, policy: HookedPolicy, site: Site) -> Place:
        """The place of a site.

        Raises:
            SiteError: The policy has no such site.
        """
        mask = site.mask(policy.point(site.name))
        if not bool(mask.any()):
            raise SiteError(
                "A site is empty.", given=repr(site), expected="at least one position selected", fix="select some"
            )
        address = policy.points[site.name].address
        return cls(node=address.node, layout=replace(address.layout, negate=False), mask=mask)

    def in_node(self) -> Tensor:
        """The selected elements in the node's own shape, for a batch of one."""
        return self.layout.restore(self.mask[None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one sender reaches one receiver: the number of the receiver, and what stays at the base run meanwhile."""

    receiver: int
    frozen: tuple[Node, ...]


@dataclass(slots=True, eq=False)
class _Reach:
    """What paths from a start meet: row 0 with nothing blocked, row i + 1 with point i blocked."""

    receivers: dict[int, Tensor] = field(default_factory=dict)
    nodes: dict[Node, Tensor] = field(default_factory=dict)


class Paths:
    """The paths of a policy that end in some sites.

    Args:
        policy: The policy, on the graph engine.
        receivers: Where paths end; each path ends at the first receiver that it meets.
        through: Hook names or globs of points that paths may run through.

    Attributes:
        nodes: The nodes of all hook points that can be frozen.
        names: Their hook names.
        receivers: Where the receivers lie.
        ends: All of these nodes.

    Raises:
        SiteError: A name or site does not fit the policy.
    """

    def __init__(self, policy: HookedPolicy, *, receivers: Sequence[Site], through: Sequence[str]) -> None:
        self.policy, self.sites = policy, list(receivers)
        self.receivers = [Place.of(policy, site) for site in receivers]
        self.through = {name: [policy.points[s.name].address.node for s in policy.sites(name)] for name in through}
        named = {node for nodes in self.through.values() for node in nodes}
        self.layouts: dict[Node, Layout] = {}
        self.names: dict[Node, str] = {}
        for name, point in policy.points.items():
            node = point.address.node
            if point.kind not in ("result", "output") or node in named:
                self.names.setdefault(node, name)
                self.layouts.setdefault(node, replace(point.address.layout, negate=False))
        self.nodes = list(self.names)
        self._reach_of: dict[Node, _Reach] = {}
        self.ends = [*self.nodes, *(place.node for place in self.receivers)]

    def routes(self, sender: Site) -> list[Route]:
        """How a sender reaches the receivers; those that it reaches only past another receiver are left out.

        Raises:
            SiteError: It overlaps one, lies after it, no path leads there, or all of them run through frozen points.
        """
        start = Place.of(self.policy, sender)
        self._check_apart(sender, start)
        reach = self.push(start)
        met = [number for number, rows in reach.receivers.items() if bool(rows[0])]
        if not met:
            raise self._no_path(sender)
        via = self._via(sender, start, reach)
        routes: list[Route] = []
        between: dict[Node, str] = {}
        for number in met:
            frozen = self._frozen(number, start, reach, via)
            between |= {node: self.names[node] for node in frozen}
            if bool(self.push(start, cut=frozen).receivers[number][0]):
                routes.append(Route(receiver=number, frozen=tuple(frozen)))
        if not routes:
            names = ", ".join(between.values())
            raise SiteError(
                "Nothing is left of the paths from the sender to the receiver: all of them run through frozen points.",
                given=f"sender {sender!r}, receiver {', '.join(map(repr, self.sites))}",
                expected=f"a path past the points between them, which are {names}",
                fix=f"name those that the path may take, e.g. through=[{next(reversed(between.values()))!r}]",
            )
        return routes

    def _via(self, sender: Site, start: Place, reach: _Reach) -> dict[Node, _Reach]:
        """The points that paths may run through, among those that lie on one, and what paths from them meet."""
        outside = {start.node, *(place.node for place in self.receivers)}
        lying = {
            node
            for node, rows in reach.nodes.items()
            if bool(rows[0])
            and node not in outside
            and any(self._leads_to(node, i) for i in range(len(self.receivers)))
        }
        between = ", ".join(self.names[node] for node in self.nodes if node in lying)
        for name, nodes in self.through.items():
            if not lying & set(nodes):
                raise SiteError(
                    f"No path from the sender to the receiver runs through {name!r}.",
                    given=f"sender {sender!r}, through {name!r}",
                    expected=f"points between the two: {between or 'there are none'}",
                    fix="leave it out of through",
                )
        return {
            node: self.push(self._whole(node)) for nodes in self.through.values() for node in nodes if node in lying
        }

    def _frozen(self, number: int, start: Place, reach: _Reach, via: dict[Node, _Reach]) -> list[Node]:
        """The points between a start and a receiver that some path bypasses."""
        receiver = self.receivers[number].node
        free = self._on_every_path(reach.receivers[number])
        for node, onwards in via.items():
            free |= {node} | self._on_every_path(reach.nodes[node]) | self._on_every_path(onwards.receivers[number])
            for other in via:
                if other is not node and other in onwards.nodes:
                    free |= self._on_every_path(onwards.nodes[other])
        met = [node for node in self.nodes if node in reach.nodes and bool(reach.nodes[node][0])]
        return [
            node
            for node in met
            if node not in free and node not in (start.node, receiver) and self._leads_to(node, number)
        ]

    def _on_every_path(self, left: Tensor) -> set[Node]:
        """The points without which no path is left, if there is one with all of them."""
        if not bool(left[0]):
            return set()
        return {node for place, node in enumerate(self.nodes) if not bool(left[place + 1])}

    def _leads_to(self, node: Node, number: int) -> bool:
        if node not in self._reach_of:
            self._reach_of[node] = self.push(self._whole(node), cut=())
        return bool(self._reach_of[node].receivers[number][0])

    def _whole(self, node: Node) -> Place:
        layout = self.layouts[node]
        return Place(node=node, layout=layout, mask=torch.ones(layout.canonical_shape[1:], dtype=torch.bool))

    def push(self, start: Place, *, cut: Collection[Node] | None = None) -> _Reach:
        """What paths from a start meet, each point blocked in turn, or some of them blocked at once (`cut`)."""
        n_rows = len(self.nodes) + 1 if cut is None else 1
        row_of = {node: place + 1 for place, node in enumerate(self.nodes)} if cut is None else dict.fromkeys(cut, 0)
        reach = _Reach(receivers={i: torch.zeros(n_rows, dtype=torch.bool) for i in range(len(self.receivers))})
        ends = {place.node: place.layout for place in self.receivers}

        def block(node: Node, mask: Tensor | None) -> Tensor | None:
            layout = start.layout if node is start.node else ends.get(node) or self.layouts.get(node)
            if layout is None or (mask is None and node is not start.node):
                return mask
            sizes = [-size * n_rows if size < 0 else size for size in node.sizes]
            shown = layout.show(torch.zeros(sizes, dtype=torch.bool) if mask is None else mask).clone()
            if node in self.layouts:
                reach.nodes[node] = shown.reshape(n_rows, -1).any(1)
            for number, place in enumerate(self.receivers):
                if place.node is node:
                    reach.receivers[number] = (shown & place.mask).reshape(n_rows, -1).any(1)
            for place in self.receivers:
                if place.node is node:
                    shown &= ~place.mask
            if node in row_of:
                shown[row_of[node]] = False
            if node is start.node:
                shown |= start.mask
            return layout.restore(shown)

        push_dependence(
            self.policy.graph_engine.graph,
            self.ends,
            n_rows=n_rows,
            replaced=self.ends,
            block=block,
            head_layouts=head_layouts(self.policy),
        )
        return reach

    # ---- refusals

    def _check_apart(self, sender: Site, start: Place) -> None:
        for site, place in zip(self.sites, self.receivers, strict=True):
            if place.node is start.node and bool((start.in_node() & place.in_node()).any()):
                raise SiteError(
                    "The sender and the receiver overlap.",
                    given=f"sender {sender!r}, receiver {site!r}",
                    expected="a receiver that is computed from the sender",
                    fix="choose a later receiver; to patch the site itself, use activation_patching",
                )

    def _no_path(self, sender: Site) -> SiteError:
        backwards = Paths(self.policy, receivers=[sender], through=())
        receivers = ", ".join(map(repr, self.sites))
        for place in self.receivers:
            if bool(backwards.push(place, cut=()).receivers[0][0]):
                return SiteError(
                    "The sender lies after its receiver.",
                    given=f"sender {sender!r}, receiver {receivers}",
                    expected="a receiver that is computed from the sender",
                    fix="exchange the two",
                )
        return SiteError(
            "No path leads from the sender to the receiver.",
            given=f"sender {sender!r}, receiver {receivers}",
            expected="a receiver that depends on the sender",
            fix="component_graph(policy, units=[…]).edges shows what depends on what",
        )
