"""The analyses that this experiment uses."""

from __future__ import annotations

from rlmech.circuits.affine import local_affine
from rlmech.circuits.captum_attribution import integrated_gradients
from rlmech.circuits.captum_conductance import layer_conductance, neuron_conductance
from rlmech.circuits.exact_gradients import exact_integrated_gradients
from rlmech.circuits.lens import action_lens
from rlmech.circuits.regions import region_margins

__all__ = [
    "action_lens",
    "exact_integrated_gradients",
    "integrated_gradients",
    "layer_conductance",
    "local_affine",
    "neuron_conductance",
    "region_margins",
]
