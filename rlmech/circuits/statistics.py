"""What kind of matrix a head's circuit is, and whether one of random weights would be the same.

    positivity = sum lambda / sum |lambda|,   effective rank = exp H(s / sum s),   stable rank = sum s^2 / max s^2

Of QK, of OV, in model space or between features. Each number stands against Gaussian weights of the same shape and
scale. Biases of the weights are left out; in feature space they are a row of their own. Cost: small decompositions.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Complex, Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.circuits.factored_matrix import FactoredMatrix
from rlmech.circuits.feature_space import States
from rlmech.circuits.labels import choose_block
from rlmech.circuits.qk_ov import Space, ov_circuit, ov_factored, qk_circuit, qk_factored
from rlmech.circuits.random_matrices import against, check_draws, gaussian_products
from rlmech.core.policy import HookedPolicy
from rlmech.results import storable

STATISTICS = ("positivity", "effective_rank", "stable_rank", "norm", "spectral_norm")
_SIZES = slice(3, 5)  # those of STATISTICS that grow with the weights
_SIDES = {"qk": ("query", "key"), "ov": ("in", "out")}


@explain_misuse
def circuit_statistics(
    policy: HookedPolicy,
    block: str | None = None,
    *,
    space: Space = "model",
    obs: States | None = None,
    n_controls: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Singular values and vectors, eigenvalues, copying score, ranks and norms of each head's QK and OV circuit.

    Args:
        policy: The policy.
        block: Path of the attention block; None where there is one.
        space: `model` for the products of the weights; `feature` for the forms between features.
        obs: In feature space: states; the circuit is then the mean over them of `qk_circuit` and `ov_circuit`, for each
            entity. Without them the ungated product.
        n_controls: Draws of the baseline.
        seed: Of the draws.

    Returns:
        `value[circuit, head, statistic]` for `qk` and `ov`, and for the statistics `positivity` (-1 to 1; 1 where
        the head copies what it reads, or looks for what is like itself), `effective_rank`, `stable_rank`, `norm`
        (Frobenius) and `spectral_norm`; of the same dimensions `random_mean`, `random_std`, `z` and `percentile` (share
        of draws below, in %). `singular_value[circuit, head, rank]`, `eigenvalue_real` and `eigenvalue_imag`, the
        largest first. Singular vectors `qk_query[head, rank, ...]` and `qk_key`, `ov_in` and `ov_out`, over d_model or
        features and actions, each pair signed so that the left one's largest entry is positive. In feature space all
        have `query` and `entity` too. NaN where the circuit is not square (positivity, eigenvalues), where an entity
        is never there, and where there is nothing to compare with (the norms of a form between features).

    Raises:
        AttentionError: No such block, no weights per head, or, in feature space, no gates to fix.
        ConfigError: An unknown space, or `n_controls` below 2.
        ObservationError: In feature space: the observation is no table of entities.

    Source:
        Positivity: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "copying". Effective rank:
        Roy and Vetterli 2007, EUSIPCO. Stable rank: Rudelson and Vershynin 2007, J. ACM 54.

    Example:
        >>> import rlmech as rlm
        >>> from rlmech.circuits.statistics import circuit_statistics
        >>> found = circuit_statistics(rlm.load("zoo:intersection-ego-attention"))
        >>> bool((found.value.sel(circuit="ov", statistic="effective_rank") <= 16).all())
        True
    """
    policy = policy.fitting(obs)
    check_draws(n_controls)
    found = choose_block(policy, block)
    circuits = {
        "qk": qk_circuit(policy, found.path, space=space, obs=obs if space == "feature" else None),
        "ov": ov_circuit(policy, found.path, space=space, obs=obs if space == "feature" else None),
    }
    matrices = {name: _matrix(circuit.circuit) for name, circuit in circuits.items()}
    scales: dict[str, Tensor | None] = dict.fromkeys(circuits)
    if space == "model":
        matrices = {"qk": qk_factored(policy, found.path), "ov": ov_factored(policy, found.path)}
        scales = {name: _deviation(matrix.A) * _deviation(matrix.B) for name, matrix in matrices.items()}
    parts: list[dict[str, xr.DataArray]] = []
    for name, circuit in circuits.items():
        described = _describe(matrices[name])
        generator = torch.Generator().manual_seed(seed)
        shape = (matrices[name].ldim, found.d_head, matrices[name].rdim)
        draws = _numbers(gaussian_products(shape, n_controls, generator))
        parts.append(_named(circuit.circuit, described, _against(described, draws, scales[name])))
    variables = {name: xr.concat([part[name] for part in parts], "circuit", join="outer") for name in parts[0]}
    vectors = {
        f"{name}_{side}": _vectors(circuits[name].circuit, matrices[name], place)
        for name, sides in _SIDES.items()
        for place, side in enumerate(sides)
    }
    said = {key: value for key, value in circuits["qk"].attrs.items() if key != "spread"}
    joined = xr.merge([xr.Dataset(variables), xr.Dataset(vectors)], join="outer", compat="no_conflicts")
    return storable(joined.assign_coords(circuit=list(circuits)), said | {"n_controls": n_controls, "seed": seed})


