"""Cross-validated linear maps: scikit-learn's numbers, classes equally common, whole episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmech.probes.linear import PENALTIES, cross_validated, folds_of

sklearn = pytest.importorskip("sklearn")


def rows(n: int = 300, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.normal(size=d) * 20
    return x, np.repeat(np.arange(n // 10), 10)


def test_ridge_with_nested_folds_is_scikit_learns():
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, episode = rows()
    rng = np.random.default_rng(1)
    y = x @ rng.normal(size=(6, 2)) + 30 * rng.normal(size=(300, 2))
    fold = folds_of(episode, 4, 0)
    found = cross_validated(x, y, fold=fold, target=np.arange(2))

    def model(penalty: float, train: np.ndarray, column: int):
        return make_pipeline(StandardScaler(), Ridge(alpha=penalty * train.sum())).fit(x[train], y[train, column])

    for column in range(2):
        for k in range(4):
            errors = [
                sum(
                    (
                        (model(p, (fold != k) & (fold != j), column).predict(x[fold == j]) - y[fold == j, column]) ** 2
                    ).sum()
                    for j in range(4)
                    if j != k
                )
                for p in PENALTIES
            ]
            best = PENALTIES[int(np.argmin(errors))]
            wanted = model(best, fold != k, column).predict(x[fold == k])
            np.testing.assert_allclose(found.predicted[fold == k, column], wanted, rtol=1e-9)
    everywhere = np.ones(300, bool)
    wanted = model(found.penalty[0], everywhere, 0).predict(x)
    np.testing.assert_allclose(found.final(x)[:, 0], wanted, rtol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_classes_are_told_as_by_linear_discriminant_analysis_with_equal_priors(n_classes: int):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, episode = rows(400)
    rng = np.random.default_rng(2)
    truth = rng.choice(n_classes, size=400, p=np.arange(1, n_classes + 1) / np.arange(1, n_classes + 1).sum())
    x = x + rng.normal(size=(n_classes, 6))[truth] * 3
    fold = folds_of(episode, 4, 0)
    found = cross_validated(x, np.eye(n_classes)[truth], fold=fold, target=np.zeros(n_classes, int), penalties=[1e-12])
    for k in range(4):
        model = LinearDiscriminantAnalysis(priors=np.full(n_classes, 1 / n_classes))
        wanted = model.fit(x[fold != k], truth[fold != k]).predict(x[fold == k])
        assert (found.predicted[fold == k].argmax(1) == wanted).all()
    wanted = LinearDiscriminantAnalysis(priors=np.full(n_classes, 1 / n_classes)).fit(x, truth).predict(x)
    assert (found.final(x).argmax(1) == wanted).all()


def test_targets_and_penalties_do_not_hear_of_each_other():
    x, episode = rows()
    rng = np.random.default_rng(3)
    y = rng.normal(size=(300, 3)) + x[:, :1]
    fold = folds_of(episode, 5, 0)
    together = cross_validated(x, y, fold=fold, target=np.arange(3))
    for column in range(3):
        alone = cross_validated(x, y[:, [column]], fold=fold, target=np.zeros(1, int))
        np.testing.assert_allclose(together.predicted[:, column], alone.predicted[:, 0], rtol=1e-9)


def test_a_feature_that_never_changes_has_no_say():
    x, episode = rows()
    x[:, 2] = 7.0
    y = x[:, [0]]
    found = cross_validated(x, y, fold=folds_of(episode, 3, 0), target=np.zeros(1, int))
    assert np.isfinite(found.predicted).all()
    assert found.final.slope[2, 0] == 0


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=5, max_size=30), n_folds=st.integers(2, 5), seed=st.integers(0, 9))
def test_no_episode_stands_in_two_folds_and_every_fold_has_one(sizes: list[int], n_folds: int, seed: int):
    episode = np.repeat(np.arange(len(sizes)), sizes)
    fold = folds_of(episode, n_folds, seed)
    assert all(len(set(fold[episode == one])) == 1 for one in range(len(sizes)))
    assert set(fold) == set(range(n_folds))


def test_classes_that_have_no_spread_of_their_own_are_told_apart():
    """One number that is the class itself: nothing is left within the classes but rounding."""
    rng = np.random.default_rng(0)
    truth, episode = rng.integers(3, size=300), np.repeat(np.arange(30), 10)
    x = np.array([-1.0, 1.0, 0.3])[truth][:, None]
    for values in (x, np.concatenate([x, rng.normal(size=(300, 2))], axis=1)):
        fold = folds_of(episode, 4, 0)
        found = cross_validated(values, np.eye(3)[truth], fold=fold, target=np.zeros(3, int))
        assert (
            found.predicted.argmax(1) == truth
        ).mean() > 0.66  # the middle class lies on the line between the others
        two = truth < 2
        pair = cross_validated(values[two], np.eye(2)[truth[two]], fold=fold[two], target=np.zeros(2, int))
        assert (pair.predicted.argmax(1) == truth[two]).all()


def test_what_hardly_moves_in_the_training_rows_does_not_blow_up_elsewhere():
    """A vehicle's heading that is noise of rounding in most episodes, and turns in one."""
    x, episode = rows(300, 4)
    rng = np.random.default_rng(3)
    y = (x[:, 0] - x[:, 0].mean())[:, None] / x[:, 0].std()
    rare = 1e-7 * rng.normal(size=(300, 1))
    rare[episode == 7] = 1.0
    fold = folds_of(episode, 5, 0)
    found = cross_validated(np.concatenate([x, rare], axis=1), y, fold=fold, target=np.zeros(1, int))
    assert float(((found.predicted - y) ** 2).sum() / (y**2).sum()) < 0.1
