"""Edge attribution: the first order of every edge's patch, from one backward pass through the component graph.

    estimate(u -> v) = (u in the source run - u in the base run) . (df_v / du)^T (dmetric / dv)

Gradients are taken at the base run, or averaged over midpoints of the straight line between the two observations
(`n_steps`). Where a unit is boolean, an attention mask, there is no gradient: its edges are evaluated with both values,
and first order from there on. Cost: about one backward pass per step and head. Exact on linear networks only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.conditions import looked_up
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.edges.components import ComponentGraph
from rlmech.edges.single import name_edges
from rlmech.edges.units import Over, Units, choose_units
from rlmech.errors import ConfigError, MetricError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction
from rlmech.patching.results import Direction, bind_pairs, sweep_attrs, sweep_coords, unknown_choice
from rlmech.results import storable
from rlmech.statistics import Clusters, bootstrap_mean

_ROWS_AT_ONCE = 1024


@explain_misuse
def edge_attribution(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    units: Units = "auto",
    over: Over = "layer",
    metric: Metric | MetricFunction | None = None,
    direction: Direction = "denoise",
    n_steps: int = 0,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate to first order what patching each edge would do.

    Args:
        policy: The policy, on the graph engine.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        units: `auto`, a hook name or glob, or a list of sites; see `choose_units`.
        over: With `units="auto"`: hidden activations as a `layer`, or `neuron` by neuron.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs. KL has gradient
            zero at the run it is measured from: take `n_steps` with it.
        direction: `denoise`: gradients at corrupt runs, differences towards clean ones; `noise`: the reverse.
        n_steps: 0 for gradients at the base run; else the number of midpoints between the observations.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the bootstrap.

    Returns:
        Dimensions `edge` (coordinates `sender`, `receiver`) and `pair`: `estimate[edge, pair]`, the estimated change of
        the metric, patched - base, in its unit; `change[edge]`, its mean, with `_low` and `_high`, 95 % bootstrap over
        pairs; `clean[pair]`, `corrupt[pair]`; `completeness_error[pair]`, the sum over all edges out of the observation
        minus (source - base), which integrated gradients bring to zero as steps grow (not where units leave part of
        the observation out).

    Raises:
        MetricError: The metric has no gradient.
        SiteError: A unit is not there, or two overlap.
        EngineError: The policy runs on the eager engine, or is in train mode with dropout or batch norm.

    Source:
        Syed et al. 2023, *Attribution Patching Outperforms Automated Circuit Discovery*, arXiv 2310.10348; Hanna et al.
        2024, *Have Faith in Faithfulness*, arXiv 2403.17806 (integrated gradients along the inputs).

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.scores import edge_attribution
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> result = edge_attribution(policy, clean=torch.rand(16, 4), corrupt=torch.rand(16, 4))
        >>> bool((result.completeness_error < 1e-5).all())
        True
    """
    policy = policy.fitting(clean)
    if direction not in ("denoise", "noise"):
        raise unknown_choice("direction", direction, ("denoise", "noise"))
    graph = choose_units(policy, units=units, over=over)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    estimate = estimate_edges(graph, policy.coerce(base), policy.coerce(source), metric=bound, n_steps=n_steps)
    return _result(policy, graph, bound, estimate, direction=direction, n_steps=n_steps, clusters=clusters, seed=seed)


