"""Probes with their controls: what can be read off a site, and what could have been read without it.

    number: R2 = 1 - sum (y - predicted)^2 / sum (y - mean of the training folds)^2    class: balanced accuracy

Predictions are of rows whose episode no fit has seen, the penalty chosen by inner folds that it has not seen either.
Cost: one pass over the states and K (K + 1) / 2 eigendecompositions for each site, however many targets; the controls
cost the same again for each untrained network. A probe says that something can be read, not that the policy reads it:
`is_used` asks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.patching.provenance import provenance
from rlmech.patching.sites import Sites, choose_sites, site_coordinates
from rlmech.probes.linear import LinearMap, cross_validated, folds_of
from rlmech.probes.logistic import cross_validated_logistic
from rlmech.probes.probe import CONTROLS, Probe, Probes
from rlmech.probes.states import activations, entity_axis, states_of, untrained
from rlmech.probes.targets import Labels, Target, read_targets
from rlmech.results import storable
from rlmech.statistics import bootstrap_ratio

Method = Literal["linear", "logistic"]
GIVEN = 0.999
"""A score on the observation alone from which on a target is called given by it."""


@explain_misuse
def fit_probe(
    policy: HookedPolicy,
    recording: Recording,
    *,
    target: Target | Iterable[Target] | Mapping[str, Target],
    sites: Sites = "auto",
    step_offset: int = 0,
    method: Method = "linear",
    n_folds: int = 5,
    n_controls: int = 5,
    n_untrained: int = 3,
    seed: int = 0,
) -> Probes:
    """Fit a probe for every target at every site, with the same probe where it should find nothing or everything.

    Args:
        policy: The policy that was recorded.
        recording: Its episodes.
        target: What to read: a column of `recording.steps` (`ttc`, `action`, `crashed`), a function of the recording,
            what `within`, `of_entity` and `entities` make, several of them, or a mapping of names to them.
        sites: Where, as in sweeps. A hook point's whole value is read, unless the site selects.
        step_offset: Read the target that many steps later in the same episode: does it know before?
        method: `linear`: ridge regression, for classes linear discriminant analysis of equally common classes.
            `logistic`: scikit-learn's, with balanced classes; for classes only, and slower by far.
        n_folds: Folds of whole episodes.
        n_controls: Times that the labels are shuffled.
        n_untrained: Networks of the same architecture with fresh weights.
        seed: Of folds, shuffles, fresh weights and the bootstrap.

    Returns:
        `scores` with dimensions `target`, `site` and `control`: `score` (R2 of a number, balanced accuracy of a class:
        chance is 1 / number of classes), `score_low`, `score_high` (95 %, bootstrap over episodes) for `trained` (the
        policy), `observation` (the same probe on what the policy sees), `untrained`, `shuffled` (means over their
        draws) and `episode_mean` (each episode's own mean or commonest class, which no probe may know);
        `advantage[target, site, control]`, the policy's score minus the control's, with interval; `says[target, site]`
        in words; `kind`, `units`, `n_rows`, `n_left_out`, `commonest` (share of the commonest class) by target;
        `penalty[target, site]`. `probe(target, site)` is the readout itself, with `direction()` and `pattern()`.

    Raises:
        ConfigError: A constant target, one class in a fold, fewer episodes than folds, or no such column.
        RecordingError: The recording is of another policy.
        SiteError: No such site.

    Source:
        Alain and Bengio 2016, arXiv 1610.01644; Hewitt and Liang 2019, *Designing and Interpreting Probes with Control
        Tasks*, arXiv 1909.03368 (selectivity).

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(10), progress=False)
        >>> found = rlm.probes.fit_probe(
        ...     policy, recording, target={"angle": lambda r: r.observations[:, 2]}, sites="0.hook_out"
        ... )
        >>> round(float(found.scores["score"].sel(control="trained").item()), 3)
        1.0
    """
    if method not in get_args(Method):
        raise ConfigError(
            f"There is no method {method!r}.", given=repr(method), expected="linear or logistic", fix="method='linear'"
        )
    chosen = choose_sites(policy, sites)
    obs = states_of(policy, recording)
    labels = read_targets(recording, target, step_offset=step_offset)
    episode = recording.steps["episode"].to_numpy()
    fit = _Fit(method=method, n_folds=n_folds, n_controls=n_controls, seed=seed, episode=episode)
    for one in labels:
        fit.check(one)
    twins = [untrained(policy, seed + 1 + number) for number in range(n_untrained)]
    data: dict[tuple[str, int], dict[str, Any]] = {}
    probes: dict[tuple[str, int], Probe] = {}
    watched = [Site(name) for name in policy.hook_dict if policy.points[name].kind == "observation"]
    seen: dict[bool, dict[str, _Scored]] = {}
    episode_means = {one.name: fit.episode_mean(one) for one in labels}
    for number, site in enumerate(chosen):
        for per_entity in sorted({one.values.ndim == 2 for one in labels}):
            group = [one for one in labels if (one.values.ndim == 2) == per_entity]
            per = entity_axis(policy, site, group[0].values.shape[1]) if per_entity else None
            x = activations(policy, obs, site, per=per)
            trained = fit.all(x, group, shuffle=True)
            fresh = [fit.all(activations(twin, obs, site, per=per), group) for twin in twins]
            if per_entity not in seen:
                seen[per_entity] = fit.all(_observed(policy, obs, watched, group[0].values), group)
            for one in group:
                scored = trained[one.name]
                key = (one.name, number)
                twin_scores = [other[one.name] for other in fresh]
                data[key] = fit.compare(one, scored, seen[per_entity][one.name], twin_scores, episode_means[one.name])
                shape = tuple(x.shape[2:]) if per_entity else site.block_shape(policy.point(site.name))
                probes[key] = _probe(one, site, scored, x, shape, data[key])
    return Probes(scores=_dataset(policy, chosen, labels, data, fit, n_untrained), _probes=probes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """One target's predictions and what they are worth, by episode."""

    gained: np.ndarray
    """Per episode, what was explained: squares of a number, weighted right answers of a class."""
    shuffled: list[np.ndarray]
    total: np.ndarray
    final: LinearMap
    covariance: np.ndarray
    penalty: float


