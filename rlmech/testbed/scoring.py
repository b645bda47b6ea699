"""How well a method finds planted edges."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from rlmech.errors import ConfigError
from rlmech.testbed.known import Edge


def edge_auroc(scores: Mapping[Edge, float], planted: Collection[Edge]) -> float:
    """How well scores tell planted edges from the others: the chance that a planted one scores higher, ties half.

    Args:
        scores: A score for every edge, larger where it is thought to matter more: give sizes, not signed effects.
        planted: The edges of the true circuit, all of them among the scores.

    Returns:
        Area under the ROC curve: 1 where all planted edges stand above all others, 0.5 by chance.

    Raises:
        ConfigError: A planted edge without a score, a score that is NaN, or only one kind of edge.

    Source:
        The Mann-Whitney statistic; Hanley and McNeil 1982, *The meaning and use of the area under a ROC curve*.

    Example:
        >>> import rlmech as rlm
        >>> from rlmech.testbed import edge_auroc
        >>> a, b, c, d = (rlm.Site("hook_obs", feature=i) for i in range(4))
        >>> edge_auroc({(a, d): 3.0, (b, d): 1.0, (c, d): 2.0}, {(a, d), (b, d)})
        0.5
    """
    missing = [edge for edge in planted if edge not in scores]
    values = np.array(list(scores.values()), dtype=np.float64)
    is_planted = np.array([edge in set(planted) for edge in scores], dtype=bool)
    n_planted, n_others = int(is_planted.sum()), int((~is_planted).sum())
    if missing or not n_planted or not n_others or np.isnan(values).any():
        n_nan = int(np.isnan(values).sum())
        raise ConfigError(
            "These scores do not tell planted edges from others.",
            given=f"{n_planted} planted and {n_others} other edges, {len(missing)} planted without score, {n_nan} NaN",
            expected="a number for every edge, at least one of them planted and one not",
            fix="score all of known.all_edges: 0.0 for an edge that the method left out",
        )
    above = (values[is_planted][:, None] > values[~is_planted]).sum()
    level = (values[is_planted][:, None] == values[~is_planted]).sum()
    return float((above + level / 2) / (n_planted * n_others))
