"""The two networks of the measurements, and the same networks written for tools that hook modules.

`rewritten(raw, point)` shares the raw network's parameters. Without `point`, every operation is a module, for tools
that hook those; with one, e.g. TransformerLens's HookPoint, such a point stands behind every operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rlmech.nets import EgoAttentionNetwork

NetworkName = Literal["mlp", "ego_attention"]
NETWORKS: tuple[NetworkName, ...] = ("mlp", "ego_attention")
REPLACED = {"mlp": "relu_0", "ego_attention": "z"}
N_ENTITIES = 15


class Softmax(nn.Module):
    """Softmax over the last axis, as a module."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.softmax(x, dim=-1)


def raw_network(name: NetworkName) -> nn.Module:
    torch.manual_seed(0)
    if name == "ego_attention":
        return EgoAttentionNetwork(7, 3).eval()
    return nn.Sequential(nn.Linear(25, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5)).eval()


def observations(name: NetworkName, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if name == "mlp":
        return torch.randn(batch, 25, generator=generator)
    obs = torch.rand(batch, N_ENTITIES, 7, generator=generator) * 2 - 1
    obs[..., 0] = (torch.rand(batch, N_ENTITIES, generator=generator) < 0.7).float()
    obs[:, 0, 0] = 1
    return obs


def rewritten(raw: nn.Module, point: Callable[[], nn.Module] | None = None) -> Sited:
    return SitedEgoAttention(raw, point) if isinstance(raw, EgoAttentionNetwork) else SitedMLP(raw, point)


class Sited(nn.Module):
    """Names its sites: operations that are modules, or points behind the operations."""

    def __init__(self, point: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        self.point, self.site_paths = point, {}

    def add(self, name: str, operation: nn.Module | None = None, function: Callable[..., Tensor] | None = None) -> None:
        """Add a site; a function stands for its module where points are used."""
        if self.point is None:
            self.add_module(name, operation or nn.Identity())
            self.site_paths[name] = name
            return
        hook = self.point()
        self.add_module(f"hook_{name}", hook)
        self.site_paths[name] = f"hook_{name}"
        if function is None and operation is not None:
            self.add_module(f"op_{name}", operation)
            function = operation
        call = hook if function is None else (lambda x, hook=hook, function=function: hook(function(x)))
        object.__setattr__(self, name, call)


class SitedMLP(Sited):
    """The perceptron, 5 sites."""

    def __init__(self, raw: nn.Module, point: Callable[[], nn.Module] | None) -> None:
        super().__init__(point)
        for place in range(3):
            self.add(f"linear_{place}", raw[2 * place])
            if place < 2:
                self.add(f"relu_{place}", nn.ReLU(), torch.relu)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.relu_0(self.linear_0(x))
        return self.linear_2(self.relu_1(self.linear_1(x)))


class SitedEgoAttention(Sited):
    """The ego-attention network, 21 sites."""

    def __init__(self, raw: EgoAttentionNetwork, point: Callable[[], nn.Module] | None) -> None:
        super().__init__(point)
        self.n_heads = raw.attention_layer.n_heads
        self.add("obs")
        stacks = (("ego", raw.ego_embedding), ("others", raw.others_embedding), ("output", raw.output_layer))
        for name, stack in stacks:
            for place, layer in enumerate(stack.layers):
                self.add(f"{name}_{place}", layer)
                self.add(f"{name}_relu_{place}", nn.ReLU(), torch.relu)
        for name, layer in (("q", "query_ego"), ("k", "key_all"), ("v", "value_all"), ("combine", "attention_combine")):
            self.add(name, getattr(raw.attention_layer, layer))
        self.add("scores")
        self.add("pattern", Softmax(), lambda x: torch.softmax(x, dim=-1))
        self.add("z")
        self.add("predict", raw.output_layer.predict)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.obs(x)
        absent = x[:, :, 0:1] < 0.5
        e, o = x[:, 0:1], x[:, 1:]
        e = self.ego_relu_1(self.ego_1(self.ego_relu_0(self.ego_0(e))))
        o = self.others_relu_1(self.others_1(self.others_relu_0(self.others_0(o))))
        entities = torch.cat((e, o), dim=1)
        q, k, v = (self.heads(value) for value in (self.q(e), self.k(entities), self.v(entities)))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        mask = absent.transpose(1, 2)[:, None].expand(-1, self.n_heads, -1, -1)
        pattern = self.pattern(self.scores(scores.masked_fill(mask, -1e9)))
        z = self.z(torch.matmul(pattern, v))
        r = (self.combine(z.flatten(1)) + e.squeeze(1)) / 2
        return self.predict(self.output_relu_1(self.output_1(self.output_relu_0(self.output_0(r)))))

    def heads(self, x: Tensor) -> Tensor:
        """Split the heads: [batch entity (head d_head)] to [batch head entity d_head]."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
