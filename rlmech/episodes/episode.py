"""One episode, step by step: the loop that recording and evaluation share.

Every episode begins with `reset(seed=...)`, so that it depends on nothing that went before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from rlmech.simulators.highway.traffic import World

Decide = Callable[[Any], Any]
"""From an observation to an action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decision and what came of it.

    Attributes:
        observation: What the policy saw.
        action: What it did.
        next_observation: What it would see next.
        reward: The reward of the action.
        terminated: Whether the episode came to its end.
        truncated: Whether it was cut short.
        outcome: Of highway-env's environments: `crashed`, `speed` in m/s and, where there is a goal, `arrived`.
    """

    observation: Any
    action: Any
    next_observation: Any
    reward: float
    terminated: bool
    truncated: bool
    outcome: dict[str, bool | float]


def run_episode(env: gym.Env | World, decide: Decide, *, seed: int) -> Iterator[Step]:
    """Run one episode from its seed to its end."""
    observation, _ = env.reset(seed=seed)
    done = False
    while not done:
        action = decide(observation)
        step = step_of(observation, action, env.step(action))
        yield step
        observation, done = step.next_observation, step.terminated or step.truncated


def step_of(observation: Any, action: Any, result: tuple[Any, Any, bool, bool, dict[str, Any]]) -> Step:
    """A decision and what `env.step` returned."""
    after, reward, terminated, truncated, info = result
    return Step(
        observation=observation,
        action=action,
        next_observation=after,
        reward=float(reward),
        terminated=bool(terminated),
        truncated=bool(truncated),
        outcome=_outcome(info),
    )


def summary(steps: list[Step]) -> dict[str, float | bool | int]:
    """An episode in a row: return, length and, of highway-env's, crashed, arrived and mean speed in m/s."""
    row: dict[str, float | bool | int] = {"return": float(sum(s.reward for s in steps)), "length": len(steps)}
    last = steps[-1].outcome
    row |= {name: last[name] for name in ("crashed", "arrived") if name in last}
    if "speed" in last:
        row["speed"] = float(np.mean([s.outcome["speed"] for s in steps]))
    return row


def _outcome(info: Mapping[str, Any]) -> dict[str, bool | float]:
    outcome: dict[str, bool | float] = {}
    if "crashed" in info:
        outcome["crashed"] = bool(info["crashed"])
    arrived = info.get("rewards", {}).get("arrived_reward")
    if arrived is not None:
        outcome["arrived"] = bool(arrived)
    if "speed" in info:
        outcome["speed"] = float(info["speed"])
    return outcome
