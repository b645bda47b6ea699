"""What comes before the first forward pass: `import rlmech` beside `import torch`, and wrapping a policy."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import quantiles
from typing import Any

import rlmech as rlm
from benchmarks.clock import ratios
from benchmarks.networks import NETWORKS, observations, raw_network

IMPORT_TARGET, WRAP_TARGET_S = 1.5, 1.0


def measure_import(*, rounds: int) -> Iterator[dict[str, Any]]:
    """CPU time of a fresh interpreter that imports each, interleaved."""
    seconds: dict[str, list[float]] = {"torch": [], "rlmech": []}
    for _ in range(rounds + 1):
        for name, own in seconds.items():
            own.append(_import_seconds(name))
    warm = {name: own[1:] for name, own in seconds.items()}  # the first round fills the file cache
    for name, ratio in ratios(warm, reference="torch").items():
        yield {
            "what": f"import {name}",
            "seconds": ratio.microseconds / 1e6,
            "ratio": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "target": IMPORT_TARGET if name == "rlmech" else None,
        }


def measure_wrap(*, rounds: int) -> Iterator[dict[str, Any]]:
    """CPU time of `HookedPolicy(network, obs)`, once the process is warm."""
    for network in NETWORKS:
        raw, obs = raw_network(network), observations(network, 2)
        rlm.HookedPolicy(raw, obs)
        own = []
        for _ in range(rounds):
            start = time.thread_time()
            rlm.HookedPolicy(raw, obs)
            own.append(time.thread_time() - start)
        low, middle, high = quantiles(own, n=4, method="inclusive")
        yield {
            "what": f"wrap {network}",
            "seconds": middle,
            "seconds_low": low,
            "seconds_high": high,
            "target": WRAP_TARGET_S,
        }


def _import_seconds(name: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