def estimate_edges(
    graph: ComponentGraph,
    base: Sequence[Tensor],
    source: Sequence[Tensor] | None,
    *,
    metric: BoundMetric,
    after: Mapping[int, Tensor] | None = None,
    n_steps: int = 0,
    pair: Int[Tensor, " pair"] | None = None,
) -> Float[np.ndarray, "edge pair"]:
    """The first-order change of the metric, per edge and pair, in its unit.

    Args:
        graph: Units and edges.
        base: Observations of the runs that are patched.
        source: Those of the runs that patches come from; None where they come from no run (zeros, means).
        after: The values that patches put in, by stage; None for those of the source runs.
        metric: Bound to the unpatched runs.
        n_steps: 0 for gradients at the base run, else the number of midpoints.
        pair: Which of the metric's pairs each row is; None: row i is pair i.

    Raises:
        MetricError: The metric has no gradient.
        ConfigError: Steps are negative, or there is no source to integrate towards.
    """
    if not metric.differentiable:
        raise MetricError(
            f"The metric {metric.name!r} has no gradient.",
            given=metric.name,
            expected="a metric whose gradient says something",
            fix="take action_gap(), or edge_patching, which needs no gradient",
        )
    if n_steps < 0:
        raise ConfigError(
            "The number of steps is negative.", given=n_steps, expected="0, or the number of midpoints", fix="n_steps=8"
        )
    if n_steps:
        _refuse_lookups(graph)
    if after is None or n_steps:
        source = _given(source)
    n_pairs = base[0].shape[0]
    pair = torch.arange(n_pairs, device=base[0].device) if pair is None else pair
    result = np.zeros((len(graph.edges), n_pairs))
    shares = [(step + 0.5) / n_steps for step in range(n_steps)] or [0.0]
    for start in range(0, n_pairs, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        here = [array[rows] for array in base]
        there = here if source is None else [array[rows] for array in source]
        with torch.no_grad():
            ends = graph.values(here), graph.values(there) if after is None else {k: v[rows] for k, v in after.items()}
        for share in shares:
            arrays = [_between(a, b, share) for a, b in zip(here, there, strict=True)]
            estimated = _Backward(graph, arrays, *ends, metric=metric, pair=pair[rows]).estimate()
            result[:, rows] += estimated.double().cpu().numpy() / len(shares)
    return result


def _between(here: Tensor, there: Tensor, share: float) -> Tensor:
    """A point of the line between two observations; a mask is held as it is here."""
    return here + share * (there - here) if share and here.dtype is not torch.bool else here


def _refuse_lookups(graph: ComponentGraph) -> None:
    """Refuse to integrate along whole numbers that are looked up: there is nothing between them."""
    for node in looked_up(graph.policy.graph_engine.graph):
        raise MetricError(
            "The observation is whole numbers that the network looks up: there is nothing between two of them to "
            "integrate along.",
            given=f"{node.dtype}" + (f" at {node.owner!r}" if node.owner else ""),
            expected="an observation of real numbers",
            fix="n_steps=0, or method='eap' or 'acdc'",
        )


def _given(source: Sequence[Tensor] | None) -> Sequence[Tensor]:
    if source is None:
        raise ConfigError(
            "There are no source runs.",
            given="None",
            expected="observations of the runs that patches come from",
            fix="give them, or values with n_steps=0",
        )
    return source


class _Backward:
    """One backward pass through the stages of a graph, at one set of observations."""

    def __init__(
        self,
        graph: ComponentGraph,
        arrays: Sequence[Tensor],
        before: Mapping[int, Tensor],
        after: Mapping[int, Tensor],
        *,
        metric: BoundMetric,
        pair: Tensor,
    ) -> None:
        self.graph, self.arrays, self.before, self.after = graph, arrays, before, after
        with torch.no_grad():
            self.values = graph.values(arrays)
        self.fragments = {number: graph.fragment(number) for number, s in enumerate(graph.stages) if s.parents}
        self.gradients: dict[int, Tensor] = {}
        self._from_stage: dict[int, dict[int, list[int]]] = {unit: {} for unit in range(len(graph.units))}
        for edge, (sender, receiver) in enumerate(graph.edges):
            self._from_stage[receiver].setdefault(graph.stage_of[sender], []).append(edge)
        self._start(metric, pair)

    def estimate(self) -> Float[Tensor, "edge pair"]:
        result = torch.zeros(len(self.graph.edges), self.arrays[0].shape[0], dtype=torch.float64)
        for number in reversed(self.fragments):
            if self._is_boolean(number):
                self._by_both_values(number, list(self.graph.stages[number].parents), result)
            elif number in self.gradients:
                self._by_gradient(number, result)
                boolean = [parent for parent in self.graph.stages[number].parents if self._is_boolean(parent)]
                self._by_both_values(number, boolean, result)
        return result

    def _start(self, metric: BoundMetric, pair: Tensor) -> None:
        leaves = {
            stage: self.graph.stages[stage].layout.restore(self.values[stage]).detach().requires_grad_()
            for stage in self.graph.outputs.values()
        }
        points = self.graph.policy.points
        scores, *rest = (points[n].address.layout.show(leaves[stage]) for n, stage in self.graph.outputs.items())
        measured = metric(scores, pair=pair, value=rest[0] if rest else None).sum()
        for stage, gradient in _gradients(measured, leaves).items():
            self._add(stage, self.graph.stages[stage].layout.show(gradient))

    def _add(self, stage: int, gradient: Tensor) -> None:
        self.gradients[stage] = self.gradients[stage] + gradient if stage in self.gradients else gradient

    def _is_boolean(self, number: int) -> bool:
        return not self.values[number].is_floating_point()

    def _by_gradient(self, number: int, result: Tensor) -> None:
        stage = self.graph.stages[number]
        leaves = {p: self.values[p].detach().requires_grad_() for p in stage.parents if not self._is_boolean(p)}
        if not leaves:
            return
        computed = self.fragments[number](self.arrays, {p: leaves.get(p, self.values[p]) for p in stage.parents})
        for units in self._without_common_parents(stage.units):
            mask = torch.stack([self.graph.mask_of[unit] for unit in units]).any(0)
            cotangent = torch.where(mask, self.gradients[number], 0)
            by_parent = _gradients(computed, leaves, cotangent)
            for parent, gradient in by_parent.items():
                self._add(parent, gradient)
                sums = self._by_unit(parent, gradient * (self.after[parent] - self.before[parent]))
                edges = [edge for unit in units for edge in self._from_stage[unit].get(parent, ())]
                first = self.graph.stages[parent].units[0]
                result[edges] = sums[[self.graph.edges[edge][0] - first for edge in edges]]

    def _by_unit(self, number: int, product: Tensor) -> Float[Tensor, "unit pair"]:
        """Sums over the elements of each unit of a stage; units have no element in common."""
        stage = self.graph.stages[number]
        owner = torch.full(stage.covered.shape, len(stage.units), device=product.device)
        for place, mask in enumerate(stage.masks):
            owner[mask] = place
        sums = torch.zeros(len(stage.units) + 1, product.shape[0], dtype=torch.float64, device=product.device)
        return sums.index_add_(0, owner.reshape(-1), product.reshape(len(product), -1).T.double())[:-1].cpu()

    def _without_common_parents(self, units: Sequence[int]) -> list[list[int]]:
        """Units in groups in which each sender has one reader, so that one gradient serves all edges of a group."""
        groups: list[tuple[list[int], set[int]]] = []
        for unit in units:
            senders = {self.graph.edges[edge][0] for edge in self.graph.incoming[unit]}
            for members, taken in groups:
                if senders.isdisjoint(taken):
                    members.append(unit)
                    taken |= senders
                    break
            else:
                groups.append(([unit], senders))
        return [members for members, _ in groups]

    @torch.no_grad()
    def _by_both_values(self, number: int, parents: Sequence[int], result: Tensor) -> None:
        """Edges that end or begin at a boolean unit: the reader is evaluated with the sender's two values."""
        for sender in (unit for parent in parents for unit in self.graph.stages[parent].units):
            parent = self.graph.stage_of[sender]
            mask = self.graph.mask_of[sender]
            ends = [
                self.fragments[number](
                    self.arrays, {**self.values, parent: torch.where(mask, end[parent], self.values[parent])}
                )
                for end in (self.after, self.before)
            ]
            for edge in (edge for unit in self.graph.stages[number].units for edge in self.graph.incoming[unit]):
                if self.graph.edges[edge][0] == sender:
                    mask = self.graph.mask_of[self.graph.edges[edge][1]]
                    new, old = (torch.where(mask, end, self.values[number]) for end in ends)
                    result[edge] = self._change(number, new, old)

    def _change(self, number: int, new: Tensor, old: Tensor) -> Tensor:
        """The metric's change, to first order in the first floating-point stage after a change of this one."""
        if not self._is_boolean(number):
            return self._over(self.graph.stages[number].covered, (new - old) * self.gradients.get(number, 0))
        total = torch.zeros(new.shape[0], dtype=torch.float64)
        for child, fragment in self.fragments.items():
            if number in self.graph.stages[child].parents:
                ends = [fragment(self.arrays, {**self.values, number: value}) for value in (new, old)]
                total = total + self._change(child, *ends)
        return total

    def _over(self, mask: Tensor, product: Tensor) -> Tensor:
        return torch.where(mask, product, 0).reshape(product.shape[0], -1).sum(1).double().cpu()


def _gradients(value: Tensor, leaves: Mapping[int, Tensor], cotangent: Tensor | None = None) -> dict[int, Tensor]:
    """The gradients with respect to those leaves that the value depends on; its graph is kept."""
    found = torch.autograd.grad(value, list(leaves.values()), cotangent, retain_graph=True, allow_unused=True)
    found = cast("tuple[Tensor | None, ...]", found)  # torch's own annotation leaves out what `allow_unused` allows
    return {key: gradient for key, gradient in zip(leaves, found, strict=True) if gradient is not None}


def _result(
    policy: HookedPolicy,
    graph: ComponentGraph,
    bound: BoundMetric,
    estimate: Float[np.ndarray, "edge pair"],
    *,
    direction: Direction,
    n_steps: int,
    clusters: Clusters | None,
    seed: int,
) -> xr.Dataset:
    assert bound.corrupt is not None  # noqa: S101  # pairs always bind both runs
    clean, corrupt = bound.clean.double().cpu().numpy(), bound.corrupt.double().cpu().numpy()
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    mean = bootstrap_mean(estimate, clusters=clusters, seed=seed, scale=float(np.abs(source - base).max()))
    unit = {"units": bound.unit}
    first = [number for number, (sender, _) in enumerate(graph.edges) if _observes(graph, sender)]
    data = {
        "estimate": (("site", "pair"), estimate, unit | {"long_name": f"estimated change of {bound.name}"}),
        "change": ("site", mean.estimate, unit),
        "change_low": ("site", mean.low, unit),
        "change_high": ("site", mean.high, unit),
        "clean": ("pair", clean, unit),
        "corrupt": ("pair", corrupt, unit),
        "completeness_error": ("pair", estimate[first].sum(0) - (source - base), unit),
    }
    how = f"gradients at {n_steps} midpoints between the observations" if n_steps else "gradients at the base run"
    attrs = sweep_attrs(policy, bound, n_pairs=estimate.shape[1], seed=seed) | {
        "method": f"edge attribution, {direction}, {how}",
        "n_steps": n_steps,
        "sign": "positive: patching the edge from the source run would raise the metric",
        **mean.attrs,
    }
    receivers = [graph.units[receiver] for _, receiver in graph.edges]
    coords = sweep_coords(policy, receivers, estimate.shape[1])
    return storable(name_edges(xr.Dataset(data, coords=coords), graph, range(len(graph.edges))), attrs)


def _observes(graph: ComponentGraph, unit: int) -> bool:
    return graph.stages[graph.stage_of[unit]].node.op == "input"
