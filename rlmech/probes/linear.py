"""Linear probes of many targets at once: nested cross-validation over whole episodes from sums over folds.

    z = (x - mean) / spread  over the training rows,   w = argmin |y - z w|^2 + n a |w|^2,   a by the inner folds

Every fold's sums (X'X, X'Y, Y'Y) are taken once; what a fit and its error on other rows need follows from them, for all
targets and penalties together. One eigendecomposition [feature feature] per training set: K (K + 1) / 2 of them.
The same numbers as scikit-learn's `StandardScaler` and `Ridge`, fold by fold, where spreads are within a thousandfold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Rows = Float[np.ndarray, "row feature"]
Columns = Float[np.ndarray, "row column"]
PENALTIES = tuple(10.0**k for k in range(-5, 2))
"""Penalties tried, as shares of the number of training rows, for features of unit spread."""

LEAST_SPREAD = 1e-3
"""Of the largest spread of a feature, what features are divided by at least."""
_FLAT = 1e-9
"""Of the largest variance, what a direction has within classes at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMap:
    """An affine map from activations to the columns of targets, in the activations' own units."""

    slope: Float[np.ndarray, "feature column"]
    offset: Float[np.ndarray, " column"]

    def __call__(self, x: Rows) -> Columns:
        """The columns for some rows."""
        return x @ self.slope + self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What cross-validation gives.

    Attributes:
        predicted: By row, from the map that was fitted without the row's fold: a number, or a score for each class, of
            which the largest is the answer.
        final: The map fitted on all rows, with the penalty that cross-validation chose.
        penalty: That penalty, for each group of columns.
        covariance: Of the activations, over all rows.
    """

    predicted: Columns
    final: LinearMap
    penalty: Float[np.ndarray, " target"]
    covariance: Float[np.ndarray, "feature feature"]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over the rows of one fold, or of several."""

    n: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def of(cls, x: Rows, y: Columns) -> _Sums:
        """Those of some rows."""
        return cls(float(len(x)), x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y * y).sum(0))

    def of_columns(self, columns: Int[np.ndarray, " chosen"]) -> _Sums:
        """Those of some columns."""
        return _Sums(self.n, self.x, self.y[columns], self.xx, self.xy[:, columns], self.yy[columns])

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )


class _Trained:
    """Ridge fits of one training set, for every penalty."""

    def __init__(self, sums: _Sums, penalties: Sequence[float]) -> None:
        self.sums, n = sums, sums.n
        self.mean, self.level = sums.x / n, sums.y / n
        centred = sums.xx - n * np.outer(self.mean, self.mean)
        spread = np.sqrt(np.maximum(np.diag(centred) / n, 0))
        scale = np.sqrt(np.diag(sums.xx) / n)
        moves = spread > 1e-9 * np.where(scale > 0, scale, 1)
        # what hardly moves here may move far in other rows: it is not blown up to the size of all else
        self.spread = np.where(moves, np.maximum(spread, LEAST_SPREAD * spread.max(initial=0)), np.inf)
        gram = centred / np.outer(self.spread, self.spread)
        cross = (sums.xy - n * np.outer(self.mean, self.level)) / self.spread[:, None]
        values, vectors = np.linalg.eigh(gram)
        turned = vectors.T @ cross
        shrunk = turned[:, None] / (np.maximum(values, 0)[:, None, None] + n * np.asarray(penalties)[None, :, None])
        self.weights = np.einsum("fk,kpc->fpc", vectors, shrunk, optimize=True)

    def errors(self, sums: _Sums) -> Float[np.ndarray, "penalty column"]:
        """Squared errors, summed over other rows."""
        mean, level, spread = self.mean, self.level, self.spread
        gram = sums.xx - np.outer(sums.x, mean) - np.outer(mean, sums.x) + sums.n * np.outer(mean, mean)
        gram = gram / np.outer(spread, spread)
        cross = sums.xy - np.outer(mean, sums.y) - np.outer(sums.x, level) + sums.n * np.outer(mean, level)
        cross = cross / spread[:, None]
        own = sums.yy - 2 * level * sums.y + sums.n * level**2
        flat = self.weights.reshape(len(gram), -1)
        through = (gram @ flat).reshape(self.weights.shape)
        return own - 2 * (self.weights * cross[:, None]).sum(0) + (self.weights * through).sum(0)

    def map(self, chosen: Int[np.ndarray, " column"], target: Int[np.ndarray, " column"]) -> LinearMap:
        """The fit of each column with the penalty chosen for it; of classes, their discriminants."""
        slope = self.weights[:, chosen, np.arange(len(chosen))] / self.spread[:, None]
        offset = self.level - self.mean @ slope
        for own in range(int(target.max()) + 1):
            columns = np.flatnonzero(target == own)
            if len(columns) > 1:
                fit = _discriminant(
                    LinearMap(slope=slope[:, columns], offset=offset[columns]), self.sums.of_columns(columns)
                )
                slope[:, columns], offset[columns] = fit.slope, fit.offset
        return LinearMap(slope=slope, offset=offset)


