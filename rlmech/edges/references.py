"""What edges outside a circuit carry: the corrupt run's values, another run's, the mean over the data, or zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rlmech.edges.components import ComponentGraph
from rlmech.errors import ObservationError

CircuitAblation = Literal["patch", "zero", "mean", "resample"]
ABLATIONS: tuple[CircuitAblation, ...] = ("patch", "zero", "mean", "resample")
CONSISTENT: tuple[CircuitAblation, ...] = ("patch", "resample")
"""Where a reference is one run: a unit that hears nothing but the reference then has its reference value itself."""


@torch.no_grad()
def reference_values(
    graph: ComponentGraph,
    *,
    ablation: CircuitAblation,
    clean: Sequence[Tensor],
    corrupt: Sequence[Tensor],
    dataset: Sequence[Tensor],
    seed: int,
) -> dict[int, Tensor]:
    """The reference values of all stages, `[pair …]`.

    Args:
        graph: Units and edges.
        ablation: `patch`: the corrupt run of the pair; `resample`: the clean run of another pair, one and the same for
            all units; `mean`: over the dataset, element by element (of a boolean unit, the majority); `zero`.
        clean: The base runs' observations.
        corrupt: Their counterparts.
        dataset: Observations that means are taken over.
        seed: Of the rows that are drawn.

    Raises:
        ObservationError: There is only one row to resample from.
    """
    match ablation:
        case "patch":
            return graph.values(corrupt)
        case "resample":
            drawn = torch.from_numpy(other_rows(clean[0].shape[0], seed=seed))
            return graph.values([array[drawn] for array in clean])
        case "mean":
            means = {stage: value.double().mean(0, keepdim=True) for stage, value in graph.values(dataset).items()}
        case "zero":
            means = {stage: torch.zeros_like(value[:1], dtype=torch.double) for stage, value in _one(graph, clean)}
    typed = {stage: _like(means[stage], value) for stage, value in _one(graph, clean)}
    n_pairs = clean[0].shape[0]
    return {stage: value.expand(n_pairs, *value.shape[1:]) for stage, value in typed.items()}


def other_rows(n: int, *, seed: int | Sequence[int]) -> Int[np.ndarray, " pair"]:
    """For each of n rows another one, drawn so that every row serves once: a random cycle through all of them.

    Raises:
        ObservationError: There is only one.
    """
    if n < 2:
        raise ObservationError(
            "There is no other row to resample from.",
            given=f"{n} rows",
            expected="at least 2",
            fix="give more observations, or another ablation",
        )
    order = np.random.default_rng(seed).permutation(n)
    drawn = np.empty(n, dtype=np.int64)
    drawn[order] = np.roll(order, 1)
    return drawn


def _one(graph: ComponentGraph, arrays: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    return list(graph.values([array[:1] for array in arrays]).items())


def _like(mean: Tensor, value: Tensor) -> Tensor:
    return mean > 0.5 if value.dtype == torch.bool else mean.to(value.dtype)