@dataclass(slots=True, kw_only=True)
class _Fit:
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

    def all(self, x: np.ndarray, group: Sequence[Labels], *, shuffle: bool = False) -> dict[str, _Scored]:
        """Fit some targets on the same values; those that have a value in the same rows share all their sums."""
        x = x.reshape(-1, x.shape[-1])
        by_rows: dict[bytes, list[Labels]] = {}
        for one in group:
            by_rows.setdefault(np.isfinite(one.values).tobytes(), []).append(one)
        return {
            name: found for same in by_rows.values() for name, found in self._same(x, same, shuffle=shuffle).items()
        }

    def _same(self, x: np.ndarray, group: Sequence[Labels], *, shuffle: bool) -> dict[str, _Scored]:
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
        found: dict[str, _Scored] = {}
        each = 1 + (self.n_controls if shuffle else 0)
        for place, one in enumerate(group):
            own = range(place * each, (place + 1) * each)
            gained = [self._gained(one, fitted.predicted[:, target == k], truths[k], fold, episode) for k in own]
            first = target == own[0]
            final = LinearMap(slope=fitted.final.slope[:, first], offset=fitted.final.offset[first])
            found[one.name] = _Scored(
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
        self, one: Labels, trained: _Scored, observed: _Scored, fresh: Sequence[_Scored], episode_mean: np.ndarray
    ) -> dict[str, Any]:
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


def _observed(policy: HookedPolicy, obs: Any, watched: Sequence[Site], values: np.ndarray) -> np.ndarray:
    """What the policy sees, a row a step; for targets by entity, each of the last entities' own features."""
    if values.ndim == 1:
        return np.concatenate([activations(policy, obs, site) for site in watched], axis=1)
    by_entity = [
        activations(policy, obs, site, per="entity") for site in watched if "entity" in policy.point(site.name).axes
    ]
    if not by_entity or by_entity[0].shape[1] < values.shape[1]:
        raise ConfigError(
            "The observation has no row for each entity of the target.",
            given=f"{values.shape[1]} values a step",
            expected="as many as the observation has entities, or the last so many of them",
            fix="choose a target of one value a step (rlm.probes.of_entity)",
        )
    return by_entity[0][:, -values.shape[1] :]


def _probe(
    one: Labels, site: Site, scored: _Scored, x: np.ndarray, shape: tuple[int, ...], told: Mapping[str, Any]
) -> Probe:
    return Probe(
        site=site,
        target=one.name,
        kind=one.kind,
        unit=one.unit,
        classes=one.classes,
        read_out=scored.final,
        covariance=scored.covariance,
        mean=x.reshape(-1, x.shape[-1]).mean(0),
        shape=shape,
        spread=float(np.nanstd(one.values)) if one.kind == "number" else 1.0,
        score=dict(zip(CONTROLS, map(float, told["score"][0]), strict=True)),
        says=str(told["says"]),
    )


def _dataset(
    policy: HookedPolicy,
    sites: Sequence[Site],
    labels: Sequence[Labels],
    data: Mapping[tuple[str, int], Mapping[str, Any]],
    fit: _Fit,
    n_untrained: int,
) -> xr.Dataset:
    def laid(what: str) -> np.ndarray:
        return np.array([[data[one.name, number][what] for number in range(len(sites))] for one in labels])

    dims = ("target", "site", "control")
    variables: dict[str, Any] = {}
    for name in ("score", "advantage"):
        values = np.moveaxis(laid(name), 2, 0)
        for suffix, part in zip(("", "_low", "_high"), values, strict=True):
            variables[name + suffix] = (dims, part, {"units": "1"})
    rows = [np.isfinite(one.values) for one in labels]
    common = [
        float(np.bincount(one.values[there].astype(int)).max() / there.sum()) if one.kind == "class" else np.nan
        for one, there in zip(labels, rows, strict=True)
    ]
    variables |= {
        "penalty": (dims[:2], laid("penalty"), {"units": "1", "long_name": "share of the training rows"}),
        "says": (dims[:2], laid("says").astype(str)),
        "n_rows": ("target", [int(there.sum()) for there in rows]),
        "n_left_out": ("target", [int((~there).sum()) for there in rows]),
        "commonest": ("target", common, {"units": "1", "long_name": "share of the commonest class"}),
    }
    coords: dict[str, Any] = {
        "target": [one.name for one in labels],
        "kind": ("target", [one.kind for one in labels]),
        "target_units": ("target", [one.unit for one in labels]),
        "control": list(CONTROLS),
        "site": np.arange(len(sites)),
        **site_coordinates(policy, sites),
    }
    attrs = provenance(policy) | {
        "method": f"{fit.method} probes, nested cross-validation over episodes",
        "score": "R2 of numbers, balanced accuracy of classes; of episodes that no fit has seen",
        "interval": "95 %, bootstrap over episodes",
        "n_episodes": len(np.unique(fit.episode)),
        "n_folds": fit.n_folds,
        "n_controls": fit.n_controls,
        "n_untrained": n_untrained,
        "seed": fit.seed,
    }
    return storable(xr.Dataset(variables, coords=coords), attrs)
