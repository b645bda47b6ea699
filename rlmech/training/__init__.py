"""Training with Stable-Baselines3, and evaluation of what came out of it."""

from rlmech.training.assess import assess
from rlmech.training.config import TrainConfig
from rlmech.training.evaluate import evaluate
from rlmech.training.publish import publish
from rlmech.training.train import train

__all__ = ["TrainConfig", "assess", "evaluate", "publish", "train"]
