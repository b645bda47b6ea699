"""Train a policy with Stable-Baselines3 on highway-env, so that the run can be stopped and taken up again.

A run directory holds `config.json`, `checkpoints/step_N.zip`, `resume/` (model, replay buffer, curve) and `curve.csv`
(one row an episode: step, return, length, crashed, arrived). Cost: the environment's stepping, mostly.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import highway_env
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlmech.training.config import TrainConfig

gym.register_envs(highway_env)
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"DQN": DQN, "PPO": PPO, "A2C": A2C}
RESUME_EVERY = 5000


class _RunRecorder(BaseCallback):
    """Writes the training curve, the checkpoints and, now and then, what a resumed run needs."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        super().__init__()
        self.run, self.config = run, config
        self.marks = [round(config.total_steps * (i + 1) / config.n_checkpoints) for i in range(config.n_checkpoints)]
        self.arrived = False

    def _on_step(self) -> bool:
        env = self.training_env.envs[0].unwrapped
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if not done:
                continue
            episode = info["episode"]
            row = [self.num_timesteps, episode["r"], episode["l"], int(info["crashed"])]
            with (self.run / "curve.csv").open("a", newline="") as file:
                csv.writer(file).writerow(row)
        if self.num_timesteps in self.marks:
            self.model.save(self.run / "checkpoints" / f"step_{self.num_timesteps:07d}.zip")
        if self.num_timesteps % RESUME_EVERY == 0:
            self._save_resume()
        del env
        return True

    def _save_resume(self) -> None:
        self.model.save(self.run / "resume.zip")
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(self.run / "resume_buffer.pkl")


def train(config: TrainConfig, run: Path) -> None:
    torch.set_num_threads(1)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(asdict(config), indent=2))
    env = gym.make(config.env_id, config=config.env_config)
    kwargs: dict[str, Any] = dict(config.policy_kwargs)
    if kwargs.get("features_extractor_class") == "EgoAttentionExtractor":
        from rlmech.nets import EgoAttentionExtractor

        kwargs["features_extractor_class"] = EgoAttentionExtractor
    model = ALGORITHMS[config.algorithm](
        env=env, seed=config.seed, policy_kwargs=kwargs, verbose=0, **config.algorithm_kwargs
    )
    model.save(run / "checkpoints" / "step_0000000.zip")
    model.learn(config.total_steps, callback=_RunRecorder(run, config), log_interval=None)


if __name__ == "__main__":
    import sys

    train(TrainConfig.load(sys.argv[1]), Path(sys.argv[2]))
