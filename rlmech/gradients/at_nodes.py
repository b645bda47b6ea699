"""Gradients of a metric at many activations of a policy at once, and their sums over sites.

    d metric[pair] / d activation[pair]      rows are independent, so one backward pass serves all pairs and all points

Cost: one forward and one backward pass for any number of points; with an integration, one of each behind every point
for each step. Needs the graph engine. Nothing here divides or compares: `attribution` does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlmech.core.graph import Node
from rlmech.core.hook_point import HookPoint
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address
from rlmech.core.recent import Recent
from rlmech.core.site import Site
from rlmech.errors import MetricError, SiteError
from rlmech.gradients.downstream import Continuation
from rlmech.metrics.measure import BoundMetric, Metric, Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A forward pass with a metric at its end, kept for backward passes.

    Attributes:
        values: Value of each node that was asked for, in the node's own shape, part of the autograd graph.
        measured: The metric of each pair.
    """

    values: dict[Node, Tensor]
    measured: Float[Tensor, " pair"]

    def gradients(self, nodes: Sequence[Node], *, without: Node | None = None) -> dict[Node, Tensor]:
        """The metric's gradient at some of the nodes; zero at those that it does not depend on.

        Args:
            nodes: Which; among `values`.
            without: A node that no gradient passes back through, as if its value were fixed.
        """
        values = [self.values[node] for node in nodes]
        handle = None if without is None else self.values[without].register_hook(torch.zeros_like)
        try:
            with torch.enable_grad():
                total = self.measured.sum()
            found = torch.autograd.grad(total, values, retain_graph=True, materialize_grads=True)
        finally:
            if handle is not None:
                handle.remove()
        return dict(zip(nodes, found, strict=True))


def output_addresses(policy: HookedPolicy) -> list[Address]:
    """Where a metric's inputs lie: the scores, and the state value where the policy has that head."""
    return [point.address for point in policy.points.values() if point.kind == "output"]


def differentiable_run(
    policy: HookedPolicy, arrays: tuple[Tensor, ...], *, nodes: Sequence[Node]
) -> tuple[dict[Node, Tensor], tuple[Tensor, ...]]:
    """The values of some nodes and of the outputs (as `output_addresses` lists them), ready for backward passes.

    Raises:
        EngineError: The policy runs on the eager engine.
    """
    values: dict[Node, Tensor] = {}
    hooked = tuple(dict.fromkeys(nodes))

    def keep(node: Node, value: Tensor) -> Tensor:
        values[node] = value if value.requires_grad else value.detach().requires_grad_(value.is_floating_point())
        return values[node]

    interceptors = [lambda value, node=node: keep(node, value) for node in hooked]
    ends = [end.node for end in output_addresses(policy)]
    with torch.enable_grad():
        outputs = policy.graph_engine.program(returned=ends, hooked=hooked)(arrays, (), interceptors)
    return values, outputs


def measured_run(
    policy: HookedPolicy, values: dict[Node, Tensor], outputs: Sequence[Tensor], metric: BoundMetric
) -> MeasuredRun:
    """A run with a metric at its end.

    Args:
        policy: The policy.
        values: Of its nodes, as `differentiable_run` gives them.
        outputs: Of its output nodes, likewise.
        metric: What is measured.

    Raises:
        MetricError: The metric has no gradient.
    """
    with torch.enable_grad():
        measured = measure_outputs(policy, outputs, metric)
    if not measured.requires_grad:
        raise MetricError(
            f"The metric {metric.name!r} has no gradient.",
            given="a value that does not depend on the scores in a differentiable way",
            expected="a differentiable function of the scores",
            fix="use activation_patching, which needs no gradient, or another metric, e.g. action_gap()",
        )
    return MeasuredRun(values=values, measured=measured)


def outputs_at(policy: HookedPolicy, values: Sequence[Tensor]) -> Outputs:
    """The policy's outputs, from the values of its output nodes, as constants."""
    scores, *value = (end.layout.show(v.detach()) for end, v in zip(output_addresses(policy), values, strict=True))
    return Outputs(scores=scores, value=value[0] if value else None)


