"""How unusual the made scenes are to the policy, against the states that it met."""

from __future__ import annotations

import numpy as np
from scenes import Scenes

import rlmech as rlm

MOST = 300  # rows of each condition


def unusual(policy: rlm.HookedPolicy, scenes: Scenes, met: np.ndarray) -> dict[str, list[float]]:
    """By condition: quartiles of the percentile of the heads' outputs, 50 as usual, 100 farther off than any met.

    Args:
        policy: The policy.
        scenes: The made scenes.
        met: Recorded observations to compare with, `[state, entity, feature]`.
    """
    (block,) = policy.attention.values()
    found: dict[str, list[float]] = {}
    for number, condition in enumerate(scenes.conditions):
        rows = scenes.observations[scenes.condition == number]
        some = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int)]
        site = rlm.Site(block.names["z"])
        result = rlm.patching.off_manifold_distance(policy, base=some, source=some, reference=met, sites=[site])
        found[condition] = [float(q) for q in np.quantile(result["percentile"].values, [0.25, 0.5, 0.75])]
    return found
