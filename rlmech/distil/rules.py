"""Rules as networks and as text: a decision tree of sklearn's, and a linear rule that reads a few features.

A tree is three matrix products: which conditions hold, which leaf's conditions all hold, what that leaf says. So a
student is a policy as any other, with hook points. Its scores are logits: the log share of each action in the leaf,
one step of each action added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlmech.errors import MissingPackageError
from rlmech.spec import FeatureSpec

Kind = Literal["tree", "linear"]
_MOST_ITERATIONS = 1000
_INDENT = "    "


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One number of an observation: its name, and its feature where the spec has one.

    Attributes:
        name: Its name, e.g. `vehicle_1 x`.
        feature: Its unit and range.
    """

    name: str
    feature: FeatureSpec | None = None

    def threshold(self, value: float) -> str:
        """A value of it, in its physical unit."""
        if self.feature is None:
            return f"{value:.4g}"
        physical = float(self.feature.physical(np.array([value]))[0])
        return f"{physical:.4g} {self.feature.unit}".rstrip()


class TreeNetwork(nn.Module):
    """A decision tree, `[batch ...]` to `[batch action]`.

    Args:
        column: By condition, which number of the flat observation it is about.
        threshold: By condition; it holds above.
        wanted: By condition and leaf: 1 where it must hold, -1 where it must not, 0 elsewhere.
        logits: By leaf and action.
    """

    def __init__(
        self,
        column: Int[np.ndarray, " condition"],
        threshold: Float[np.ndarray, " condition"],
        wanted: Float[np.ndarray, "condition leaf"],
        logits: Float[np.ndarray, "leaf action"],
    ) -> None:
        super().__init__()
        self.register_buffer("column", torch.as_tensor(column, dtype=torch.long))
        self.register_buffer("threshold", torch.as_tensor(_downward(threshold)))
        self.register_buffer("wanted", torch.as_tensor(wanted, dtype=torch.float32))
        needed = np.abs(wanted).sum(0) - (wanted < 0).sum(0)  # how many more hold than must not, at the leaf
        self.register_buffer("needed", torch.as_tensor(needed - 0.5, dtype=torch.float32))
        self.register_buffer("logits", torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, obs: Tensor) -> Tensor:
        """Logits of a batch."""
        flat = obs.flatten(1)
        holds = (flat.index_select(1, self.get_buffer("column")) > self.get_buffer("threshold")).to(flat.dtype)
        leaf = (holds @ self.get_buffer("wanted") > self.get_buffer("needed")).to(flat.dtype)
        return leaf @ self.get_buffer("logits")