def cross_validated(
    x: Rows,
    y: Columns,
    *,
    fold: Int[np.ndarray, " row"],
    target: Int[np.ndarray, " column"],
    penalties: Sequence[float] = PENALTIES,
) -> Fitted:
    """Fit all columns with nested cross-validation.

    Args:
        x: Activations.
        y: Columns of the targets: a number's own, a class's indicator.
        fold: Which fold a row belongs to, from 0; no episode stands in two.
        target: Which target a column belongs to, from 0; its columns share a penalty.
        penalties: Penalties to choose from.
    """
    centre = x.mean(0)  # sums of squares keep their digits
    x, y = x - centre, np.asarray(y, dtype=float)
    n_folds, n_targets = int(fold.max()) + 1, int(target.max()) + 1
    parts = [_Sums.of(x[fold == k], y[fold == k]) for k in range(n_folds)]
    trained: dict[frozenset[int], _Trained] = {}

    def without(*left_out: int) -> _Trained:
        key = frozenset(left_out)
        if key not in trained:
            trained[key] = _Trained(_total(part for k, part in enumerate(parts) if k not in key), penalties)
        return trained[key]

    def chosen(errors: np.ndarray) -> np.ndarray:
        by_target = np.zeros((len(penalties), n_targets))
        np.add.at(by_target.T, target, errors.T)
        return by_target.argmin(0)

    predicted = np.empty_like(y)
    for k in range(n_folds):
        inner = sum(without(k, j).errors(parts[j]) for j in range(n_folds) if j != k)
        own = chosen(np.asarray(inner))[target]
        predicted[fold == k] = without(k).map(own, target)(x[fold == k])
    outer = chosen(np.asarray(sum(without(k).errors(parts[k]) for k in range(n_folds))))
    everything = _total(parts)
    final = _Trained(everything, penalties).map(outer[target], target)
    mean = everything.x / everything.n
    return Fitted(
        predicted=predicted,
        final=LinearMap(slope=final.slope, offset=final.offset - centre @ final.slope),
        penalty=np.asarray(penalties)[outer],
        covariance=everything.xx / everything.n - np.outer(mean, mean),
    )


def _discriminant(fit: LinearMap, sums: _Sums) -> LinearMap:
    """Linear discriminants of equally common classes with one spread, from the fitted indicators of the same rows.

    The indicators span the discriminants' directions; taking the largest of them as it is would favour the common
    class. Hastie, Tibshirani and Buja 1994, *Flexible Discriminant Analysis by Optimal Scoring*, JASA 89.

    Args:
        fit: Of the indicators, one column a class.
        sums: Over the rows that it was fitted on.
    """
    means = fit((sums.xy / sums.y).T)  # a class's own rows: their indicator is 1
    first = fit.slope.T @ sums.x + sums.n * fit.offset
    second = fit.slope.T @ sums.xx @ fit.slope + np.outer(first, fit.offset)
    second += np.outer(fit.offset, fit.slope.T @ sums.x)
    inside = (second - (means * sums.y[:, None]).T @ means) / sums.n
    middle = means.mean(0)
    apart = means - middle
    values, vectors = np.linalg.eigh(inside)
    # classes may have no spread at all along what tells them apart: what is left of it is rounding, negative perhaps
    least = _FLAT * max(float(values[-1]), float((apart**2).max()), np.finfo(float).tiny)
    turned = apart @ vectors / np.maximum(values, least) @ vectors.T
    offset = (fit.offset - middle) @ turned.T - 0.5 * (turned * apart).sum(1)
    return LinearMap(slope=fit.slope @ turned.T, offset=offset)


def folds_of(episode: np.ndarray, n_folds: int, seed: int) -> Int[np.ndarray, " row"]:
    """A fold for each row, whole episodes together, of about as many rows each."""
    names, number, sizes = np.unique(episode, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    load, where = np.zeros(n_folds), np.empty(len(names), dtype=int)
    for place in order:
        where[place] = int(load.argmin())
        load[where[place]] += sizes[place]
    return where[number]


def _total(parts: Iterable[_Sums]) -> _Sums:
    first, *others = parts
    for part in others:
        first = first + part
    return first
