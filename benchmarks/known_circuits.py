"""Every discovery method on every circuit that is known: compiled programs, and planted circuits that are hard to find.

Circuits are proved before methods are tried on them: without all other edges no score of any pair changes, and without
any edge of the circuit one does. Two to five minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import rlmech as rlm
from rlmech import testbed
from rlmech.edges import DISCOVERY_METHODS
from rlmech.edges.discover import THRESHOLD

SEEDS = range(4)
N_TWINS = (3, 0)


def measure() -> Iterator[dict[str, object]]:
    """A row for each circuit: its size, its proof, and what each method finds of it."""
    for name in testbed.PROGRAMS:
        yield {"group": "programs", "circuit": name} | _row(testbed.known_program(name))
    for kind in testbed.KINDS:
        for n_twins in N_TWINS:
            group = "planted, with twins" if n_twins else "planted, without twins"
            for seed in SEEDS:
                known = testbed.hard_circuit(kind, seed, n_twins=n_twins)
                yield {"group": group, "circuit": kind, "seed": seed} | _row(known)


def _row(known: testbed.KnownPolicy) -> dict[str, object]:
    proof = testbed.prove_circuit(known)
    scored = rlm.edges.score_discovery({"circuit": known}).isel(circuit=0)
    found = {
        str(name): {
            "auroc": float(one["auroc"]),
            "true_found": int(one["n_true_found"]),
            "false_found": int(one["n_false_found"]),
        }
        for name in scored["found_by"].values
        for one in [scored.sel(found_by=name)]
    }
    n_true, n_edges = int(scored["n_true"]), int(scored["n_edges"])
    return {"proved": proof.holds, "true": n_true, "false": n_edges - n_true, "found_by": found}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a circuit (of planted ones the mean over seeds), a column a method; then how many are found whole."""
    lines = [
        "In each cell the area under the ROC curve over the edges with a weight, then the true and the false edges",
        f"found at a threshold of {100 * THRESHOLD:g} % of the whole effect. 0.5 is chance. Every "
        "circuit is proved: "
        f"{sum(row['proved'] for row in rows)} of {len(rows)}.",
        "",
        "| circuit | true + false edges | " + " | ".join(DISCOVERY_METHODS) + " |",
        "|---|---|" + "---|" * len(DISCOVERY_METHODS),
    ]
    groups = dict.fromkeys((row["group"], row["circuit"]) for row in rows)
    for group, circuit in groups:
        own = [row for row in rows if (row["group"], row["circuit"]) == (group, circuit)]
        name = circuit if group == "programs" else f"{circuit} ({group})"
        sizes = f"{_mean(own, 'true'):g} + {_mean(own, 'false'):g}"
        cells = [_cell([row["found_by"][method] for row in own]) for method in DISCOVERY_METHODS]
        lines.append(f"| {name} | {sizes} | " + " | ".join(cells) + " |")
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        means = [np.mean([row["found_by"][method]["auroc"] for row in own]) for method in DISCOVERY_METHODS]
        whole = [sum(_is_whole(row, method) for row in own) for method in DISCOVERY_METHODS]
        cells = [f"**{mean:.2f}**, {n} whole" for mean, n in zip(means, whole, strict=True)]
        lines.append(f"| **{group}**, mean of {len(own)} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_whole(row: dict[str, Any], method: str) -> bool:
    found = row["found_by"][method]
    return found["true_found"] == row["true"] and not found["false_found"]


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return round(float(np.mean([row[key] for row in rows])), 1)


def _cell(found: Sequence[dict[str, Any]]) -> str:
    true, false = (_mean(found, key) for key in ("true_found", "false_found"))
    return f"{np.mean([one['auroc'] for one in found]):.2f}; {true:g} + {false:g}"
