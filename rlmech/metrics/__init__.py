"""What is measured of action scores: the metrics of sweeps, edges and attributions.

- Of two actions: `action_gap`, `action_score`.
- Of the decision: `action_flip`, `policy_kl`, `action_shift` (continuous actions).
- Of the value head: `state_value`. One's own: `Metric`.
"""

from rlmech.metrics.measure import Metric
from rlmech.metrics.score_metrics import action_flip, action_gap, action_score, action_shift, policy_kl, state_value

__all__ = [
    "Metric",
    "action_flip",
    "action_gap",
    "action_score",
    "action_shift",
    "policy_kl",
    "state_value",
]
