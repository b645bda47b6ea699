"""Networks written to be read, with the module names of the checkpoints that they open."""

from typing import TYPE_CHECKING

from rlmech.nets.ego_attention import EgoAttention, EgoAttentionEncoder, EgoAttentionNetwork, ScrambledSelfAttention
from rlmech.nets.mlp import ConvolutionalNetwork, DuelingNetwork, MultiLayerPerceptron

if TYPE_CHECKING:
    from rlmech.nets.sb3_extractor import EgoAttentionExtractor

__all__ = [
    "ConvolutionalNetwork",
    "DuelingNetwork",
    "EgoAttention",
    "EgoAttentionEncoder",
    "EgoAttentionExtractor",
    "EgoAttentionNetwork",
    "MultiLayerPerceptron",
    "ScrambledSelfAttention",
]


def __getattr__(name: str) -> object:
    if name == "EgoAttentionExtractor":  # needs Stable-Baselines3, which takes a second to import
        from rlmech.nets.sb3_extractor import EgoAttentionExtractor

        return EgoAttentionExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
