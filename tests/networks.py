"""Small networks, each with one of the habits that the core must cope with."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlmech.spec import FeatureSpec, PolicySpec

FEATURES = ("presence", "x", "y", "vx", "vy", "cos_h", "sin_h")
SPEC = PolicySpec(
    entities=("ego", *(f"vehicle_{i}" for i in range(1, 15))),
    features=tuple(FeatureSpec(name=name) for name in FEATURES),
    actions=("SLOWER", "IDLE", "FASTER"),
    presence="presence",
)


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class InPlace(nn.Module):
    """ReLU in place, as a module and as a function whose result goes unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second, self.third = (
            nn.Linear(4, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(x))
        y = self.second(y)
        F.relu_(y)
        y = y + 0
        y[:, 0] = 0.5
        return self.third(y)


class CalledTwice(nn.Module):
    """One layer, one activation and one block used twice; a layer under two names; keyword calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu = nn.Linear(4, 4), nn.ReLU()
        self.block = mlp(4, 4, 4)
        self.tied = self.layer
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.layer(x))
        x = self.relu(self.layer(input=x))
        x = self.block(self.block(x))
        return self.head(self.tied(input=x))


class LiveDropout(nn.Module):
    """Dropout made inside forward: eval() cannot switch it off."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.layer = p, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Dropout(self.p)(self.layer(x))


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.left if float(x.sum()) > 0 else self.right
        return self.head(torch.tanh(layer(x)))


class Convolutional(nn.Module):
    """Convolution, batch norm, pooling and a dueling head on images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.value, self.advantage = nn.Linear(36, 1), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        advantage = self.advantage(y)
        value = self.value(y)
        return value + advantage - advantage.mean(1, keepdim=True), value


class DictObservation(nn.Module):
    """Two arrays in, one of them through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.camera, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(4, 5), nn.Linear(10, 3)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        remembered = self.lstm(obs["track"])[0][:, -1]
        return self.head(torch.cat([remembered, torch.sigmoid(self.camera(obs["camera"]))], 1))


class Transformer(nn.Module):
    """`nn.TransformerEncoder`, whose fused fast path hides everything inside."""

    def __init__(self, *, padding: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.encoder = nn.Linear(7, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.padding = nn.Linear(8, 3), padding

    def forward(self, x: Tensor) -> Tensor:
        # the first entity stays visible: torch's fused path gives NaN where every key is hidden
        mask = nn.functional.pad(x[:, 1:, 0] < 0.5, (1, 0)) if self.padding else None
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=mask).mean(1))


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` from one query to all entities, with weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = (
            nn.Linear(7, 8),
            nn.MultiheadAttention(8, 4, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.head(self.attention(y[:, :1], y, y)[0][:, 0])


class FusedAttention(nn.Module):
    """Hand-written heads around `F.scaled_dot_product_attention`, with a mask, in the root's own forward."""

    def __init__(self, *, interleaved: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(7 if i < 3 else 8, 8, bias=i != 1) for i in range(4))
        self.head, self.interleaved = nn.Linear(8, 3), interleaved

    def _split(self, y: Tensor) -> Tensor:
        n, e, _ = y.shape
        if self.interleaved:  # feature d * heads + h instead of h * d_head + d
            return y.view(n, e, 4, 2).permute(0, 3, 1, 2)
        return y.view(n, e, 2, 4).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        visible = (x[:, :, 0] >= 0.5)[:, None, None, :]
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        z = z.permute(0, 2, 3, 1) if self.interleaved else z.transpose(1, 2)
        return self.head(self.out(z.flatten(2))[:, 0])


class ScaledQueries(nn.Module):
    """Attention with the scale on the queries, additive masking, and matrices instead of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Parameter(torch.randn(7 if i < 3 else 6, 6) / 3) for i in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, e, _ = x.shape
        q, k, v = ((x @ w).view(n, e, 3, 2).transpose(1, 2) for w in (self.w_q, self.w_k, self.w_v))
        scores = (q / math.sqrt(2)) @ k.mT + torch.where(x[:, None, None, :, 0] < 0.5, -1e9, 0.0)
        z = scores.softmax(-1) @ v
        return self.head((z.transpose(1, 2).reshape(n, e, 6) @ self.w_o)[:, 0])


def scenes(n: int, *, n_entities: int = 15, seed: int = 0) -> Tensor:
    """Entity observations, some entities absent."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, n_entities, 7, generator=generator) * 2 - 1
    x[:, :, 0] = (torch.rand(n, n_entities, generator=generator) < 0.7).float()
    x[:, 0, 0] = 1
    return x * x[:, :, :1]
