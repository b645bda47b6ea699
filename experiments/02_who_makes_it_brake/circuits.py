"""Circuits of growing size, and random ones to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pairs import BRAKE, GO, Pairs
from tables import quantity, quartiles

import rlmech as rlm

THRESHOLDS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.15, 0.2)
ENOUGH = 0.8
N_RANDOM, N_TRIES = 20, 200


def curve(
    policy: rlm.HookedPolicy, here: Pairs, there: Pairs, *, metric: rlm.metrics.Metric, thresholds: Sequence[float]
) -> tuple[list[dict[str, Any]], rlm.edges.Circuit]:
    """ACDC at several thresholds, and EAP-IG with as many edges; the smallest circuit enough where it was found."""
    rows: list[dict[str, Any]] = []
    for threshold in thresholds:
        acdc = discovered(policy, here, metric=metric, method="acdc", threshold=threshold)
        if not acdc.kept or any(row["circuit"].kept == acdc.kept for row in rows):
            continue
        rows.append(judged(policy, there, acdc, metric=metric) | {"method": "acdc", "threshold": threshold})
        eap = discovered(policy, here, metric=metric, method="eap-ig", n_edges=len(acdc.kept))
        if eap.kept:
            rows.append(judged(policy, there, eap, metric=metric) | {"method": "eap-ig"})
    enough = [r["circuit"] for r in rows if r["method"] == "acdc" and r["circuit"].dataset["faithfulness"] >= ENOUGH]
    return rows, min(enough or [rows[0]["circuit"]], key=lambda circuit: len(circuit.kept))


def discovered(policy: rlm.HookedPolicy, pairs: Pairs, *, metric: rlm.metrics.Metric, **how: Any) -> rlm.edges.Circuit:
    """A circuit, measured where it was found."""
    return rlm.edges.discover_circuit(
        policy, clean=pairs.clean, corrupt=pairs.corrupt, metric=metric, held_out=0, **how
    )


def judged(
    policy: rlm.HookedPolicy, pairs: Pairs, circuit: rlm.edges.Circuit, *, metric: rlm.metrics.Metric
) -> dict[str, Any]:
    """How good a circuit is on other pairs, beside random circuits, and what scrubbing leaves of it."""
    result = circuit.evaluate(policy, clean=pairs.clean, corrupt=pairs.corrupt, metric=metric)
    both_sides = np.concatenate([pairs.clean, pairs.corrupt])
    scrubbed = rlm.edges.causal_scrubbing(policy, obs=both_sides, hypothesis=circuit, metric=metric)
    return {
        "circuit": circuit,
        "edges": len(circuit.kept),
        "nodes": len(circuit.nodes),
        **{key: quantity(result, key) for key in ("faithfulness", "completeness", "error")},
        "random faithfulness": quartiles(result["random_faithfulness"].values),
        "random, of the same rows": quartiles(random_of_the_same_rows(policy, pairs, circuit)),
        "scrubbing error": quantity(scrubbed, "error"),
    }


def random_of_the_same_rows(policy: rlm.HookedPolicy, pairs: Pairs, circuit: rlm.edges.Circuit) -> np.ndarray:
    """Faithfulness of circuits of random whole paths that start at the observation rows that the circuit starts at."""
    ends = [circuit.candidates[number] for number in circuit.kept]
    starts = sorted({sender for sender, _ in ends if circuit.units[sender].name == "hook_obs"})
    generator = np.random.default_rng(0)
    brake, go = (policy.spec.actions.index(action) for action in (BRAKE, GO))
    whole, nothing = (_gap(policy(side), brake, go) for side in (pairs.clean, pairs.corrupt))
    found: list[float] = []
    for _ in range(N_RANDOM if starts else 0):
        kept = _random_paths(circuit, starts, generator)
        drawn = replace(circuit, kept=kept)
        gap = _gap(drawn.run(policy, clean=pairs.clean, corrupt=pairs.corrupt), brake, go)
        found.append((gap - nothing) / (whole - nothing))
    return np.array(found)


def _random_paths(circuit: rlm.edges.Circuit, starts: list[int], generator: np.random.Generator) -> tuple[int, ...]:
    """Whole paths, as many as make a circuit of about the same size."""
    outgoing: dict[int, list[int]] = {}
    for number, (sender, _) in enumerate(circuit.candidates):
        outgoing.setdefault(sender, []).append(number)
    kept: set[int] = set()
    for _ in range(N_TRIES):
        path: set[int] = set()
        unit = int(generator.choice(starts))
        while unit in outgoing:
            path.add(edge := int(generator.choice(outgoing[unit])))
            unit = circuit.candidates[edge][1]
        if len(kept | path) <= len(circuit.kept):
            kept |= path
    return tuple(sorted(kept))


def _gap(scores: Any, brake: int, go: int) -> float:
    return float((scores[:, brake] - scores[:, go]).detach().double().mean())
