"""Multi-layer perceptrons and convolutional stacks, with the module names of rl-agents' state dicts.

`layers.i` are the hidden layers, each followed by the activation; `predict` is the linear head, where there is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]


def _activate(x: Tensor, activation: Activation) -> Tensor:
    return torch.relu(x) if activation == "relu" else torch.tanh(x)


class MultiLayerPerceptron(nn.Module):
    """Hidden layers, each with an activation, and an optional linear head.

    Args:
        d_in: Size of the last input axis (of all but the batch axis, flattened, where `flatten`).
        hidden: Sizes of the hidden layers; may be empty.
        d_out: Size of the linear head; None for no head.
        activation: The activation after every hidden layer.
        flatten: Whether all axes but the batch are flattened first.

    Source: rl-agents, `MultiLayerPerceptron`.
    """

    def __init__(
        self,
        d_in: int,
        hidden: Sequence[int],
        *,
        d_out: int | None = None,
        activation: Activation = "relu",
        flatten: bool = False,
    ) -> None:
        super().__init__()
        sizes = [d_in, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.predict = None if d_out is None else nn.Linear(sizes[-1], d_out)
        self.activation: Activation = activation
        self.flatten = flatten

    def forward(self, x: Float[Tensor, batch * rest]) -> Float[Tensor, batch * rest_out]:
        """Map the last axis through the hidden layers and the head."""
        if self.flatten:
            x = rearrange(x, "batch ... -> batch (...)")
        for layer in self.layers:
            x = _activate(layer(x), self.activation)
        return x if self.predict is None else self.predict(x)


class ConvolutionalNetwork(nn.Module):
    """Three 2 x 2 convolutions of stride 2 with activations, and a perceptron head.

    Source: rl-agents, `ConvolutionalNetwork`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        d_out: int,
        *,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        head_activation: Activation = "relu",
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=2, stride=2)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=2, stride=2)
        d_head_in = (height // 8) * (width // 8) * 64
        self.head = MultiLayerPerceptron(d_head_in, hidden, d_out=d_out, activation=head_activation, flatten=True)
        self.activation: Activation = activation

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch action"]:
        """Score the actions of an image-like observation."""
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = _activate(convolution(x), self.activation)
        return self.head(x)


class DuelingNetwork(nn.Module):
    """Q = V + A - mean(A) over a shared base.

    Args:
        base_module: What both heads read.
        value: The head of V, to one number: a perceptron, or a linear layer as in rl-agents before 2022.
        advantage: The head of A, likewise.

    Source: rl-agents, `DuelingNetwork`; Wang et al. 2016, *Dueling Network Architectures*, eq. 9.
    """

    def __init__(
        self,
        base_module: MultiLayerPerceptron,
        value: MultiLayerPerceptron | nn.Linear,
        advantage: MultiLayerPerceptron | nn.Linear,
    ) -> None:
        super().__init__()
        self.base_module, self.value, self.advantage = base_module, value, advantage

    def forward(self, x: Float[Tensor, batch * rest]) -> Float[Tensor, "batch action"]:
        """Score the actions."""
        base = self.base_module(x)
        advantage = self.advantage(base)
        value = self.value(base).expand(-1, advantage.shape[1])
        return value + advantage - advantage.mean(1).unsqueeze(1).expand(-1, advantage.shape[1])
