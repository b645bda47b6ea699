"""One episode, step by step: the loop that recording and evaluation share.

Every episode begins with `reset(seed=...)`, so that it depends on nothing that went before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from rlmech.simulators.choice import simulator_of
from rlmech.simulators.protocol import Outcome, Value
from rlmech.simulators.world import World

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
        outcome: What the environment tells of it, by the outcome's name.
    """

    observation: Any
    action: Any
    next_observation: Any
    reward: float
    terminated: bool
    truncated: bool
    outcome: dict[str, Value]


def run_episode(env: gym.Env | World, decide: Decide, *, seed: int) -> Iterator[Step]:
    """Run one episode from its seed to its end, told as the environment's simulator tells it."""
    simulator = simulator_of(env.env if isinstance(env, World) else env)
    world = env if isinstance(env, World) else simulator.world(env)
    observation, _ = world.reset(seed=seed)
    done = False
    while not done:
        action = decide(observation)
        step = step_of(observation, action, world.step(action), simulator.outcomes)
        yield step
        observation, done = step.next_observation, step.terminated or step.truncated


def step_of(
    observation: Any, action: Any, result: tuple[Any, Any, bool, bool, dict[str, Any]], outcomes: Sequence[Outcome]
) -> Step:
    """A decision and what `env.step` returned."""
    after, reward, terminated, truncated, info = result
    return Step(
        observation=observation,
        action=action,
        next_observation=after,
        reward=float(reward),
        terminated=bool(terminated),
        truncated=bool(truncated),
        outcome={o.name: value for o in outcomes if (value := o.of(info)) is not None},
    )


def summary(steps: Sequence[Step], outcomes: Sequence[Outcome]) -> dict[str, Value]:
    """An episode in a row; see `summary_of`."""
    return summary_of([step.reward for step in steps], [step.outcome for step in steps], outcomes)


def summary_of(
    rewards: Sequence[float], told: Sequence[Mapping[str, Value]], outcomes: Sequence[Outcome]
) -> dict[str, Value]:
    """An episode in a row: return, length and its outcomes, a share as it was at the end, a mean over its steps.

    Args:
        rewards: Of its steps.
        told: Outcomes that each of them told.
        outcomes: Those that there are.
    """
    row: dict[str, Value] = {"return": float(sum(rewards)), "length": len(rewards)}
    for outcome in outcomes:
        values = [step[outcome.name] for step in told if outcome.name in step]
        if values and outcome.kind == "mean":
            row[outcome.name] = float(np.mean(values))
        elif told and outcome.name in told[-1]:
            row[outcome.name] = told[-1][outcome.name]
    return row
