"""Forward passes: no hook active, every site cached, one activation replaced; against the raw module, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.clock import interleave, ratios
from benchmarks.contenders import contenders
from benchmarks.networks import NETWORKS, observations, raw_network

BATCHES = (1, 64, 4096)
MODES = ("idle", "cached", "replaced")


def target(network: str, batch: int, mode: str) -> float | None:
    """What rlmech is to stay under, in forward passes of the raw module."""
    small = network == "mlp" and batch == 1
    if mode == "idle":
        return 0.70 if small else 1.00
    if mode == "cached":
        return 0.90 if small else 1.05
    return 1.20 if batch == 1 else None


def measure(*, rounds: int, batches: tuple[int, ...] = BATCHES) -> Iterator[dict[str, Any]]:
    """Rows of the table, one per network, batch, mode and tool."""
    with torch.no_grad():
        for network in NETWORKS:
            raw = raw_network(network)
            for batch in batches:
                obs = observations(network, batch)
                tools = list(contenders(network, raw, obs))
                calls = {("raw", "raw"): lambda raw=raw, obs=obs: raw(obs)}
                calls |= {(tool.name, mode): call for tool in tools for mode, call in tool.calls.items()}
                sites = {tool.name: tool.n_sites for tool in tools}
                seconds = interleave(calls, rounds=rounds)
                for (name, mode), ratio in ratios(seconds, reference=("raw", "raw")).items():
                    yield {
                        "network": network,
                        "batch": batch,
                        "tool": name,
                        "mode": mode,
                        "n_sites": sites.get(name) if mode == "cached" else None,
                        "ratio": ratio.median,
                        "ratio_low": ratio.low,
                        "ratio_high": ratio.high,
                        "microseconds": ratio.microseconds,
                        "target": target(network, batch, mode) if name == "rlmech" else None,
                    }