def effective_rank(singular_values: Float[Tensor, "*leading rank"]) -> Float[Tensor, "*leading"]:
    """The exponential of the entropy of singular values taken as shares of their sum: 1 to their number.

    Source:
        Roy and Vetterli 2007, *The Effective Rank: a Measure of Effective Dimensionality*, EUSIPCO.

    Example:
        >>> import torch
        >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
        tensor(2.)
    """
    shares = singular_values / singular_values.sum(-1, keepdim=True)
    return (-torch.xlogy(shares, shares).sum(-1)).exp()


def stable_rank(singular_values: Float[Tensor, "*leading rank"]) -> Float[Tensor, "*leading"]:
    """The squared Frobenius norm over the squared spectral norm: 1 to the rank, hardly moved by small singular values.

    Example:
        >>> import torch
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000)
    """
    return (singular_values**2).sum(-1) / singular_values.amax(-1) ** 2


def positivity(eigenvalues: Complex[Tensor, "*leading rank"]) -> Float[Tensor, "*leading"]:
    """The sum of eigenvalues over the sum of their sizes: 1 where all are positive, 0 where they cancel.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "copying".

    Example:
        >>> import torch
        >>> positivity(torch.tensor([3.0, -1.0], dtype=torch.complex64))
        tensor(0.5000)
    """
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)


def _matrix(circuit: xr.DataArray) -> FactoredMatrix:
    """A circuit between features; of an entity that is never there, zeros."""
    values = torch.as_tensor(circuit.fillna(0.0).values)
    return FactoredMatrix(values, torch.eye(values.shape[-1], dtype=values.dtype))


def _deviation(factor: Float[Tensor, "head rows columns"]) -> Float[Tensor, " head"]:
    """The typical size of a factor's entries."""
    return factor.square().mean((-2, -1)).sqrt()


def _numbers(matrix: FactoredMatrix) -> Float[Tensor, "statistic ..."]:
    """`STATISTICS` of some matrices."""
    s = matrix.S
    square = matrix.ldim == matrix.rdim
    copying = positivity(matrix.eigenvalues) if square else torch.full_like(s[..., 0], torch.nan)
    return torch.stack([copying, effective_rank(s), stable_rank(s), matrix.norm(), s[..., 0]])


def _describe(matrix: FactoredMatrix) -> dict[str, np.ndarray]:
    """A circuit's numbers, its singular values and its eigenvalues, the largest of each first."""
    singular = matrix.S
    eigenvalues = torch.full_like(singular, torch.nan) + 0j
    if matrix.ldim == matrix.rdim:
        found = matrix.eigenvalues
        order = found.abs().argsort(-1, descending=True)
        eigenvalues = found.gather(-1, order)[..., : singular.shape[-1]]
    return {
        "value": _numbers(matrix).cpu().double().numpy(),
        "singular_value": singular.cpu().double().numpy(),
        "eigenvalue_real": eigenvalues.real.cpu().double().numpy(),
        "eigenvalue_imag": eigenvalues.imag.cpu().double().numpy(),
    }


def _against(
    described: dict[str, np.ndarray], draws: Float[Tensor, "statistic draw"], scale: Float[Tensor, " head"] | None
) -> dict[str, np.ndarray]:
    """The numbers against those of Gaussian factors of the same shapes and, where there is one, the same scale."""
    values = described["value"]
    by_head = draws[..., None].expand(*draws.shape, values.shape[1]).clone()
    by_head[_SIZES] = by_head[_SIZES] * scale.cpu().double() if scale is not None else torch.nan
    axes = (1, 0, 2, *range(3, 3 + values.ndim - 2))
    spread = by_head.reshape(*by_head.shape, *(1 for _ in values.shape[2:])).permute(axes)
    return against(values, spread.expand(-1, *values.shape))


def _named(
    circuit: xr.DataArray, described: dict[str, np.ndarray], baseline: dict[str, np.ndarray]
) -> dict[str, xr.DataArray]:
    leading = tuple(circuit.dims[:-2])
    coords = {dim: circuit.coords[dim].values for dim in leading}
    there = circuit.notnull().any(circuit.dims[-2:])
    named: dict[str, xr.DataArray] = {}
    for name, values in {**described, **baseline}.items():
        over = name.startswith(("singular", "eigen"))
        dims = (*leading, "rank") if over else ("statistic", *leading)
        last = {"rank": np.arange(values.shape[-1])} if over else {"statistic": list(STATISTICS)}
        array = xr.DataArray(values, dims=dims, coords={**coords, **last})
        ordered = array.where(there).transpose(*leading, *last)
        named[name] = ordered.assign_attrs(units="%" if name == "percentile" else "1")
    return named


def _vectors(circuit: xr.DataArray, matrix: FactoredMatrix, place: int) -> xr.DataArray:
    """Left (0) or right (1) singular vectors, one for each rank."""
    leading, side = tuple(circuit.dims[:-2]), circuit.dims[-2 + place]
    values = (matrix.U, matrix.V)[place].cpu().double().numpy()
    coords = {dim: circuit.coords[dim].values for dim in (*leading, side)}
    coords["rank"] = np.arange(values.shape[-1])
    vectors = xr.DataArray(values, dims=(*leading, side, "rank"), coords=coords, attrs={"units": "1"})
    return vectors.where(circuit.notnull().any(circuit.dims[-2:])).transpose(*leading, "rank", side)
