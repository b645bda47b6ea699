"""Linear subspaces of an activation: an orthonormal basis of given directions, and exchanging the component along it.

    exchanged = value + P (source - value),  P the orthogonal projection onto the span of the directions

Cost: one singular value decomposition per basis, two products [row size] x [size direction] per exchange.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlmech.errors import EditError


def orthonormal_basis(
    directions: Shaped[Tensor, ...], *, shape: tuple[int, ...], where: str
) -> Float[Tensor, "direction size"]:
    """An orthonormal basis of what some directions span, each flattened.

    Args:
        directions: One direction of the given shape, or any number along a first axis; those that depend on others add
            nothing.
        shape: Shape of a direction.
        where: What they are for; named in errors.

    Raises:
        EditError: They have another shape, are not finite real numbers, or one of them is zero.

    Example:
        >>> import torch
        >>> from rlmech.core.directions import orthonormal_basis
        >>> orthonormal_basis(torch.tensor([[3.0, 0.0], [-2.0, 0.0]]), shape=(2,), where="an activation").abs()
        tensor([[1., 0.]])
    """
    several = directions[None] if directions.ndim == len(shape) else directions
    rows = several.reshape(several.shape[0], math.prod(several.shape[1:]))
    fits = tuple(several.shape[1:]) == shape and rows.is_floating_point()
    if not fits or not bool(rows.isfinite().all()) or not bool(rows.any(1).all()):
        raise EditError(
            f"The directions do not span a subspace of {where}.",
            given=f"directions of shape {list(directions.shape)}, dtype {directions.dtype}",
            expected=f"shape {list(shape)}, or several of it along a first axis; finite, and none of them zero",
            fix="give directions of that shape, or select the positions that they are for",
        )
    if len(rows) == 0:
        return rows
    rows = rows / rows.norm(dim=1, keepdim=True)
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > max(rows.shape) * torch.finfo(rows.dtype).eps * sizes[0]]


def exchange_along(
    basis: Float[Tensor, "direction size"], value: Float[Tensor, "batch ..."], source: Float[Tensor, "batch ..."]
) -> Float[Tensor, "batch ..."]:
    """The value with its component along an orthonormal basis replaced by the source's."""
    change = torch.where(source == value, torch.zeros_like(value), source - value)  # masked scores: -inf in both
    rows, along = change.reshape(change.shape[0], -1), basis.to(change)
    return value + (rows @ along.T @ along).reshape(change.shape)
