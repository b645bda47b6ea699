"""Interleaved timing: in each round every contender runs once, in random order, and ratios are taken within the round.

CPU time of the thread, so that what else runs on the machine counts only through the caches. A drift of the machine
hits all contenders of a round alike and leaves their ratio.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A contender's time against the reference's.

    Attributes:
        median: Median over rounds of the ratio within the round.
        low: Lower quartile.
        high: Upper quartile.
        microseconds: Median CPU time of one call.
    """

    median: float
    low: float
    high: float
    microseconds: float


def interleave(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, slice_s: float = 0.01, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of CPU time per call, one figure per round and contender."""
    repeats = {name: _repeats(call, slice_s) for name, call in calls.items()}
    order, shuffle = list(calls), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            seconds[name].append(_time(calls[name], repeats[name]))
    return seconds


def ratios(seconds: Mapping[str, list[float]], *, reference: str) -> dict[str, Ratio]:
    """Each contender against the reference, round by round."""
    found: dict[str, Ratio] = {}
    for name, own in seconds.items():
        quotients = [a / b for a, b in zip(own, seconds[reference], strict=True)]
        low, middle, high = quantiles(quotients, n=4, method="inclusive")
        found[name] = Ratio(median=middle, low=low, high=high, microseconds=median(own) * 1e6)
    return found


def summary(what: str, values: list[float], *, aim: str = "", form: str = ".3g") -> dict[str, object]:
    """A row of a table: median and quartiles of what was measured."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {
        "measured": what,
        "median": median(values),
        "quartiles": f"{low:{form}} {high:{form}}",
        "aim": aim,
        "n": len(values),
    }


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.thread_time_ns()
    for _ in range(repeats):
        call()
    return (time.thread_time_ns() - start) / repeats / 1e9


def _repeats(call: Callable[[], object], slice_s: float) -> int:
    """How many calls fill a slice of time; warms the call up on the way."""
    for _ in range(3):
        call()
    return max(1, round(slice_s / max(min(_time(call, 1) for _ in range(3)), 1e-7)))
