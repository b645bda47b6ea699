"""Features that no neuron is alone: subspaces that carry a causal variable, judged on episodes that taught nothing.

- A causal variable: `interchange_pairs` draws pairs of states, `align_subspace` learns the directions along which the
  variable is exchanged (DAS) beside its controls; `AlignedSubspace.basis` goes into `rlm.subspace_patch`.
"""

from rlmech.features.alignment import AlignedSubspace, align_subspace
from rlmech.features.pairs import InterchangePairs, interchange_pairs

__all__ = ["AlignedSubspace", "InterchangePairs", "align_subspace", "interchange_pairs"]
