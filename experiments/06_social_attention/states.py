"""Episodes of the policies, recorded once and in parts, so that a run that was stopped goes on where it was.

A recording stands under `<folder>/<policy>/<rule>/seeds_<first>_<last>`, 25 episodes each. Seeds are the same for all
policies and rules: none of them was trained, validated or evaluated on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import priority

import rlmech as rlm

FIRST_SEED = 200_000
AT_ONCE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Recorded decisions of a policy, and the episodes that they are of.

    Attributes:
        observations: What it saw, `[step, entity, feature]`, as the network sees it.
        actions: What it did, `[step]`.
        steps: The recording's table of steps; `seed` tells the episodes apart.
        episodes: The recording's table of episodes.
        lanes: The road's lanes, as the recording's manifest has them.
        spec: What the observations mean.
    """

    observations: np.ndarray
    actions: np.ndarray
    steps: pd.DataFrame
    episodes: pd.DataFrame
    lanes: list[dict[str, Any]]
    spec: rlm.PolicySpec

    @property
    def episode(self) -> np.ndarray:
        """The seed of each decision's episode, `[step]`."""
        return self.steps["seed"].to_numpy()


def recorded(policy: rlm.HookedPolicy, folder: Path, *, rule: str = "horizontal", episodes: int) -> States:
    """Episodes of a policy under a rule, from disk as far as they are there."""
    parts: list[rlm.Recording] = []
    for start in range(FIRST_SEED, FIRST_SEED + episodes, AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, FIRST_SEED + episodes))
        path = folder / rule / f"seeds_{seeds[0]}_{seeds[-1]}"
        parts.append(_part(policy, path, rule, seeds))
    return States(
        observations=np.concatenate([part.observations for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        steps=pd.concat([part.steps for part in parts], ignore_index=True),
        episodes=pd.concat([part.episodes for part in parts], ignore_index=True),
        lanes=parts[0].manifest["lanes"],
        spec=parts[0].spec,
    )


def _part(policy: rlm.HookedPolicy, path: Path, rule: str, seeds: range) -> rlm.Recording:
    if path.exists():
        kept = rlm.Recording.load(path)
        if kept.manifest["policy"]["fingerprint"] != policy.fingerprint:
            raise SystemExit(
                f"{path} holds episodes of another policy: remove it, or give --recordings another folder."
            )
        if not kept.missing_seeds:
            return kept
        shutil.rmtree(path)  # it was stopped half-way
    path.parent.mkdir(parents=True, exist_ok=True)
    return rlm.record(policy, priority.make_env(rule), seeds=seeds, path=path, progress=False)
