"""An estimate with its interval, and how many samples one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from rlmech.untyped import Variables

FEWEST = 4
"""Pairs, clusters or seeds below which no interval is given: three say nothing that an interval could promise."""

Method = Literal["studentised bootstrap", "Wilson's score interval", "Tango's score interval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate per site, with its interval.

    Attributes:
        estimate: The statistic of all pairs.
        low: Lower end; NaN where there are fewer than `FEWEST` pairs. Minus infinity where nothing bounds the
            statistic: a ratio whose denominator is not clear of zero, and nothing but zeros of unknown scale.
        high: Upper end; likewise.
        p: Two-sided p-value that goes with the interval: below 1 - confidence where zero is left out. NaN as the
            ends.
        confidence: Nominal coverage, e.g. 0.95.
        n_pairs: Pairs, or clusters of pairs, that were resampled.
        clustered: Whether they were clusters.
        method: How the ends were found.
        n_resamples: Bootstrap draws; 0 for a score interval.
        seed: Of the generator that drew them.
    """

    estimate: Float[np.ndarray, " site"]
    low: Float[np.ndarray, " site"]
    high: Float[np.ndarray, " site"]
    p: Float[np.ndarray, " site"]
    confidence: float
    n_pairs: int
    clustered: bool
    method: Method
    n_resamples: int
    seed: int

    @property
    def excludes_zero(self) -> Bool[np.ndarray, " site"]:
        """Whether both ends lie on one side of zero; not where there is no interval."""
        return self.low * self.high > 0

    @property
    def attrs(self) -> Variables:
        """How the interval was made, for the attributes of a result."""
        unit = "clusters of pairs" if self.clustered else "pairs"
        few = f"none: {self.n_pairs} {unit} are fewer than the {FEWEST} that an interval takes"
        return {
            "interval": f"{self.method} over {unit}" if self.n_pairs >= FEWEST else few,
            "confidence": self.confidence,
            "n_resampled": self.n_pairs,
            "n_resamples": self.n_resamples,
            "bootstrap_seed": self.seed,
        }
