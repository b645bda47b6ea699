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

from rlmech.edges.components import ComponentGraph
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.metrics.measure import BoundMetric
from rlmech.patching.results import ratio_of_means
from rlmech.results import storable
from rlmech.statistics import Clusters, bootstrap_mean
from rlmech.untyped import JsonObject, Variables

_ROWS_AT_ONCE = 4096
_TRIES = 50


def evaluate_edges(
    graph: ComponentGraph,
    kept: Collection[int],
    runs: EdgeRuns,
    *,
    metric: BoundMetric,
    pair: Int[Tensor, " pair"] | None,
    n_controls: int,
    seed: int,
    consistent: bool,
    clusters: Clusters | None = None,
) -> xr.Dataset:
    """Measure a circuit on the runs' pairs.

    Args:
        graph: Units and edges.
        kept: The circuit's edges, by number.
        runs: The base runs, with the reference that ablated edges carry.
        metric: Bound to the unpatched runs.
        pair: Which of the metric's pairs the base runs are; None: run i is pair i.
        n_controls: Random circuits to compare with.
        seed: Of those, and of the bootstrap.
        consistent: Whether the reference is one run; where it is not, edges of constant units can matter too, and
            random circuits hold them.
        clusters: A label for each run; runs of one label are resampled together. None: every run by itself.

    Returns:
        `faithfulness` and `completeness` (1 is best), `error` (0 is best: mean |circuit - policy| over mean
        |ablated - policy|, in which pairs cannot cancel), `minimality[edge]` (over all edges, NaN outside the circuit),
        `random_faithfulness[seed]`, all with `_low` and `_high`; `random_size[seed]`; `circuit[pair]`, `policy[pair]`,
        `ablated[pair]` in the metric's unit. Dimensionless but for the last three. `denominator_trustworthy` in attrs
        says whether the mean of policy - ablated is clear of zero; where not, look at `error`. Where that mean is zero,
        a quotient is NaN unless numerator and denominator agree pair by pair, as those of the full circuit do: then 1.
    """
    kept = sorted(kept)
    inside = np.zeros(len(graph.edges), dtype=bool)
    inside[kept] = True
    without = np.repeat(~inside[None], len(kept), axis=0)
    without[np.arange(len(kept)), kept] = True
    random = [
        random_circuit_edges(graph, len(kept), seed=[seed, draw], consistent=consistent) for draw in range(n_controls)
    ]
    randomly = np.array([[number not in drawn for number in range(len(graph.edges))] for drawn in random], dtype=bool)
    jobs = np.concatenate(
        [np.ones_like(inside)[None], ~inside[None], inside[None], without, randomly.reshape(-1, len(inside))]
    )
    measured = measure_jobs(runs, jobs, metric=metric, pair=pair)
    whole = measure_jobs(runs, np.zeros((1, len(inside)), dtype=bool), metric=metric, pair=pair)[0]
    nothing, circuit, complement = measured[:3]
    dropped, drawn = measured[3 : 3 + len(kept)], measured[3 + len(kept) :]
    data: Variables = {}
    span = whole - nothing
    drawing: JsonObject = {"clusters": clusters, "seed": seed}
    _put(data, "faithfulness", (circuit - nothing)[None], span, **drawing)
    _put(data, "completeness", (whole - complement)[None], span, **drawing)
    _put(data, "error", np.abs(circuit - whole)[None], np.abs(span), **drawing)
    _put(data, "minimality", circuit - dropped, span, dim="edge", **drawing)
    for name in ("minimality", "minimality_low", "minimality_high"):
        dim, values, attrs = data[name]
        everywhere = np.full(len(inside), np.nan)
        everywhere[kept] = values
        data[name] = (dim, everywhere, attrs)
    _put(data, "random_faithfulness", drawn - nothing, span, dim="seed", **drawing)
    data["random_size"] = ("seed", np.array([len(edges) for edges in random], dtype=int))
    unit = {"units": metric.unit}
    data |= {"circuit": ("pair", circuit, unit), "policy": ("pair", whole, unit), "ablated": ("pair", nothing, unit)}
    spread = bootstrap_mean(span[None], clusters=clusters, seed=seed)
    coords = {"pair": np.arange(len(whole)), "seed": np.arange(n_controls)}
    attrs = {"denominator_trustworthy": int(spread.excludes_zero[0]), **spread.attrs}
    return storable(xr.Dataset(data, coords=coords), attrs)


def measure_jobs(
    runs: EdgeRuns, off: Bool[np.ndarray, "job edge"], *, metric: BoundMetric, pair: Int[Tensor, " pair"] | None
) -> Float[np.ndarray, "job pair"]:
    """The metric of many jobs, a few at a time, so that memory stays bounded."""
    at_once = max(1, _ROWS_AT_ONCE // runs.n_pairs)
    parts = [runs.measure(off[start : start + at_once], metric, pair=pair) for start in range(0, len(off), at_once)]
    return np.concatenate(parts) if parts else np.empty((0, runs.n_pairs))


def _put(
    data: Variables,
    name: str,
    numerator: Float[np.ndarray, "site pair"],
    span: Any,
    *,
    clusters: Clusters | None,
    seed: int,
    dim: str = "",
) -> None:
    interval = ratio_of_means(numerator, span, clusters=clusters, seed=seed)
    for suffix, values in (("", interval.estimate), ("_low", interval.low), ("_high", interval.high)):
        data[name + suffix] = (dim, values, {"units": "1"}) if dim else ((), values[0], {"units": "1"})


def random_circuit_edges(graph: ComponentGraph, n_edges: int, *, seed: Sequence[int], consistent: bool) -> set[int]:
    """A random circuit of a size, made of whole paths that end in an output.

    Cost: at most one path for each edge of the graph, whatever the size asked for.

    Args:
        graph: Units and edges.
        n_edges: Its size; where no further path fits, it stays a few edges smaller.
        seed: Of the draws.
        consistent: Whether the reference is one run: paths then start at the observation, else at any unit without
            edges into it.
    """
    generator = np.random.default_rng(list(seed))
    live = sorted(useful_edges(graph, range(len(graph.edges)), consistent=consistent))
    outgoing: dict[int, list[int]] = {}
    incoming: dict[int, list[int]] = {}
    for number in live:
        sender, receiver = graph.edges[number]
        outgoing.setdefault(sender, []).append(number)
        incoming.setdefault(receiver, []).append(number)
    chosen: set[int] = set()
    failed = 0
    for start in generator.permutation(live).tolist():  # each edge once: a path through it adds at least that edge
        if len(chosen) >= n_edges or failed >= _TRIES:
            break
        if start in chosen:
            continue
        path, unit = {start}, graph.edges[start][0]
        while unit in incoming:
            path.add(step := incoming[unit][int(generator.integers(len(incoming[unit])))])
            unit = graph.edges[step][0]
        unit = graph.edges[start][1]
        while unit in outgoing:
            path.add(step := outgoing[unit][int(generator.integers(len(outgoing[unit])))])
            unit = graph.edges[step][1]
        fits = len(chosen | path) <= n_edges
        chosen |= path if fits else set()
        failed = 0 if fits else failed + 1
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
