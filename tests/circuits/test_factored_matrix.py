"""A FactoredMatrix is its dense product, in everything that it says."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from rlmech.circuits.factored_matrix import FactoredMatrix
from rlmech.errors import IndexRangeError, ShapeError

SIZE = st.integers(1, 6)
LEADING = st.sampled_from([((), ()), ((3,), (3,)), ((1,), (4,)), ((2, 3), (3,)), ((), (2, 1))])


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    tolerance = {"atol": 1e-10, "rtol": 1e-8} if a.dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(a, b, **tolerance)


@st.composite
def factored(draw: st.DrawFn, *, square: bool = False) -> FactoredMatrix:
    left, right = draw(LEADING)
    ldim, mdim = draw(SIZE), draw(SIZE)
    rdim = ldim if square else draw(SIZE)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    make = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return FactoredMatrix(make(*left, ldim, mdim), make(*right, mdim, rdim))


@given(factored())
@settings(max_examples=40, deadline=None)
def test_it_has_the_shape_and_the_norm_of_the_dense_product(matrix):
    dense = matrix.A @ matrix.B
    assert matrix.shape == dense.shape
    assert (matrix.ndim, matrix.has_leading_dims) == (dense.ndim, dense.ndim > 2)
    assert (*matrix.shape[-2:], matrix.mdim) == (matrix.ldim, matrix.rdim, matrix.A.shape[-1])
    assert matrix.A.shape[:-2] == matrix.B.shape[:-2] == dense.shape[:-2]
    close(matrix.AB, dense)
    close(matrix.T.AB, dense.mT)
    close(matrix.norm(), torch.linalg.matrix_norm(dense))


@given(factored())
@settings(max_examples=40, deadline=None)
def test_svd_is_the_dense_one_without_its_zeros_and_v_is_not_transposed(matrix):
    U, S, V = matrix.svd()
    rank = min(matrix.ldim, matrix.mdim, matrix.rdim)
    assert U.shape[-2:] == (matrix.ldim, rank)
    assert V.shape[-2:] == (matrix.rdim, rank)
    close(U @ torch.diag_embed(S) @ V.mT, matrix.AB)
    close(S, torch.linalg.svdvals(matrix.AB)[..., :rank])
    close(U.mT @ U, torch.eye(rank, dtype=U.dtype).expand(*U.shape[:-2], rank, rank))
    close(V.mT @ V, torch.eye(rank, dtype=V.dtype).expand(*V.shape[:-2], rank, rank))
    assert (U.gather(-2, U.abs().argmax(-2, keepdim=True)) > 0).all()


@given(factored(square=True))
@settings(max_examples=40, deadline=None)
def test_eigenvalues_have_the_dense_matrix_s_power_sums(matrix):
    power = matrix.AB
    for exponent in (1, 2, 3):
        trace = (matrix.eigenvalues**exponent).sum(-1)
        close(trace.real, power.diagonal(dim1=-2, dim2=-1).sum(-1))
        close(trace.imag, torch.zeros_like(trace.imag))
        power = power @ matrix.AB
    close(matrix.BA, matrix.B @ matrix.A)


def test_eigenvalues_are_the_dense_ones_that_are_not_zero():
    matrix = FactoredMatrix(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]))
    assert matrix.eigenvalues.tolist() == [11 + 0j]
    assert FactoredMatrix(matrix.A.half(), matrix.B.half()).eigenvalues.dtype == torch.complex64


@given(factored())
@settings(max_examples=40, deadline=None)
def test_collapsed_and_even_forms_are_the_same_matrix_up_to_an_orthogonal_factor(matrix):
    close(matrix.U @ matrix.collapse_l(), matrix.AB)
    close(matrix.collapse_r() @ matrix.V.mT, matrix.AB)
    even = matrix.make_even()
    close(even.AB, matrix.AB)
    close(even.A.mT @ even.A, even.B @ even.B.mT)
    close(matrix.get_corner(2), matrix.AB[(slice(2),) * matrix.ndim])


@given(factored(), st.data())
@settings(max_examples=60, deadline=None)
def test_indexing_is_that_of_the_dense_product_with_numbers_keeping_rows_and_columns(matrix, data):
    parts, dense_parts = [], []
    for place in range(data.draw(st.integers(1, matrix.ndim))):
        part = data.draw(st.sampled_from([0, -1, slice(None), slice(0, 1), slice(None, None, 2)]))
        parts.append(part)
        keeps = place >= matrix.ndim - 2 and isinstance(part, int)
        dense_parts.append([part] if keeps else part)
    dense = matrix.AB
    for place in reversed(range(len(parts))):  # one at a time: two lists would be paired up
        dense = dense[(slice(None),) * place + (dense_parts[place],)]
    close(matrix[tuple(parts)].AB, dense)


def test_indexing_takes_ellipsis_new_axes_and_tensors():
    matrix = FactoredMatrix(torch.randn(2, 3, 4, 2), torch.randn(2, 3, 2, 5))
    close(matrix[..., 1].AB, matrix.AB[..., 1:2])
    close(matrix[1, ..., 0, :].AB, matrix.AB[1, :, 0:1])
    close(matrix[:, None].AB, matrix.AB[:, None])
    close(matrix[torch.tensor([1, 0, 1])].AB, matrix.AB[[1, 0, 1]])
    close(matrix[torch.tensor([[True, False, False], [False, True, True]])].AB, matrix.AB[[0, 1, 1], [0, 1, 2]])
    close(matrix.unsqueeze(1).AB, matrix.AB.unsqueeze(1))
    close(matrix.unsqueeze(-3).AB, matrix.AB.unsqueeze(-3))


@given(factored(), SIZE)
@settings(max_examples=40, deadline=None)
def test_products_from_both_sides_are_the_dense_ones(matrix, size):
    generator = torch.Generator().manual_seed(size)
    right = torch.randn(matrix.rdim, size, generator=generator, dtype=torch.float64)
    left = torch.randn(size, matrix.ldim, generator=generator, dtype=torch.float64)
    for product, dense in ((matrix @ right, matrix.AB @ right), (left @ matrix, left @ matrix.AB)):
        assert isinstance(product, FactoredMatrix)
        close(product.AB, dense)
        assert product.mdim <= max(matrix.mdim, min(matrix.ldim, matrix.rdim))
    close(matrix @ right[:, 0], matrix.AB @ right[:, 0])
    close(left[0] @ matrix, left[0] @ matrix.AB)
    close((matrix @ FactoredMatrix(right, right.T)).AB, matrix.AB @ right @ right.T)
    close((FactoredMatrix(left.T, left) @ matrix).AB, left.T @ left @ matrix.AB)


def test_scalars_multiply_from_both_sides():
    matrix = FactoredMatrix(torch.randn(3, 2), torch.randn(2, 4))
    for scaled in (
        2 * matrix,
        matrix * 2.0,
        torch.tensor(2.0) * matrix,
        matrix * torch.tensor([2.0]),
        np.float64(2) * matrix,
    ):
        close(scaled.AB, 2 * matrix.AB)


def test_gradients_flow_to_the_factors():
    A = torch.randn(4, 2, requires_grad=True)
    matrix = FactoredMatrix(A, torch.randn(2, 4))
    (gradient,) = torch.autograd.grad(matrix.norm(), A)
    torch.testing.assert_close(gradient, (matrix.AB / torch.linalg.matrix_norm(matrix.AB) @ matrix.B.T).detach())


MATRIX = FactoredMatrix(torch.randn(2, 4, 3), torch.randn(3, 5))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: FactoredMatrix(torch.randn(3, 2), torch.randn(3, 2)), "factors do not match on their inner dimension"),
        (lambda: FactoredMatrix(torch.randn(2), torch.randn(2, 2)), "factors do not match on their inner dimension"),
        (lambda: FactoredMatrix(torch.randn(2, 3, 2), torch.randn(3, 2, 2)), "leading dimensions do not broadcast"),
        (lambda: MATRIX.BA, "only where the matrix is square"),
        (lambda: MATRIX.eigenvalues, "only where the matrix is square"),
        (lambda: MATRIX @ torch.randn(4), "do not match on the inner dimension"),
        (lambda: MATRIX @ torch.randn(4, 5), "do not match on the inner dimension"),
        (lambda: torch.randn(5) @ MATRIX, "do not match on the inner dimension"),
        (lambda: MATRIX * torch.randn(2), "Only a scalar multiplies"),
        (lambda: MATRIX.unsqueeze(2), "among the leading ones only"),
        (lambda: MATRIX[0, 0, 0, 0], "index does not fit the matrix"),
        (lambda: MATRIX[0, 0, None], "index does not fit the matrix"),
        (lambda: MATRIX[torch.ones(2, 4, dtype=torch.bool)], "index does not fit the matrix"),
        (lambda: MATRIX[0, torch.ones(4, 5, dtype=torch.bool)], "index does not fit the matrix"),
        (lambda: MATRIX[0, True], "index does not fit the matrix"),
        (lambda: MATRIX @ torch.randn(3, 5, 2), "leading dimensions do not broadcast"),
    ],
    ids=lambda value: None if isinstance(value, str) else "case",
)
def test_what_does_not_fit_is_refused_with_both_shapes(act, message):
    with pytest.raises(ShapeError, match=message) as caught:
        act()
    assert "given:" in str(caught.value)
    assert "[" in caught.value.given
    assert caught.value.fix


@pytest.mark.parametrize(
    "index",
    [(2,), (0, 4), (0, -5), (0, 0, 5), ([2],), (0, [4]), (0, 0, [True]), (slice(None, None, -1),)],
    ids=str,
)
def test_an_index_out_of_range_is_an_error_and_not_an_empty_matrix(index):
    with pytest.raises(IndexRangeError, match="no such place") as caught:
        MATRIX[index]
    assert isinstance(caught.value, IndexError)


LED = FactoredMatrix(torch.randn(2, 3, 4, 2), torch.randn(2, 3, 2, 5))
MASKS = {n: torch.tensor([True, False, True, True, False][:n]) for n in (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("index", "dense"),
    [
        ((MASKS[2],), lambda m: m[MASKS[2]]),
        ((slice(None), MASKS[3]), lambda m: m[:, MASKS[3]]),
        ((slice(None), slice(None), MASKS[4]), lambda m: m[:, :, MASKS[4]]),
        ((..., MASKS[5]), lambda m: m[..., MASKS[5]]),
        ((..., MASKS[4], MASKS[5]), lambda m: m[..., MASKS[4], :][..., MASKS[5]]),
        ((1, ..., MASKS[5].numpy()), lambda m: m[1][..., MASKS[5]]),
        ((..., MASKS[4].tolist(), -1), lambda m: m[..., MASKS[4], :][..., 4:]),
        (([1, 0], [0, 2], 3), lambda m: m[[1, 0], [0, 2]][:, 3:4]),
        ((torch.ones(2, 3, dtype=torch.bool), [1, 1]), lambda m: m.reshape(6, 4, 5)[:, [1, 1]]),
        ((None, 1, None, 0), lambda m: m[None, 1, None, 0]),
        ((torch.tensor(1), np.int64(2), torch.tensor(3)), lambda m: m[1, 2, 3:4]),
        ((None, ..., 0), lambda m: m[None][..., :1]),
        (..., lambda m: m),
        (([], slice(1, 9)), lambda m: m[[], 1:9]),
    ],
    ids=lambda value: "dense" if callable(value) else str(value),
)
def test_masks_lists_new_axes_and_ellipses_index_as_they_do_the_dense_product(index, dense):
    close(LED[index].AB, dense(LED.AB))


def test_one_element_of_any_rank_scales_as_it_does_the_dense_product():
    matrix = FactoredMatrix(torch.randn(3, 2), torch.randn(2, 4))
    for shape in ((), (1,), (1, 1), (1, 1, 1), (1,) * 5):
        scalar = torch.full(shape, 2.5)
        close((matrix * scalar).AB, matrix.AB * scalar)
        close((scalar * matrix).AB, scalar * matrix.AB)
    close((matrix * np.array([2.5])).AB, matrix.AB * 2.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_matrices_are_decomposed_in_float32(dtype):
    matrix = FactoredMatrix(torch.randn(4, 2).to(dtype), torch.randn(2, 4).to(dtype))
    wide = FactoredMatrix(matrix.A.float(), matrix.B.float())
    for sixteen, thirty_two in zip(matrix.svd(), wide.svd(), strict=True):
        assert sixteen.dtype == torch.float32
        close(sixteen, thirty_two)
    close(matrix.norm(), wide.norm())
    close(matrix.make_even().AB, wide.AB)


class Wrapped:
    """A tensor that is none, but multiplies as one."""

    def __init__(self, value):
        self.value, self.ndim, self.shape = value, value.ndim, value.shape

    def unsqueeze(self, dim):
        return Wrapped(self.value.unsqueeze(dim))

    def squeeze(self, dim):
        return Wrapped(self.value.squeeze(dim))

    def broadcast_to(self, shape):
        return Wrapped(self.value.broadcast_to(shape))

    def __matmul__(self, other):
        return (
            NotImplemented
            if isinstance(other, FactoredMatrix)
            else Wrapped(self.value @ getattr(other, "value", other))
        )

    def __rmatmul__(self, other):
        return Wrapped(other @ self.value)


def test_what_multiplies_as_a_tensor_and_arrays_are_operands():
    matrix, right, left = FactoredMatrix(torch.randn(4, 2), torch.randn(2, 5)), torch.randn(5, 3), torch.randn(3, 4)
    close((matrix @ Wrapped(right)).AB.value, matrix.AB @ right)
    close((Wrapped(left) @ matrix).AB.value, left @ matrix.AB)
    close((matrix @ Wrapped(right[:, 0])).value, matrix.AB @ right[:, 0])
    close((matrix @ right.numpy()).AB, matrix.AB @ right)
    close((left.numpy() @ matrix).AB, left @ matrix.AB)
    with pytest.raises(ShapeError, match="multiplied with matrices and vectors"):
        matrix @ 2.0


def test_vh_is_v_and_warns():
    with pytest.warns(DeprecationWarning, match="not its transpose"):
        assert LED.Vh is LED.V
