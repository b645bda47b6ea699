"""Circuit discovery: which edges of a policy's component graph make the decision.

    ACDC: from outputs to inputs, drop each edge whose removal moves the metric by less than a threshold
    EAP:  keep the edges of the largest first-order scores (EAP-IG: integrated along the observations)

Found on some of the pairs and measured on the others. Cost: ACDC a partial run per edge, one after the other; EAP one
backward pass, EAP-IG one per step; then a run for each edge kept. Greedy and first order: neither is sure to find the
best circuit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.edges.circuit import Circuit, circuit_runs
from rlmech.edges.circuit_evaluation import evaluate_edges, measure_jobs, useful_edges
from rlmech.edges.components import ComponentGraph
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.references import ABLATIONS, CONSISTENT, CircuitAblation, other_rows
from rlmech.edges.scores import estimate_edges
from rlmech.edges.units import Over, Units, choose_units
from rlmech.errors import ConfigError, MetricError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction
from rlmech.patching.results import bind_pairs, cluster_labels, sweep_attrs, unknown_choice
from rlmech.progress import progress_bar
from rlmech.results import storable
from rlmech.statistics import Clusters

Method = Literal["acdc", "eap", "eap-ig"]
METHODS: tuple[Method, ...] = ("acdc", "eap", "eap-ig")
THRESHOLD = 0.01
NO_SLOPE = 1e-5
"""The largest score that is rounding and no slope: single precision, as a share of the whole effect."""
Found = tuple[Bool[np.ndarray, " edge"], Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]]
"""(kept, score, signed effect)."""


@explain_misuse
def discover_circuit(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    metric: Metric | MetricFunction | None = None,
    method: Method = "acdc",
    units: Units = "auto",
    over: Over = "layer",
    threshold: float | None = None,
    n_edges: int | None = None,
    ablation: CircuitAblation = "patch",
    held_out: float = 0.3,
    n_steps: int = 8,
    n_controls: int = 20,
    clusters: Clusters | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Circuit:
    """Find the edges that make the decision, and measure them on pairs that were held out.

    Args:
        policy: The policy, on the graph engine.
        clean: Observations, one row per pair: the runs whose behaviour is to be explained.
        corrupt: Their counterparts, row by row.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs. `policy_kl()` is
            the measure of the ACDC paper.
        method: `acdc`, `eap` or `eap-ig`.
        units: `auto`, a hook name or glob, or a list of sites; see `choose_units`.
        over: With `units="auto"`: hidden activations as a `layer`, or `neuron` by neuron.
        threshold: Edges below it are dropped; None for 0.01. In shares of what ablating every edge does to the metric,
            mean over pairs of the magnitude: for `acdc` of the change when the edge goes too, else of the estimate.
        n_edges: Instead of a threshold, for `eap` and `eap-ig`: how many edges of the highest scores the circuit
            has; fewer where the next one would bring several with it.
        ablation: What dropped edges carry: the pair's corrupt run (`patch`), the clean run of another pair
            (`resample`), the mean over the discovery pairs' observations (`mean`), or zeros.
        held_out: Share of the pairs that the circuit is measured on and not found on; 0 to measure where it was found.
        n_steps: Midpoints of `eap-ig`.
        n_controls: Random circuits of the same size to compare with.
        clusters: A label for each pair, say its episode. Pairs of one label fall on the same side of the split (a share
            `held_out` of the labels), and are resampled together. None: every pair by itself, which makes intervals too
            narrow, and the held-out pairs no news, where pairs resemble each other.
        seed: Of the split, the resampled rows, the random circuits and the bootstrap.
        progress: Whether to draw a progress bar.

    Returns:
        The circuit: `edges`, `nodes`, and `dataset` with `score[edge]`, `effect[edge]` (for `acdc` the metric's change
        when the edge went, else the estimated one), `in_circuit[edge]`, and `faithfulness`, `completeness`,
        `minimality[edge]`, `random_faithfulness[seed]`, with 95 % bootstrap intervals, of the pairs held out. Edges
        that cannot matter are left out: those that lead nowhere, and, where the ablation is one run, those from units
        that hear nothing of the clean one.

    Raises:
        ConfigError: An alternative that is not there, or settings that exclude each other.
        MetricError: Ablating everything does not move the metric, or it has no gradient and the method needs one.
        SiteError, ObservationError, EngineError: Units, pairs or the policy do not serve.

    Source:
        Conmy et al. 2023, *Towards Automated Circuit Discovery*, arXiv 2304.14997 (ACDC); Syed et al. 2023, arXiv
        2310.10348 (EAP); Hanna et al. 2024, *Have Faith in Faithfulness*, arXiv 2403.17806 (EAP-IG).

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.discover import discover_circuit
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> circuit = discover_circuit(policy, clean=torch.rand(16, 4), corrupt=torch.rand(16, 4), threshold=0.0)
        >>> len(circuit.candidates)
        5
    """
    policy = policy.fitting(clean)
    _check(method, threshold=threshold, n_edges=n_edges, ablation=ablation)
    graph = choose_units(policy, units=units, over=over)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    here, there = policy.coerce(clean), policy.coerce(corrupt)
    labels = None if clusters is None else cluster_labels(clusters, here[0].shape[0])
    found_on, measured_on = _split(here[0].shape[0], held_out=held_out, labels=labels, seed=seed)
    searched = [[array[found_on] for array in arrays] for arrays in (here, there)]
    held = [[array[measured_on] for array in arrays] for arrays in (here, there)]
    dataset = [torch.cat(both) for both in zip(*searched, strict=True)]
    runs = circuit_runs(graph, *searched, ablation=ablation, seed=seed, dataset=dataset)
    limit = THRESHOLD if threshold is None else threshold
    if method == "acdc":
        with progress_bar("discovering", len(graph.edges), enabled=progress) as advance:
            kept, score, effect = _acdc(graph, runs, bound, found_on, threshold=limit, on_edge=advance)
    else:
        estimated = _Estimated(ablation=ablation, n_steps=n_steps if method == "eap-ig" else 0, seed=seed)
        score, effect = estimated.scores(graph, runs, bound, found_on, corrupt=searched[1])
        consistent = ablation in CONSISTENT
        kept = score >= limit if n_edges is None else _highest(graph, score, n_edges, consistent=consistent)
    useful = useful_edges(graph, kept.nonzero()[0].tolist(), consistent=ablation in CONSISTENT)
    test_runs = circuit_runs(graph, *held, ablation=ablation, seed=seed, dataset=dataset)
    result = evaluate_edges(
        graph,
        useful,
        test_runs,
        metric=bound,
        pair=measured_on,
        n_controls=n_controls,
        seed=seed,
        consistent=ablation in CONSISTENT,
        clusters=None if labels is None else labels[measured_on.numpy()],
    )
    attrs = sweep_attrs(policy, bound, n_pairs=len(measured_on), seed=seed) | {
        "method": f"{method}, {ablation} ablation",
        "ablation": ablation,
        "threshold": limit if n_edges is None else float("nan"),
        "n_pairs_discovery": len(found_on),
        "held_out": held_out,
        "score": "share of what ablating every edge does to the metric, mean magnitude over the discovery pairs",
        "sign": "effect: positive where ablating the edge raises the metric",
    }
    described = _described(graph, useful, score, effect, unit=bound.unit)
    return Circuit(
        units=graph.units,
        candidates=graph.edges,
        kept=tuple(sorted(useful)),
        dataset=storable(xr.merge([described, result], compat="equals", join="exact"), result.attrs | attrs),
    )


def _described(graph: ComponentGraph, kept: set[int], score: Any, effect: Any, *, unit: str) -> xr.Dataset:
    names = graph.names
    coords = {
        "edge": np.arange(len(graph.edges)),
        "sender": ("edge", [names[a] for a, _ in graph.edges]),
        "receiver": ("edge", [names[b] for _, b in graph.edges]),
    }
    data = {
        "score": ("edge", score, {"units": "1"}),
        "effect": ("edge", effect, {"units": unit}),
        "in_circuit": ("edge", np.isin(np.arange(len(graph.edges)), sorted(kept))),
    }
    return xr.Dataset(data, coords=coords)


def _acdc(
    graph: ComponentGraph,
    runs: EdgeRuns,
    metric: BoundMetric,
    pair: Tensor,
    *,
    threshold: float,
    on_edge: Callable[[int], None],
) -> Found:
    """The greedy removal: receivers from the last to the first, senders likewise."""
    n = len(graph.edges)
    off = np.zeros(n, dtype=bool)
    whole = measure_jobs(runs, off[None], metric=metric, pair=pair)[0]
    scale = _scale(runs, metric, pair, whole)
    score, effect = np.zeros(n), np.zeros(n)
    loss, before = 0.0, whole
    for unit in reversed(range(len(graph.units))):
        incoming = sorted(graph.incoming[unit], key=lambda edge: -graph.edges[edge][0])
        on = (~off).nonzero()[0].tolist()
        leads = {graph.edges[edge][1] for edge in useful_edges(graph, on, consistent=False)}
        for edge in incoming:
            on_edge(1)
            off[edge] = True
            if unit not in leads:  # nothing reads it any more: exactly no effect
                continue
            after = measure_jobs(runs, off[None], metric=metric, pair=pair)[0]
            score[edge] = np.abs(after - whole).mean() / scale - loss
            effect[edge] = (after - before).mean()
            if score[edge] < threshold:
                loss, before = loss + score[edge], after
            else:
                off[edge] = False
    return ~off, score, effect


class _Estimated:
    """Scores of the first order."""

    def __init__(self, *, ablation: CircuitAblation, n_steps: int, seed: int) -> None:
        self.ablation, self.n_steps, self.seed = ablation, n_steps, seed

    def scores(
        self, graph: ComponentGraph, runs: EdgeRuns, metric: BoundMetric, pair: Tensor, *, corrupt: list[Tensor]
    ) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
        """(mean magnitude over pairs as a share of what ablating everything does, signed mean)."""
        whole = measure_jobs(runs, np.zeros((1, len(graph.edges)), dtype=bool), metric=metric, pair=pair)[0]
        scale = _scale(runs, metric, pair, whole)
        source: list[Tensor] | None = None
        if self.ablation == "patch":
            source = corrupt
        elif self.ablation == "resample":
            drawn = torch.from_numpy(other_rows(runs.n_pairs, seed=self.seed))
            source = [array[drawn] for array in runs.arrays]
        estimate = estimate_edges(
            graph, runs.arrays, source, after=runs.reference, metric=metric, n_steps=self.n_steps, pair=pair
        )
        score = np.abs(estimate).mean(1) / scale
        if score.max() < NO_SLOPE:
            raise MetricError(
                "The gradient of the metric is zero at every clean run, so that the first order says nothing.",
                given=metric.name,
                expected="a metric with a slope at the clean runs",
                fix='method="eap-ig", or metric=action_gap()',
            )
        return score, estimate.mean(1)


def _scale(runs: EdgeRuns, metric: BoundMetric, pair: Tensor, whole: Float[np.ndarray, " pair"]) -> float:
    everything = np.ones((1, len(runs.graph.edges)), dtype=bool)
    scale = float(np.abs(measure_jobs(runs, everything, metric=metric, pair=pair)[0] - whole).mean())
    if scale == 0:
        raise MetricError(
            "Ablating every edge does not move the metric, so that there is nothing to explain.",
            given=f"{metric.name}, the same in clean and ablated runs",
            expected="pairs whose metric differs",
            fix="choose other corrupt observations, or another metric or ablation",
        )
    return scale


def _highest(
    graph: ComponentGraph, score: Float[np.ndarray, " edge"], n_edges: int, *, consistent: bool
) -> Bool[np.ndarray, " edge"]:
    """The edges of the highest scores, as many as leave at most `n_edges` once those that cannot matter are gone."""
    order = np.argsort(-score, kind="stable").tolist()
    enough, too_many = 0, len(order) + 1
    while too_many - enough > 1:
        tried = (enough + too_many) // 2
        if len(useful_edges(graph, order[:tried], consistent=consistent)) <= n_edges:
            enough = tried
        else:
            too_many = tried
    kept = np.zeros(len(score), dtype=bool)
    kept[order[:enough]] = True
    return kept


def _split(
    n_pairs: int, *, held_out: float, labels: Int[np.ndarray, " pair"] | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Which pairs the circuit is found on, and which it is measured on; no label has pairs on both sides."""
    everything = torch.arange(n_pairs)
    if held_out == 0:
        return everything, everything
    label_of = np.arange(n_pairs) if labels is None else labels
    n_labels = int(label_of.max()) + 1 if n_pairs else 0
    n_held = round(n_labels * held_out)
    if not 0 < held_out < 1 or n_held in (0, n_labels):
        what = f"{n_pairs} pairs" if labels is None else f"{n_pairs} pairs in {n_labels} clusters"
        raise ConfigError(
            "The pairs cannot be split like this.",
            given=f"{what}, held_out={held_out}",
            expected="a share that leaves at least one pair, or one cluster of them, on either side, or 0 for no split",
            fix="give more pairs, or held_out=0 to measure the circuit where it was found",
        )
    held = np.isin(label_of, np.random.default_rng(seed).permutation(n_labels)[:n_held])
    return everything[torch.from_numpy(~held)], everything[torch.from_numpy(held)]


def _check(method: str, *, threshold: float | None, n_edges: int | None, ablation: str) -> None:
    if method not in METHODS:
        raise unknown_choice("method", method, METHODS)
    if ablation not in ABLATIONS:
        raise unknown_choice("ablation", ablation, ABLATIONS)
    if n_edges is not None and (method == "acdc" or threshold is not None or n_edges < 1):
        raise ConfigError(
            "A number of edges, at least one, stands instead of a threshold, for methods that rank edges.",
            given=f"method={method!r}, n_edges={n_edges}, threshold={threshold}",
            expected="n_edges or threshold with eap and eap-ig; threshold with acdc",
            fix="threshold=0.01, or method='eap-ig' with n_edges",
        )
    if method == "eap-ig" and ablation in ("zero", "mean"):
        raise ConfigError(
            "Integrated gradients run along a straight line between observations.",
            given=f"method='eap-ig', ablation={ablation!r}",
            expected="an ablation that is a run: patch or resample",
            fix="method='eap', or method='acdc'",
        )
