"""Cross-validation of the probes of a recording, over episodes: what each explains, its controls, and both in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from rlmech.errors import ConfigError
from rlmech.probes.linear import LinearMap, cross_validated, folds_of
from rlmech.probes.logistic import cross_validated_logistic
from rlmech.probes.probe import CONTROLS
from rlmech.probes.targets import Labels
from rlmech.statistics import bootstrap_ratio
from rlmech.untyped import JsonObject

Method = Literal["linear", "logistic"]


GIVEN = 0.999
"""A score on the observation alone from which on a target is called given by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One target's predictions and what they are worth, by episode."""

    gained: np.ndarray
    """Per episode, what was explained: squares of a number, weighted right answers of a class."""
    shuffled: list[np.ndarray]
    total: np.ndarray
    final: LinearMap
    covariance: np.ndarray
    penalty: float


@dataclass(slots=True, kw_only=True)
class CrossValidation:
    """The folds of one recording, and the fits on them."""

    method: Method
    n_folds: int
    n_controls: int
    seed: int
    episode: np.ndarray

    def check(self, labels: Labels) -> None:
        """Refuse what cross-validation over episodes cannot be made of."""
        present = np.isfinite(labels.values).reshape(len(labels.values), -1).any(1)
        n_episodes = len(np.unique(self.episode[present]))
        if self.n_folds < 3 or n_episodes < self.n_folds:
            raise ConfigError(
                "Cross-validation over episodes needs three folds or more, and an episode in each.",
                given=f"n_folds={self.n_folds}, and {n_episodes} episodes in which {labels.name!r} has a value",
                expected="3 to as many folds as episodes",
                fix="record more episodes" if self.n_folds >= 3 else "n_folds=5",
            )
        if self.method == "logistic" and labels.kind == "number":
            raise ConfigError(
                "Logistic probes are for classes.",
                given=f"the number {labels.name!r}",
                expected="truth values, texts or integers of few values",
                fix="method='linear', or make classes of it: lambda r: r.steps['ttc'] < 2",
            )
        if labels.kind == "class":
            rows, _, episode = self.rows(labels)
            fold = folds_of(episode, self.n_folds, self.seed)
            for k in range(self.n_folds):
                there = np.unique(rows[fold == k]).astype(int)
                if len(there) < len(labels.classes):
                    missing = [name for number, name in enumerate(labels.classes) if number not in there]
                    raise ConfigError(
                        f"A class of {labels.name!r} is missing in a fold.",
                        given=f"no row of {', '.join(missing)} in fold {k} of {self.n_folds}",
                        expected="every class in every fold",
                        fix="record more episodes, take fewer folds, or join rare classes",
                    )

    def rows(self, labels: Labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values of the rows that have one, which rows these are, and their episodes."""
        flat = labels.values.reshape(-1)
        there = np.flatnonzero(np.isfinite(flat))
        positions = 1 if labels.values.ndim == 1 else labels.values.shape[1]
        return flat[there], there, self.episode[there // positions]

    def all(self, x: np.ndarray, group: Sequence[Labels], *, shuffle: bool = False) -> dict[str, Scored]:
        """Fit some targets on the same values; those that have a value in the same rows share all their sums."""
        x = x.reshape(-1, x.shape[-1])
        by_rows: dict[bytes, list[Labels]] = {}
        for one in group:
            by_rows.setdefault(np.isfinite(one.values).tobytes(), []).append(one)
        return {
            name: found for same in by_rows.values() for name, found in self._same(x, same, shuffle=shuffle).items()
        }

    def _same(self, x: np.ndarray, group: Sequence[Labels], *, shuffle: bool) -> dict[str, Scored]:
        _, there, episode = self.rows(group[0])
        x, fold = x[there], folds_of(episode, self.n_folds, self.seed)
        columns: list[np.ndarray] = []
        owner: list[int] = []
        truths: list[np.ndarray] = []
        for one in group:
            truth = self.rows(one)[0]
            drawn = [truth]
            if shuffle:
                rng = np.random.default_rng([self.seed, 1])
                drawn += [truth[rng.permutation(len(truth))] for _ in range(self.n_controls)]
            for values in drawn:
                made = values[:, None] if one.kind == "number" else np.eye(len(one.classes))[values.astype(int)]
                owner += [len(truths)] * made.shape[1]
                columns.append(made)
                truths.append(values)
        y, target = np.concatenate(columns, axis=1), np.array(owner)
        fit = cross_validated if self.method == "linear" else cross_validated_logistic
        fitted = fit(x, y, fold=fold, target=target)
        found: dict[str, Scored] = {}
        each = 1 + (self.n_controls if shuffle else 0)
        for place, one in enumerate(group):
            own = range(place * each, (place + 1) * each)
            gained = [self._gained(one, fitted.predicted[:, target == k], truths[k], fold, episode) for k in own]
            first = target == own[0]
            final = LinearMap(slope=fitted.final.slope[:, first], offset=fitted.final.offset[first])
            found[one.name] = Scored(
                gained=gained[0][0],
                total=gained[0][1],
                shuffled=[part for part, _ in gained[1:]],
                final=final,
                covariance=fitted.covariance,
                penalty=float(fitted.penalty[own[0]]),
            )
        return found

    def _gained(
        self, one: Labels, predicted: np.ndarray, truth: np.ndarray, fold: np.ndarray, episode: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if one.kind == "number":
            total = self._around_mean(truth, fold)
            gained = total - (truth - predicted[:, 0]) ** 2
        else:
            labels = truth.astype(int)
            total = (1 / np.bincount(labels))[labels]
            gained = total * (predicted.argmax(1) == labels)
        return _by_episode(gained, episode), _by_episode(total, episode)

    def _around_mean(self, truth: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Squared distances from the mean of the rows outside each row's fold."""
        level = np.empty(len(truth))
        for k in range(self.n_folds):
            level[fold == k] = truth[fold != k].mean()
        return (truth - level) ** 2

    def episode_mean(self, one: Labels) -> np.ndarray:
        """What each episode's own mean, or commonest class, explains, by episode."""
        truth, _, episode = self.rows(one)
        frame = pd.DataFrame({"episode": episode, "y": truth})
        if one.kind == "number":
            own = frame.groupby("episode")["y"].transform("mean").to_numpy()
            fold = folds_of(episode, self.n_folds, self.seed)
            return _by_episode(self._around_mean(truth, fold) - (truth - own) ** 2, episode)
        own = frame.groupby("episode")["y"].transform(lambda y: y.mode().iloc[0]).to_numpy()
        return _by_episode((own == truth) / np.bincount(truth.astype(int))[truth.astype(int)], episode)

    def compare(
        self, one: Labels, trained: Scored, observed: Scored, fresh: Sequence[Scored], episode_mean: np.ndarray
    ) -> JsonObject:
        """Scores, advantages and words for one target at one site."""
        nothing = np.full_like(trained.gained, np.nan)
        gained = {
            "trained": trained.gained,
            "observation": observed.gained,
            "untrained": np.mean([other.gained for other in fresh], axis=0) if fresh else nothing,
            "shuffled": np.mean(trained.shuffled, axis=0) if trained.shuffled else nothing,
            "episode_mean": episode_mean,
        }
        rows = np.stack(list(gained.values()))
        asked = np.concatenate([rows, rows[0] - rows])
        known = np.isfinite(asked).all(1)
        ends = np.full((3, len(asked)), np.nan)
        interval = bootstrap_ratio(asked[known], trained.total, seed=self.seed)
        ends[:, known] = interval.estimate, interval.low, interval.high
        if one.kind == "class":
            ends[:, : len(rows)] = np.clip(ends[:, : len(rows)], 0, 1)  # a share is nothing else
        score, advantage = ends[:, : len(rows)], ends[:, len(rows) :]
        return {
            "score": score,
            "advantage": advantage,
            "penalty": trained.penalty,
            "says": _words(one, score, advantage),
        }


def _words(one: Labels, score: np.ndarray, advantage: np.ndarray) -> str:
    """What the scores say: whether it can be read, and whether the policy had to learn it."""
    at = {name: place for place, name in enumerate(CONTROLS)}
    if not np.isfinite(score[1, 0]):
        return "too few episodes for an interval"
    chance = 0.0 if one.kind == "number" else 1 / len(one.classes)
    if score[1, 0] <= chance or (np.isfinite(advantage[1, at["shuffled"]]) and advantage[1, at["shuffled"]] <= 0):
        return "not decodable"
    if score[0, at["observation"]] >= GIVEN:
        return "decodable, given by the observation itself"
    more = [name for name in ("observation", "untrained") if advantage[1, at[name]] > 0]
    if len(more) == 2:
        return "decodable, better than from the observation and from untrained networks"
    if more:
        other = {"observation": "untrained networks", "untrained": "the observation"}[more[0]]
        named = {"observation": "the observation", "untrained": "untrained networks"}[more[0]]
        return f"decodable, better than from {named}, not than from {other}"
    return "decodable, no better than from the observation or untrained networks"


def _by_episode(values: np.ndarray, episode: np.ndarray) -> np.ndarray:
    _, number = np.unique(episode, return_inverse=True)
    return np.bincount(number, weights=values)
