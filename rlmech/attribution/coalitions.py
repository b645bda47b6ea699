"""Shapley values and interaction indices from what coalitions of players are worth: exact sums, and estimates.

    value_i = sum over S without i of |S|! (n - |S| - 1)! / n!  (v(S and i) - v(S))

A game is known by `worth(coalitions [coalition player]) -> [row coalition]`, for several rows at once; every distinct
coalition is asked for once. Exact: 2^n of them. Estimates come with their standard error over pairs of permutations, or
of a coalition and its complement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Worth = Callable[[np.ndarray], np.ndarray]
"""What coalitions `[coalition player]`, truth values, are worth in each row: `[row coalition]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What each player is worth.

    Attributes:
        values: `[row player]`.
        errors: Their standard errors, 0 where they are exact.
        every: What all players together are worth, by row.
        none: What is there without any.
        n_coalitions: How many were looked at.
    """

    values: np.ndarray
    errors: np.ndarray
    every: np.ndarray
    none: np.ndarray
    n_coalitions: int


def all_coalitions(n_players: int) -> np.ndarray:
    """Every coalition, `[2^n player]`; player i is in coalition k where bit i of k is set."""
    return (np.arange(1 << n_players)[:, None] >> np.arange(n_players)) & 1 == 1


def exact_shares(worths: np.ndarray, n_players: int) -> Shares:
    """Shapley values from the worth of all coalitions, `[row 2^n]` in the order of `all_coalitions`.

    A player that changes nothing has exactly 0, for each of its differences is.

    Source:
        Shapley 1953, *A Value for n-Person Games*.
    """
    values = np.zeros((len(worths), n_players))
    sizes = all_coalitions(max(n_players - 1, 0)).sum(1)
    weights = np.array([1 / (n_players * math.comb(n_players - 1, size)) for size in range(n_players)])
    for player in range(n_players):
        values[:, player] = _joins(worths, player) @ weights[sizes]
    return Shares(
        values=values,
        errors=np.zeros_like(values),
        every=worths[:, -1],
        none=worths[:, 0],
        n_coalitions=worths.shape[1],
    )


def exact_interactions(worths: np.ndarray, n_players: int) -> np.ndarray:
    """Shapley interaction indices, `[row pair]`, of each two players in the order of `itertools.combinations`.

        sum over S without i, j of |S|! (n - |S| - 2)! / (n - 1)!  (v(S, i, j) - v(S, i) - v(S, j) + v(S))

    Source:
        Grabisch and Roubens 1999, *An axiomatic approach to the concept of interaction among players*, Int. J. Game
        Theory 28.
    """
    pairs = list(itertools.combinations(range(n_players), 2))
    found = np.zeros((len(worths), len(pairs)))
    if not pairs:
        return found
    sizes = all_coalitions(n_players - 2).sum(1)
    weights = np.array([1 / ((n_players - 1) * math.comb(n_players - 2, size)) for size in range(n_players - 1)])
    for place, (first, second) in enumerate(pairs):
        found[:, place] = _joins(_joins(worths, second), first) @ weights[sizes]
    return found


def permutation_shares(worth: Worth, n_players: int, *, n_samples: int, seed: int) -> Shares:
    """Mean gain of each player when players join in a random order, each order also taken backwards.

    Source:
        Castro, Gomez and Tejada 2009, *Polynomial calculation of the Shapley value based on sampling*; Mitchell et al.
        2022, *Sampling Permutations for Shapley Value Estimation*, JMLR 23 (orders in opposite pairs).
    """
    rng = np.random.default_rng(seed)
    n_pairs = max(2, n_samples // (2 * n_players))
    orders = np.stack([order for _ in range(n_pairs) for order in _both_ways(rng.permutation(n_players))])
    place = orders.argsort(1)
    steps = place[:, None, :] < np.arange(n_players + 1)[None, :, None]  # [order step player]
    worths, n_distinct = _distinct(worth, steps.reshape(-1, n_players))
    gains = np.diff(worths.reshape(len(worths), len(orders), n_players + 1), axis=2)
    by_player = np.take_along_axis(gains, np.broadcast_to(place, (len(worths), *place.shape)), axis=2)
    pairs = by_player.reshape(len(worths), n_pairs, 2, n_players).mean(2)
    first = worths.reshape(len(worths), len(orders), n_players + 1)[:, 0]
    return Shares(
        values=pairs.mean(1),
        errors=pairs.std(1, ddof=1) / math.sqrt(n_pairs),
        every=first[:, -1],
        none=first[:, 0],
        n_coalitions=n_distinct,
    )


def kernel_shares(worth: Worth, n_players: int, *, n_samples: int, seed: int) -> Shares:
    """The additive game nearest to this one under Shapley's kernel, from coalitions drawn with their complements.

    The errors are those of weighted least squares, robust to unequal residuals, pairs taken together.

    Source:
        Lundberg and Lee 2017, arXiv 1705.07874; Covert and Lee 2021, *Improving KernelSHAP*, arXiv 2012.01536 (pairs).
    """
    if n_players < 2:
        worths = worth(all_coalitions(n_players))
        return exact_shares(worths, n_players)
    rng = np.random.default_rng(seed)
    n_pairs = max(2 * n_players, n_samples // 2)
    sizes = np.arange(1, n_players)
    chance = 1 / (sizes * (n_players - sizes))
    drawn = rng.choice(sizes, n_pairs, p=chance / chance.sum())
    ranks = rng.random((n_pairs, n_players)).argsort(1).argsort(1)
    half = ranks < drawn[:, None]
    ends = np.array([np.zeros(n_players, dtype=bool), np.ones(n_players, dtype=bool)])
    worths, n_distinct = _distinct(worth, np.concatenate([ends, np.stack([half, ~half], 1).reshape(-1, n_players)]))
    none, every, y = worths[:, 0], worths[:, 1], worths[:, 2:]
    z = np.stack([half, ~half], 1).reshape(-1, n_players).astype(np.float64)
    total = every - none
    # the values sum to the total: the last one is what the others leave
    u = z[:, :-1] - z[:, -1:]
    left = y - none[:, None] - total[:, None] * z[:, -1]
    inverse = np.linalg.pinv(u.T @ u)
    others = left @ u @ inverse
    residual = left - others @ u.T
    scores = (residual[:, :, None] * u).reshape(len(worths), n_pairs, 2, -1).sum(2) @ inverse
    scale = math.sqrt(n_pairs / max(1, n_pairs - n_players + 1))
    errors = np.sqrt((scores**2).sum(1)) * scale
    last_error = np.sqrt((scores.sum(2) ** 2).sum(1)) * scale
    return Shares(
        values=np.concatenate([others, (total - others.sum(1))[:, None]], axis=1),
        errors=np.concatenate([errors, last_error[:, None]], axis=1),
        every=every,
        none=none,
        n_coalitions=n_distinct,
    )


def _joins(worths: np.ndarray, player: int) -> np.ndarray:
    """What a player adds to each coalition without it, `[row 2^(n-1)]`, the other players' bits in order."""
    split = worths.reshape(len(worths), -1, 2, 1 << player)
    return (split[:, :, 1] - split[:, :, 0]).reshape(len(worths), -1)


def _both_ways(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return order, order[::-1]


def _distinct(worth: Worth, coalitions: np.ndarray) -> tuple[np.ndarray, int]:
    """What coalitions are worth, each different one asked for once; and how many these are."""
    packed = np.packbits(coalitions, axis=1)
    _, first, place = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    return worth(coalitions[first])[:, place.reshape(-1)], len(first)
