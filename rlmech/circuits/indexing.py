"""How a factored matrix reads an index: which part is for a leading dimension, which for a row or a column."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def expand_ellipsis(parts: tuple[object, ...], ndim: int) -> list[object]:
    """The indices with as many full slices as an ellipsis stands for."""
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if not places:
        return list(parts)
    taken = sum(consumes(part) for part in parts if part is not Ellipsis)
    return [*parts[: places[0]], *[slice(None)] * (ndim - taken), *parts[places[0] + 1 :]]


def consumes(part: object) -> int:
    """How many dimensions an index stands for."""
    if part is None:
        return 0
    return part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else 1


def position(parts: list[Any], n_dims: int) -> int:
    """How many of the indices stand for the first n_dims dimensions; None among them included."""
    place = 0
    while place < len(parts) and (n_dims > 0 or parts[place] is None):
        n_dims -= consumes(parts[place])
        place += 1
    return place


def tensor_of(part: object) -> object:
    """Lists and arrays as tensors, a tensor of one number as that number; any other index as it is."""
    if isinstance(part, list | np.ndarray):
        part = torch.as_tensor(np.asarray(part, dtype=None if len(part) else np.int64))
    if isinstance(part, Tensor) and part.ndim == 0 and part.dtype != torch.bool:
        return int(part)
    return part


def takes_index(part: object) -> bool:
    """Whether an index can stand on rows or columns: one dimension of them goes in, and one comes out."""
    if isinstance(part, Tensor):
        return part.ndim == 1
    return part is not None and not isinstance(part, bool | np.bool)


def keeping(part: Any, size: int) -> object:
    """A number as a slice of one; any other index as it is."""
    if isinstance(part, Tensor):  # one of a single element would pass for a number, a mask of one even for 1
        return part
    try:
        number = operator.index(part)
    except TypeError:
        return part
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of range for a dimension of size {size}")
    return slice(number % size, number % size + 1)
