"""The names that `import rlmech` shows, in one table: `__all__`, the lazy import and the type stub follow it.

After a change of the table, `make stub` writes `rlmech/__init__.pyi` again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rlmech.habits import OF_PACKAGE, unknown_name

PUBLIC: dict[str, str] = {
    "ActivationCache": "rlmech.core.cache",
    "Condition": "rlmech.episodes.driving",
    "Edit": "rlmech.core.edit",
    "FeatureSpec": "rlmech.spec",
    "HookPoint": "rlmech.core.hook_point",
    "HookedPolicy": "rlmech.core.policy",
    "PolicySpec": "rlmech.spec",
    "Recording": "rlmech.episodes.recording",
    "RlmechError": "rlmech.errors",
    "Scene": "rlmech.scenes",
    "Site": "rlmech.core.site",
    "ablation_sweep": "rlmech.patching",
    "activation_patching": "rlmech.patching",
    "attribute_actions": "rlmech.attribution",
    "attribution_patching": "rlmech.attribution",
    "compare_rollouts": "rlmech.episodes.compare",
    "erase": "rlmech.core.interventions",
    "load": "rlmech.adapters.load",
    "make_env": "rlmech.simulators.env",
    "mean_ablation": "rlmech.core.interventions",
    "patch": "rlmech.core.interventions",
    "record": "rlmech.episodes.recorder",
    "report": "rlmech.first_look",
    "resample_ablation": "rlmech.core.interventions",
    "save_policy": "rlmech.adapters.native",
    "steer": "rlmech.core.interventions",
    "subspace_patch": "rlmech.core.interventions",
    "zero_ablation": "rlmech.core.interventions",
}
"""The public names and where each is defined."""

MODULES: tuple[str, ...] = (
    "atlas",
    "attribution",
    "certify",
    "circuits",
    "distil",
    "edges",
    "episodes",
    "features",
    "metrics",
    "patching",
    "plot",
    "probes",
    "scenes",
    "similarity",
    "simulators",
    "testbed",
    "zoo",
)
"""The public modules."""


def lazy(
    package: str, names: Mapping[str, str], modules: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` that import its public names when they are first used.

    Args:
        package: The package's own name.
        names: Name -> the module that defines it.
        modules: Modules of the package that are public themselves.
    """

    def get(name: str) -> Any:
        if name in names:
            value = getattr(import_module(names[name]), name)
        elif name in modules:
            value = import_module(f"{package}.{name}")
        elif name.startswith("_") or find_spec(f"{package}.{name}") is not None:  # `from package import its_own_file`
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        else:
            raise unknown_name(package, name, listed(), OF_PACKAGE, elsewhere=_elsewhere(package))
        vars(sys.modules[package])[name] = value
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *modules})

    return get, listed


def _elsewhere(package: str) -> dict[str, str]:
    """Public names of all modules -> their address, for who asks for one in the wrong place."""
    found = {name: f"rlm.{module}.{name}" for module in MODULES for name in import_module(f"rlmech.{module}").__all__}
    return found | {name: f"rlm.{name}" for name in PUBLIC if package != "rlmech"}


def stub() -> str:
    """The text of the type stub: what a type checker sees where the import is lazy."""
    by_module: dict[str, list[str]] = defaultdict(list)
    for name, module in PUBLIC.items():
        by_module[module].append(f"{name} as {name}")
    modules = ", ".join(f"{name} as {name}" for name in MODULES)
    lines = ["# Written by rlmech/public_names.py.", f"from rlmech import {modules}"]
    lines += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items())]
    return "\n".join([*lines, "", "__version__: str", ""])
