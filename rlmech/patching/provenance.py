"""Which policy a result is of, in the attributes of results that have no metric."""

from __future__ import annotations

from importlib.metadata import version

from rlmech.core.policy import HookedPolicy


def provenance(policy: HookedPolicy) -> dict[str, str]:
    """The policy's fingerprint, its engine and the package's version."""
    return {"policy": policy.fingerprint, "engine": policy.engine, "rlmech": version("rlmech")}
