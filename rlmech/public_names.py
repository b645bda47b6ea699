"""The names that `import rlmech` shows, in one table: `__all__`, the lazy import and the type stub follow it.

After a change of the table, `make stub` writes `rlmech/__init__.pyi` again.
"""

from __future__ import annotations

from collections import defaultdict

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
    "Site": "rlmech.core.edit",
    "ablation_sweep": "rlmech.patching",
    "activation_patching": "rlmech.patching",
    "attribute_actions": "rlmech.attribution",
    "attribution_patching": "rlmech.attribution",
    "compare_rollouts": "rlmech.episodes.compare",
    "load": "rlmech.adapters.load",
    "make_env": "rlmech.simulators.env",
    "mean_ablation": "rlmech.core.edit",
    "patch": "rlmech.core.edit",
    "record": "rlmech.episodes.recorder",
    "report": "rlmech.plot",
    "resample_ablation": "rlmech.core.edit",
    "save_policy": "rlmech.adapters.native",
    "steer": "rlmech.core.edit",
    "subspace_patch": "rlmech.core.edit",
    "zero_ablation": "rlmech.core.edit",
}
"""The public names and where each is defined."""

MODULES: tuple[str, ...] = (
    "attribution",
    "circuits",
    "edges",
    "episodes",
    "metrics",
    "patching",
    "plot",
    "scenes",
    "simulators",
    "testbed",
    "zoo",
)
"""The public modules."""


def stub() -> str:
    """The text of the type stub: what a type checker sees where the import is lazy."""
    by_module: dict[str, list[str]] = defaultdict(list)
    for name, module in PUBLIC.items():
        by_module[module].append(f"{name} as {name}")
    modules = ", ".join(f"{name} as {name}" for name in MODULES)
    lines = ["# Written by rlmech/public_names.py.", f"from rlmech import {modules}"]
    lines += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items())]
    return "\n".join([*lines, "", "__version__: str", ""])
