"""Training with Stable-Baselines3, and evaluation of what came out of it."""

from rlmech.training.config import TrainConfig
from rlmech.training.evaluate import evaluate
from rlmech.training.train import train

__all__ = ["TrainConfig", "evaluate", "train"]
