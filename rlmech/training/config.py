"""A training run as a small TOML file: environment, algorithm, policy, seeds and evaluation."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What a training run needs to be made again.

    Attributes:
        name: Name of the policy; the run's directory is called after it.
        seed: Seed of the network, the exploration and the first episode.
        total_steps: Environment steps to train for.
        n_checkpoints: Checkpoints kept along the way, evenly spaced, the last at `total_steps`.
        env_id: Gymnasium id of the environment.
        env_config: Changes to the environment's own configuration.
        algorithm: Stable-Baselines3 algorithm.
        algorithm_kwargs: Its arguments, `policy` among them.
        policy_kwargs: The policy's arguments; extractors are given by name.
        evaluation_first_seed: First of the evaluation's seeds, none of which is met in training.
        evaluation_episodes: Number of evaluation episodes.
    """

    name: str
    seed: int
    total_steps: int
    n_checkpoints: int
    env_id: str
    env_config: dict[str, Any] = field(default_factory=dict)
    algorithm: Literal["DQN", "PPO", "A2C"]
    algorithm_kwargs: dict[str, Any]
    policy_kwargs: dict[str, Any]
    evaluation_first_seed: int
    evaluation_episodes: int

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a configuration from a TOML file."""
        with Path(path).open("rb") as file:
            raw = tomllib.load(file)
        algorithm = dict(raw["algorithm"])
        return cls(
            name=raw["name"],
            seed=raw["seed"],
            total_steps=raw["total_steps"],
            n_checkpoints=raw["n_checkpoints"],
            env_id=raw["env"]["id"],
            env_config=raw["env"].get("config", {}),
            algorithm=algorithm.pop("class"),
            algorithm_kwargs=algorithm,
            policy_kwargs=raw.get("policy_kwargs", {}),
            evaluation_first_seed=raw["evaluation"]["first_seed"],
            evaluation_episodes=raw["evaluation"]["n_episodes"],
        )
