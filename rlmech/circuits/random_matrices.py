"""Random circuits to compare a head's with: what a number would be if the weights meant nothing.

    gaussian:  A B with independent normal entries,      rotated:  the circuits themselves, turned by a random rotation

Cost: one small decomposition for each draw, on the CPU in float64.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Float64
from torch import Tensor

from rlmech.circuits.factored_matrix import FactoredMatrix
from rlmech.errors import ConfigError

Null = Literal["gaussian", "rotated"]
NULLS: tuple[Null, ...] = ("gaussian", "rotated")
Shape = tuple[int, int, int]
"""Rows, inner dimension and columns of a factored matrix."""


def check_draws(n_controls: int) -> None:
    """Refuse a number of draws that has no standard deviation.

    Raises:
        ConfigError: It is below 2.
    """
    if n_controls < 2:
        raise ConfigError(
            "A baseline needs draws.", given=f"n_controls={n_controls}", expected="2 or more", fix="n_controls=200"
        )


def gaussian_products(shape: Shape, n: int, generator: torch.Generator) -> FactoredMatrix:
    """Products of two matrices of independent standard normal entries, `[draw rows columns]`."""
    rows, inner, columns = shape
    left = torch.randn(n, rows, inner, generator=generator, dtype=torch.float64)
    right = torch.randn(n, inner, columns, generator=generator, dtype=torch.float64)
    return FactoredMatrix(left, right)


def gaussian_compositions(write: Shape, read: Shape, n: int, generator: torch.Generator) -> Float64[Tensor, " draw"]:
    """Composition scores of random circuits of two shapes."""
    writes, reads = gaussian_products(write, n, generator), gaussian_products(read, n, generator)
    left = torch.linalg.qr(writes.A, mode="r").R @ writes.B
    right = reads.A @ torch.linalg.qr(reads.B.mT, mode="r").R.mT
    sizes = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    return torch.linalg.matrix_norm(left @ right) / sizes


def rotated_compositions(
    writes: Float[Tensor, "earlier rank"],
    reads: Float[Tensor, "later inner"],
    d_model: int,
    n: int,
    generator: torch.Generator,
) -> Float[Tensor, "draw earlier later"]:
    """Composition scores of circuits with given singular values, turned at random against each other.

    Args:
        writes: Each earlier head's squared singular values, as shares of their sum.
        reads: Each later head's, likewise.
        d_model: Size of the space in which they are turned.
        n: Draws.
        generator: Their randomness.

    Source:
        Of S_1 V_1^T U U_2 S_2 with U drawn from the rotations' invariant measure only the entries of a block of U
        count, for V_1 and U_2 leave the measure as it is: score^2 = sum_ij s_1i^2 U_ij^2 s_2j^2 / (|s_1|^2 |s_2|^2).
    """
    normal = torch.randn(n, d_model, reads.shape[1], generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(normal).Q[:, : writes.shape[1]]
    shares = einsum(writes, turned**2, reads, "earlier i, draw i j, later j -> draw earlier later")
    return shares.sqrt()


def against(value: Float[np.ndarray, "*axes"], draws: Float[Tensor, draw * axes]) -> dict[str, np.ndarray]:
    """A value among draws of what it would be by chance.

    Returns:
        `random_mean` and `random_std` of the draws, the value's distance from the mean in standard deviations, `z`, and
        `percentile`, the share of draws below it in %; NaN where the value or a draw is.
    """
    drawn = draws.cpu().numpy()
    mean, deviation = drawn.mean(0), drawn.std(0, ddof=1)
    absent = np.where(np.isnan(value) | np.isnan(mean), np.nan, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a value that is the same in every draw
        z = (value - mean) / deviation
    return {
        "random_mean": mean + absent,
        "random_std": deviation + absent,
        "z": z,
        "percentile": 100 * (drawn < value).mean(0) + absent,
    }
