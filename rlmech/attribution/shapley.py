"""Shapley values of a decision: each vehicle's, head's or feature's share of what is measured of the scores.

    value_i = mean over orders of joining of v(those before i, and i) - v(those before i)

Exact over all coalitions for up to 15 players that are there, else estimated with standard errors. They sum to what all
players together change; one that changes nothing has 0; two that change the same have the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.attribution.coalitions import (
    Shares,
    all_coalitions,
    exact_interactions,
    exact_shares,
    kernel_shares,
    permutation_shares,
)
from rlmech.attribution.games import Game, HeadAblation, Players, game_of
from rlmech.attribution.readouts import made_by
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.patching.results import unknown_choice
from rlmech.results import storable
from rlmech.statistics import Clusters, bootstrap_mean

Method = Literal["auto", "exact", "permutation", "kernel"]
MOST_EXACT = 15
"""Players whose coalitions are all looked at, 32,768."""
WORTHS_AT_ONCE = 1 << 22


@explain_misuse
def shapley_values(
    policy: HookedPolicy,
    obs: Observation,
    *,
    players: Players = "entities",
    metric: Metric | MetricFunction | None = None,
    reference: Observation | None = None,
    ablation: HeadAblation = "mean",
    method: Method = "auto",
    n_samples: int = 2048,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Share out what is measured of the scores among vehicles, features or heads.

    Args:
        policy: The policy.
        obs: A batch of observations.
        players: `entities`: the vehicles, which are there or not (the ego always is); their row is then zeros, as the
            simulator writes an absent one. `features`: of a vector each, of a table of entities each column but the
            presence, replaced in all entities that are there. `heads`: of all attention, ablated.
        metric: What is measured; None for the gap between the unedited run's best action and its runner-up, for
            continuous actions how far they move.
        reference: Of features, the states whose values stand for those that are out: the game's mean over its rows
            (of entities the ego's own value, and the mean of the vehicles that are there); None for the mean of `obs`.
            Of heads, the states of the mean ablation; None for `obs`.
        ablation: Of heads: `mean` or `zero`.
        method: `exact`: all coalitions. `permutation`: random orders, each one also backwards. `kernel`: Shapley's
            weighted least squares. `auto`: exact in rows with up to 15 players that are there, else permutations.
        n_samples: Of an estimate, about how many coalitions are drawn for a row.
        clusters: A label for each row, say its episode, for the intervals over rows.
        seed: Of the estimates and of the bootstrap.

    Returns:
        In the metric's unit, positive where the player raises it: `value[batch, entity]` (`feature` or `head`),
        `error[batch, entity]`, the standard error of an estimate, 0 where exact; `total[batch]`, what all players
        together change, the sum of the values; `none[batch]`, the metric without any; `effect[entity]`, the mean over
        rows, with `effect_low`, `effect_high`, 95 % bootstrap over rows. A vehicle that is not there has 0.

    Raises:
        ConfigError: Too many players for all coalitions, or an option that these players have no use for.
        ObservationError: The observations have no such players.
        AttentionError: The policy has no heads.
        MetricError: The metric does not fit the policy.

    Source:
        Shapley 1953; Lundberg and Lee 2017, *A Unified Approach to Interpreting Model Predictions*, arXiv 1705.07874.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> obs = torch.rand(4, 15, 7).round()
        >>> found = rlm.attribution.shapley_values(policy, obs)
        >>> found["value"].sizes["entity"], bool(abs(found["value"].sum("entity") - found["total"]).max() < 1e-5)
        (14, True)
    """
    policy = policy.fitting(obs)
    if method not in get_args(Method):
        raise unknown_choice("method", method, get_args(Method))
    if n_samples < 2:
        raise ConfigError(
            "An estimate is made from coalitions.", given=f"n_samples={n_samples}", expected="2 or more", fix="2048"
        )
    game = game_of(policy, obs, players=players, metric=metric, reference=reference, ablation=ablation)
    most = int(game.playing.sum(1).max(initial=0))
    if method == "exact":
        _refuse_too_many(most)
    n_rows, n_players = game.playing.shape
    data = {name: np.zeros((n_rows, n_players)) for name in ("value", "error")}
    ends = {name: np.zeros(n_rows) for name in ("total", "none")}
    n_coalitions = 0
    for rows, own in _by_count(game):
        exact = method == "exact" or (method == "auto" and own.shape[1] <= MOST_EXACT)
        for part, their in _blocks(rows, own, n_coalitions=1 << own.shape[1] if exact else n_samples):
            shares = _shares(game, part, their, "exact" if exact else method, n_samples=n_samples, seed=seed)
            data["value"][part[:, None], their] = shares.values
            data["error"][part[:, None], their] = shares.errors
            ends["total"][part], ends["none"][part] = shares.every - shares.none, shares.none
            n_coalitions = max(n_coalitions, shares.n_coalitions)
    unit = {"units": game.bound.unit}
    effect = bootstrap_mean(data["value"].T, clusters=clusters, seed=seed)
    variables: dict[str, Any] = {name: (("batch", game.dim), values, unit) for name, values in data.items()}
    variables |= {name: ("batch", values, unit) for name, values in ends.items()}
    variables |= {
        "effect": (game.dim, effect.estimate, unit | {"long_name": f"mean share of {game.bound.name}"}),
        "effect_low": (game.dim, effect.low, unit),
        "effect_high": (game.dim, effect.high, unit),
    }
    used = "exact" if not data["error"].any() else "kernel" if method == "kernel" else "permutation"
    attrs = _attrs(policy, game, players, ablation) | {
        "method": f"Shapley values, {used}",
        "n_samples": n_samples,
        "n_coalitions": n_coalitions,
        "seed": seed,
        "sign": "positive: the player raises the metric",
        **effect.attrs,
    }
    return storable(xr.Dataset(variables, coords={game.dim: game.names}), attrs)


