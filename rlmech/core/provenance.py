"""Which policy a result is of, and which version of the package made it, in the attributes of every result."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from rlmech.core.policy import HookedPolicy


def provenance(policy: HookedPolicy) -> dict[str, str]:
    """The policy's fingerprint, its engine and the package's version."""
    return {"policy": policy.fingerprint, "engine": policy.engine, "rlmech": _installed()}


@cache
def _installed() -> str:
    return version("rlmech")  # read from a file, a twentieth of a small sweep
