"""A rule as a network decides as sklearn's does, and as text says the same in the features' own units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

import rlmech as rlm
from rlmech.distil.rules import Column, Lessons, fitted
from rlmech.distil.teaching import columns_of
from rlmech.nets import EgoAttentionNetwork
from tests import networks

COLUMNS = [Column(name=f"c{i}") for i in range(5)]
ACTIONS = ["a", "b", "c", "d"]


def lessons(seed: int, *, n: int = 600, n_actions: int = 3) -> Lessons:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 5)).astype(np.float32)
    rows[:, 1] = np.round(rows[:, 1], 1)  # thresholds fall on numbers that occur twice
    actions = (
        np.digitize(rows[:, 0] + rows[:, 1] ** 2, np.linspace(0, 1.5, n_actions - 1))
        if n_actions > 1
        else rows[:, 0] * 0
    )
    return Lessons(rows=rows, actions=actions.astype(int), weights=rng.exponential(size=n), n_actions=4)


@pytest.mark.parametrize("size", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_tree_as_a_network_decides_as_the_tree_does(size: int, seed: int) -> None:
    taught = lessons(seed)
    network, _ = fitted("tree", taught, size=size, columns=COLUMNS, actions=ACTIONS, seed=3)
    tree = DecisionTreeClassifier(max_leaf_nodes=size, random_state=3)
    tree.fit(taught.rows, taught.actions, sample_weight=taught.weights)
    edges = np.repeat(taught.rows[:1], 200, axis=0)
    inner = tree.tree_.feature >= 0
    for row, (column, threshold) in enumerate(
        zip(tree.tree_.feature[inner], tree.tree_.threshold[inner], strict=True)
    ):  # the last number that lies below each threshold, and the first beyond
        edges[2 * row, column] = np.nextafter(np.float32(threshold), np.float32(-np.inf))
        edges[2 * row + 1, column] = np.nextafter(np.float32(threshold), np.float32(np.inf))
    for rows in (taught.rows, lessons(seed + 10).rows, edges):
        assert np.array_equal(network(torch.as_tensor(rows)).argmax(1).numpy(), tree.predict(rows))


def test_a_leafs_scores_are_the_log_shares_of_its_weights_with_a_step_of_each_action_added() -> None:
    rows = np.array([[-1.0], [-2.0], [3.0], [4.0]], dtype=np.float32)
    taught = Lessons(rows=rows, actions=np.array([0, 0, 1, 1]), weights=np.array([1.0, 3.0, 2.0, 2.0]), n_actions=3)
    network, words = fitted("tree", taught, size=2, columns=[Column(name="x")], actions=["a", "b", "c"], seed=0)
    shares = network(torch.tensor([[-5.0]])).exp()[0]
    torch.testing.assert_close(shares, torch.tensor([3.0, 1.0, 1.0]) / 5)
    assert words == "if x <= 1:\n    a  (50.0% of the steps)\nelse:\n    b  (50.0% of the steps)"


def test_a_linear_rule_reads_as_many_numbers_as_it_was_given_and_decides_as_logistic_regression_does() -> None:
    taught = lessons(2)
    network, words = fitted("linear", taught, size=5, columns=COLUMNS, actions=ACTIONS, seed=0)
    rows = (taught.rows - taught.rows.mean(0)) / taught.rows.std(0)
    model = LogisticRegression(C=10.0, max_iter=1000, random_state=0)
    model.fit(rows, taught.actions, sample_weight=taught.weights)
    same = network(torch.as_tensor(taught.rows)).argmax(1).numpy() == model.predict(rows)
    assert same.mean() > 0.99
    two, words = fitted("linear", taught, size=2, columns=COLUMNS, actions=ACTIONS, seed=0)
    assert {name for name in ("c0", "c1", "c2", "c3", "c4") if name in words} == {"c0", "c1"}
    moved = torch.as_tensor(taught.rows).clone()
    moved[:, 2:] = 9.0
    assert torch.equal(two(moved), two(torch.as_tensor(taught.rows)))


@pytest.mark.parametrize("kind", ["tree", "linear"])
def test_one_action_is_a_rule_without_conditions(kind: str) -> None:
    network, words = fitted(kind, lessons(0, n_actions=1), size=4, columns=COLUMNS, actions=ACTIONS, seed=0)  # type: ignore[arg-type]
    assert words == "a"
    assert (network(torch.rand(7, 5)).argmax(1) == 0).all()
    policy = rlm.HookedPolicy(network.eval(), torch.rand(2, 5))
    assert policy.fingerprint == policy.fingerprint


def test_columns_are_named_by_entity_and_feature_and_thresholds_have_the_features_units() -> None:
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), networks.scenes(2), spec=networks.SPEC)
    columns = columns_of(policy)
    names = [column.name for column in columns]
    assert len(names) == policy.hook_dict["hook_obs"].size("entity") * policy.hook_dict["hook_obs"].size("feature")
    assert names[:2] == [f"{networks.SPEC.entities[0]} {feature.name}" for feature in networks.SPEC.features[:2]]
    position = rlm.FeatureSpec(name="x", unit="m", low=-100.0, high=100.0)
    assert Column(name="vehicle_1 x", feature=position).threshold(0.5) == "50 m"
