"""Equal observations are run once, so that they have equal baselines wherever they stand among the others.

What a linear layer gives for a row depends, in its last bit, on the row's place in the batch (odd widths modulo 4) and
on the batch's size. Cost: the bytes of every observation are hashed once, about a microsecond for a kilobyte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.names import Names
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """Which rows of a batch are the same.

    Attributes:
        first: The place of the first row of each kind.
        kind: Of each row, its kind.
    """

    first: Tensor
    kind: Tensor

    def choose(self, obs: Observation) -> Observation:
        """One observation of each kind."""
        if isinstance(obs, Mapping):
            return {key: self._taken(value) for key, value in obs.items()}
        return self._taken(obs)

    def repeat(self, value: Tensor) -> Tensor:
        """What was computed for each kind, for all rows."""
        return value.index_select(0, self.kind.to(value.device))

    def _taken(self, array: Tensor | np.ndarray) -> Tensor | np.ndarray:
        return array[self.first.numpy()] if isinstance(array, np.ndarray) else array[self.first.to(array.device)]


def distinct_rows(arrays: Sequence[Tensor]) -> Distinct | None:
    """Which rows are equal in all arrays, bit for bit; None where no two are.

    Example:
        >>> import torch
        >>> distinct_rows([torch.tensor([[1.0], [2.0], [1.0]])]).kind
        tensor([0, 1, 0])
        >>> distinct_rows([torch.tensor([[1.0], [2.0]])]) is None
        True
    """
    n = len(arrays[0]) if arrays else 0
    if n < 2:
        return None
    numbers: dict[tuple[bytes, ...], int] = {}
    kinds = [numbers.setdefault(row, len(numbers)) for row in zip(*map(_bytes_of_rows, arrays), strict=True)]
    if len(numbers) == n:
        return None
    kind = torch.tensor(kinds)
    first = torch.full((len(numbers),), n).scatter_reduce(0, kind, torch.arange(n), "amin")
    return Distinct(first=first, kind=kind)


def distinct_observations(obs: Observation) -> Distinct | None:
    """The same of observations as they are given; None, too, where they are nothing that a policy takes."""
    arrays = list(obs.values()) if isinstance(obs, Mapping) else [obs]
    tensors: list[Tensor] = []
    for array in arrays:
        if isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and array.ndim:
            tensors.append(torch.as_tensor(np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)))
        elif isinstance(array, Tensor) and array.ndim:
            tensors.append(array)
        else:
            return None
    return distinct_rows(tensors) if len({len(tensor) for tensor in tensors}) == 1 else None


def run_distinct(
    policy: HookedPolicy, obs: Observation, names: Names = None
) -> tuple[Float[Tensor, "batch *choice action"], Mapping[str, Tensor]]:
    """Scores and activations as `run_with_cache` gives them, equal where observations are; without gradients.

    Where something is attached to the policy every row is run: it may tell equal ones apart.
    """
    independent = not (policy.has_hooks or policy.couples_rows)
    distinct = distinct_observations(obs) if independent else None
    with torch.no_grad():
        scores, cache = policy.run_with_cache(obs if distinct is None else distinct.choose(obs), names)
    if distinct is None:
        return scores, cache
    return distinct.repeat(scores), {name: distinct.repeat(value) for name, value in cache.items()}


def _bytes_of_rows(array: Tensor) -> list[bytes]:
    flat = array.detach().reshape(len(array), -1).contiguous().cpu()
    if not flat.numel():
        return [b""] * len(array)
    content = flat.view(torch.uint8).numpy().tobytes()
    width = len(content) // len(array)
    return [content[start : start + width] for start in range(0, len(content), width)]
