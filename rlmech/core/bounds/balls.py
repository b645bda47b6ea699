"""Balls around an observation, in a norm other than the box's own: {x0 + r d, |d|_p <= 1}, r for each number.

A linear function rises by no more than the dual norm of its slopes times the radii: |r * slope|_q, 1/p + 1/q = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """A ball around an observation.

    Attributes:
        norm: 1 or 2.
        radii: For each array of the observation how far each number moves where it moves alone.
    """

    norm: int
    radii: tuple[Tensor, ...]

    def reach(self, slopes: Sequence[Tensor]) -> Float[Tensor, "bound batch 1"]:
        """How much linear functions rise at most from the observation on."""
        moved = torch.cat([(slope * by).flatten(2) for slope, by in zip(slopes, self.radii, strict=True)], dim=2)
        return torch.linalg.vector_norm(moved, 2 if self.norm == 2 else torch.inf, dim=2, keepdim=True)
