"""Intervals and tests of what is measured over pairs, states, episodes and seeds.

* means and ratios of means, over pairs or clusters of pairs: `bootstrap_mean`, `bootstrap_ratio`, `normalised_recovery`
* shares of yes and no, and their paired differences: `wilson`, `share_interval`, `share_difference_interval`
* exact tests that nothing changed, and their correction: `exact_test`, `holm`
* how many samples a precision takes: `n_for_half_width`, `largest_spread`

From 8 samples on each interval covers at least 93 times in 100 at a nominal 95 % (tested by simulation on normal,
lognormal and mostly zero data); below `FEWEST` samples there is none: its ends are NaN.
"""

from rlmech.statistics.bootstrap import Recovery, Shares, bootstrap_mean, bootstrap_ratio, normalised_recovery
from rlmech.statistics.draws import Clusters
from rlmech.statistics.interval import FEWEST, Interval
from rlmech.statistics.permutation import exact_test, holm
from rlmech.statistics.precision import largest_spread, n_for_half_width
from rlmech.statistics.rates import share_difference_interval, share_interval, wilson

__all__ = [
    "FEWEST",
    "Clusters",
    "Interval",
    "Recovery",
    "Shares",
    "bootstrap_mean",
    "bootstrap_ratio",
    "exact_test",
    "holm",
    "largest_spread",
    "n_for_half_width",
    "normalised_recovery",
    "share_difference_interval",
    "share_interval",
    "wilson",
]
