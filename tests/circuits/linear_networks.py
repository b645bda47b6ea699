"""Networks that are piecewise linear in every way that the decompositions know, and what to compare them with."""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.nets import DuelingNetwork, EgoAttentionNetwork, MultiLayerPerceptron
from tests.networks import (
    SPEC,
    CalledTwice,
    Convolutional,
    FusedAttention,
    InPlace,
    MultiHead,
    ScaledQueries,
    mlp,
    scenes,
)


class AllGates(nn.Module):
    """Every gate there is, one after the other, with constants and residuals between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)
        self.slope, self.bounds, self.drop, self.head = (
            nn.PReLU(8),
            nn.Hardtanh(-0.8, 0.9),
            nn.Dropout(),
            nn.Linear(6, 3),
        )
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.bounds(self.slope(self.norm(self.first(x)))))
        z = self.second(y).clamp(-0.7, 0.6) + self.shift * 0.3 + x
        z = F.leaky_relu(z, 0.2) - F.relu6(z * 3) / 4 + F.threshold(z, 0.1, 0.1)
        z = torch.maximum(z, 0.4 - z) + torch.where(z > 0.3, 2 * z, z + 0.3) + z.abs()
        pooled = F.max_pool1d(z[:, None], 3, 2, 1).flatten(1)
        largest = z.amax(1, keepdim=True) + z.max(1).values[:, None]
        return self.head(torch.cat([pooled, torch.full_like(pooled, 0.3)], 1)) + largest + F.softshrink(z[:, :3], 0.2)


class Dictionary(nn.Module):
    """Two arrays in."""

    def __init__(self) -> None:
        super().__init__()
        self.track, self.camera, self.head = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(10, 3)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        track = torch.relu(self.track(obs["track"])).amax(1)
        return self.head(torch.cat([track, torch.relu(self.camera(obs["camera"]))], 1))


class TwoLayers(nn.Module):
    """Two self-attention layers with residuals and ReLUs, and no layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(7, 8), nn.Linear(8, 3)
        self.first, self.second = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.between = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.embed(x))
        y = y + self.first(y, y, y, need_weights=False)[0]
        y = y + torch.relu(self.between(y))
        y = y + self.second(y, y, y, need_weights=False)[0]
        return self.head(torch.relu(y).mean(1))


def small_ego(seed: int = 0, **kwargs: object) -> EgoAttentionNetwork:
    torch.manual_seed(seed)
    return EgoAttentionNetwork(
        7, 3, **{"d_model": 16, "n_heads": 4, "embedding": (16, 16), "output": (16, 16), **kwargs}
    )


def dueling() -> DuelingNetwork:
    heads = [MultiLayerPerceptron(8, (6,), d_out=size) for size in (1, 3)]
    return DuelingNetwork(MultiLayerPerceptron(8, (8,)), *heads)


def vectors(n: int, size: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(size)).double()


PLAIN = {
    "mlp": (lambda: mlp(4, 8, 8, 3), vectors(5, 4)),
    "leaky": (lambda: mlp(4, 8, 3, activation=nn.LeakyReLU), vectors(5, 4)),
    "in_place": (InPlace, vectors(5, 4)),
    "called_twice": (CalledTwice, vectors(5, 4)),
    "all_gates": (AllGates, vectors(7, 6)),
    "convolutional": (Convolutional, vectors(5, 128).view(5, 2, 8, 8)),
    "dueling": (dueling, vectors(5, 8)),
}
ATTENTIVE = {
    "ego": (small_ego, scenes(5).double()),
    "multi_head": (MultiHead, scenes(5).double()),
    "fused": (FusedAttention, scenes(5).double()),
    "interleaved": (lambda: FusedAttention(interleaved=True), scenes(5).double()),
    "scaled_queries": (ScaledQueries, scenes(5).double()),
    "two_layers": (TwoLayers, scenes(5).double()),
}


@functools.cache
def wrapped(name: str, *, seed: int = 0) -> tuple[HookedPolicy, Tensor]:
    make, obs = (PLAIN | ATTENTIVE)[name]
    torch.manual_seed(seed)
    network = make().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    for parameter_name, parameter in network.named_parameters():
        if "bias" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    return HookedPolicy(network, obs[:3], spec=SPEC if name in ATTENTIVE else None), obs


def frozen_scores(policy: HookedPolicy, x: Tensor, at: Tensor) -> Tensor:
    """The scores of x with the attention patterns of another observation: one hook per block."""
    patterns = [block.names["pattern"] for block in policy.attention.values()]
    _, cache = policy.run_with_cache(at.detach(), patterns)
    fixed = [(name, lambda value, hook: cache[hook.name].detach()) for name in patterns]
    return policy.run_with_hooks(x, fwd_hooks=fixed)


def frozen_jacobian(policy: HookedPolicy, obs: Tensor) -> Tensor:
    """[batch action ...] by one backward pass per row and action."""
    x = obs.clone().requires_grad_()
    scores = frozen_scores(policy, x, obs)
    rows = itertools.product(range(len(obs)), range(scores.shape[1]))
    grads = [torch.autograd.grad(scores[i, a], x, retain_graph=True)[0][i] for i, a in rows]
    return torch.stack(grads).view(*scores.shape, *obs.shape[1:])
