"""The agents of a folder: found, named, opened, with their environment and what was published of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from rlmech.adapters.load import load
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EnvironmentFitError
from rlmech.simulators.env import check_fit, make_env

ALGORITHMS = ("ppo_lstm", "qrdqn", "crossq", "trpo", "ddpg", "a2c", "ars", "dqn", "her", "ppo", "sac", "td3", "tqc")
CLASSIC = ("CartPole", "Acrobot", "MountainCar", "LunarLander")
"""Environments of D16, with a2c, ppo, trpo and dqn in each."""
LAST = 5
"""Evaluations at the end of a run whose range is what was published."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agent:
    """A policy that opens and has an environment.

    Attributes:
        name: Algorithm and environment, e.g. `ppo CartPole-v1`.
        algorithm: By the names of its folders; empty where they do not say.
        path: Its file.
        policy: The policy, with VecNormalize's statistics where they lie beside it.
        env: Its environment, as it is called today.
    """

    name: str
    algorithm: str
    path: Path
    policy: HookedPolicy
    env: gym.Env

    @property
    def task(self) -> str:
        """The environment's name without its version."""
        return re.sub(r"-v\d+$", "", str(self.env.spec.id if self.env.spec else ""))

    @property
    def is_discrete(self) -> bool:
        """Whether it does one of several actions."""
        return self.policy.output_kind != "mean_action"

    @property
    def is_of_d16(self) -> bool:
        """Whether it is one of the sixteen: a2c, ppo, trpo or dqn on a classic task."""
        return self.algorithm in ("a2c", "ppo", "trpo", "dqn") and self.task in CLASSIC

    @property
    def has_statistics(self) -> bool:
        """Whether VecNormalize's statistics stand before the policy."""
        return "hook_obs_raw" in self.policy.hook_dict


def find_zips(folder: Path) -> list[Path]:
    """All zips below a folder, in the order of their paths."""
    return sorted(path for path in folder.rglob("*.zip") if not path.name.startswith("."))


def name_of(path: Path, folder: Path) -> tuple[str, str]:
    """An agent's name, and its algorithm as the folders or the file's name say it.

    Example:
        >>> name_of(Path("zoo/ppo/CartPole-v1_1/CartPole-v1.zip"), Path("zoo"))
        ('ppo CartPole-v1', 'ppo')
    """
    inside = path.relative_to(folder)
    words = [*inside.parts[:-1], *re.split(r"[-_ ](?=[A-Z])|[-_ ]", path.stem)]
    algorithm = next((word.lower() for word in words if word.lower() in ALGORITHMS), "")
    stem = path.stem if algorithm and not path.stem.lower().startswith(algorithm) else str(inside.with_suffix(""))
    return f"{algorithm} {stem}".strip(), algorithm


def open_agent(path: Path, folder: Path) -> Agent:
    """Open an agent and make its environment.

    Raises:
        RlmechError: It does not open, its environment cannot be made or does not fit, or it is not of the kind that
            the atlas asks: one array of numbers in, one action out, no memory.
    """
    policy = load(path)
    env = make_env(policy.spec)
    check_fit(policy, env)
    shape = env.observation_space.shape
    kinds = isinstance(env.observation_space, spaces.Box) and shape is not None and len(shape) == 1
    if not kinds or policy.is_recurrent or policy.choices is not None:
        raise EnvironmentFitError(
            "The atlas asks policies that see one list of numbers, do one thing and remember nothing.",
            given=f"observations in {env.observation_space}, actions in {env.action_space}"
            f"{', a memory' if policy.is_recurrent else ''}",
            expected="a Box of one axis, and one action",
            fix="leave it out",
        )
    name, algorithm = name_of(path, folder)
    return Agent(name=name, algorithm=algorithm, path=path, policy=policy, env=env)


def published(path: Path) -> tuple[float, float] | None:
    """The range of the last evaluations of a run, each with two standard errors; None where there are none."""
    file = path.parent / "evaluations.npz"
    if not file.exists():
        return None
    with np.load(file) as curve:
        results = curve["results"][-LAST:]
    error = 2 * results.std(axis=1, ddof=1) / np.sqrt(results.shape[1])
    return float((results.mean(axis=1) - error).min()), float((results.mean(axis=1) + error).max())


def random_episodes(
    env: gym.Env, seeds: range, *, n_steps: int = 0
) -> tuple[Float[np.ndarray, " seed"], Float[np.ndarray, "step feature"]]:
    """Returns and observations of episodes in which every action is drawn uniformly.

    Args:
        env: The environment.
        seeds: Of the episodes, and of their actions.
        n_steps: Go on with further seeds until there are so many observations.
    """
    returns: list[float] = []
    seen: list[np.ndarray] = []
    seed = seeds.start
    while seed < seeds.stop or len(seen) < n_steps:
        observation, done, total = env.reset(seed=seed)[0], False, 0.0
        env.action_space.seed(seed)
        while not done:
            seen.append(np.array(observation))
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            done, total = terminated or truncated, total + float(reward)
        if seed < seeds.stop:
            returns.append(total)
        seed += 1
    return np.array(returns), np.stack(seen)