class LinearNetwork(nn.Module):
    """Scores that are linear in some numbers of the flat observation.

    Args:
        column: Which numbers.
        weight: By action and number.
        bias: By action.
    """

    def __init__(
        self,
        column: Int[np.ndarray, " number"],
        weight: Float[np.ndarray, "action number"],
        bias: Float[np.ndarray, " action"],
    ) -> None:
        super().__init__()
        self.register_buffer("column", torch.as_tensor(column, dtype=torch.long))
        self.rule = nn.Linear(len(column), len(bias))
        with torch.no_grad():
            self.rule.weight.copy_(torch.as_tensor(weight))
            self.rule.bias.copy_(torch.as_tensor(bias))

    def forward(self, obs: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.rule(obs.flatten(1).index_select(1, self.get_buffer("column")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What a student learns from.

    Attributes:
        rows: Flat observations.
        actions: What the policy does there.
        weights: How much it matters to it.
        n_actions: How many actions there are.
    """

    rows: Float[np.ndarray, "row number"]
    actions: Int[np.ndarray, " row"]
    weights: Float[np.ndarray, " row"]
    n_actions: int


def fitted(
    kind: Kind, lessons: Lessons, *, size: int, columns: Sequence[Column], actions: Sequence[str], seed: int
) -> tuple[nn.Module, str]:
    """A student of one size, as a network and as text.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise MissingPackageError(
            "Students are fitted by scikit-learn, which is not installed.",
            given="no package 'sklearn'",
            expected="scikit-learn 1.5 or later",
            fix="pip install 'rlmech[probes]'",
        )
    grow = _tree if kind == "tree" else _linear
    return grow(lessons, size, columns, actions, seed)


def _tree(
    lessons: Lessons, size: int, columns: Sequence[Column], actions: Sequence[str], seed: int
) -> tuple[nn.Module, str]:
    from sklearn.tree import DecisionTreeClassifier

    made = DecisionTreeClassifier(max_leaf_nodes=size, random_state=seed) if size > 1 else None
    if made is None or len(np.unique(lessons.actions)) == 1:
        held = np.bincount(lessons.actions, weights=lessons.weights, minlength=lessons.n_actions)
        logits = _logits(np.bincount(lessons.actions, minlength=lessons.n_actions).astype(float), held)
        nothing = np.zeros(0)
        return TreeNetwork(nothing.astype(int), nothing, np.zeros((0, 1)), logits[None]), actions[int(logits.argmax())]
    made.fit(lessons.rows, lessons.actions, sample_weight=lessons.weights)
    tree = made.tree_
    inner = np.flatnonzero(tree.children_left >= 0)
    leaves = np.flatnonzero(tree.children_left < 0)
    place, leaf_of = {int(node): i for i, node in enumerate(inner)}, {int(node): i for i, node in enumerate(leaves)}
    wanted = np.zeros((len(inner), len(leaves)))
    _mark(tree, 0, {}, place, leaf_of, wanted)
    at = made.apply(lessons.rows)
    counts = np.zeros((len(leaves), lessons.n_actions))
    held = np.zeros_like(counts)
    rows = np.array([leaf_of[int(node)] for node in at])
    np.add.at(counts, (rows, lessons.actions), 1)
    np.add.at(held, (rows, lessons.actions), lessons.weights)
    logits = np.stack([_logits(count, weight) for count, weight in zip(counts, held, strict=True)])
    network = TreeNetwork(tree.feature[inner].astype(np.int64), tree.threshold[inner], wanted, logits)
    shares = counts.sum(1) / counts.sum()
    said = [
        f"{actions[int(row.argmax())]}  ({share:.1%} of the steps)" for row, share in zip(logits, shares, strict=True)
    ]
    return network, "\n".join(_lines(tree, 0, columns, dict(zip(leaves.tolist(), said, strict=True)), ""))


def _logits(count: Float[np.ndarray, " action"], weight: Float[np.ndarray, " action"]) -> Float[np.ndarray, " action"]:
    """Log shares of the weights, one step of each action added."""
    held = weight * (count.sum() / weight.sum()) if weight.sum() > 0 else count
    return np.log((held + 1) / (held.sum() + len(held)))


def _mark(
    tree: Any,
    node: int,
    path: dict[int, int],
    place: Mapping[int, int],
    leaf_of: Mapping[int, int],
    wanted: Float[np.ndarray, "condition leaf"],
) -> None:
    """Which conditions each leaf below a node wants."""
    if tree.children_left[node] < 0:
        for condition, sign in path.items():
            wanted[place[condition], leaf_of[node]] = sign
        return
    _mark(tree, int(tree.children_left[node]), {**path, node: -1}, place, leaf_of, wanted)
    _mark(tree, int(tree.children_right[node]), {**path, node: 1}, place, leaf_of, wanted)


def _lines(tree: Any, node: int, columns: Sequence[Column], said: Mapping[int, str], indent: str) -> list[str]:
    """The part of a tree below a node, in words."""
    if tree.children_left[node] < 0:
        return [f"{indent}{said[node]}"]
    column = columns[int(tree.feature[node])]
    condition = f"{column.name} <= {column.threshold(float(tree.threshold[node]))}"
    return [
        f"{indent}if {condition}:",
        *_lines(tree, int(tree.children_left[node]), columns, said, indent + _INDENT),
        f"{indent}else:",
        *_lines(tree, int(tree.children_right[node]), columns, said, indent + _INDENT),
    ]


def _linear(
    lessons: Lessons, size: int, columns: Sequence[Column], actions: Sequence[str], seed: int
) -> tuple[nn.Module, str]:
    from sklearn.linear_model import LogisticRegression

    present = np.unique(lessons.actions)
    if len(present) == 1:
        weight, bias = np.zeros((lessons.n_actions, 1)), np.where(np.arange(lessons.n_actions) == present[0], 0.0, -9.0)
        return LinearNetwork(np.zeros(1, dtype=int), weight, bias), actions[int(present[0])]
    mean, spread = lessons.rows.mean(0), lessons.rows.std(0)
    varied = np.flatnonzero(spread > 0)

    def fit(chosen: np.ndarray) -> LogisticRegression:
        rows = (lessons.rows[:, chosen] - mean[chosen]) / spread[chosen]
        model = LogisticRegression(C=10.0, max_iter=_MOST_ITERATIONS, random_state=seed)
        return model.fit(rows, lessons.actions, sample_weight=lessons.weights)

    whole = fit(varied)
    kept = np.sort(varied[np.argsort(-np.abs(whole.coef_).max(0), kind="stable")[:size]])
    model = fit(kept)
    coef, bias = np.zeros((lessons.n_actions, len(kept))), np.full(lessons.n_actions, -9.0)
    if len(present) == 2:  # sklearn gives the second class's logit against the first
        coef[present[1]], bias[present] = model.coef_[0], np.append(0.0, model.intercept_)
    else:
        coef[present], bias[present] = model.coef_, model.intercept_
    weight = coef / spread[kept]
    network = LinearNetwork(kept, weight, bias - weight @ mean[kept])
    terms = [f"({columns[k].name} - {columns[k].threshold(float(mean[k]))}) / sd" for k in kept]
    lines: list[str] = []
    for action in present:
        summed = " ".join(f"{value:+.3g} * {term}" for value, term in zip(coef[action], terms, strict=True))
        lines.append(f"{actions[int(action)]}: {summed} {bias[action]:+.3g}")
    return network, "\n".join(lines)


def _downward(threshold: Float[np.ndarray, " condition"]) -> Float[np.ndarray, " condition"]:
    """Thresholds in single precision: the largest that is not above, so that the same numbers lie beyond it."""
    narrow = threshold.astype(np.float32)
    return np.where(narrow > threshold, np.nextafter(narrow, np.float32(-np.inf)), narrow).astype(np.float32)