def measure_outputs(
    policy: HookedPolicy, outputs: Sequence[Tensor], metric: BoundMetric, *, pair: Tensor | None = None
) -> Float[Tensor, " batch"]:
    """The metric of the values of the output nodes, which stand in the order of `output_addresses`."""
    shown = [end.layout.show(value) for end, value in zip(output_addresses(policy), outputs, strict=True)]
    return metric(shown[0], pair=pair, value=shown[1] if len(shown) > 1 else None)


def refuse_undifferentiable(metric: Metric | BoundMetric) -> None:
    """Raise a `MetricError` where a gradient of the metric says nothing."""
    if not metric.differentiable:
        raise MetricError(
            f"The gradient of the metric {metric.name!r} is zero or undefined everywhere.",
            given=f"metric {metric.name!r}, which has no gradient",
            expected="a metric that changes smoothly with the scores",
            fix="use activation_patching, which needs no gradient, or another metric, e.g. action_gap()",
        )


def finite_change(base: Tensor, source: Tensor, *, name: str) -> Tensor:
    """Source less base; 0 where both are the same infinity, as masked attention scores are.

    It is 0, too, where the base is NaN, as attention to nothing is in some networks: one that mends it has no gradient
    there, and of one that does not the metric is NaN, which is told.

    Raises:
        SiteError: An element changes by an infinite amount, to which a gradient says nothing.
    """
    change = source - base
    if change.sum().isfinite():  # one number instead of a test of each
        return change
    change = torch.where((base == source) | base.isnan(), torch.zeros_like(base), change)
    infinite = ~change.isfinite()
    if infinite.any():
        pairs = infinite.flatten(1).any(1).nonzero().ravel().tolist() if infinite.ndim > 1 else []
        named = f", in the pairs {', '.join(map(str, pairs[:10]))}{', ...' * (len(pairs) > 10)}" if pairs else ""
        raise SiteError(
            f"A gradient says nothing about {name!r}: between the runs, some of it changes by an infinite amount.",
            given=f"{int(infinite.sum())} elements that are masked, or NaN, in one run only{named}",
            expected="finite changes",
            fix='leave those pairs out, or repairs=("softmax",) with n_steps=0, or activation_patching',
        )
    return change


def integrated_gradient(
    policy: HookedPolicy, continuation: Continuation, *, base: Tensor, change: Tensor, metric: BoundMetric, n_steps: int
) -> Tensor:
    """The mean gradient at a node along the straight line from its base value to its source value, midpoint rule.

    Args:
        policy: The policy.
        continuation: From the node to the outputs, on the base runs.
        base: The node's value in the base runs, in the node's own shape.
        change: Its value in the source runs, less that.
        metric: What is differentiated.
        n_steps: Points on the line.

    Source:
        Sundararajan, Taly and Yan 2017, *Axiomatic Attribution for Deep Networks*, arXiv 1703.01365, section 3.
    """
    total = torch.zeros_like(base)
    for step in range(n_steps):
        value = (base + (step + 0.5) / n_steps * change).requires_grad_()
        with torch.enable_grad():
            measured = measure_outputs(policy, continuation.run(value), metric)
            if measured.requires_grad:  # else the metric does not depend on this node at all
                total += torch.autograd.grad(measured.sum(), value, materialize_grads=True)[0]
    return total / n_steps


def refuse_discrete(policy: HookedPolicy, sites: Sequence[Site]) -> None:
    """Raise a `SiteError` for the first site whose activation holds no real numbers."""
    for name in dict.fromkeys(site.name for site in sites):
        dtype = policy.points[name].address.node.dtype
        if dtype is None or not dtype.is_floating_point:
            raise SiteError(
                f"There is no gradient at {name!r}.",
                given=f"an activation of dtype {dtype}",
                expected="a floating-point activation",
                fix="leave it out, or use activation_patching, which needs no gradient",
            )


