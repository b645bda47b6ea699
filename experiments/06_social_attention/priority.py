"""The intersection with the right of way turned round: `intersection-priority-v0`, with `"right_of_way"` in its config.

`horizontal` is the simulator's own rule, under which the ego, coming from the south and turning left, has the lowest
priority of all. `vertical` exchanges the two roads: those who cross the ego's way yield to it. The rule changes when
the scene has been set up, so that the first observation of a seed is the same under both. No observation shows it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import rlmech as rlm

ENV_ID = "intersection-priority-v0"
TURNED_ROUND = {3: 1, 1: 3, 2: 0, 0: 2}  # straight on and right turns, left turns: of either road
RULES = ("horizontal", "vertical")


def make_env(right_of_way: str) -> gym.Env:
    """The intersection under one of the two rules."""
    if ENV_ID not in gym.registry:
        rlm.make_env("intersection-v2").close()  # registers highway-env's environments
        gym.register(ENV_ID, entry_point=_make)
    return rlm.make_env(ENV_ID, config={"right_of_way": right_of_way})


def _make(**kwargs: Any) -> gym.Env:
    from highway_env.envs.intersection_env import ConnectedLaneIntersectionEnv  # what intersection-v2 is

    class PriorityIntersectionEnv(ConnectedLaneIntersectionEnv):
        """The intersection of highway-env, its rule set in the configuration."""

        @classmethod
        def default_config(cls) -> dict[str, Any]:
            return {**super().default_config(), "right_of_way": "horizontal"}

        def _reset(self) -> None:
            super()._reset()
            if self.config["right_of_way"] == "vertical":
                for lane in self.road.network.lanes_list():
                    lane.priority = TURNED_ROUND[lane.priority]

    return PriorityIntersectionEnv(**kwargs)
