"""What an attention block is made of, in terms of the graph: where its parts lie, and its linear maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from einops import rearrange
from torch import Tensor

from rlmech.axes import Axis
from rlmech.core.graph import Graph, Node
from rlmech.core.program import Address, compile_program

Role = Literal["q", "k", "v", "attn_scores", "pattern", "mask", "z", "result", "attn_out"]
Source = Literal["q", "k", "v"]
Mask = tuple[Address, tuple[Axis, ...]]
"""Where a mask lies, and its axes: True where the key is hidden."""
NOT_A_PRODUCT = "the scores are not a product of queries and keys"
SHARED = "they are shared by all heads"
LEARNED = "they are the same for every observation"
"""Why a block has no queries, keys or values of its own."""


@dataclass(slots=True, eq=False)
class Found:
    """The nodes of one attention block, before names are given.

    `values` are what is mixed; `v` are the same where each head has its own, which alone is a point.
    """

    scope: str
    softmax: Node
    scores: Address
    pattern: Address
    q: Address | None
    k: Address | None
    v: Address | None
    values: Address
    z: Address
    scale: float
    mask: Mask | None = None
    projections: dict[Source, Projection] = field(default_factory=dict)
    output: OutputProjection | None = None
    result: Address | None = None
    attn_out: Address | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def sources(self) -> dict[Source, Address]:
        """Queries, keys and values, as far as they are points."""
        found: dict[Source, Address | None] = {"q": self.q, "k": self.k, "v": self.v}
        return {name: address for name, address in found.items() if address is not None}

    @property
    def addresses(self) -> dict[Role, Address]:
        """Where each role lies."""
        found: dict[Role, Address | None] = {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "mask": self.mask[0] if self.mask else None,
            "attn_scores": self.scores,
            "pattern": self.pattern,
            "z": self.z,
            "result": self.result,
            "attn_out": self.attn_out,
        }
        return {role: address for role, address in found.items() if address is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear map from entities to heads, and which of its output features is which (head, d_head)."""

    source: Node
    layer: Node
    weight: Node
    bias: Node | None
    columns: Tensor
    rows: Tensor
    transposed: bool

    def split(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight `[head d_model d_head]` and bias `[head d_head]`."""
        by_output = weight.T if self.transposed else weight
        split = rearrange(by_output[self.columns], "head d_head d_model -> head d_model d_head")
        return split, None if bias is None else bias[self.columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputProjection:
    """The linear map that combines the heads, and which of its input features is which (head, d_head)."""

    layer: Node
    weight: Node
    bias: Node | None
    columns: Tensor
    transposed: bool

    def split(self, weight: Tensor) -> Tensor:
        """Weight `[head d_head d_model]`."""
        by_input = weight if self.transposed else weight.T
        return by_input[self.columns]


def value_of(graph: Graph, node: Node) -> Tensor:
    """The present value of a node that depends on parameters only."""
    if node.op == "parameter":
        return node.owner[node.args[0]]
    return compile_program(graph, returned=(node,))((), (), ())[0]
