"""How alike two representations of the same states are, with intervals over episodes.

    linear CKA    |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms of centred values
    CCA           mean canonical correlation of the directions that hold 99 % of each one's variance
    neighbours    share of a state's k nearest states of other episodes that it has in both

CKA and CCA do not change with rotations and isotropic scalings of either side. Their intervals are jackknives over
episodes, those of neighbours bootstraps. Cost: products [number row] x [row number], distances of all pairs of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.spatial
import scipy.special
from jaxtyping import Float

from rlmech.statistics import FEWEST

KEPT = 0.99
"""Share of the variance whose directions CCA looks at (SVCCA)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over the states of each episode, from which CKA and CCA of any of them follow."""

    n: Float[np.ndarray, " episode"]
    x: Float[np.ndarray, "episode number"]
    y: Float[np.ndarray, "episode number_y"]
    xx: Float[np.ndarray, "episode number number"]
    yy: Float[np.ndarray, "episode number_y number_y"]
    xy: Float[np.ndarray, "episode number number_y"]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, episode: np.ndarray) -> Sums:
        """The sums of two representations, a row a state."""
        x, y = x - x.mean(0), y - y.mean(0)
        labels, number = np.unique(episode, return_inverse=True)
        rows = [np.flatnonzero(number == k) for k in range(len(labels))]
        return cls(
            n=np.array([len(own) for own in rows], dtype=float),
            x=np.stack([x[own].sum(0) for own in rows]),
            y=np.stack([y[own].sum(0) for own in rows]),
            xx=np.stack([x[own].T @ x[own] for own in rows]),
            yy=np.stack([y[own].T @ y[own] for own in rows]),
            xy=np.stack([x[own].T @ y[own] for own in rows]),
        )

    def covariances(self, without: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scatter of x, of y, and between them, around the means; of all episodes, or all but one."""
        n, x, y, xx, yy, xy = (
            part.sum(0) - (0 if without is None else part[without])
            for part in (self.n, self.x, self.y, self.xx, self.yy, self.xy)
        )
        return xx - np.outer(x, x) / n, yy - np.outer(y, y) / n, xy - np.outer(x, y) / n


def linear_cka(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Linear centred kernel alignment from scatter matrices."""
    scale = float(np.linalg.norm(xx) * np.linalg.norm(yy))
    return float(np.linalg.norm(xy) ** 2 / scale) if scale > 0 else float("nan")


def canonical_correlation(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Mean canonical correlation of the directions that hold 99 % of each side's variance."""
    first, second = _whitening(xx), _whitening(yy)
    if not first.shape[1] or not second.shape[1]:
        return float("nan")
    found = np.linalg.svd(first.T @ xy @ second, compute_uv=False)
    return float(np.clip(found, 0, 1).mean())


def _whitening(scatter: np.ndarray) -> np.ndarray:
    sizes, directions = scipy.linalg.eigh(scatter)
    sizes, directions = np.clip(sizes[::-1], 0, None), directions[:, ::-1]
    if sizes[0] <= 0:
        return directions[:, :0]
    n = int(np.searchsorted(np.cumsum(sizes) / sizes.sum(), KEPT - 1e-12)) + 1
    return directions[:, :n] / np.sqrt(sizes[:n])


def jackknife(
    sums: list[Sums], statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float], *, less: Sums | None = None
) -> tuple[float, float, float]:
    """The mean of a statistic over several pairs of representations, with a 95 % interval over episodes.

    Args:
        sums: One for each pair, of the same episodes.
        statistic: Of scatter matrices, between 0 and 1.
        less: Another pair; None for the statistic itself, else its value less the mean of `sums`.
    """

    def value(without: int | None) -> float:
        found = float(np.mean([statistic(*one.covariances(without)) for one in sums]))
        return found if less is None else statistic(*less.covariances(without)) - found

    whole, n = value(None), len(sums[0].n)
    if n < FEWEST or not np.isfinite(whole):
        return whole, float("nan"), float("nan")
    left_out = np.array([value(k) for k in range(n)])
    error = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    half = float(scipy.special.stdtrit(n - 1, 0.975)) * error
    low, high = whole - half, whole + half
    return whole, *((low, high) if less is not None else (max(0.0, low), min(1.0, high)))


def shared_neighbours(x: np.ndarray, y: np.ndarray, episode: np.ndarray, k: int) -> Float[np.ndarray, " row"]:
    """Of each state, the share of its k nearest states of other episodes that are the same in both."""
    nearest = [_nearest(values, episode, k) for values in (x, y)]
    return np.array([len(set(a) & set(b)) / k for a, b in zip(*nearest, strict=True)])


def _nearest(values: np.ndarray, episode: np.ndarray, k: int) -> np.ndarray:
    distance = scipy.spatial.distance.cdist(values, values, "sqeuclidean")
    distance[episode[:, None] == episode[None]] = np.inf  # neighbours in time are near in everything
    return np.argpartition(distance, k, axis=1)[:, :k]
