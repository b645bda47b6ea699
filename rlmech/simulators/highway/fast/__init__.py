"""highway-env's traffic in compiled code, bit for bit: `accelerate(env)`, and `acceleration(env)` tells what it did.

Of one environment, the frames of a decision run in one call of `kernel.c`, and Kinematics observations are made without
data frames. The installed package and other environments stay as they are. Cost: 0.3 to 1 ms a step instead of 20 to
180. Whatever the kernel does not know runs in highway-env's own code.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

from rlmech.simulators.compiled import Acceleration

HIGHWAY_VERSIONS = ("1.12.1",)
"""Versions of highway-env whose every step was compared; with others its own code runs, and nothing is imported."""


@cache
def _version() -> str:
    try:
        return metadata.version("highway-env")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def accelerate(env: object) -> None:
    """Accelerate an environment of highway-env where that can be done bit for bit."""
    if _version() in HIGHWAY_VERSIONS:
        from rlmech.simulators.highway.fast import environments

        environments.accelerate(env)


def has_kernel() -> bool:
    """Whether the compiled part can be used in this process, with the highway-env that is installed."""
    from rlmech.simulators.highway.fast.kernel import kernel

    return _version() in HIGHWAY_VERSIONS and not isinstance(kernel(), str)


def acceleration(env: Any) -> Acceleration:
    """What is accelerated of an environment of highway-env, as it is now."""
    found = _version()
    if found in HIGHWAY_VERSIONS:
        from rlmech.simulators.highway.fast import environments

        return environments.acceleration(env)
    why = f"highway-env {found} has not been checked, only {', '.join(HIGHWAY_VERSIONS)}"
    return Acceleration(frames=False, observations=False, why=why)
