"""The ego-attention network: one vehicle, the ego, attends to all vehicles of its scene.

    e = phi(MLP(x_0)),  o_i = phi(MLP'(x_i)),  X = [e; o_1 ... o_{N-1}]
    A_h = softmax_i(mask(q_h . k_{h,i} / sqrt(d_head))),  z_h = sum_i A_{h,i} W_V,h X_i
    r = (W_O [z_1; ...; z_H] + e) / 2,  Q = MLP''(r)

Module names are those of rl-agents' state dicts, so that its checkpoints load as they are.
Source: Leurent and Mercat, *Social Attention for Autonomous Decision-Making in Dense Traffic*, arXiv 1911.12250.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rlmech.nets.mlp import MultiLayerPerceptron

ABSENT_SCORE = -1e9


class EgoAttention(nn.Module):
    """Multi-head attention with a single query, the ego's, a halved skip connection and no biases."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_model // n_heads
        self.value_all = nn.Linear(d_model, d_model, bias=False)
        self.key_all = nn.Linear(d_model, d_model, bias=False)
        self.query_ego = nn.Linear(d_model, d_model, bias=False)
        self.attention_combine = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        ego: Float[Tensor, "batch 1 d_model"],
        others: Float[Tensor, "batch others d_model"],
        absent: Bool[Tensor, "batch entity 1"],
    ) -> Float[Tensor, "batch d_model"]:
        """Gather what the ego attends to; `absent` marks entities that are not there."""
        entities = torch.cat((ego, others), dim=1)
        split = "batch entity (head d_head) -> batch head entity d_head"
        k = rearrange(self.key_all(entities), split, head=self.n_heads)
        v = rearrange(self.value_all(entities), split, head=self.n_heads)
        q = rearrange(self.query_ego(ego), split, head=self.n_heads)
        mask = repeat(absent, "batch entity 1 -> batch head 1 entity", head=self.n_heads)
        z = _attend(q, k, v, mask)
        combined = self.attention_combine(rearrange(z, "batch head 1 d_head -> batch (head d_head)"))
        return (combined + ego.squeeze(1)) / 2


class ScrambledSelfAttention(nn.Module):
    """rl-agents' `SelfAttention`, reproduced with its flaw.

    It reshapes `[batch head entity d_head]` to `[batch entity d_model]` without swapping heads and entities first, so
    with more than one head its output rows mix both: nothing past it may be ascribed to an entity.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_model // n_heads
        self.value_all = nn.Linear(d_model, d_model, bias=False)
        self.key_all = nn.Linear(d_model, d_model, bias=False)
        self.query_all = nn.Linear(d_model, d_model, bias=False)
        self.attention_combine = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        ego: Float[Tensor, "batch 1 d_model"],
        others: Float[Tensor, "batch others d_model"],
        absent: Bool[Tensor, "batch entity 1"],
    ) -> Float[Tensor, "batch entity d_model"]:
        """Let every entity attend to every other."""
        entities = torch.cat((ego, others), dim=1)
        split = "batch entity (head d_head) -> batch head entity d_head"
        k = rearrange(self.key_all(entities), split, head=self.n_heads)
        v = rearrange(self.value_all(entities), split, head=self.n_heads)
        q = rearrange(self.query_all(entities), split, head=self.n_heads)
        mask = repeat(absent, "batch entity 1 -> batch head 1 entity", head=self.n_heads)
        z = _attend(q, k, v, mask)
        return (self.attention_combine(z.reshape(entities.shape)) + entities) / 2


class EgoAttentionEncoder(nn.Module):
    """Embeds the scene and lets the ego attend to it: observation -> r of the equations above.

    Args:
        n_features: Features per entity.
        d_model: Width of the embeddings and of the attention.
        n_heads: Attention heads.
        embedding: Sizes of the hidden embedding layers; the last one must be `d_model`.
        presence_index: The feature that says whether an entity is there (below 0.5: absent).
        self_attention_heads: Heads of a self-attention layer before the ego attention; 0 for none.
    """

    def __init__(
        self,
        n_features: int,
        *,
        d_model: int = 64,
        n_heads: int = 4,
        embedding: Sequence[int] = (64, 64),
        others_embedding: Sequence[int] | None = None,
        presence_index: int = 0,
        self_attention_heads: int = 0,
    ) -> None:
        super().__init__()
        self.add_encoder(
            n_features,
            d_model=d_model,
            n_heads=n_heads,
            embedding=embedding,
            others_embedding=others_embedding,
            presence_index=presence_index,
            self_attention_heads=self_attention_heads,
        )

    def add_encoder(
        self,
        n_features: int,
        *,
        d_model: int,
        n_heads: int,
        embedding: Sequence[int],
        others_embedding: Sequence[int] | None,
        presence_index: int,
        self_attention_heads: int,
    ) -> None:
        """Add the encoder's layers to this module."""
        self.presence_index = presence_index
        self.ego_embedding = MultiLayerPerceptron(n_features, embedding)
        self.others_embedding = MultiLayerPerceptron(n_features, others_embedding or embedding)
        self.self_attention_layer = (
            ScrambledSelfAttention(d_model, self_attention_heads) if self_attention_heads else None
        )
        self.attention_layer = EgoAttention(d_model, n_heads)

    def forward(self, x: Float[Tensor, "batch entity feature"]) -> Float[Tensor, "batch d_model"]:
        """Encode scenes whose entity 0 is the ego."""
        absent = x[:, :, self.presence_index : self.presence_index + 1] < 0.5
        ego, others = self.ego_embedding(x[:, 0:1]), self.others_embedding(x[:, 1:])
        if self.self_attention_layer is not None:
            entities = self.self_attention_layer(ego, others, absent)
            ego, others = entities[:, 0:1], entities[:, 1:]
        return self.attention_layer(ego, others, absent)


class EgoAttentionNetwork(EgoAttentionEncoder):
    """The encoder with an output perceptron: observation -> a score for each action.

    Example:
        >>> import torch
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> EgoAttentionNetwork(7, n_actions=3)(torch.rand(2, 15, 7)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        *,
        d_model: int = 64,
        n_heads: int = 4,
        embedding: Sequence[int] = (64, 64),
        others_embedding: Sequence[int] | None = None,
        output: Sequence[int] = (64, 64),
        presence_index: int = 0,
        self_attention_heads: int = 0,
    ) -> None:
        super().__init__(
            n_features,
            d_model=d_model,
            n_heads=n_heads,
            embedding=embedding,
            others_embedding=others_embedding,
            presence_index=presence_index,
            self_attention_heads=self_attention_heads,
        )
        self.output_layer = MultiLayerPerceptron(d_model, output, d_out=n_actions)

    def forward(self, x: Float[Tensor, "batch entity feature"]) -> Float[Tensor, "batch action"]:
        """Score the actions of scenes whose entity 0 is the ego."""
        return self.output_layer(super().forward(x))


def _attend(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
    mask: Bool[Tensor, "batch head 1 key"],
) -> Float[Tensor, "batch head query d_head"]:
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    pattern = torch.softmax(scores.masked_fill(mask, ABSENT_SCORE), dim=-1)
    return torch.matmul(pattern, v)
