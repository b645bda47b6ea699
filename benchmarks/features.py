"""Probes of all sites with their controls, beside a loop of scikit-learn fits; a dictionary. CPU seconds, one thread.

The shipped attention policy. The loop fits and scores the same nested folds and penalties one by one, on one site; its
predictions are ours, which is checked. Exact Shapley values have a benchmark of their own (`benchmarks.shapley`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

import rlmech as rlm
from rlmech.probes.linear import PENALTIES, cross_validated, folds_of
from rlmech.probes.states import recorded

Result = TypeVar("Result")
N_TARGETS, N_FOLDS = 20, 5
PROBED = "q_net.3.hook_out"
_STEPS_AN_EPISODE = 8


def measure(*, n_states: int = 10_000, n_vectors: int = 100_000) -> Iterator[dict[str, object]]:
    """A row for each thing that is measured."""
    policy = rlm.load("zoo:intersection-ego-attention")
    env = rlm.make_env(policy.spec)
    recording = rlm.record(policy, env, seeds=range(n_states // _STEPS_AN_EPISODE), progress=False)
    targets = _targets(recording)
    seconds, found = _timed(lambda: rlm.probes.fit_probe(policy, recording, target=targets))
    n_sites, n = found.scores.sizes["site"], len(recording.steps)
    yield _row(f"probes: {n_sites} sites x {len(targets)} targets x controls, {n} states", seconds, "< 120")
    x = recorded(policy, recording, rlm.Site(PROBED))
    y = np.stack([target(recording) for target in targets.values()], axis=1)
    fold = folds_of(recording.steps["episode"].to_numpy(), N_FOLDS, 0)
    ours, fitted = _timed(lambda: cross_validated(x, y, fold=fold, target=np.arange(y.shape[1])))
    loop, predicted = _timed(lambda: _scikit_learn(x, y, fold))
    yield _row(f"one site, {len(targets)} targets, nested folds", ours, "")
    yield _row("the same by scikit-learn, fit by fit", loop, ">= 5 times") | {
        "times": loop / ours,
        "largest_difference": float(np.abs(predicted - fitted.predicted).max() / y.std()),
    }
    vectors = _vectors(recording, n_vectors)
    seconds, made = _timed(lambda: rlm.features.fit_dictionary(policy, vectors, site=PROBED, n_features=512, k=8))
    yield _row(f"dictionary: {made.layout.width} -> {len(made)} features, {made.n_fitted} vectors", seconds, "< 180")


def _targets(recording: rlm.Recording) -> dict[str, Callable[[rlm.Recording], np.ndarray]]:
    """What each of the first rows says, squared and crossed, so that no site holds it by itself."""
    seen = recording.observations
    found: dict[str, Callable[[rlm.Recording], np.ndarray]] = {}
    for row in range(seen.shape[1]):
        for feature in range(1, seen.shape[2]):
            if len(found) < N_TARGETS and np.std(seen[:, row, feature]) > 1e-3:
                found[f"{row} {feature}"] = lambda r, a=row, b=feature: r.observations[:, a, b].astype(float) ** 2
    return found


def _scikit_learn(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def model(penalty: float, train: np.ndarray, column: int):
        return make_pipeline(StandardScaler(), Ridge(alpha=penalty * train.sum())).fit(x[train], y[train, column])

    predicted = np.empty_like(y)
    for column in range(y.shape[1]):
        for k in range(N_FOLDS):
            errors = [
                sum(
                    (
                        (model(p, (fold != k) & (fold != j), column).predict(x[fold == j]) - y[fold == j, column]) ** 2
                    ).sum()
                    for j in range(N_FOLDS)
                    if j != k
                )
                for p in PENALTIES
            ]
            best = PENALTIES[int(np.argmin(errors))]
            predicted[fold == k, column] = model(best, fold != k, column).predict(x[fold == k])
    return predicted


def _vectors(recording: rlm.Recording, n: int) -> torch.Tensor:
    """Recorded states, moved a little where there is something, as many as asked for."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.as_tensor(recording.observations)
    rows = torch.randint(len(seen), (n,), generator=generator)
    moved = torch.randn(n, *seen.shape[1:], generator=generator) * 0.01
    moved[..., 0] = 0
    return seen[rows] + moved * (seen[rows][..., :1] >= 0.5)


def _timed(call: Callable[[], Result]) -> tuple[float, Result]:
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


def _row(what: str, seconds: float, aim: str) -> dict[str, object]:
    return {"measured": what, "CPU_seconds": seconds, "aim": aim, "times": "", "largest_difference": ""}
