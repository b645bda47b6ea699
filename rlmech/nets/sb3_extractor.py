"""The ego-attention encoder as a Stable-Baselines3 features extractor.

policy_kwargs = dict(features_extractor_class=EgoAttentionExtractor, net_arch=[64, 64])
"""

from __future__ import annotations

from collections.abc import Sequence

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from rlmech.nets.ego_attention import EgoAttentionEncoder


class EgoAttentionExtractor(EgoAttentionEncoder, BaseFeaturesExtractor):
    """Ego attention over a Kinematics observation, `[entity, feature]` -> `[d_model]`.

    Args:
        observation_space: A Box of shape `[entity, feature]`, entity 0 the ego.
        d_model: Width of the embeddings and of the attention; the features' dimension.
        n_heads: Attention heads; they divide `d_model`.
        embedding: Sizes of the embedding layers, the last one `d_model`.
        presence_index: The feature that says whether an entity is there.

    Example:
        >>> from stable_baselines3 import DQN
        >>> import rlmech as rlm
        >>> from rlmech.nets import EgoAttentionExtractor
        >>> kwargs = dict(features_extractor_class=EgoAttentionExtractor, net_arch=[64, 64])
        >>> model = DQN("MlpPolicy", rlm.make_env("intersection-v2"), policy_kwargs=kwargs, buffer_size=1000)
        >>> model.q_net.features_extractor.attention_layer.n_heads
        4
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        d_model: int = 64,
        n_heads: int = 4,
        embedding: Sequence[int] = (64, 64),
        presence_index: int = 0,
    ) -> None:
        BaseFeaturesExtractor.__init__(self, observation_space, features_dim=d_model)
        self.add_encoder(
            observation_space.shape[-1],
            d_model=d_model,
            n_heads=n_heads,
            embedding=embedding,
            others_embedding=None,
            presence_index=presence_index,
            self_attention_heads=0,
        )
