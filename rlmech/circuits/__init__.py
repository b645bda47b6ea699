"""A policy's mechanism as weights: factored matrices, and the QK and OV circuits of its attention heads.

- Weights: `FactoredMatrix`, `qk_factored`, `ov_factored`; their statistics: `circuit_statistics`, `composition_scores`.
- Between features, as gated on given states: `qk_circuit`, `ov_circuit`, `qk_forms`, `ov_forms`.
- The score as a sum over paths through heads: `path_expansion`.
"""

from rlmech.circuits.composition import composition_scores
from rlmech.circuits.expansion import path_expansion
from rlmech.circuits.factored_matrix import FactoredMatrix
from rlmech.circuits.feature_space import ov_forms, qk_forms
from rlmech.circuits.qk_ov import ov_circuit, ov_factored, qk_circuit, qk_factored
from rlmech.circuits.statistics import circuit_statistics

__all__ = [
    "FactoredMatrix",
    "circuit_statistics",
    "composition_scores",
    "ov_circuit",
    "ov_factored",
    "ov_forms",
    "path_expansion",
    "qk_circuit",
    "qk_factored",
    "qk_forms",
]
