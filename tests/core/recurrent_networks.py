"""Small recurrent networks, each keeping its state in its own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

N_UNITS = 5


class Layered(nn.Module):
    """One of torch's recurrent layers between two linear ones; the state value beside the scores if wanted."""

    def __init__(self, layer: nn.Module, *, value: bool = False) -> None:
        super().__init__()
        self.enc, self.layer = nn.Linear(4, 6), layer
        width = getattr(layer, "proj_size", 0) or layer.hidden_size
        self.head, self.critic = nn.Linear(width, 3), nn.Linear(width, 1) if value else None

    def forward(self, x: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> tuple[object, ...]:
        y = torch.relu(self.enc(x))
        if isinstance(self.layer, nn.RNNCellBase):
            state = self.layer(y, state)
            y = state[0] if isinstance(state, tuple) else state
        elif self.layer.batch_first:
            y, state = self.layer(y[:, None], state)
            y = y[:, 0]
        else:
            y, state = self.layer(y[None], state)
            y = y[0]
        return (self.head(y), state) if self.critic is None else (self.head(y), self.critic(y), state)


class ConvLSTM(nn.Module):
    """Two ConvLSTM layers whose tops feed back to the bottom, as deep repeated ConvLSTMs have them, ticking twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.Conv2d(2 + 3 + 3, 12, 3, padding=1), nn.Conv2d(3 + 3, 12, 3, padding=1)])
        self.head = nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        for _ in range(2):
            below, after = torch.cat([x, state[-1][0]], 1), []
            for cell, (h, c) in zip(self.cells, state, strict=True):
                i, f, g, o = cell(torch.cat([below, h], 1)).chunk(4, dim=1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                below = torch.sigmoid(o) * torch.tanh(c)
                after.append((below, c))
            state = after
        return self.head(state[-1][0].flatten(1)), state


def layered(n_layers: int, *sizes: int):
    """A function of the number of rows that gives a state `[layer batch unit]` of each size, or that one alone."""

    def state(n: int) -> Tensor | tuple[Tensor, ...]:
        parts = tuple(torch.zeros(n_layers, n, size) for size in sizes)
        return parts if len(parts) > 1 else parts[0]

    return state


def flat(*sizes: int):
    """The same without layers."""

    def state(n: int) -> Tensor | tuple[Tensor, ...]:
        parts = tuple(torch.zeros(n, size) for size in sizes)
        return parts if len(parts) > 1 else parts[0]

    return state


def conv_state(n: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(n, 3, 4, 4), torch.zeros(n, 3, 4, 4)) for _ in range(2)]


NETWORKS = {
    "lstm": lambda: (Layered(nn.LSTM(6, N_UNITS), value=True), layered(1, N_UNITS, N_UNITS), (4,)),
    "two lstm layers": lambda: (Layered(nn.LSTM(6, N_UNITS, 2, batch_first=True)), layered(2, N_UNITS, N_UNITS), (4,)),
    "projected lstm": lambda: (Layered(nn.LSTM(6, N_UNITS, proj_size=3)), layered(1, 3, N_UNITS), (4,)),
    "gru": lambda: (Layered(nn.GRU(6, N_UNITS, bias=False), value=True), layered(1, N_UNITS), (4,)),
    "rnn": lambda: (Layered(nn.RNN(6, N_UNITS, nonlinearity="relu")), layered(1, N_UNITS), (4,)),
    "lstm cell": lambda: (Layered(nn.LSTMCell(6, N_UNITS)), flat(N_UNITS, N_UNITS), (4,)),
    "gru cell": lambda: (Layered(nn.GRUCell(6, N_UNITS)), flat(N_UNITS), (4,)),
    "rnn cell": lambda: (Layered(nn.RNNCell(6, N_UNITS)), flat(N_UNITS), (4,)),
    "convolutional": lambda: (ConvLSTM(), conv_state, (2, 4, 4)),
}
