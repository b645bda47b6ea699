"""Numbers that the atlas is made of: ranks, dimensions, the units that suffice, shares of the way to random.

    effective rank       exp(H(s / sum s)) of the singular values s
    participation ratio  (sum v)^2 / sum v^2 of the covariance's eigenvalues v

Nothing here knows an environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.stats
from jaxtyping import Float

from rlmech.arguments import explain_misuse
from rlmech.core.cache import ActivationCache
from rlmech.core.interventions import mean_ablation
from rlmech.core.many_rows import scores_of
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ShapeError
from rlmech.statistics import Interval, bootstrap_ratio

N_GAUSSIAN = 50


@explain_misuse
def effective_rank(matrix: Float[np.ndarray, "row column"]) -> float:
    """Entropy effective rank of a matrix: how many directions it maps into, weighed by how much.

    Args:
        matrix: Any unit; its scale does not matter.

    Returns:
        Between 1 and the smaller of its sizes, which orthogonal rows reach; 0 of a matrix of zeros.

    Source:
        Roy and Vetterli 2007, *The effective rank: a measure of effective dimensionality*, EUSIPCO.

    Example:
        >>> import numpy as np, rlmech as rlm
        >>> round(rlm.atlas.effective_rank(np.eye(3)), 6)
        3.0
    """
    sizes = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    if sizes.sum() == 0:
        return 0.0
    return float(np.exp(scipy.stats.entropy(sizes / sizes.sum())))


@explain_misuse
def gaussian_rank(*shapes: tuple[int, int], seed: int = 0) -> float:
    """Mean effective rank of a product of matrices of independent normal numbers, what chance would give.

    Args:
        *shapes: Rows and columns of each factor, in the order of the product.
        seed: Of the draws, of which there are 50.

    Raises:
        ShapeError: The factors do not fit each other.

    Example:
        >>> import rlmech as rlm
        >>> 40 < rlm.atlas.gaussian_rank((64, 64)) < 64
        True
    """
    if not shapes or any(left[1] != right[0] for left, right in pairwise(shapes)):
        raise ShapeError(
            "These matrices have no product.",
            given=" and ".join(map(str, shapes)) or "no shape",
            expected="as many columns of each as rows of the next",
            fix="give them in the order of the product: gaussian_rank((64, 32), (32, 4)) for W2 W1",
        )
    rng = np.random.default_rng(seed)
    ranks: list[float] = []
    for _ in range(N_GAUSSIAN):
        product = rng.standard_normal(shapes[0])
        for shape in shapes[1:]:
            product = product @ rng.standard_normal(shape)
        ranks.append(effective_rank(product))
    return float(np.mean(ranks))


@explain_misuse
def participation_ratio(values: Float[np.ndarray, "row number"]) -> float:
    """Effective dimension of what varies: of n independent numbers of equal variance n, of one that varies alone 1.

    Args:
        values: A row a state.

    Returns:
        From 1 to the number of columns; 0 where nothing varies.

    Source:
        Gao et al. 2017, *A theory of multineuronal dimensionality, dynamics and measurement*, bioRxiv 214262.

    Example:
        >>> import numpy as np, rlmech as rlm
        >>> rlm.atlas.participation_ratio(np.array([[1.0, 0.0], [-1.0, 0.0]]))
        1.0
    """
    centred = np.asarray(values, dtype=np.float64) - np.mean(values, axis=0, dtype=np.float64)
    spread = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(spread.sum() ** 2 / (spread**2).sum()) if spread.any() else 0.0


@explain_misuse
def smallest_keeping(
    policy: HookedPolicy,
    obs: Observation,
    *,
    ranked: Sequence[Site],
    reference: ActivationCache,
    share: float = 0.95,
) -> int:
    """The smallest number of units, the first of a ranking, with which enough greedy actions stay.

    All others are set to their means at once. Every number is tried from 0 up, since more units may keep fewer.

    Args:
        policy: A policy of discrete actions.
        obs: States.
        ranked: Single units, the most important first.
        reference: A cache of the states that means are taken over.
        share: Of the greedy actions that have to stay.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy, obs = rlm.HookedPolicy(net, torch.rand(2, 4)), torch.rand(50, 4)
        >>> cache = policy.run_with_cache(obs)[1]
        >>> 0 <= rlm.atlas.smallest_keeping(policy, obs, ranked=policy.sites("auto"), reference=cache) <= 8
        True
    """
    own = scores_of(policy, obs).argmax(-1)
    for n in range(len(ranked)):
        rest: dict[str, list[int]] = {}
        for site in ranked[n:]:
            rest.setdefault(site.name, []).append(int(dict(site.selection)["neuron"]))  # type: ignore[arg-type]  # one
        edits = [mean_ablation(Site(name, neuron=units), reference=reference) for name, units in rest.items()]
        with policy.edited(edits):
            if float((scores_of(policy, obs).argmax(-1) == own).double().mean()) >= share:
                return n
    return len(ranked)


@explain_misuse
def share_of_way(
    without: Float[np.ndarray, " seed"],
    *,
    agent: Float[np.ndarray, " seed"],
    random: Float[np.ndarray, " seed"],
) -> Interval:
    """How far down from the agent to a random policy a return has gone: 0 none of it, 1 all, unclipped.

    Args:
        without: Returns of what is measured, by seed.
        agent: Of the agent, on the same seeds.
        random: Of a policy that acts at random, on the same seeds.

    Returns:
        Ratio of mean differences with a 95 % interval over seeds.

    Example:
        >>> import numpy as np, rlmech as rlm
        >>> seeds = np.arange(8.0)
        >>> float(rlm.atlas.share_of_way(seeds + 75, agent=seeds + 100, random=seeds).estimate[0])
        0.25
    """
    return bootstrap_ratio((agent - without)[None], agent - random)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation; NaN where either side does not vary."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic)


def split_half(values: Float[np.ndarray, "unit seed"]) -> float:
    """How well half of the seeds tell the order of units that the other half gives: Spearman's correlation."""
    half = values.shape[1] // 2
    return rank_correlation(values[:, :half].mean(1), values[:, half:].mean(1))
