"""How good a circuit is: faithfulness, completeness, minimality, beside random circuits of its size.

    faithfulness = (m(circuit) - m(nothing)) / (m(policy) - m(nothing)),   m the metric, ratio of means over pairs

`m(nothing)` has every edge ablated. Completeness is 1 minus the same quotient of the complement, the policy without the
circuit's edges: what a complete circuit leaves behind does nothing. Minimality of an edge is what faithfulness loses
without it. Cost: a run per circuit, edge of it and random draw, rows stacked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmech.interventions.edges.component_graph import ComponentGraph
from rlmech.interventions.edges.edge_runs import EdgeRuns
from rlmech.interventions.metrics import BoundMetric
from rlmech.statistics import bootstrap_mean, bootstrap_ratio

_ROWS_AT_ONCE = 4096
_TRIES = 50


def evaluate_edges(
    graph: ComponentGraph,
    kept: Collection[int],
    runs: EdgeRuns,
    *,
    metric: BoundMetric,
    pair: Int[Tensor, " pair"] | None,
    n_random: int,
    seed: int,
) -> xr.Dataset:
    """Measure a circuit on the runs' pairs.

    Args:
        graph: Units and edges.
        kept: The circuit's edges, by number.
        runs: The base runs, with the reference that ablated edges carry.
        metric: Bound to the unpatched runs.
        pair: Which of the metric's pairs the base runs are; None: run i is pair i.
        n_random: Random circuits to compare with.
        seed: Of those, and of the bootstrap.

    Returns:
        `faithfulness` and `completeness` (1 is best), `error` (0 is best: mean |circuit - policy| over mean
        |ablated - policy|, in which pairs cannot cancel), `minimality[edge]` (over all edges, NaN outside the circuit),
        `random_faithfulness[seed]`, all with `_low` and `_high`; `random_size[seed]`; `circuit[pair]`, `policy[pair]`,
        `ablated[pair]` in the metric's unit. Dimensionless but for the last three. `denominator_trustworthy` in attrs
        says whether the mean of policy - ablated is clear of zero; where not, look at `error`.
    """
    kept = sorted(kept)
    inside = np.zeros(len(graph.edges), dtype=bool)
    inside[kept] = True
    without = np.repeat(~inside[None], len(kept), axis=0)
    without[np.arange(len(kept)), kept] = True
    random = [random_circuit_edges(graph, len(kept), seed=[seed, draw]) for draw in range(n_random)]
    randomly = np.array([[number not in drawn for number in range(len(graph.edges))] for drawn in random], dtype=bool)
    jobs = np.concatenate(
        [np.ones_like(inside)[None], ~inside[None], inside[None], without, randomly.reshape(-1, len(inside))]
    )
    measured = measure_jobs(runs, jobs, metric=metric, pair=pair)
    whole = measure_jobs(runs, np.zeros((1, len(inside)), dtype=bool), metric=metric, pair=pair)[0]
    nothing, circuit, complement = measured[:3]
    dropped, drawn = measured[3 : 3 + len(kept)], measured[3 + len(kept) :]
    data: dict[str, Any] = {}
    span = whole - nothing
    _put(data, "faithfulness", (circuit - nothing)[None], span, seed=seed)
    _put(data, "completeness", (whole - complement)[None], span, seed=seed)
    _put(data, "error", np.abs(circuit - whole)[None], np.abs(span), seed=seed)
    _put(data, "minimality", circuit - dropped, span, seed=seed, dim="edge")
    for name in ("minimality", "minimality_low", "minimality_high"):
        dim, values, attrs = data[name]
        everywhere = np.full(len(inside), np.nan)
        everywhere[kept] = values
        data[name] = (dim, everywhere, attrs)
    _put(data, "random_faithfulness", drawn - nothing, span, seed=seed, dim="seed")
    data["random_size"] = ("seed", np.array([len(edges) for edges in random], dtype=int))
    unit = {"units": metric.unit}
    data |= {"circuit": ("pair", circuit, unit), "policy": ("pair", whole, unit), "ablated": ("pair", nothing, unit)}
    spread = bootstrap_mean(span[None], seed=seed)
    trustworthy = bool(spread.low[0] * spread.high[0] > 0)
    coords = {"pair": np.arange(len(whole)), "seed": np.arange(n_random)}
    return xr.Dataset(data, coords=coords, attrs={"denominator_trustworthy": trustworthy})


def measure_jobs(
    runs: EdgeRuns, off: Bool[np.ndarray, "job edge"], *, metric: BoundMetric, pair: Int[Tensor, " pair"] | None
) -> Float[np.ndarray, "job pair"]:
    """The metric of many jobs, a few at a time, so that memory stays bounded."""
    at_once = max(1, _ROWS_AT_ONCE // runs.n_pairs)
    parts = [runs.measure(off[start : start + at_once], metric, pair=pair) for start in range(0, len(off), at_once)]
    return np.concatenate(parts) if parts else np.empty((0, runs.n_pairs))


def _put(
    data: dict[str, Any], name: str, numerator: Float[np.ndarray, "site pair"], span: Any, *, seed: int, dim: str = ""
) -> None:
    interval = bootstrap_ratio(numerator, span, seed=seed)
    for suffix, values in (("", interval.estimate), ("_low", interval.low), ("_high", interval.high)):
        data[name + suffix] = (dim, values, {"units": "1"}) if dim else ((), values[0], {"units": "1"})


def random_circuit_edges(graph: ComponentGraph, n_edges: int, *, seed: Sequence[int]) -> set[int]:
    """A random circuit of a size, made of whole paths from the observation to an output.

    Args:
        graph: Units and edges.
        n_edges: Its size; where no further path fits, it stays a few edges smaller.
        seed: Of the draws.
    """
    generator = np.random.default_rng(list(seed))
    live = useful_edges(graph, range(len(graph.edges)), consistent=True)
    outgoing: dict[int, list[int]] = {}
    incoming: dict[int, list[int]] = {}
    for number in sorted(live):
        sender, receiver = graph.edges[number]
        outgoing.setdefault(sender, []).append(number)
        incoming.setdefault(receiver, []).append(number)
    chosen: set[int] = set()
    ordered = sorted(live)
    failed = 0
    while ordered and len(chosen) < n_edges and failed < _TRIES:
        start = int(generator.choice(ordered))
        path, unit = {start}, graph.edges[start][0]
        while unit in incoming:
            path.add(step := int(generator.choice(incoming[unit])))
            unit = graph.edges[step][0]
        unit = graph.edges[start][1]
        while unit in outgoing:
            path.add(step := int(generator.choice(outgoing[unit])))
            unit = graph.edges[step][1]
        if len(chosen | path) <= n_edges:
            chosen |= path
            failed = 0
        else:
            failed += 1
    return chosen


def useful_edges(graph: ComponentGraph, edges: Collection[int], *, consistent: bool) -> set[int]:
    """The edges that can matter: those that lead to an output and, with a consistent reference, hear the observation.

    Where the reference is one run, a unit all of whose edges are off has its reference value, so that its own edges
    carry the same on or off. With zeros or means that is not so, and such edges stay.

    Args:
        graph: Units and edges.
        edges: Those to choose among, by number.
        consistent: Whether the reference is one run.
    """
    ends = {unit for stage in graph.outputs.values() for unit in graph.stages[stage].units}
    kept = set(edges)
    leading = set(ends)
    for number in sorted(kept, key=lambda number: -graph.edges[number][1]):
        sender, receiver = graph.edges[number]
        if receiver in leading:
            leading.add(sender)
    kept = {number for number in kept if graph.edges[number][1] in leading}
    if not consistent:
        return kept
    hearing = {unit for unit, incoming in graph.incoming.items() if not incoming}
    for number in sorted(kept, key=lambda number: graph.edges[number][1]):
        sender, receiver = graph.edges[number]
        if sender in hearing:
            hearing.add(receiver)
    return {number for number in kept if graph.edges[number][0] in hearing}
