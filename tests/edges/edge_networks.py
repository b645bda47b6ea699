"""Policies over which the laws of edges are proved, with pairs of observations in double precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rlmech as rlm
from tests.networks import (
    CalledTwice,
    Convolutional,
    DictObservation,
    FusedAttention,
    InPlace,
    MultiHead,
    ScaledQueries,
    Transformer,
    mlp,
    scenes,
)


class Odd(nn.Module):
    """Operations with and without a rule of their own: parts, pools, groups, gates, sums along an axis, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(6, 6)
        self.group, self.norm, self.filter = nn.GroupNorm(2, 4), nn.LayerNorm(6), nn.Conv1d(2, 2, 3, groups=2)
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.first(x)).chunk(2, dim=1)
        summed = torch.tanh(torch.cumsum(left, dim=1).roll(1, 1))
        grouped = torch.relu(self.group(right[:, :4].unsqueeze(-1)).squeeze(-1))
        filtered = torch.relu(self.filter(torch.stack((left, right), 1))).mean(2)
        product = torch.relu(torch.einsum("bi,bj->bij", left[:, :2], right[:, :3]).flatten(1))
        normal = torch.sigmoid(self.norm(self.second(right)))
        return self.head(torch.cat((summed, grouped, filtered, product * normal), 1))


SCENES = (scenes(4).double(), scenes(4, seed=1).double())


def vectors(*shape):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, *shape, dtype=torch.float64, generator=generator) for _ in range(2))


def dicts():
    (track, other), (camera, another) = vectors(4, 3), vectors(4)
    return {"track": track, "camera": camera}, {"track": other, "camera": another}


NETWORKS = {
    "mlp": lambda: (mlp(4, 6, 6, 3), vectors(4)),
    "tanh": lambda: (mlp(4, 6, 6, 3, activation=nn.Tanh), vectors(4)),
    "in-place": lambda: (InPlace(), vectors(4)),
    "twice": lambda: (CalledTwice(), vectors(4)),
    "odd": lambda: (Odd(), vectors(8)),
    "conv": lambda: (Convolutional(), vectors(2, 8, 8)),
    "lstm": lambda: (DictObservation(), dicts()),
    "self-attention": lambda: (Transformer(), SCENES),
    "padded": lambda: (Transformer(padding=True), SCENES),
    "multi-head": lambda: (MultiHead(), SCENES),
    "fused": lambda: (FusedAttention(), SCENES),
    "interleaved": lambda: (FusedAttention(interleaved=True), SCENES),
    "matrices": lambda: (ScaledQueries(), SCENES),
    "ego": lambda: (rlm.load("zoo:intersection-ego-attention"), SCENES),
}


def made(name):
    torch.manual_seed(0)
    net, (clean, corrupt) = NETWORKS[name]()
    policy = net.double() if isinstance(net, rlm.HookedPolicy) else rlm.HookedPolicy(net.double().eval(), clean)
    return policy, clean, corrupt
