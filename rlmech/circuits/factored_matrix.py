"""A product of two matrices kept factored: the circuits of attention heads are wide and of low rank.

    M = A B,   A [*leading ldim mdim],   B [*leading mdim rdim]

Singular values cost O((ldim + rdim) mdim^2) and eigenvalues O(mdim^3) instead of the product's cubes. Semantics are
those of TransformerLens 4; an index out of range is an error here. Gradients flow through all of it. Products take
anything that multiplies as a tensor does; decompositions and indexing need tensors.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from einops import einsum
from jaxtyping import Complex, Float
from torch import Tensor

from rlmech.circuits.indexing import consumes, expand_ellipsis, keeping, position, takes_index, tensor_of
from rlmech.circuits.tensor_like import TensorLike
from rlmech.errors import IndexRangeError, ShapeError

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
"""Linear algebra does not exist in these: it is done, and given, in float32."""


@final
class FactoredMatrix:
    """The matrix `A @ B`, or a batch of them, without multiplying out.

    Args:
        A: `[*leading ldim mdim]`.
        B: `[*leading mdim rdim]`; leading dimensions broadcast against A's.

    Raises:
        ShapeError: The inner dimensions differ, or the leading ones do not broadcast.

    Source:
        TransformerLens 4, `FactoredMatrix`; Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*.

    Example:
        >>> import torch
        >>> from rlmech.circuits.factored_matrix import FactoredMatrix
        >>> M = FactoredMatrix(torch.eye(64)[:, :2], torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> M, M.norm()
        (FactoredMatrix(shape=[64, 2], mdim=2), tensor(5.))
    """

    __array_ufunc__ = None  # numpy would otherwise try to multiply it element by element

    def __init__(self, A: Float[Tensor, ...] | TensorLike, B: Float[Tensor, ...] | TensorLike) -> None:
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise ShapeError(
                "The factors do not match on their inner dimension.",
                given=f"A {list(A.shape)}, B {list(B.shape)}",
                expected="A [... ldim mdim] and B [... mdim rdim]",
                fix="transpose one of them",
            )
        try:
            leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        except RuntimeError as error:
            raise ShapeError(
                "The factors' leading dimensions do not broadcast.",
                given=f"A {list(A.shape)}, B {list(B.shape)}",
                expected="leading dimensions that are equal, or 1, or absent",
                fix="unsqueeze one of them where the dimensions should line up",
            ) from error
        self._A: Any = A.broadcast_to(torch.Size((*leading, *A.shape[-2:])))
        self._B: Any = B.broadcast_to(torch.Size((*leading, *B.shape[-2:])))

    @property
    def A(self) -> Any:
        """The left factor, `[*leading ldim mdim]`: a tensor, unless something else was given."""
        return self._A

    @property
    def B(self) -> Any:
        """The right factor, `[*leading mdim rdim]`: a tensor, unless something else was given."""
        return self._B

    @property
    def pair(self) -> tuple[Float[Tensor, "*leading ldim mdim"], Float[Tensor, "*leading mdim rdim"]]:
        """Both factors."""
        return self._A, self._B

    @property
    def ldim(self) -> int:
        """Rows of the product."""
        return self._A.shape[-2]

    @property
    def mdim(self) -> int:
        """The inner dimension, which bounds the rank."""
        return self._A.shape[-1]

    @property
    def rdim(self) -> int:
        """Columns of the product."""
        return self._B.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """Shape of the product, `[*leading ldim rdim]`."""
        return torch.Size((*self._A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        """Number of dimensions of the product."""
        return self._A.ndim

    @property
    def has_leading_dims(self) -> bool:
        """Whether it is a batch of matrices."""
        return self.ndim > 2

    @property
    def AB(self) -> Any:
        """The product, multiplied out, `[*leading ldim rdim]`: a tensor where the factors are."""
        return self._A @ self._B

    @property
    def BA(self) -> Float[Tensor, "*leading mdim mdim"]:
        """The product the other way round.

        Raises:
            ShapeError: The matrix is not square.
        """
        if self.ldim != self.rdim:
            raise ShapeError(
                "B @ A exists only where the matrix is square.",
                given=f"shape {list(self.shape)}",
                expected="ldim == rdim",
                fix="use AB, or svd() in place of eigenvalues",
            )
        return self._B @ self._A

    @property
    def T(self) -> FactoredMatrix:
        """The transpose, B^T A^T."""
        return FactoredMatrix(self._B.transpose(-1, -2), self._A.transpose(-1, -2))

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        left, left_triangle = torch.linalg.qr(_upcast(self._A))
        right, right_triangle = torch.linalg.qr(_upcast(self._B).transpose(-1, -2))
        inner_u, s, inner_vh = torch.linalg.svd(left_triangle @ right_triangle.transpose(-1, -2), full_matrices=False)
        u, v = left @ inner_u, right @ inner_vh.transpose(-1, -2)
        largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
        sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
        return u * sign, s, v * sign

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*leading ldim rank"], Float[Tensor, "*leading rank"], Float[Tensor, "*leading rdim rank"]
    ]:
        """Singular value decomposition, U diag(S) V^T, with rank = min(ldim, mdim, rdim).

        Returns:
            U, S in falling order, and V: V itself, not its transpose. Each pair of vectors is signed so that the
            largest entry of the left one is positive. Computed once: factors changed in place afterwards are not seen.
            16-bit factors are decomposed in float32, and the results stay float32.
        """
        return self._svd

    @property
    def U(self) -> Float[Tensor, "*leading ldim rank"]:
        """Left singular vectors, one per column."""
        return self._svd[0]

    @property
    def S(self) -> Float[Tensor, "*leading rank"]:
        """Singular values, the largest first."""
        return self._svd[1]

    @property
    def V(self) -> Float[Tensor, "*leading rdim rank"]:
        """Right singular vectors, one per column (not transposed)."""
        return self._svd[2]

    @property
    def Vh(self) -> Float[Tensor, "*leading rdim rank"]:
        """`V` under the wrong name that TransformerLens once gave it; it is not transposed, and warns of that."""
        message = "Vh is V, as in TransformerLens, not its transpose: write V, or V.mT for the transpose."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self._svd[2]

    @property
    def eigenvalues(self) -> Complex[Tensor, "*leading mdim"]:
        """Eigenvalues of the square matrix, from B A, which shares all those that are not zero.

        Half precision is computed in float32.

        Raises:
            ShapeError: The matrix is not square.
        """
        return torch.linalg.eigvals(_upcast(self.BA))

    def norm(self) -> Float[Tensor, "*leading"]:
        """Frobenius norm, the root of the sum of squared singular values."""
        return torch.linalg.vector_norm(self.S, dim=-1)

    def collapse_l(self) -> Float[Tensor, "*leading rank rdim"]:
        """diag(S) V^T: the matrix without its left orthogonal factor."""
        return einsum(self.S, self.V, "... rank, ... rdim rank -> ... rank rdim")

    def collapse_r(self) -> Float[Tensor, "*leading ldim rank"]:
        """U diag(S): the matrix without its right orthogonal factor."""
        return einsum(self.U, self.S, "... ldim rank, ... rank -> ... ldim rank")

    def make_even(self) -> FactoredMatrix:
        """The same matrix as (U sqrt(S)) (sqrt(S) V^T): factors of equal size, with orthogonal columns and rows."""
        root = self.S.sqrt()
        return FactoredMatrix(
            einsum(self.U, root, "... ldim rank, ... rank -> ... ldim rank"),
            einsum(root, self.V, "... rank, ... rdim rank -> ... rank rdim"),
        )

    def get_corner(self, k: int = 3) -> Float[Tensor, ...]:
        """The first k entries along every dimension of the product, without computing the rest."""
        leading = (slice(k),) * (self.ndim - 2)
        return self._A[(*leading, slice(k))] @ self._B[(*leading, slice(None), slice(k))]

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """Add a leading dimension of size 1 at position k.

        Raises:
            ShapeError: k is not a place among the leading dimensions.
        """
        place = k + self.ndim + 1 if k < 0 else k
        if not 0 <= place <= self.ndim - 2:
            raise ShapeError(
                "A dimension can be added among the leading ones only.",
                given=f"unsqueeze({k}) of shape {list(self.shape)}",
                expected=f"0 to {self.ndim - 2}, or {-self.ndim - 1} to -3",
                fix="unsqueeze A or B themselves to add a row or a column dimension",
            )
        return FactoredMatrix(self._A.unsqueeze(place), self._B.unsqueeze(place))

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Index leading dimensions, then rows, then columns; a number on rows or columns keeps them as one.

        Args:
            index: Numbers, slices, None (a new leading dimension), an ellipsis, lists, arrays and tensors of numbers
                or booleans. Lists on leading dimensions pair up as torch's do; rows and columns are chosen each for
                themselves.

        Raises:
            ShapeError: There are more indices than dimensions, or one does not fit where it stands.
            IndexRangeError: A number is out of range, or a mask has not the length of its dimension.
        """
        given = index if isinstance(index, tuple) else (index,)
        parts = expand_ellipsis(tuple(tensor_of(part) for part in given), self.ndim)
        n_leading = position(parts, self.ndim - 2)
        rows, columns = (*parts[n_leading:], slice(None), slice(None))[:2]
        taken = sum(consumes(part) for part in parts[:n_leading])
        fits = (
            len(parts) - n_leading <= 2
            and taken <= self.ndim - 2
            and all(takes_index(part) for part in (rows, columns))
        )
        if not fits:
            raise ShapeError(
                "The index does not fit the matrix.",
                given=f"{len(parts)} indices for shape {list(self.shape)}",
                expected=f"at most {self.ndim}; None and masks of several dimensions among the leading ones only",
                fix="index the leading dimensions, then rows, then columns",
            )
        try:
            left, right = self._A[tuple(parts[:n_leading])], self._B[tuple(parts[:n_leading])]
            rows, columns = keeping(rows, self.ldim), keeping(columns, self.rdim)
            left, right = left[..., rows, :], right[..., columns]
        except (IndexError, ValueError, TypeError) as error:  # what torch says of an index that it cannot follow
            raise IndexRangeError(
                "The matrix has no such place.",
                given=f"index {index!r}",
                expected=f"places within the shape {list(self.shape)}, slices with a step above 0",
                fix="count from 0, or from -1 backwards; a mask is as long as its dimension",
            ) from error
        return FactoredMatrix(left, right)

    def __matmul__(self, other: Any) -> Any:
        """Multiply from the right: a matrix stays factored over the smaller inner dimension, a vector is applied.

        Args:
            other: A `FactoredMatrix`, a tensor, an array, or what multiplies as a tensor does.

        Raises:
            ShapeError: The inner dimensions differ.
        """
        if isinstance(other, FactoredMatrix):
            return self._times(other.A)._times(other.B)
        operand = self._operand(other)
        if operand.ndim == 1 and operand.shape[0] == self.rdim:
            return (self._A @ (self._B @ operand.unsqueeze(-1))).squeeze(-1)
        return self._times(operand)

    def _times(self, matrix: Any) -> FactoredMatrix:
        if matrix.ndim < 2 or matrix.shape[-2] != self.rdim:
            given = f"{list(self.shape)} @ {list(matrix.shape)}"
            raise _mismatch(given, f"[{self.rdim}] or [... {self.rdim} columns] on the right")
        self._check_leading(matrix)
        if self.rdim > self.mdim:
            return FactoredMatrix(self._A, self._B @ matrix)
        return FactoredMatrix(self.AB, matrix)

    def __rmatmul__(self, other: Any) -> Any:
        """Multiply from the left: a matrix stays factored over the smaller inner dimension, a vector is applied."""
        operand = self._operand(other)
        if operand.ndim == 0 or operand.shape[-1] != self.ldim:
            given = f"{list(operand.shape)} @ {list(self.shape)}"
            raise _mismatch(given, f"[{self.ldim}] or [... rows {self.ldim}] on the left")
        self._check_leading(operand)
        if operand.ndim == 1:
            return ((operand.unsqueeze(-2) @ self._A) @ self._B).squeeze(-2)
        if self.ldim > self.mdim:
            return FactoredMatrix(operand @ self._A, self._B)
        return FactoredMatrix(operand, self.AB)

    def _check_leading(self, matrix: Any) -> None:
        try:
            torch.broadcast_shapes(self.shape[:-2], matrix.shape[:-2])
        except RuntimeError as error:
            raise ShapeError(
                "The leading dimensions do not broadcast.",
                given=f"{list(self.shape)} and {list(matrix.shape)}",
                expected="leading dimensions that are equal, or 1, or absent",
                fix="unsqueeze one of them where the dimensions should line up",
            ) from error

    def _operand(self, other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic | list | tuple):
            return torch.as_tensor(np.asarray(other), dtype=self._A.dtype, device=self._A.device)
        if isinstance(other, TensorLike):
            return other
        raise ShapeError(
            "A FactoredMatrix is multiplied with matrices and vectors.",
            given=type(other).__name__,
            expected="a FactoredMatrix, a tensor or an array",
            fix="to scale it, write * in place of @",
        )

    def __mul__(self, scalar: Any) -> FactoredMatrix:
        """Scale by a number, or by a tensor or array of one element; for a matrix product write `@`.

        An element of more dimensions than the matrix gives its product further leading ones of size 1, as it gives
        any tensor.

        Raises:
            ShapeError: There are several elements.
        """
        if isinstance(scalar, np.ndarray | np.generic):
            scalar = torch.as_tensor(scalar, dtype=self._A.dtype, device=self._A.device)
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise ShapeError(
                "Only a scalar multiplies a FactoredMatrix with *.",
                given=f"a tensor of shape {list(scalar.shape)}",
                expected="a number, or a tensor with one element",
                fix="for the matrix product write @",
            )
        return FactoredMatrix(self._A * scalar, self._B)

    def __rmul__(self, scalar: object) -> FactoredMatrix:
        return self * scalar

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={list(self.shape)}, mdim={self.mdim})"


def _mismatch(given: str, expected: str) -> ShapeError:
    return ShapeError(
        "The shapes do not match on the inner dimension.", given=given, expected=expected, fix="transpose one of them"
    )


def _upcast(matrix: Tensor) -> Tensor:
    return matrix.float() if matrix.dtype in SIXTEEN_BIT else matrix
