"""The AtP* repairs of attribution patching: exact softmax for queries and keys, gradient dropout against cancellation.

A softmax that is saturated has no gradient, however much a patched query would change it: there the pattern's own
change is computed exactly, and only what is behind it linearly. And where two ways to the output cancel, the plain
gradient is zero: with the gradient of one way dropped, the other shows. Cost: the patched runs as far as the pattern;
one backward pass per layer.
Source: Kramár et al. 2024, *AtP-star: an efficient and scalable method for localizing LLM behaviour to components*,
arXiv 2403.00745 (the QK fix and GradDrop).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Node
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address
from rlmech.core.site import Site
from rlmech.gradients.at_nodes import MeasuredRun, output_addresses, row_sums, sum_over_sites
from rlmech.gradients.downstream import Continuation

ROWS_AT_ONCE = 4096
"""Rows of patched runs that are stacked."""

_DROPPED_KINDS = {"linear", "convolution", "recurrent", "attn_out"}


_before: WeakKeyDictionary[GraphEngine, dict[Node, Address]] = WeakKeyDictionary()


def nodes_before_patterns(policy: HookedPolicy) -> dict[Node, Address]:
    """The nodes all of whose influence goes through one attention pattern, with it: queries, keys and scores do."""
    engine = policy.graph_engine
    if engine not in _before:  # told by the graph alone, which does not change
        _before[engine] = _found_before_patterns(policy)
    return _before[engine]


def _found_before_patterns(policy: HookedPolicy) -> dict[Node, Address]:
    graph = policy.graph_engine.graph
    ends = [address.node for address in output_addresses(policy)]
    found: dict[Node, Address] = {}
    for block in policy.attention.values():
        pattern = policy.points[block.names["pattern"]].address
        elsewhere = set(graph.computed_order(ends, replaced={pattern.node}, cut={pattern.node}))
        for node in graph.computed_order(graph.sources_of(pattern.node)):
            if node not in elsewhere:
                found.setdefault(node, pattern)
    return found


def softmax_repaired(
    policy: HookedPolicy,
    sites: Sequence[Site],
    *,
    pattern: Address,
    gradient: Tensor,
    arrays: tuple[Tensor, ...],
    base: Shaped[Tensor, "pair ..."],
    source: Shaped[Tensor, "pair ..."],
) -> Float[Tensor, "site pair"]:
    """First-order estimate at a pattern, of its exact change by patching each site of one earlier point.

    Args:
        policy: The policy.
        sites: Sites at the point.
        pattern: The pattern that all of the point's influence goes through.
        gradient: The metric's gradient at the pattern's node.
        arrays: The base runs' observation.
        base: The point's value in the base runs, canonical axes.
        source: Its value in the source runs.
    """
    address = policy.points[sites[0].name].address
    run = Continuation.start(policy.graph_engine, address.node, returned=[pattern.node], arrays=arrays)
    with torch.no_grad():
        (before,) = run.run(address.layout.restore(base))
        before, slope = pattern.layout.show(before), pattern.layout.show(gradient)
        result = base.new_empty(len(sites), base.shape[0])
        for chosen, patched, rows in patched_rows(policy, sites, base=base, source=source):
            after = pattern.layout.show(run.run(address.layout.restore(patched), rows)[0])
            change = row_sums((after - before[rows]) * slope[rows])
            result[chosen] = change.reshape(len(chosen), -1)
    return result


def patched_rows(
    policy: HookedPolicy, sites: Sequence[Site], *, base: Shaped[Tensor, "pair ..."], source: Shaped[Tensor, "pair ..."]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """The value of one point with each of its sites patched, in stacks of rows.

    Yields:
        Which sites; the point's value, all pairs of the first site first; and the pair of each row.
    """
    point, n_pairs = policy.hook_dict[sites[0].name], base.shape[0]
    at_once = max(1, ROWS_AT_ONCE // max(1, n_pairs))
    for start in range(0, len(sites), at_once):
        chosen = list(range(start, min(start + at_once, len(sites))))
        masks = torch.stack([sites[i].mask(point) for i in chosen]).to(base.device)
        patched = torch.where(masks[:, None], source[None], base[None]).flatten(0, 1)
        yield chosen, patched, torch.arange(n_pairs, device=base.device).repeat(len(chosen))


def dropout_magnitude(
    policy: HookedPolicy, run: MeasuredRun, sites: Sequence[Site], *, delta: Shaped[Tensor, "pair ..."]
) -> Float[Tensor, "site pair"]:
    """Mean absolute first-order estimate, over the full gradient and those with one layer's contribution dropped.

    Dropped in turn is each layer that some, but not all, of the point's influence goes through: dropping one that all
    of it goes through leaves nothing, and one that none goes through changes nothing. Unsigned.

    Args:
        policy: The policy.
        run: A run that keeps the point's node and `droppable_nodes`.
        sites: Sites at one point.
        delta: Source less base value of the point, canonical axes.
    """
    point, address = policy.hook_dict[sites[0].name], policy.points[sites[0].name].address
    ends = [end.node for end in output_addresses(policy)]
    graph = policy.graph_engine.graph
    behind = graph.behind({address.node}, ends)
    dropped: list[Node | None] = [None]
    for layer in droppable_nodes(policy):
        if layer in behind and graph.behind({address.node}, ends, cut={layer}):
            dropped.append(layer)
    total = torch.zeros(len(sites), delta.shape[0], dtype=delta.dtype, device=delta.device)
    for layer in dropped:
        gradient = run.gradients([address.node], without=layer)[address.node]
        total += sum_over_sites(delta * address.layout.show(gradient), sites, point).abs()
    return total / len(dropped)


def droppable_nodes(policy: HookedPolicy) -> tuple[Node, ...]:
    """The layers whose contribution gradient dropout drops."""
    return tuple(dict.fromkeys(point.address.node for point in policy.points.values() if point.kind in _DROPPED_KINDS))
