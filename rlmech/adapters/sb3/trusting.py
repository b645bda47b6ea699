"""SB3's own loader, for zips whose author is trusted: it unpickles."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.policies import BasePolicy

from rlmech.adapters.sb3.zip_file import read_data
from rlmech.errors import CheckpointError, ConfigError

MARKS: tuple[tuple[str, str, str], ...] = (
    ("top_quantiles_to_drop_per_net", "sb3_contrib", "TQC"),
    ("n_delta", "sb3_contrib", "ARS"),
    ("cg_max_steps", "sb3_contrib", "TRPO"),
    ("target_entropy", "stable_baselines3", "SAC"),
    ("policy_delay", "stable_baselines3", "TD3"),
    ("clip_range", "stable_baselines3", "PPO"),
    ("exploration_fraction", "stable_baselines3", "DQN"),
    ("gae_lambda", "stable_baselines3", "A2C"),
)
"""An entry that only the algorithm has, or all before it -> the package and the class."""

BY_MODULE = {
    "sb3_contrib.qrdqn.policies": ("sb3_contrib", "QRDQN"),
    "sb3_contrib.crossq.policies": ("sb3_contrib", "CrossQ"),
    "sb3_contrib.common.maskable.policies": ("sb3_contrib", "MaskablePPO"),
    "sb3_contrib.common.recurrent.policies": ("sb3_contrib", "RecurrentPPO"),
}
"""Modules of policy classes of which the entries alone do not tell the algorithm."""


def load_trusting(path: Path, *, device: str) -> BasePolicy:
    """Load a zip with SB3's own loader, which runs whatever the zip holds.

    Raises:
        CheckpointError: Its entries are of no algorithm that is known.
        ConfigError: The algorithm is sb3-contrib's, which is not installed.
    """
    data = read_data(path)
    entry: Any = data.get("policy_class")
    module = str(entry.get("__module__", "")) if isinstance(entry, Mapping) else ""
    found = BY_MODULE.get(module) or next(((package, name) for mark, package, name in MARKS if mark in data), None)
    if found is None:
        raise CheckpointError(
            f"{path.name} is of an algorithm that is not Stable-Baselines3's own.",
            given=f"entries {', '.join(list(data)[:6])}, ...",
            expected="an algorithm of Stable-Baselines3 or sb3-contrib",
            fix="load it with its own library and open the live model: HookedPolicy.from_sb3(model)",
        )
    package, name = found
    try:
        algorithm = getattr(importlib.import_module(package), name)
    except ImportError as error:
        raise ConfigError(
            f"A model of {name} is sb3-contrib's, which is not installed.",
            given=str(error),
            expected="sb3-contrib, of the version of stable-baselines3",
            fix="pip install sb3-contrib",
        ) from error
    return algorithm.load(path, device=device).policy
