"""Factors and operands that are no tensors: lazy arrays, symbolic ones, another factored matrix."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class TensorLike(Protocol):
    """What a factor or an operand must do to take part in products without being a tensor."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        ...

    @property
    def shape(self) -> Any:
        """Its sizes."""
        ...

    def unsqueeze(self, dim: int) -> Any:
        """It with a dimension of size 1 added."""
        ...

    def squeeze(self, dim: int) -> Any:
        """It without a dimension of size 1."""
        ...

    def broadcast_to(self, shape: Any) -> Any:
        """It with larger sizes."""
        ...

    def __matmul__(self, other: object) -> object: ...
