"""The policies of known circuit, each made once."""

from functools import cache

import rlmech.testbed as testbed
from rlmech.testbed import KnownPolicy

POLICIES = (
    "brake",
    "and_gate",
    "or_gate",
    "backup",
    "nearest_vehicle",
    "cancellation",
    "matched_filter",
    "random_circuit",
)


@cache
def make(name: str) -> KnownPolicy:
    return testbed.random_circuit(0) if name == "random_circuit" else getattr(testbed, name)()
