"""Every discovery method of the package, scored on policies whose circuit is known.

    score of an edge = what the method says that it does, mean size over pairs, as a share of clean - corrupt

Each method scores all edges of the component graph. Those of weight zero, which the network has by its shape alone, are
found by no method and would make each look good: ROC curves leave them out. Cost: what the methods cost: ACDC and
patching a run an edge, EAP one backward pass, EAP-IG one for each of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from rlmech.arguments import explain_misuse
from rlmech.core.site import Site
from rlmech.edges.components import ComponentGraph
from rlmech.edges.discover import THRESHOLD, discover_circuit
from rlmech.edges.scores import edge_attribution
from rlmech.edges.single import edge_patching
from rlmech.edges.units import choose_units
from rlmech.errors import ConfigError, MetricError
from rlmech.metrics.score_metrics import action_gap
from rlmech.patching.results import Direction, unknown_choice
from rlmech.results import storable
from rlmech.testbed.known import KnownPolicy
from rlmech.testbed.scoring import edge_auroc

DiscoveryMethod = Literal["patching denoise", "patching noise", "eap denoise", "eap noise", "eap-ig", "acdc"]
DISCOVERY_METHODS: tuple[DiscoveryMethod, ...] = get_args(DiscoveryMethod)
N_STEPS = 8
"""Midpoints of EAP-IG."""
ROUNDING = 1e-9
"""The largest score that is rounding, and taken for 0: exp(-50), the rest of a sharp softmax, would be ranked too."""
RATES = np.linspace(0, 1, 101)
"""Shares of false edges at which the ROC curve is told."""


@explain_misuse
def score_edges(
    known: KnownPolicy, *, methods: Sequence[DiscoveryMethod] = DISCOVERY_METHODS, threshold: float = THRESHOLD
) -> xr.Dataset:
    """What each method says of each edge of a policy whose circuit is known.

    Args:
        known: The policy, e.g. `rlm.testbed.known_program("sort")`; its units are the nodes.
        methods: `patching`: each edge alone from the other run, exactly; `eap`: the first order of that; each of them
            `denoise` (clean values in corrupt runs) or `noise` (the reverse). `eap-ig`: gradients along the line
            between the two runs. `acdc`: edges removed one after the other.
        threshold: A score from which on an edge counts as found; for `acdc` the one that it searches with.

    Returns:
        Dimensions `found_by` (the methods) and `edge` (coordinates `sender`, `receiver`, `is_true`, and `has_weight`:
        whether anything flows along it): `score[found_by, edge]`, as a share of the mean size of clean - corrupt, and
        `is_found[found_by, edge]`.

    Raises:
        ConfigError: A method that is not there, or none.
        MetricError: Clean and corrupt runs do not differ.

    Source:
        Conmy et al. 2023, arXiv 2304.14997 (ACDC, and the ROC curves); Syed et al. 2023, arXiv 2310.10348 (EAP); Hanna
        et al. 2024, arXiv 2403.17806 (EAP-IG).

    Example:
        >>> import rlmech as rlm
        >>> found = rlm.edges.score_edges(rlm.testbed.or_gate(), methods=["patching noise"], threshold=0.1)
        >>> int(found.is_true.sum()), int((found.is_found & found.is_true).sum())
        (5, 1)
    """
    unknown = [method for method in methods if method not in DISCOVERY_METHODS]
    if unknown or not methods:
        raise unknown_choice("method", str(unknown[0]) if unknown else "none", DISCOVERY_METHODS)
    graph = choose_units(known.policy, units=known.units)
    true = np.zeros(len(graph.edges), dtype=bool)
    true[[graph.edge_number(edge) for edge in known.edges]] = True
    there = np.zeros(len(graph.edges), dtype=bool)
    there[[graph.edge_number(edge) for edge in known.all_edges]] = True
    scored = [_score(known, graph, method, threshold=threshold) for method in methods]
    names = graph.names
    dataset = xr.Dataset(
        {
            "score": (("found_by", "edge"), np.array([score for score, _ in scored]), {"units": "1"}),
            "is_found": (("found_by", "edge"), np.array([found for _, found in scored])),
        },
        coords={
            "found_by": list(methods),
            "sender": ("edge", [names[a] for a, _ in graph.edges]),
            "receiver": ("edge", [names[b] for _, b in graph.edges]),
            "is_true": ("edge", true),
            "has_weight": ("edge", there),
        },
    )
    attrs = {
        "method": "discovery methods on a known circuit",
        "circuit": known.description,
        "policy": known.policy.fingerprint,
        "n_pairs": len(known.clean),
        "threshold": threshold,
        "score": "mean size over pairs of what the edge does, as a share of the mean size of clean - corrupt",
    }
    return storable(dataset, attrs)


@explain_misuse
def score_discovery(
    known: Mapping[str, KnownPolicy],
    *,
    methods: Sequence[DiscoveryMethod] = DISCOVERY_METHODS,
    threshold: float = THRESHOLD,
) -> xr.Dataset:
    """How well each method finds circuits that are known.

    Args:
        known: Policies of known circuit, by the name that they have in the result.
        methods: As of `score_edges`.
        threshold: As of `score_edges`.

    Returns:
        Dimensions `circuit`, `found_by` and `rate`, over the edges that have a weight: `auroc[circuit, found_by]`, 1
        where all edges of the circuit score above all others, 0.5 by chance; `sensitivity[circuit, found_by, rate]`,
        the ROC curve: the share of true edges found where a share `rate` of the false ones is; `n_found`,
        `n_true_found` and `n_false_found[circuit, found_by]` at the threshold; `n_edges` and `n_true[circuit]`.

    Raises:
        ConfigError: No circuits, or as `score_edges`.

    Source:
        As of `score_edges`; Hanley and McNeil 1982, *The meaning and use of the area under a ROC curve*.

    Example:
        >>> import rlmech as rlm
        >>> circuits = {"and": rlm.testbed.and_gate(), "or": rlm.testbed.or_gate()}
        >>> scored = rlm.edges.score_discovery(circuits, methods=["patching denoise", "patching noise"])
        >>> scored.n_true_found.values.tolist()
        [[1, 5], [5, 1]]
    """
    if not known:
        raise ConfigError(
            "There is no circuit to score methods on.",
            given="{}",
            expected="policies of known circuit, by name",
            fix='{"sort": rlm.testbed.known_program("sort")}',
        )
    each = [_summary(score_edges(one, methods=methods, threshold=threshold)) for one in known.values()]
    joined = xr.concat(each, dim="circuit", join="exact", combine_attrs="drop").assign_coords(circuit=list(known))
    joined["auroc"].attrs |= {"long_name": "area under the ROC curve", "units": "1"}
    joined["sensitivity"].attrs |= {"long_name": "share of true edges found", "units": "1"}
    joined["rate"].attrs |= {"long_name": "share of false edges found", "units": "1"}
    return storable(
        joined, {"method": "discovery methods on known circuits", "threshold": threshold, "n_steps": N_STEPS}
    )


def _score(
    known: KnownPolicy, graph: ComponentGraph, method: DiscoveryMethod, *, threshold: float
) -> tuple[Float[np.ndarray, " edge"], Bool[np.ndarray, " edge"]]:
    """(score of each edge, whether it counts as found)."""
    metric = action_gap() if known.better is None or known.worse is None else action_gap(known.better, known.worse)
    pairs: dict[str, Any] = {"clean": known.clean, "corrupt": known.corrupt, "metric": metric, "units": graph.units}
    if method == "acdc":
        circuit = discover_circuit(known.policy, threshold=threshold, held_out=0, n_controls=0, **pairs)
        return _without_rounding(circuit.scores.values), circuit.dataset["in_circuit"].values
    direction: Direction = "denoise" if method.endswith("denoise") else "noise"
    if method.startswith("patching"):
        result = edge_patching(known.policy, direction=direction, **pairs)
        base = result["corrupt" if direction == "denoise" else "clean"]
        change = (result["patched"] - base).transpose("edge", "pair").values
    else:
        n_steps = N_STEPS if method == "eap-ig" else 0
        result = edge_attribution(known.policy, direction=direction, n_steps=n_steps, **pairs)
        change = result["estimate"].transpose("edge", "pair").values
    whole = float(np.abs(result["clean"].values - result["corrupt"].values).mean())
    if whole == 0:
        raise MetricError(
            "Clean and corrupt runs do not differ, so that no edge can do anything.",
            given=f"{metric.name} of {len(known.clean)} pairs",
            expected="pairs whose metric differs",
            fix="choose other pairs",
        )
    score = _without_rounding(np.abs(change).mean(axis=1) / whole)
    return score, score >= threshold


def _without_rounding(score: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    return np.where(np.abs(score) <= ROUNDING, 0.0, score)


def _summary(scored: xr.Dataset) -> xr.Dataset:
    """The numbers of one circuit, all methods."""
    scored = scored.isel(edge=scored["has_weight"].values)
    true, found = scored["is_true"], scored["is_found"]
    edges = [(Site("hook_obs", feature=i), Site("hook_q_values", action=0)) for i in range(scored.sizes["edge"])]
    planted = [edge for edge, is_true in zip(edges, true.values, strict=True) if is_true]
    scores = [scored["score"].sel(found_by=one).values for one in scored["found_by"].values]
    return xr.Dataset(
        {
            "auroc": ("found_by", [edge_auroc(dict(zip(edges, one.tolist(), strict=True)), planted) for one in scores]),
            "sensitivity": (("found_by", "rate"), np.array([_curve(one, true.values) for one in scores])),
            "n_found": found.sum("edge"),
            "n_true_found": (found & true).sum("edge"),
            "n_false_found": (found & ~true).sum("edge"),
            "n_edges": scored.sizes["edge"],
            "n_true": int(true.sum()),
        },
        coords={"found_by": scored["found_by"].values, "rate": RATES},
    )


def _curve(score: Float[np.ndarray, " edge"], is_true: Bool[np.ndarray, " edge"]) -> Float[np.ndarray, " rate"]:
    """The share of true edges found, by the share of false ones; edges of equal score come in together."""
    levels = np.unique(score)[::-1]
    above = score[None] >= levels[:, None]
    shares = [np.r_[0.0, (above & of).sum(1) / of.sum()] for of in (~is_true, is_true)]
    best: dict[float, float] = {}  # of several points at one rate the highest, from which the curve goes on
    for false_share, true_share in zip(*shares, strict=True):
        best[float(false_share)] = float(true_share)
    return np.interp(RATES, list(best), list(best.values()))