@explain_misuse
def shapley_interactions(
    policy: HookedPolicy,
    obs: Observation,
    *,
    players: Players = "entities",
    metric: Metric | MetricFunction | None = None,
    reference: Observation | None = None,
    ablation: HeadAblation = "mean",
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """What each two players do together beyond what each does alone, averaged over all coalitions of the others; exact.

    Args:
        policy: The policy.
        obs: A batch of observations.
        players: As in `shapley_values`; at most 15 that are there in a row.
        metric: As in `shapley_values`.
        reference: As in `shapley_values`.
        ablation: As in `shapley_values`.
        clusters: A label for each row, say its episode, for the intervals over rows.
        seed: Of the bootstrap.

    Returns:
        Dimensions `batch` and `site` (each two players, with the coordinates `first` and `second`), in the metric's
        unit: `interaction[batch, site]`, 0 where they act additively, positive where they do more together than apart;
        `effect[site]`, the mean over rows, with `effect_low`, `effect_high`. 0 where one of the two is not there.

    Raises:
        ConfigError: More than 15 players in a row, or fewer than two.
        ObservationError, AttentionError, MetricError: As of `shapley_values`.

    Source:
        Grabisch and Roubens 1999, *An axiomatic approach to the concept of interaction among players*, Int. J. Game
        Theory 28.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = rlm.attribution.shapley_interactions(policy, torch.rand(8, 4), players="features")
        >>> found.sizes["site"], bool(abs(found["interaction"]).max() < 1e-5)
        (6, True)
    """
    policy = policy.fitting(obs)
    game = game_of(policy, obs, players=players, metric=metric, reference=reference, ablation=ablation)
    _refuse_too_many(int(game.playing.sum(1).max(initial=0)))
    n_rows, n_players = game.playing.shape
    pairs = list(itertools.combinations(range(n_players), 2))
    if not pairs:
        raise ConfigError(
            "An interaction is between two players.",
            given=f"{n_players} of {players}",
            expected="two or more",
            fix="take other players",
        )
    place = {pair: number for number, pair in enumerate(pairs)}
    found = np.zeros((n_rows, len(pairs)))
    for rows, own in _by_count(game):
        n = own.shape[1]
        for part, their in _blocks(rows, own, n_coalitions=1 << n):
            values = exact_interactions(game.worth(part, their, all_coalitions(n)), n)
            for row, chosen, shares in zip(part, their, values, strict=True):
                found[row, [place[pair] for pair in itertools.combinations(chosen.tolist(), 2)]] = shares
    effect = bootstrap_mean(found.T, clusters=clusters, seed=seed)
    unit = {"units": game.bound.unit}
    variables: dict[str, Any] = {
        "interaction": (("batch", "site"), found, unit),
        "effect": ("site", effect.estimate, unit | {"long_name": f"mean interaction in {game.bound.name}"}),
        "effect_low": ("site", effect.low, unit),
        "effect_high": ("site", effect.high, unit),
    }
    names = [str(name) for name in game.names]
    coords = {
        "site": np.arange(len(pairs)),
        "first": ("site", [names[first] for first, _ in pairs]),
        "second": ("site", [names[second] for _, second in pairs]),
    }
    attrs = _attrs(policy, game, players, ablation) | {
        "method": "Shapley interaction indices, exact",
        "seed": seed,
        "sign": "positive: more together than the sum of both alone",
        **effect.attrs,
    }
    return storable(xr.Dataset(variables, coords=coords), attrs)


def _attrs(policy: HookedPolicy, game: Game, players: Players, ablation: HeadAblation) -> dict[str, Any]:
    out = f"{ablation} ablation" if players == "heads" else "absent" if players == "entities" else "the reference's"
    return made_by(policy, "") | {"metric": game.bound.name, "players": players, "out": out, "scheme": game.scheme}


def _refuse_too_many(most: int) -> None:
    if most > MOST_EXACT:
        raise ConfigError(
            "All coalitions of so many players are too many.",
            given=f"{most} players in a row, 2^{most} coalitions",
            expected=f"up to {MOST_EXACT}",
            fix="shapley_values(..., method='permutation') or 'kernel' estimates the values, with their errors",
        )


def _by_count(game: Game) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows in which as many play, and `[row place]` who they are."""
    counts = game.playing.sum(1)
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        yield rows, np.nonzero(game.playing[rows])[1].reshape(len(rows), int(count))


def _blocks(rows: np.ndarray, own: np.ndarray, *, n_coalitions: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    at_once = max(1, WORTHS_AT_ONCE // max(1, n_coalitions))
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once], own[start : start + at_once]


def _shares(game: Game, rows: np.ndarray, own: np.ndarray, method: Method, *, n_samples: int, seed: int) -> Shares:
    n = own.shape[1]
    worth: Callable[[np.ndarray], np.ndarray] = lambda coalitions: game.worth(rows, own, coalitions)  # noqa: E731
    if method == "exact" or n < 2:  # alone, or with nobody, there is one order
        return exact_shares(worth(all_coalitions(n)), n)
    estimate = kernel_shares if method == "kernel" else permutation_shares
    return estimate(worth, n, n_samples=n_samples, seed=seed)
