"""Effects with intervals over episodes, and what they say of a claim.

States of one episode resemble each other, so episodes are drawn, not states: 2000 times with replacement, the same
draws for every quantity, so that differences between policies on the same states are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

N_DRAWS = 2000
Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: np.ndarray) -> Estimate:
        """From a value and its bootstrap draws."""
        low, high = np.quantile(draws, [0.025, 0.975])
        return cls(value=float(value), low=float(low), high=float(high))

    def to_json(self) -> dict[str, float]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def means(rows: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the rows `[row, ...]`, and its draws `[draw, ...]`.

    Rows that are not a number are left out, place by place.
    """
    names, member = np.unique(episode, return_inverse=True)
    known = ~np.isnan(rows)
    sums, counts = (np.zeros((len(names), *rows.shape[1:])) for _ in range(2))
    np.add.at(sums, member, np.where(known, rows, 0.0))
    np.add.at(counts, member, known)
    shares = [1 / len(names)] * len(names)
    weights = np.random.default_rng(0).multinomial(len(names), shares, size=N_DRAWS)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = sums.sum(0) / counts.sum(0)
        return value, np.tensordot(weights, sums, axes=1) / np.tensordot(weights, counts, axes=1)


def estimate(rows: np.ndarray, episode: np.ndarray, effect: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """An effect of the mean of rows `[row, ...]`, e.g. a ratio of two of its places."""
    value, draws = means(rows, episode)
    return Estimate.of(float(effect(value[None])[0]), effect(draws))


def wilson(happened: int, of: int) -> Estimate:
    """A rate with Wilson's 95 % interval."""
    z = 1.959963984540054
    rate = happened / of
    middle = (rate + z**2 / (2 * of)) / (1 + z**2 / of)
    reach = z / (1 + z**2 / of) * np.sqrt(rate * (1 - rate) / of + z**2 / (4 * of**2))
    return Estimate(value=rate, low=float(max(0.0, middle - reach)), high=float(min(1.0, middle + reach)))


def verdict(effect: Estimate, *, enough: float, over: dict[str, Estimate]) -> Verdict:
    """What an effect says of a claim.

    Args:
        effect: The effect, larger the better for the claim.
        enough: The smallest effect that would bear the claim out, fixed beforehand.
        over: By how much it is more than each of its controls.

    Returns:
        `holds`: the whole interval is beyond `enough`, and beyond every control. `does not hold`: the whole interval
        falls short of `enough`, or the effect is surely no more than that of a control. Else `cannot be told`.
    """
    if effect.low > enough and all(more.low > 0 for more in over.values()):
        return "holds"
    if effect.high < enough or any(more.high < 0 for more in over.values()):
        return "does not hold"
    return "cannot be told"
