"""Weights on some of the entities of a value alone: those that any bound gives a weight, in each row.

A value with axes `[row entity number]` is packed to pairs of row and entity. A network that hides the vehicles that are
not there gives them no weight; what follows back from no weight is no weight, so dropping it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rlmech.core.bounds.bends import Lines
from rlmech.core.bounds.calls import Operand
from rlmech.core.bounds.intervals import each
from rlmech.core.graph import Node

_WORTH_IT = 0.8
"""The share of pairs with weights up to which packing costs less than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Some pairs of row and entity of a node.

    Attributes:
        flat: Their numbers, row by row.
        n_rows: Rows of the node.
        n_entities: Its entities.
    """

    flat: Int64[Tensor, " pair"]
    n_rows: int
    n_entities: int

    @classmethod
    def with_weight(cls, whole: Float[Tensor, "bound batch entity number"]) -> Pairs | None:
        """The pairs that any bound gives a weight; None where these are nearly all."""
        given = torch.linalg.vector_norm(whole, torch.inf, dim=(0, -1)) != 0
        flat = given.flatten().nonzero()[:, 0]
        if len(flat) > _WORTH_IT * given.numel():
            return None
        return cls(flat=flat, n_rows=given.shape[0], n_entities=given.shape[1])

    def pack(self, whole: Float[Tensor, "bound batch entity number"]) -> Packed:
        """The weights of these pairs."""
        return Packed(values=whole.flatten(1, 2).index_select(1, self.flat), pairs=self)

    def rows_of(self, value: Float[Tensor, "batch entity number"]) -> Float[Tensor, "pair number"]:
        """A value of these pairs."""
        return value.flatten(0, 1).index_select(0, self.flat)

    def collected(
        self, each: Float[Tensor, "bound pair"], owners: Int64[Tensor, " entity"] | None, n_groups: int
    ) -> Float[Tensor, "bound batch group"]:
        """Numbers of pairs, added up for each row, and for each group of entities where they are told apart."""
        row, entity = self.flat // self.n_entities, self.flat % self.n_entities
        place = row if owners is None else row * n_groups + owners[entity]
        found = each.new_zeros(len(each), self.n_rows * n_groups).index_add(1, place, each)
        return found.unflatten(1, (self.n_rows, n_groups))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """Weights on some pairs of a node, all others 0.

    Attributes:
        values: The weights.
        pairs: Which pairs.
    """

    values: Float[Tensor, "bound pair number"]
    pairs: Pairs

    def unpacked(self) -> Float[Tensor, "bound batch entity number"]:
        """The weights on all of the node."""
        own, n_bounds, size = self.pairs, len(self.values), self.values.shape[2]
        found = self.values.new_zeros(n_bounds, own.n_rows * own.n_entities, size)
        return found.index_copy_(1, own.flat, self.values).reshape(n_bounds, own.n_rows, own.n_entities, size)

    def with_values(self, values: Float[Tensor, "bound pair number"]) -> Packed:
        """Other weights on the same pairs."""
        return Packed(values=values, pairs=self.pairs)


def accumulate(pulled: dict[Node, Operand], node: Node, weight: Operand) -> None:
    """Add weights to what is pulled to a node: packed ones stay so among themselves."""
    other = pulled.get(node)
    if other is None:
        pulled[node] = weight
    elif isinstance(other, Packed) and isinstance(weight, Packed) and torch.equal(other.pairs.flat, weight.pairs.flat):
        pulled[node] = other.with_values(other.values + weight.values)
    else:
        pulled[node] = whole(other) + whole(weight)


def whole(weight: Operand) -> Operand:
    """Weights on all of a node, packed or not."""
    return weight.unpacked() if isinstance(weight, Packed) else weight


def each_weight(function: Callable[[Tensor], Tensor], weight: Operand) -> Operand:
    """A function of weights, packed ones, or those of several results."""
    return weight.with_values(function(weight.values)) if isinstance(weight, Packed) else each(function, weight)


def by_sign(weight: Operand, size: Operand, bound: Lines) -> Operand:
    """Weights pulled through the line above where they are positive, and through that below where negative."""
    steep, spread = (bound.high_slope + bound.low_slope) / 2, (bound.high_slope - bound.low_slope) / 2
    if not isinstance(weight, Packed):
        return (weight * steep).addcmul_(size, spread)
    steep, spread = (weight.pairs.rows_of(value) for value in (steep, spread))
    return weight.with_values((weight.values * steep).addcmul_(size.values, spread))
