"""Edge patching: what each single edge of a component graph does to the decision.

    effect(u -> v) = metric(base run, in which v sees u's value from the source run and nothing else differs)

Cost per edge: the piece of the network from v on, rows of several edges stacked. Exact; needs the traced graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.edges.components import ComponentGraph, Edge
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.units import Over, Units, choose_units
from rlmech.errors import ConfigError
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.patching.results import Direction, bind_pairs, patching_result, unknown_choice
from rlmech.statistics import Clusters

_ROWS_AT_ONCE = 4096


@explain_misuse
def edge_patching(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    edges: str | Sequence[Edge] = "all",
    units: Units = "auto",
    over: Over = "layer",
    metric: Metric | MetricFunction | None = None,
    direction: Direction = "denoise",
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Patch each edge of a component graph from one run into the other, pair by pair.

    Args:
        policy: The policy, on the graph engine.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        edges: `all`, or pairs (sender, receiver) of units.
        units: `auto`, a hook name or glob, or a list of sites; see `choose_units`.
        over: With `units="auto"`: hidden activations as a `layer`, or `neuron` by neuron.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
        direction: `denoise`: clean values along the edge in corrupt runs; `noise`: corrupt ones in clean runs.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the bootstrap.

    Returns:
        Dimensions `edge` (coordinates `sender`, `receiver`) and `pair`; variables as of `activation_patching`:
        `patched[edge, pair]`, `clean[pair]`, `corrupt[pair]`, `effect[edge]` (normalised recovery) and `change[edge]`
        (in the metric's unit), both with `_low` and `_high`, 95 % bootstrap over pairs.

    Raises:
        SiteError: A unit or an edge is not there; the message names the nearest.
        ObservationError: Clean and corrupt do not pair up.
        EngineError: The policy runs on the eager engine, or is in train mode with dropout or batch norm.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.edges.single import edge_patching
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> result = edge_patching(policy, clean=torch.rand(16, 4), corrupt=torch.rand(16, 4))
        >>> result.sender.values.tolist()
        ['hook_obs feature=0', 'hook_obs feature=1', 'hook_obs feature=2', 'hook_obs feature=3', '1.hook_out']
    """
    policy = policy.fitting(clean)
    if direction not in ("denoise", "noise"):
        raise unknown_choice("direction", direction, ("denoise", "noise"))
    graph = choose_units(policy, units=units, over=over)
    chosen = choose_edges(graph, edges)
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    runs = EdgeRuns(graph, policy.coerce(base), reference=graph.values(policy.coerce(source)))
    patched = np.empty((len(chosen), runs.n_pairs))
    at_once = max(1, _ROWS_AT_ONCE // runs.n_pairs)
    for start in range(0, len(chosen), at_once):
        part = chosen[start : start + at_once]
        off = np.zeros((len(part), len(graph.edges)), dtype=bool)
        off[np.arange(len(part)), part] = True
        patched[start : start + len(part)] = runs.measure(off, bound)
    receivers = [graph.units[graph.edges[number][1]] for number in chosen]
    result = patching_result(
        policy,
        receivers,
        bound,
        patched=patched,
        method="edge patching",
        direction=direction,
        clusters=clusters,
        seed=seed,
    )
    return name_edges(result, graph, chosen)


def choose_edges(graph: ComponentGraph, edges: str | Sequence[Edge]) -> list[int]:
    """The numbers of edges.

    Raises:
        SiteError: One of them is not there.
        ConfigError: None is asked for, or what is asked for is no list of pairs.
    """
    if isinstance(edges, str):
        if edges != "all":
            raise unknown_choice("choice of edges", edges, ("all",))
        return list(range(len(graph.edges)))
    if not edges:
        raise ConfigError(
            "No edge is asked for.", given="an empty list", expected="at least one edge", fix='edges="all"'
        )
    return [graph.edge_number(edge) for edge in edges]


def name_edges(result: xr.Dataset, graph: ComponentGraph, chosen: Sequence[int]) -> xr.Dataset:
    """A result over sites as one over edges, with the names of senders and receivers."""
    names = graph.names
    by_site = [name for name, coordinate in result.coords.items() if coordinate.dims == ("site",)]
    coords = {
        "edge": np.arange(len(chosen)),
        "sender": ("edge", [names[graph.edges[number][0]] for number in chosen]),
        "receiver": ("edge", [names[graph.edges[number][1]] for number in chosen]),
    }
    return result.drop_vars(by_site).rename(site="edge").assign_coords(coords)
