"""Exact tests that a condition changes nothing, from differences paired by seed, and their correction for their number.

Under the hypothesis that a condition changes nothing, each seed's difference is as likely as its negative. Where all
that differ differ by the same amount (crashed or not), that is the binomial test, McNemar's; else all 2^n signs are
tried, or 100,000 of them drawn, the observed ones among them, which keeps the level exact (Phipson and Smyth 2010,
*Permutation P-values Should Never Be Zero*). Tests of several conditions are corrected by Holm's method.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr

MOST_ENUMERATED = 14
N_DRAWS = 100_000
_AT_ONCE = 2**22  # signs held in memory


def exact_test(differences: Float[np.ndarray, " seed"], *, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference being zero, by changing the signs of the differences.

    Args:
        differences: One a seed.
        seed: Of the signs drawn, where there are too many to try them all.

    Source:
        Fisher 1935, *The Design of Experiments*, section 21; McNemar 1947 for two-valued outcomes.

    Example:
        >>> import numpy as np
        >>> exact_test(np.array([1.0, 1.0, 1.0, 0.0]))  # 2 of the 8 ways to sign three differences
        0.25
    """
    moved = differences[differences != 0].astype(np.float64)
    if len(moved) == 0:
        return 1.0
    size = np.abs(moved)
    if np.all(size == size[0]):
        rarer = min(int((moved > 0).sum()), int((moved < 0).sum()))
        return min(1.0, 2 * float(bdtr(rarer, len(moved), 0.5)))
    observed = abs(moved.sum()) - 1e-9 * size.sum()  # sums in another order round otherwise
    if len(moved) <= MOST_ENUMERATED:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(moved))))
        return float((np.abs(signs @ size) >= observed).mean())
    generator = np.random.default_rng(seed)
    at_once, hits, left = max(1, _AT_ONCE // len(moved)), 0, N_DRAWS - 1
    while left:
        n = min(left, at_once)
        signs = generator.integers(0, 2, size=(n, len(moved)), dtype=np.int8) * np.int8(2) - np.int8(1)
        hits += int((np.abs(signs @ size) >= observed).sum())
        left -= n
    return (1 + hits) / N_DRAWS


def holm(p: Float[np.ndarray, " condition"]) -> Float[np.ndarray, " condition"]:
    """P-values corrected for their number.

    Source:
        Holm 1979, *A Simple Sequentially Rejective Multiple Test Procedure*.

    Example:
        >>> import numpy as np
        >>> [round(float(q), 3) for q in holm(np.array([0.01, 0.04, 0.03]))]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
