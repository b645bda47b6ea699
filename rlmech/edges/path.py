"""Path patching: what a sender does to a receiver directly, and what that does to the decision.

    r* = receiver(sender from the source run, everything else from the base run);  effect = metric(base run with r*)

Only the direct paths count: hook points between the two keep the base run's values (`paths` says which), then the
receivers take what they so got and all that comes after them runs freely. Cost per sender: a piece of the network
between sender and receiver, and the suffix after the receivers. Exact; on the eager engine it is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.graph import Graph, Node
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.edges.paths import Paths, Place, Route
from rlmech.errors import SiteError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction
from rlmech.patching.results import Direction, bind_pairs, patching_result, unknown_choice
from rlmech.patching.sites import Sites, choose_sites
from rlmech.patching.sweeps.independence import refuse_unfit
from rlmech.results import storable
from rlmech.statistics import Clusters

ROWS_AT_ONCE = 1024
"""Pairs run at once: past the second-level cache a larger stack loses on a CPU."""


@explain_misuse
def path_patching(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    sender: Sites,
    receiver: Sites,
    metric: Metric | MetricFunction | None = None,
    direction: Direction = "denoise",
    through: str | Sequence[str] = (),
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Patch what reaches some receivers from each sender directly, and measure what it does to the decision.

    Args:
        policy: The policy, on the graph engine.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        sender: `auto`, a hook name or glob, or a list of sites; each is patched on its own. With `auto`, those that
            reach no receiver directly are left out.
        receiver: A site, name or glob, or a list: all of them are patched together.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
        direction: `denoise`: the sender's clean value in corrupt runs; `noise`: its corrupt value in clean runs.
        through: Hook names or globs of points between that the paths may run through; points in series with them are
            free too. All others that some path bypasses are frozen at the base run.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the bootstrap.

    Returns:
        Dimensions `site` (the senders) and `pair`, as `activation_patching`: `patched[site, pair]`, `clean[pair]`,
        `corrupt[pair]`, `effect[site]` (normalised recovery, 0 nothing, 1 all that the whole input does) and
        `change[site]`, each with `_low` and `_high`. `attrs["receiver"]` and `attrs["frozen"]` say what was done.

    Raises:
        SiteError: A site does not fit the policy; a sender overlaps a receiver, or lies after it; no path leads from
            one to the other, or every one runs through frozen points (the message names them).
        ObservationError: Clean and corrupt do not pair up.
        EngineError: The policy runs on the eager engine, or is in train mode with dropout or batch norm.

    Source:
        Wang et al. 2022, *Interpretability in the Wild*, arXiv 2211.00593, appendix B; Goldowsky-Dill et al. 2023,
        *Localizing Model Behavior with Path Patching*, arXiv 2304.05969.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.path import path_patching
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> clean, corrupt = torch.rand(8, 15, 7), torch.rand(8, 15, 7)
        >>> heads = policy.sites("*.hook_z", over="head")
        >>> result = path_patching(policy, clean=clean, corrupt=corrupt, sender=heads, receiver="q_net.1.hook_out")
        >>> dict(result.sizes)
        {'site': 4, 'pair': 8}
    """
    policy = policy.fitting(clean)
    if direction not in ("denoise", "noise"):
        raise unknown_choice("direction", direction, ("denoise", "noise"))
    refuse_unfit(policy)
    names = (through,) if isinstance(through, str) else tuple(through)
    receivers = choose_sites(policy, receiver)
    paths = Paths(policy, receivers=receivers, through=names)
    senders, routes = _routes(policy, paths, sender)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    runs = _PathRuns(policy, paths, base=policy.coerce(base), source=policy.coerce(source))
    patched = np.stack([runs.measure(site, found, bound) for site, found in zip(senders, routes, strict=True)])
    result = patching_result(
        policy,
        senders,
        bound,
        patched=patched,
        method="path patching",
        direction=direction,
        clusters=clusters,
        seed=seed,
    )
    frozen = dict.fromkeys(node for found in routes for route in found for node in route.frozen)
    routed = {
        "receiver": ", ".join(map(repr, receivers)),
        "frozen": ", ".join(paths.names[node] for node in frozen),
        "through": ", ".join(names),
    }
    return storable(result, routed)


def _routes(policy: HookedPolicy, paths: Paths, sender: Sites) -> tuple[list[Site], list[list[Route]]]:
    senders: list[Site] = []
    routes: list[list[Route]] = []
    refused: SiteError | None = None
    automatic = isinstance(sender, str) and sender == "auto"
    for site in choose_sites(policy, sender):
        try:
            routes.append(paths.routes(site))
            senders.append(site)
        except SiteError as error:
            if not automatic:
                raise
            refused = error
    if refused is not None and not senders:
        raise refused
    return senders, routes


