"""Who stands in which row of an observation that was made by the environment itself: found by comparing bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rlmech.errors import SceneError
from rlmech.simulators.highway.staging.rows import n_rows, observe_rows
from rlmech.simulators.highway.staging.stage import EGO, Stage


def rows_of(stage: Stage, observation: Any) -> dict[int, int]:
    """Row by vehicle number, found by writing each vehicle as the environment would.

    Raises:
        SceneError: A row is none of the vehicles, or the observation has another shape.
    """
    seen = np.asarray(observation)
    kind = stage.base.observation_type
    if _is_rewritten(stage.env) or seen.shape != (n_rows(stage), len(kind.features)):
        raise SceneError(
            "The rows of this observation cannot be told from each other.",
            given=f"shape {list(seen.shape)}",
            expected=f"the environment's own, of shape {[n_rows(stage), len(kind.features)]}",
            fix="capture the rlmech.simulators.highway.traffic.World that drove the episode, or leave observation out",
        )
    rows = dict.fromkeys(stage.in_sight, -1) | {EGO: 0}
    left = [row for row in range(1, len(seen)) if seen[row].any()]
    for number in (number for number in stage.in_sight if number != EGO):
        alone = observe_rows(stage, {number: 1})[1]
        same = next((row for row in left if np.array_equal(seen[row], alone)), None)
        if same is not None:
            rows[number] = same
            left.remove(same)
    if left or not np.array_equal(seen, observe_rows(stage, rows)):
        raise SceneError(
            "The observation is not one of this state.",
            given=f"an observation whose rows {left or [0]} are none of the {len(rows)} vehicles on the road",
            expected="what the environment last returned; in intersections vehicles may leave right after it",
            fix="capture the rlmech.simulators.highway.traffic.World that drove the episode, or leave observation out",
        )
    return rows


def _is_rewritten(env: gym.Env) -> bool:
    """Whether a wrapper gives other observations than the environment."""
    return env.observation_space != env.unwrapped.observation_space
