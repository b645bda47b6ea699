"""The features extractor of highway-env's published transformer example, which people's scripts call `CustomExtractor`.

    e = phi(MLP(x_0)),  o_i = phi(MLP'(x_i));  then the ego attention of `ego_attention`

Its class is a script's, so that a zip holds it only as a pickle; its keywords stand in clear, and this is what they
describe. Module names are those of its weights.
Source: highway-env, `scripts/sb3_highway_ppo_transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rlmech.nets.ego_attention import EgoAttention
from rlmech.nets.mlp import Activation, MultiLayerPerceptron

ACTIVATIONS: dict[str, Activation] = {"RELU": "relu", "TANH": "tanh"}
PUBLISHED = {
    "": {"in_size", "out_size", "presence_feature_idx", "embedding_layer_kwargs", "attention_layer_kwargs"},
    "embedding_layer_kwargs": {"in_size", "layer_sizes", "reshape", "out_size", "activation", "is_policy"},
    "attention_layer_kwargs": {"feature_size", "heads", "dropout_factor"},
}
"""The keywords of its parts."""


class HighwayExtractor(BaseFeaturesExtractor):
    """Ego attention over a Kinematics observation, with the keywords of the published class.

    Args:
        observation_space: A Box of shape `[entity, feature]`, entity 0 the ego.
        **kwargs: `embedding_layer_kwargs` (`layer_sizes`, `activation`, `reshape`), `attention_layer_kwargs`
            (`feature_size`, `heads`) and `presence_feature_idx`, as the published class takes them.
    """

    def __init__(self, observation_space: spaces.Box, **kwargs: Any) -> None:
        attention = dict(kwargs["attention_layer_kwargs"])
        super().__init__(observation_space, features_dim=int(attention.get("feature_size", 64)))
        self.keywords = kwargs
        self.extractor = _Encoder(int(observation_space.shape[-1]), kwargs)

    def forward(self, observations: Float[Tensor, "batch entity feature"]) -> Float[Tensor, "batch d_model"]:
        """Encode scenes whose entity 0 is the ego."""
        return self.extractor(observations)


class _Encoder(nn.Module):
    def __init__(self, n_features: int, kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        embedding, attention = dict(kwargs["embedding_layer_kwargs"]), dict(kwargs["attention_layer_kwargs"])
        self.presence_index = int(kwargs.get("presence_feature_idx", 0))
        width, sizes = int(embedding.get("in_size") or n_features), list(embedding.get("layer_sizes") or (64, 64))
        activation = ACTIVATIONS[embedding.get("activation", "RELU")]
        self.ego_embedding = MultiLayerPerceptron(width, sizes, activation=activation)
        self.embedding = MultiLayerPerceptron(width, sizes, activation=activation)
        self.attention_layer = EgoAttention(int(attention.get("feature_size", 64)), int(attention.get("heads", 4)))

    def forward(self, x: Float[Tensor, "batch entity feature"]) -> Float[Tensor, "batch d_model"]:
        absent = x[:, :, self.presence_index : self.presence_index + 1] < 0.5
        return self.attention_layer(self.ego_embedding(x[:, 0:1]), self.embedding(x[:, 1:]), absent)


def is_published(kwargs: Any, names: set[str]) -> bool:
    """Whether these are the keywords and the weights of the published class, used in a way that this one knows.

    Args:
        kwargs: What the zip says in clear.
        names: Names of the extractor's weights, without what they all begin with.
    """
    if not isinstance(kwargs, Mapping) or not {"embedding_layer_kwargs", "attention_layer_kwargs"} <= set(kwargs):
        return False
    parts: dict[str, Any] = {part: kwargs[part] if part else kwargs for part in PUBLISHED}
    if not all(isinstance(own, Mapping) and set(own) <= PUBLISHED[part] for part, own in parts.items()):
        return False
    embedding, attention = parts["embedding_layer_kwargs"], parts["attention_layer_kwargs"]
    n_layers = len(embedding.get("layer_sizes") or (64, 64))
    layers = {
        f"extractor.{part}.layers.{i}.{kind}"
        for part in ("ego_embedding", "embedding")
        for i in range(n_layers)
        for kind in ("weight", "bias")
    }
    projections = ("value_all", "key_all", "query_ego", "attention_combine")
    layers |= {f"extractor.attention_layer.{one}.weight" for one in projections}
    plain = not embedding.get("reshape", True) and embedding.get("activation", "RELU") in ACTIVATIONS
    return plain and not attention.get("dropout_factor") and names == layers