class _PathRuns:
    """The runs of one set of pairs."""

    def __init__(
        self, policy: HookedPolicy, paths: Paths, *, base: tuple[Tensor, ...], source: tuple[Tensor, ...]
    ) -> None:
        self.policy, self.paths, self.engine = policy, paths, policy.graph_engine
        self.base, self.source = base, source
        self.ends = [point.address for point in policy.points.values() if point.kind == "output"]
        self._kept: dict[tuple[int, bool], dict[Node, Tensor]] = {}

    @torch.no_grad()
    def measure(self, sender: Site, routes: Sequence[Route], metric: BoundMetric) -> Float[np.ndarray, " pair"]:
        """The metric of the runs in which a sender's value was patched along its routes."""
        n_pairs = self.base[0].shape[0]
        result = np.empty(n_pairs)
        for start in range(0, n_pairs, ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, n_pairs))
            received = self._received(Place.of(self.policy, sender), routes, rows)
            scores, *rest = self._onwards(received, [self.paths.receivers[route.receiver] for route in routes], rows)
            pair = torch.arange(rows.start, rows.stop, device=scores.device)
            measured = metric(scores, pair=pair, value=rest[0] if rest else None)
            result[rows] = measured.double().cpu().numpy()
        return result

    def _received(self, start: Place, routes: Sequence[Route], rows: slice) -> dict[Node, Tensor]:
        """What the receivers' nodes hold when the sender's value has come along its routes."""
        sent = self._mixed(start, self._value(start.node, rows, source=True), self._value(start.node, rows))
        received: dict[Node, Tensor] = {}
        by_frozen = itertools.groupby(
            routes, key=lambda route: (self.paths.receivers[route.receiver].node, route.frozen)
        )
        for (node, frozen), group in by_frozen:
            pinned = self._pinned(node, {start.node, *frozen}, rows)
            program = self.engine.program(returned=(node,), given=(start.node, *frozen), hooked=tuple(pinned))
            given = [sent, *(self._value(at, rows) for at in frozen)]
            computed = program([array[rows] for array in self.base], given, list(pinned.values()))[0]
            for route in group:
                place = self.paths.receivers[route.receiver]
                before = received[node] if node in received else self._value(node, rows)
                received[node] = self._mixed(place, computed, before)
        return received

    def _pinned(self, node: Node, given: set[Node], rows: slice) -> dict[Node, Callable[[Tensor], Tensor]]:
        """Interceptors that keep other receivers, on the way to this one, at the base run."""
        before = set(self.engine.graph.computed_order([node], replaced=self.paths.ends))
        pinned: dict[Node, Callable[[Tensor], Tensor]] = {}
        for place in self.paths.receivers:
            if place.node is node or place.node in given or place.node not in before:
                continue
            earlier = pinned.get(place.node, lambda value: value)

            def keep(value: Tensor, place: Place = place, earlier: Callable[[Tensor], Tensor] = earlier) -> Tensor:
                return self._mixed(place, self._value(place.node, rows), earlier(value))

            pinned[place.node] = keep
        return pinned

    def _onwards(self, received: Mapping[Node, Tensor], places: Sequence[Place], rows: slice) -> list[Tensor]:
        """The policy's outputs when the receivers hold what they got and all after them runs freely."""
        ends = [address.node for address in self.ends]
        prefix, downstream = _frontier(self.engine.graph, list(received), ends)
        first = [node for node in received if node not in downstream]
        program = self.engine.program(returned=ends, given=(*first, *prefix), hooked=tuple(downstream))
        given = [*(received[node] for node in first), *(self._value(node, rows) for node in prefix)]
        hooks = [self._setting([p for p in places if p.node is node], received[node]) for node in downstream]
        computed = program([array[rows] for array in self.base], given, hooks)
        return [address.layout.show(value) for address, value in zip(self.ends, computed, strict=True)]

    def _setting(self, places: Sequence[Place], value: Tensor) -> Callable[[Tensor], Tensor]:
        """An interceptor that sets receivers on a node, and lets the rest of it run."""

        def intercept(computed: Tensor) -> Tensor:
            for place in places:
                computed = self._mixed(place, value, computed)
            return computed

        return intercept

    def _value(self, node: Node, rows: slice, *, source: bool = False) -> Tensor:
        """A node's value in the base or the source run, computed once."""
        kept = self._kept.setdefault((rows.start, source), {})
        if node not in kept:
            arrays = [array[rows] for array in (self.source if source else self.base)]
            kept[node] = self.engine.program(returned=(node,))(arrays, (), ())[0]
        return kept[node]

    def _mixed(self, place: Place, inside: Tensor, outside: Tensor) -> Tensor:
        """One value at a place, another around it."""
        mask = place.mask.to(inside.device)
        return place.layout.restore(torch.where(mask, place.layout.show(inside), place.layout.show(outside)))


def _frontier(graph: Graph, changed: Sequence[Node], ends: Sequence[Node]) -> tuple[list[Node], list[Node]]:
    """Before which nodes nothing need run again when some are changed, and which of those depend on others of them."""
    sources = {node: graph.sources_of(node, replaced=changed) for node in changed}
    after = graph.behind(changed, [*ends, *(source for own in sources.values() for source in own)])
    touched = {*after, *changed}
    downstream = [node for node in changed if not touched.isdisjoint(sources[node])]
    read = [source for node in (*after, *downstream) for source in graph.sources_of(node, replaced=changed)]
    prefix = dict.fromkeys(node for node in (*read, *ends) if node not in touched)
    return [node for node in prefix if node.op != "input" and node.has_batch], downstream
