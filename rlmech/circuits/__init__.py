"""A policy's mechanism as weights: factored matrices, and the QK and OV circuits of its attention heads."""

from rlmech.circuits.factored_matrix import FactoredMatrix
from rlmech.circuits.feature_space import ov_forms, qk_forms
from rlmech.circuits.qk_ov import ov_circuit, ov_factored, qk_circuit, qk_factored

__all__ = [
    "FactoredMatrix",
    "ov_circuit",
    "ov_factored",
    "ov_forms",
    "qk_circuit",
    "qk_factored",
    "qk_forms",
]
