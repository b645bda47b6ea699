"""Causal scrubbing: how much of the behaviour is left when all that a hypothesis calls unimportant is resampled.

    value(v) = f_v(u in this run for edges u -> v of the hypothesis, u in the run of another observation for all others)

Every edge outside the hypothesis draws its own observation, so that nothing unimportant agrees with anything else by
accident. Cost per draw: one run of the graph, unit by unit where draws differ. Important inputs are kept as they are:
equivalence classes of their values, the other half of causal scrubbing, are not sampled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from rlmech.arguments import explain_misuse
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.edges.circuit import Circuit
from rlmech.edges.components import ComponentGraph, Edge
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.references import other_rows
from rlmech.edges.units import Over, Units, choose_units
from rlmech.errors import ConfigError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction, bind
from rlmech.metrics.score_metrics import action_gap
from rlmech.patching.results import ratio_of_means, sweep_attrs
from rlmech.patching.sweeps.sweep import outputs_of
from rlmech.results import storable
from rlmech.statistics import Clusters, bootstrap_mean


@explain_misuse
def causal_scrubbing(
    policy: HookedPolicy,
    *,
    obs: Observation,
    hypothesis: Circuit | Sequence[Edge],
    units: Units = "auto",
    over: Over = "layer",
    metric: Metric | MetricFunction | None = None,
    n_draws: int = 8,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Resample everything that a hypothesis calls unimportant, and measure what remains.

    Args:
        policy: The policy, on the graph engine.
        obs: Observations, at least two; the resampled ones are drawn from them, never a row for itself.
        hypothesis: A circuit, or the edges (sender, receiver) that are said to matter.
        units: With a list of edges, the component graph's units; a circuit brings its own.
        over: With `units="auto"`: hidden activations as a `layer`, or `neuron` by neuron.
        metric: What is measured; None for the gap between the policy's best action and its runner-up.
        n_draws: How often everything is drawn anew; the metric is averaged over draws.
        clusters: A label for each observation, say its episode: those of one label are resampled together in the
            bootstrap. None: every one by itself, which makes intervals too narrow where they resemble each other.
        seed: Of the draws and of the bootstrap.

    Returns:
        By `pair` (one per observation), in the metric's unit: `policy[pair]`, and means over draws of `scrubbed[pair]`
        and `resampled[pair]` (no edge is important). Dimensionless, with `_low` and `_high`, 95 % bootstrap over
        observations: `recovery`, mean(scrubbed - resampled) / mean(policy - resampled), 1 where the hypothesis holds;
        and `error`, mean |scrubbed - policy| / mean |resampled - policy| over observations and draws, 0 where it holds.
        Resampling leaves the mean of a metric with fixed actions as it is: then look at `error`, as
        `denominator_trustworthy` says.

    Raises:
        SiteError: An edge of the hypothesis is not there.
        ConfigError: The circuit is another policy's, or there is nothing to draw.
        ObservationError: There is only one observation.
        EngineError: The policy runs on the eager engine, or is in train mode with dropout or batch norm.

    Source:
        Chan et al. 2022, *Causal Scrubbing: a method for rigorously testing interpretability hypotheses*.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.scrubbing import causal_scrubbing
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 2))
        >>> path = [(rlm.Site("hook_obs", feature=0), rlm.Site("1.hook_out"))]
        >>> path.append((rlm.Site("1.hook_out"), rlm.Site("hook_q_values")))
        >>> result = causal_scrubbing(policy, obs=torch.rand(16, 2), hypothesis=path)
        >>> bool(result["error"] < 2)
        True
    """
    policy = policy.fitting(obs)
    if n_draws < 1:
        raise ConfigError("Nothing is drawn.", given=f"n_draws={n_draws}", expected="at least 1", fix="n_draws=8")
    if isinstance(hypothesis, Circuit):
        graph = hypothesis.graph(policy)
        kept = set(hypothesis.kept)
    else:
        graph = choose_units(policy, units=units, over=over)
        kept = {graph.edge_number(edge) for edge in hypothesis}
    bound = bind(metric or action_gap(), policy, clean=outputs_of(policy, obs))
    arrays = policy.coerce(obs)
    reference = graph.values(arrays)
    off = np.array([[number not in kept for number in range(len(graph.edges))], [True] * len(graph.edges)])
    measured = np.empty((n_draws, 2, arrays[0].shape[0]))
    for draw in range(n_draws):
        drawn = _rows(graph, arrays[0].shape[0], seed=[seed, draw])
        measured[draw] = EdgeRuns(graph, arrays, reference=reference, drawn=drawn).measure(off, bound)
    return _result(policy, bound, measured, n_kept=len(kept), clusters=clusters, seed=seed)


def _rows(graph: ComponentGraph, n_pairs: int, *, seed: Sequence[int]) -> Int[np.ndarray, "edge pair"]:
    """For each edge and observation, the other observation that it carries where it does not matter."""
    return np.stack([other_rows(n_pairs, seed=[*seed, edge]) for edge in range(len(graph.edges))])


def _result(
    policy: HookedPolicy,
    bound: BoundMetric,
    measured: Float[np.ndarray, "draw job pair"],
    *,
    n_kept: int,
    clusters: Clusters | None,
    seed: int,
) -> xr.Dataset:
    whole = bound.clean.double().cpu().numpy()
    scrubbed, resampled = measured.mean(0)
    far, all_the_way = np.abs(measured - whole).mean(0)
    unit = {"units": bound.unit}
    data: dict[str, Any] = {
        "policy": ("pair", whole, unit),
        "scrubbed": ("pair", scrubbed, unit),
        "resampled": ("pair", resampled, unit),
    }
    quotients = {"recovery": (scrubbed - resampled, whole - resampled), "error": (far, all_the_way)}
    for name, (numerator, denominator) in quotients.items():
        interval = ratio_of_means(numerator[None], denominator, clusters=clusters, seed=seed)
        for suffix, value in (("", interval.estimate), ("_low", interval.low), ("_high", interval.high)):
            data[name + suffix] = ((), float(value[0]), {"units": "1"})
    spread = bootstrap_mean((whole - resampled)[None], clusters=clusters, seed=seed)
    attrs = sweep_attrs(policy, bound, n_pairs=len(whole), seed=seed) | {
        "method": "causal scrubbing, every unimportant edge resampled on its own",
        "n_draws": len(measured),
        "n_edges": n_kept,
        "sign": "recovery: 1 where nothing is lost, 0 where no more is left than with everything resampled",
        "denominator_trustworthy": int(spread.excludes_zero[0]),
        **spread.attrs,
    }
    return storable(xr.Dataset(data, coords={"pair": np.arange(len(whole))}), attrs)
