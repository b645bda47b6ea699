"""What a score is made of: first-order estimates, exact sums of terms, affine maps and their margins.

- Estimates of patches: `attribution_patching`, with a certificate that says where they are exact.
- Exact, state by state: `local_affine`, `region_margins`, `attribute_actions`, `centre_actions`,
  `direct_action_attribution`, `exact_integrated_gradients`, `pattern_effects`, `key_feature_effects`, `action_lens`.
- Shares of a decision: `shapley_values` of vehicles, features or heads, `shapley_interactions` of each two.
- Is it true? `faithfulness` takes away what an attribution calls important, `driven_removal` for whole episodes.
- captum's, with names, units and completeness errors: `integrated_gradients`, `saliency`, `deep_lift`,
  `layer_conductance`, `neuron_conductance`.
"""

from rlmech.attribution.action_terms import attribute_actions, centre_actions
from rlmech.attribution.affine import local_affine
from rlmech.attribution.attribution_quality import faithfulness
from rlmech.attribution.captum_attribution import deep_lift, integrated_gradients, saliency
from rlmech.attribution.captum_conductance import layer_conductance, neuron_conductance
from rlmech.attribution.closed_loop_removal import driven_removal
from rlmech.attribution.direct import direct_action_attribution
from rlmech.attribution.exact_gradients import exact_integrated_gradients
from rlmech.attribution.first_order import attribution_patching
from rlmech.attribution.lens import action_lens
from rlmech.attribution.patterns import key_feature_effects, pattern_effects
from rlmech.attribution.regions import region_margins
from rlmech.attribution.shapley import shapley_interactions, shapley_values

__all__ = [
    "action_lens",
    "attribute_actions",
    "attribution_patching",
    "centre_actions",
    "deep_lift",
    "direct_action_attribution",
    "driven_removal",
    "exact_integrated_gradients",
    "faithfulness",
    "integrated_gradients",
    "key_feature_effects",
    "layer_conductance",
    "local_affine",
    "neuron_conductance",
    "pattern_effects",
    "region_margins",
    "saliency",
    "shapley_interactions",
    "shapley_values",
]
