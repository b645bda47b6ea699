"""How a value lies in memory, and how it is shown: the way from a node's own shape to its canonical axes and back.

A network may keep `[batch head entity d_head]` where the hook point promises `[batch entity head d_head]`, or fold the
batch into another axis. A layout is one reshape and one permutation; both are views wherever torch can make them so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from torch import Tensor

from rlmech.core.graph import Node, Size


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Node shape -> `split` by reshaping -> canonical shape by permuting.

    Attributes:
        shape: The node's own sizes; negative ones are multiples of the batch.
        split: Sizes after the reshape, with exactly one -1, the batch; equal to `shape` for none.
        order: `canonical.shape[i] == split[order[i]]`.
        negate: Whether the canonical value is the logical negation of the node's.
    """

    shape: tuple[Size, ...]
    split: tuple[Size, ...]
    order: tuple[int, ...]
    negate: bool = False

    @classmethod
    def of(cls, node: Node) -> Layout:
        """The layout of a node that is shown as it is, but for the batch, which comes first."""
        return cls.plain(node.sizes, batch_inner=node.batch_inner)

    @classmethod
    @cache
    def plain(cls, shape: tuple[Size, ...], *, batch_inner: bool = False) -> Layout:
        """The layout of a value of some sizes that is shown as it is, but for the batch, which comes first."""
        split: list[Size] = []
        for size in shape:
            folded = (-size, -1) if batch_inner else (-1, -size)
            split.extend(folded if size < -1 else (size,))
        batch = split.index(-1) if -1 in split else None
        order = list(range(len(split)))
        if batch:
            order.insert(0, order.pop(batch))
        return cls(shape=shape, split=tuple(split), order=tuple(order))

    @cached_property
    def is_identity(self) -> bool:
        """Whether nothing is to be done."""
        return self.split == self.shape and self.order == tuple(range(len(self.order))) and not self.negate

    @property
    def canonical_shape(self) -> tuple[Size, ...]:
        """Sizes of the canonical value."""
        return tuple(self.split[axis] for axis in self.order)

    def show(self, value: Tensor) -> Tensor:
        """The node's value with canonical axes."""
        if self.is_identity:
            return value
        if self.split != self.shape:
            value = value.reshape(self.split)
        if self.order != tuple(range(len(self.order))):
            value = value.permute(self.order)
        return ~value if self.negate else value

    def restore(self, value: Tensor) -> Tensor:
        """A canonical value in the node's own shape."""
        if self.is_identity:
            return value
        value = ~value if self.negate else value
        if self.order != tuple(range(len(self.order))):
            inverse = [0] * len(self.order)
            for place, axis in enumerate(self.order):
                inverse[axis] = place
            value = value.permute(inverse)
        if self.split != self.shape:
            batch = value.shape[self.split.index(-1)] if -1 in self.split else 1
            value = value.reshape([-size * batch if size < 0 else size for size in self.shape])
        return value
