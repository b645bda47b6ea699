"""Logistic probes: scikit-learn's, with balanced classes, and the penalty chosen by folds inside the training folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rlmech.errors import ConfigError
from rlmech.probes.linear import LEAST_SPREAD, Columns, Fitted, LinearMap, Rows

PENALTIES = (1e-4, 1e-2, 1.0)
"""Penalties tried, as shares of the number of training rows, for features of unit spread."""
MOST_STEPS = 500


def cross_validated_logistic(
    x: Rows,
    y: Columns,
    *,
    fold: Int[np.ndarray, " row"],
    target: Int[np.ndarray, " column"],
    penalties: Sequence[float] = PENALTIES,
) -> Fitted:
    """As `cross_validated`, for indicators of classes; the columns are log-odds.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    n_folds, n_targets = int(fold.max()) + 1, int(target.max()) + 1
    predicted = np.empty(y.shape)
    slope, offset = np.empty((x.shape[1], y.shape[1])), np.empty(y.shape[1])
    chosen = np.empty(n_targets)
    for number in range(n_targets):
        own = target == number
        truth = y[:, own].argmax(1)
        for k in range(n_folds):
            train = fold != k
            penalty = _best(x[train], truth[train], fold[train], penalties)
            model = _fit(x[train], truth[train], penalty)
            predicted[np.ix_(fold == k, own)] = model(x[fold == k])
        chosen[number] = _best(x, truth, fold, penalties)
        final = _fit(x, truth, chosen[number])
        slope[:, own], offset[own] = final.slope, final.offset
    return Fitted(
        predicted=predicted,
        final=LinearMap(slope=slope, offset=offset),
        penalty=chosen,
        covariance=np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], x.shape[1]),
    )


def _best(x: Rows, truth: np.ndarray, fold: np.ndarray, penalties: Sequence[float]) -> float:
    losses: list[float] = []
    for penalty in penalties:
        loss = 0.0
        for k in np.unique(fold):
            train = fold != k
            log_odds = _fit(x[train], truth[train], penalty)(x[~train])
            log_odds = log_odds - log_odds.max(1, keepdims=True)
            chance = log_odds - np.log(np.exp(log_odds).sum(1, keepdims=True))
            weight = len(truth) / np.bincount(truth)[truth[~train]]
            loss -= float((weight * chance[np.arange(len(chance)), truth[~train]]).sum())
        losses.append(loss)
    return float(penalties[int(np.argmin(losses))])


def _fit(x: Rows, truth: np.ndarray, penalty: float) -> LinearMap:
    model: Any = _scikit_learn()(C=1 / (penalty * len(x)), class_weight="balanced", max_iter=MOST_STEPS)
    mean, spread = x.mean(0), x.std(0)
    moves = spread > 1e-9 * np.maximum(np.abs(x).max(0), 1e-300)
    spread = np.where(moves, np.maximum(spread, LEAST_SPREAD * spread.max(initial=0)), np.inf)
    model.fit((x - mean) / spread, truth)
    slope, offset = model.coef_.T / spread[:, None], model.intercept_ - mean @ (model.coef_.T / spread[:, None])
    if slope.shape[1] == 1:  # of two classes scikit-learn gives the second one's log-odds
        slope, offset = np.concatenate([-slope / 2, slope / 2], axis=1), np.concatenate([-offset / 2, offset / 2])
    return LinearMap(slope=slope, offset=offset)


def _scikit_learn() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError(
            "Logistic probes need scikit-learn.",
            given="it is not installed",
            expected="scikit-learn 1.5 or later",
            fix="pip install 'rlmech[probes]'",
        ) from error
    return LogisticRegression
