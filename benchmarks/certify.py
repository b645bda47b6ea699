"""Certified radii of the shipped attention policy's states: how long they take, and how much they exceed intervals'.

CPU seconds of one thread for all states, with the attack that they stand beside; the share of the attacked radius that
is certified says how near the truth they are at least.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

import rlmech as rlm

_MOVES = {
    "x, y of vehicle_1": rlm.certify.Move(features=["x", "y"], entities=["vehicle_1"]),
    "all that is there": rlm.certify.Move(),
}


def states(n: int) -> np.ndarray:
    """States that the policy drives into, spread over its episodes."""
    policy = rlm.load("zoo:intersection-ego-attention")
    env = rlm.make_env(policy.spec)
    seen = rlm.record(policy, env, seeds=range(max(2, n // 5)), progress=False).observations
    return np.asarray(seen)[np.linspace(0, len(seen) - 1, n).astype(int)]


def measure(*, n: int = 200) -> Iterator[dict[str, object]]:
    """A row for each move and method."""
    policy, seen = rlm.load("zoo:intersection-ego-attention"), states(n)
    for name, move in _MOVES.items():
        rows: list[dict[str, object]] = []
        radii: list[np.ndarray] = []
        for method in ("linear", "interval"):
            start = time.thread_time()
            found = rlm.certify.certified_radius(policy, seen, move=move, method=method, n_boxes=0)
            seconds = time.thread_time() - start
            radii.append(found.certified.values)
            share = found.certified.values / np.minimum(found.attacked.values, found.limit.values)
            rows.append(
                {
                    "moves": name,
                    "bounds": method,
                    "states": n,
                    "CPU_seconds": seconds,
                    "median_radius": float(np.nanmedian(radii[-1])),
                    "unit": found.certified.attrs["units"],
                    "share_of_attacked": float(np.nanmedian(share)),
                    "not_certified": float(np.nanmean(radii[-1] == 0)),
                }
            )
        both = radii[1] > 0
        ratios = [radii[0][both] / radii[1][both], np.ones(int(both.sum()))]
        for row, ratio in zip(rows, ratios, strict=True):
            # of the states in which intervals certify anything
            yield row | {
                "times_intervals": float(np.median(ratio)) if both.any() else None,
                "compared": int(both.sum()),
            }
