"""The network that a compiled program runs on: a residual stream, heads and look-up layers, without norms.

    x = embed(tokens) + positions;   x += attention(x), x += tables(x) in each block;   scores = unembed(x)[asked]

Float64 throughout. Weights are zero until `compiler` writes them.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class ProgramAttention(nn.Module):
    """Heads without a mask; scores are not scaled, because the queries are.

    Args:
        d_model: Width of the residual stream.
        n_heads: Heads, one for each of the program's.
        d_head: Size of the largest head.
    """

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key = zeros(d_model, n_heads * d_head, bias=True), zeros(d_model, n_heads * d_head)
        self.value, self.output = zeros(d_model, n_heads * d_head), zeros(n_heads * d_head, d_model)

    def forward(self, x: Float[Tensor, "batch entity d_model"]) -> Float[Tensor, "batch entity d_model"]:
        """What the heads write into the residual stream."""
        split = "batch entity (head d_head) -> batch head entity d_head"
        q, k, v = (rearrange(f(x), split, head=self.n_heads) for f in (self.query, self.key, self.value))
        z = torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
        return self.output(rearrange(z, "batch head entity d_head -> batch entity (head d_head)"))


class ProgramTables(nn.Module):
    """Look-up tables: groups of hidden neurons, each of which is on for one entry of a table.

    Args:
        d_model: Width of the residual stream.
        n_neurons: Neurons of all tables together.
    """

    def __init__(self, d_model: int, n_neurons: int) -> None:
        super().__init__()
        self.entries, self.relu, self.output = (
            zeros(d_model, n_neurons, bias=True),
            nn.ReLU(),
            zeros(n_neurons, d_model),
        )

    def forward(self, x: Float[Tensor, "batch entity d_model"]) -> Float[Tensor, "batch entity d_model"]:
        """What the tables write into the residual stream."""
        return self.output(self.relu(self.entries(x)))


class ProgramBlock(nn.Module):
    """Heads, then tables, each where the program has some at this depth."""

    def __init__(self, d_model: int, *, n_heads: int, d_head: int, n_neurons: int) -> None:
        super().__init__()
        self.attention = ProgramAttention(d_model, n_heads, d_head) if n_heads else None
        self.tables = ProgramTables(d_model, n_neurons) if n_neurons else None

    def forward(self, x: Float[Tensor, "batch entity d_model"]) -> Float[Tensor, "batch entity d_model"]:
        """The residual stream after this block."""
        if self.attention is not None:
            x = x + self.attention(x)
        return x if self.tables is None else x + self.tables(x)


class ProgramNetwork(nn.Module):
    """A compiled program: tokens, one-hot with the start token first, to the scores of what stands at one position.

    Args:
        n_tokens: Tokens, the start token among them.
        n_entities: Positions, that of the start token among them.
        d_model: Width of the residual stream.
        n_actions: Values of the program's output.
        asked: The position whose output the scores are.
        blocks: The blocks.
    """

    def __init__(
        self, n_tokens: int, n_entities: int, d_model: int, n_actions: int, *, asked: int, blocks: list[ProgramBlock]
    ) -> None:
        super().__init__()
        self.asked = asked
        self.embed = zeros(n_tokens, d_model)
        self.positions = nn.Parameter(torch.zeros(n_entities, d_model, dtype=torch.float64))
        self.blocks = nn.ModuleList(blocks)
        self.unembed = zeros(d_model, n_actions)

    def forward(self, x: Float[Tensor, "batch entity feature"]) -> Float[Tensor, "batch action"]:
        """1 for the program's answer, 0 for all others."""
        stream = self.embed(x) + self.positions
        for block in self.blocks:
            stream = block(stream)
        return self.unembed(stream)[:, self.asked]


def zeros(n_in: int, n_out: int, *, bias: bool = False) -> nn.Linear:
    """A float64 linear layer of zeros."""
    made = nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made
