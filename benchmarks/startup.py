"""What comes before the first forward pass: imports, the first load of a process, and wrapping a policy."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import quantiles
from typing import Any

import rlmech as rlm
from benchmarks.clock import ratios
from benchmarks.networks import NETWORKS, observations, raw_network

IMPORT_TARGET, LOAD_TARGET, WRAP_TARGET_S = 1.5, 1.35, 1.0
_LOAD = "import rlmech as rlm, torch; p = rlm.load('zoo:intersection-ego-attention'); p(torch.rand(1, 15, 7))"
_INSPECT = (
    "import sys; from rlmech.cli import main; sys.argv[1:] = ['inspect', 'zoo:intersection-ego-attention']; main()"
)
STARTS = {
    "import torch": ("import torch", None),
    "import rlmech": ("import rlmech", IMPORT_TARGET),
    "import, load a shipped policy, one forward": (_LOAD, LOAD_TARGET),
    "rlmech inspect": (_INSPECT, LOAD_TARGET),
}
"""What a fresh interpreter runs, and how many times `import torch` it may take."""


def measure_import(*, rounds: int) -> Iterator[dict[str, Any]]:
    """CPU time of fresh interpreters, interleaved, with an empty cache of graphs each."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds + 1):
        for name, own in seconds.items():
            own.append(_seconds(STARTS[name][0]))
    warm = {name: own[1:] for name, own in seconds.items()}  # the first round fills the file cache
    for name, ratio in ratios(warm, reference="import torch").items():
        yield {
            "what": name,
            "seconds": ratio.microseconds / 1e6,
            "ratio": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "target": STARTS[name][1],
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


def _seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"RLMECH_CACHE": cache, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