def sum_over_sites(
    product: Shaped[Tensor, "pair ..."], sites: Sequence[Site], point: HookPoint
) -> Float[Tensor, "site pair"]:
    """Sum a point's value over the elements that each site selects.

    Sites that select along the same axes share one sum over the others.

    Args:
        product: Canonical axes of the point, pairs first.
        sites: Sites at this point.
        point: The point.
    """
    result = product.new_empty(len(sites), product.shape[0])
    for selection in _selections(point, tuple(sites)):
        reduced = product.sum(selection.others) if selection.others else product
        flat = reduced.reshape(product.shape[0], -1).T
        rows, masks = selection.rows, selection.masks
        if masks is not None:
            result[selection.places] = masks.to(flat) @ flat
        else:
            result[selection.places] = flat if rows is None else flat[rows.to(flat.device)]
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """Sites that select along the same axes: which sums over the others are theirs.

    Attributes:
        places: The sites' places.
        others: The axes to sum over.
        rows: Each site's one row of what is left, flattened; None where they are all rows in order.
        masks: The rows that each site selects, where one selects several.
    """

    places: Tensor | slice
    others: list[int]
    rows: Tensor | None
    masks: Tensor | None


SELECTIONS = 16
"""Sets of sites of one point whose sums are kept planned, the last used ones."""
_known: WeakKeyDictionary[HookPoint, Recent[tuple[Site, ...], list[_Selection]]] = WeakKeyDictionary()


def _selections(point: HookPoint, sites: tuple[Site, ...]) -> list[_Selection]:
    def plan() -> list[_Selection]:
        by_axes: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, site in enumerate(sites):
            by_axes[tuple(sorted(axis for axis, _ in site.selection))].append(i)
        return [_selection(point, sites, members) for members in by_axes.values()]

    return _known.setdefault(point, Recent(SELECTIONS)).get(sites, plan)


def _selection(point: HookPoint, sites: Sequence[Site], members: list[int]) -> _Selection:
    kept = [place for place, axis in enumerate(point.axes) if axis in dict(sites[members[0]].selection)]
    others = [place for place in range(1, len(point.axes)) if place not in kept]
    whole = torch.stack([sites[i].mask(point) for i in members])
    masks = (whole.any(tuple(others)) if others else whole).reshape(len(members), -1)
    places: Tensor | slice = slice(None) if len(members) == len(sites) else torch.tensor(members)
    if not bool((masks.sum(1) == 1).all()):
        return _Selection(places=places, others=others, rows=None, masks=masks)
    rows = masks.int().argmax(1)
    in_order = torch.equal(rows, torch.arange(masks.shape[1]))
    return _Selection(places=places, others=others, rows=None if in_order else rows, masks=None)


def sites_at(sites: Sequence[Site], name: str) -> tuple[list[int], list[Site]]:
    """The sites of one hook point, and their places among all."""
    places = [place for place, site in enumerate(sites) if site.name == name]
    return places, [sites[place] for place in places]


def first_order_change(
    point: HookPoint, sites: Sequence[Site], *, base: Tensor, source: Tensor, slope: Tensor
) -> Float[np.ndarray, "site pair"]:
    """What exchanging the values of a point's sites does, to first order.

    Args:
        point: The hook point.
        sites: Its sites.
        base: Its value in the base runs, in canonical axes.
        source: Its value in the source runs.
        slope: The derivative of what is measured, at the base runs.

    Raises:
        SiteError: An element of a site changes by an infinite amount.
    """
    product = finite_change(base, source, name=point.name) * slope
    return sum_over_sites(product, sites, point).double().cpu().numpy()


def row_sums(value: Shaped[Tensor, "pair ..."]) -> Float[Tensor, " pair"]:
    """Sum of all but the first axis, which may be the only one."""
    return value.reshape(value.shape[0], -1).sum(1)
