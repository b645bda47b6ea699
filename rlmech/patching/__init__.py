"""Causal questions by the thousand: every site on every pair of observations, in one call.

- Patching: `activation_patching`, `interchange_intervention` (subspaces), `pairwise_interactions`, `sliding_windows`.
- Ablation: `ablation_sweep`, `optimal_constants` (`OptimalConstants`). Steering: `steering_sweep`.
- How far an edit leaves the activations of the policy's own states: `off_manifold_distance`.
"""

from rlmech.patching.ablation import ablation_sweep, steering_sweep
from rlmech.patching.activations import activation_patching
from rlmech.patching.interactions import pairwise_interactions
from rlmech.patching.manifold import off_manifold_distance
from rlmech.patching.optimal import OptimalConstants, optimal_constants
from rlmech.patching.sites import sliding_windows
from rlmech.patching.subspace import interchange_intervention

__all__ = [
    "OptimalConstants",
    "ablation_sweep",
    "activation_patching",
    "interchange_intervention",
    "off_manifold_distance",
    "optimal_constants",
    "pairwise_interactions",
    "sliding_windows",
    "steering_sweep",
]
