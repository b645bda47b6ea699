"""When a first-order estimate is exact: the patched run is made once, and its gates are compared with the base run's.

Cost: that of patching exactly, for the patched run is needed; it gives the exact effect along the way. Sound up to
rounding: certified means that the estimate is the patch's effect. Not complete: effects may agree by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rlmech.attribution.gates import Condition, batch_first, conditions_behind
from rlmech.attribution.repairs import patched_rows
from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Node
from rlmech.core.policy import HookedPolicy
from rlmech.core.recent import Recent
from rlmech.core.site import Site
from rlmech.gradients.at_nodes import MeasuredRun, measure_outputs, output_addresses, row_sums
from rlmech.gradients.downstream import Continuation
from rlmech.metrics.measure import BoundMetric

CONDITIONS = 64
"""Nodes whose conditions are kept for a policy, the last used ones: they are told by the graph alone."""
_conditions: WeakKeyDictionary[GraphEngine, Recent[object, tuple[Condition, ...]]] = WeakKeyDictionary()
_ROUNDING = 256
"""Epsilons, relative to the metric's terms, within which a metric counts as linear in the scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """Patched runs of the sites of one point.

    Attributes:
        certified: Whether the first-order estimate is exact.
        patched: The metric of the patched run.
    """

    certified: Bool[Tensor, "site pair"]
    patched: Float[Tensor, "site pair"]


def certify(
    policy: HookedPolicy,
    sites: Sequence[Site],
    *,
    run: MeasuredRun,
    metric: BoundMetric,
    arrays: tuple[Tensor, ...],
    base: Shaped[Tensor, "pair ..."],
    source: Shaped[Tensor, "pair ..."],
    exact_until: Node | None = None,
) -> Certified:
    """Patch each site of one point, and look whether everything behind it acted linearly.

    Args:
        policy: The policy.
        sites: Sites at the point.
        run: The base run, which keeps the output nodes.
        metric: What is measured.
        arrays: The base runs' observation.
        base: The point's value in the base runs, canonical axes.
        source: Its value in the source runs.
        exact_until: The attention pattern up to which the estimate takes the exact change; None for none.
    """
    address, engine = policy.points[sites[0].name].address, policy.graph_engine
    ends = [end.node for end in output_addresses(policy)]
    start = exact_until or address.node
    kept_conditions = _conditions.setdefault(engine, Recent(CONDITIONS))
    conditions = kept_conditions.get((start, tuple(ends)), lambda: conditions_behind(engine.graph, start, ends=ends))
    reads = list(dict.fromkeys(read for condition in conditions for read in condition.reads))
    onwards = Continuation.start(engine, address.node, returned=[*ends, *reads], arrays=arrays)
    slopes = run.gradients(ends)
    certified = torch.empty(len(sites), base.shape[0], dtype=torch.bool, device=base.device)
    patched = torch.empty(len(sites), base.shape[0], dtype=run.measured.dtype, device=base.device)
    with torch.no_grad():
        before = dict(zip([*ends, *reads], onwards.run(address.layout.restore(base)), strict=True))
        for chosen, value, rows in patched_rows(policy, sites, base=base, source=source):
            values = onwards.run(address.layout.restore(value), rows)
            after = dict(zip([*ends, *reads], values, strict=True))
            measured = measure_outputs(policy, values[: len(ends)], metric, pair=rows)
            linear = _metric_is_linear(ends, before, after, slopes, change=measured - run.measured[rows], rows=rows)
            if conditions:
                kept = {read: batch_first(read, before[read]) for read in reads}
                kept = {read: value[rows] if read.has_batch else value for read, value in kept.items()}
                now = {read: batch_first(read, after[read]) for read in reads}
                linear &= torch.stack([condition.holds(kept, now) for condition in conditions]).all(0)
            certified[chosen] = linear.reshape(len(chosen), -1)
            patched[chosen] = measured.reshape(len(chosen), -1)
    return Certified(certified=certified, patched=patched)


def _metric_is_linear(
    ends: Sequence[Node],
    before: dict[Node, Tensor],
    after: dict[Node, Tensor],
    slopes: dict[Node, Tensor],
    *,
    change: Tensor,
    rows: Tensor,
) -> Tensor:
    """Whether the metric changed by its gradient times the outputs' change, which a KL divergence does not."""
    expected, scale = torch.zeros_like(change), torch.zeros_like(change)
    for end in ends:
        slope = batch_first(end, slopes[end])[rows]
        was, now = batch_first(end, before[end])[rows], batch_first(end, after[end])
        expected += row_sums(slope * (now - was))
        scale += row_sums((slope * (now.abs() + was.abs())).abs())
    return (change - expected).abs() <= _ROUNDING * torch.finfo(change.dtype).eps * scale
