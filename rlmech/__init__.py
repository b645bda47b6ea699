"""rlmech: mechanistic interpretability for reinforcement-learning policies.

Everything public stands here, flat. What needs a heavy package (Stable-Baselines3, highway-env, plotly, xarray) is
imported when it is first used, so that `import rlmech` costs little more than `import torch`.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rlmech.core.cache import ActivationCache
from rlmech.core.edit import (
    Edit,
    Site,
    mean_ablation,
    patch,
    resample_ablation,
    steer,
    subspace_patch,
    zero_ablation,
)
from rlmech.core.hook_point import HookPoint
from rlmech.core.policy import HookedPolicy
from rlmech.errors import RlmechError
from rlmech.spec import FeatureSpec, PolicySpec

if TYPE_CHECKING:
    from rlmech import plot, testbed, zoo
    from rlmech.adapters.load import load
    from rlmech.adapters.native import save_policy
    from rlmech.circuits.action_attribution import attribute_actions, centre_actions
    from rlmech.circuits.affine import local_affine
    from rlmech.circuits.captum_attribution import deep_lift, integrated_gradients, saliency
    from rlmech.circuits.captum_conductance import layer_conductance, neuron_conductance
    from rlmech.circuits.composition import composition_scores
    from rlmech.circuits.direct import direct_action_attribution
    from rlmech.circuits.exact_gradients import exact_integrated_gradients
    from rlmech.circuits.factored_matrix import FactoredMatrix
    from rlmech.circuits.lens import action_lens
    from rlmech.circuits.path_expansion import path_expansion
    from rlmech.circuits.pattern_effects import key_feature_effects, pattern_effects
    from rlmech.circuits.qk_ov import ov_circuit, ov_factored, qk_circuit, qk_factored
    from rlmech.circuits.regions import region_margins
    from rlmech.circuits.statistics import circuit_statistics
    from rlmech.episodes import when
    from rlmech.episodes.compare import compare_rollouts, dose_response
    from rlmech.episodes.comparison import compare_recordings, comparison_table, seeds_needed
    from rlmech.episodes.driving import Condition
    from rlmech.episodes.exchange import from_minari, to_minari
    from rlmech.episodes.recorder import record
    from rlmech.episodes.recording import Recording
    from rlmech.episodes.video import save_video
    from rlmech.interventions.ablation import ablation_sweep, steering_sweep
    from rlmech.interventions.edges.circuit import Circuit
    from rlmech.interventions.edges.component_graph import component_graph
    from rlmech.interventions.edges.discover import discover_circuit
    from rlmech.interventions.edges.edge_attribution import edge_attribution
    from rlmech.interventions.edges.edge_patching import edge_patching
    from rlmech.interventions.edges.path import path_patching
    from rlmech.interventions.edges.scrubbing import causal_scrubbing
    from rlmech.interventions.edges.units import choose_units
    from rlmech.interventions.gradients.attribution import attribution_patching
    from rlmech.interventions.interactions import pairwise_interactions
    from rlmech.interventions.manifold import off_manifold_distance
    from rlmech.interventions.metrics import (
        Metric,
        action_flip,
        action_gap,
        action_score,
        action_shift,
        policy_kl,
        state_value,
    )
    from rlmech.interventions.optimal import OptimalConstants, optimal_constants
    from rlmech.interventions.patching import activation_patching
    from rlmech.interventions.sites import sliding_windows
    from rlmech.interventions.subspace import interchange_intervention
    from rlmech.plot.report import report
    from rlmech.scenes import Scene, SceneEdit
    from rlmech.scenes.field import scene_field
    from rlmech.scenes.flip_search import smallest_change
    from rlmech.simulators.env import make_env, spec_of

__version__ = version("rlmech")

_LAZY = {
    "Circuit": "rlmech.interventions.edges.circuit",
    "Condition": "rlmech.episodes.driving",
    "FactoredMatrix": "rlmech.circuits.factored_matrix",
    "Metric": "rlmech.interventions.metrics",
    "OptimalConstants": "rlmech.interventions.optimal",
    "Recording": "rlmech.episodes.recording",
    "Scene": "rlmech.scenes",
    "SceneEdit": "rlmech.scenes",
    "ablation_sweep": "rlmech.interventions.ablation",
    "action_flip": "rlmech.interventions.metrics",
    "action_gap": "rlmech.interventions.metrics",
    "action_lens": "rlmech.circuits.lens",
    "action_score": "rlmech.interventions.metrics",
    "action_shift": "rlmech.interventions.metrics",
    "activation_patching": "rlmech.interventions.patching",
    "attribute_actions": "rlmech.circuits.action_attribution",
    "attribution_patching": "rlmech.interventions.gradients.attribution",
    "causal_scrubbing": "rlmech.interventions.edges.scrubbing",
    "centre_actions": "rlmech.circuits.action_attribution",
    "choose_units": "rlmech.interventions.edges.units",
    "circuit_statistics": "rlmech.circuits.statistics",
    "compare_recordings": "rlmech.episodes.comparison",
    "compare_rollouts": "rlmech.episodes.compare",
    "comparison_table": "rlmech.episodes.comparison",
    "component_graph": "rlmech.interventions.edges.component_graph",
    "composition_scores": "rlmech.circuits.composition",
    "deep_lift": "rlmech.circuits.captum_attribution",
    "direct_action_attribution": "rlmech.circuits.direct",
    "discover_circuit": "rlmech.interventions.edges.discover",
    "dose_response": "rlmech.episodes.compare",
    "edge_attribution": "rlmech.interventions.edges.edge_attribution",
    "edge_patching": "rlmech.interventions.edges.edge_patching",
    "exact_integrated_gradients": "rlmech.circuits.exact_gradients",
    "from_minari": "rlmech.episodes.exchange",
    "integrated_gradients": "rlmech.circuits.captum_attribution",
    "interchange_intervention": "rlmech.interventions.subspace",
    "key_feature_effects": "rlmech.circuits.pattern_effects",
    "layer_conductance": "rlmech.circuits.captum_conductance",
    "load": "rlmech.adapters.load",
    "local_affine": "rlmech.circuits.affine",
    "make_env": "rlmech.simulators.env",
    "neuron_conductance": "rlmech.circuits.captum_conductance",
    "off_manifold_distance": "rlmech.interventions.manifold",
    "optimal_constants": "rlmech.interventions.optimal",
    "ov_circuit": "rlmech.circuits.qk_ov",
    "ov_factored": "rlmech.circuits.qk_ov",
    "pairwise_interactions": "rlmech.interventions.interactions",
    "path_expansion": "rlmech.circuits.path_expansion",
    "path_patching": "rlmech.interventions.edges.path",
    "pattern_effects": "rlmech.circuits.pattern_effects",
    "policy_kl": "rlmech.interventions.metrics",
    "qk_circuit": "rlmech.circuits.qk_ov",
    "qk_factored": "rlmech.circuits.qk_ov",
    "record": "rlmech.episodes.recorder",
    "region_margins": "rlmech.circuits.regions",
    "report": "rlmech.plot.report",
    "saliency": "rlmech.circuits.captum_attribution",
    "save_policy": "rlmech.adapters.native",
    "save_video": "rlmech.episodes.video",
    "scene_field": "rlmech.scenes.field",
    "seeds_needed": "rlmech.episodes.comparison",
    "sliding_windows": "rlmech.interventions.sites",
    "smallest_change": "rlmech.scenes.flip_search",
    "spec_of": "rlmech.simulators.env",
    "state_value": "rlmech.interventions.metrics",
    "steering_sweep": "rlmech.interventions.ablation",
    "to_minari": "rlmech.episodes.exchange",
}
_MODULES = {"plot": "rlmech.plot", "testbed": "rlmech.testbed", "when": "rlmech.episodes.when", "zoo": "rlmech.zoo"}

__all__ = [
    "ActivationCache",
    "Circuit",
    "Condition",
    "Edit",
    "FactoredMatrix",
    "FeatureSpec",
    "HookPoint",
    "HookedPolicy",
    "Metric",
    "OptimalConstants",
    "PolicySpec",
    "Recording",
    "RlmechError",
    "Scene",
    "SceneEdit",
    "Site",
    "ablation_sweep",
    "action_flip",
    "action_gap",
    "action_lens",
    "action_score",
    "action_shift",
    "activation_patching",
    "attribute_actions",
    "attribution_patching",
    "causal_scrubbing",
    "centre_actions",
    "choose_units",
    "circuit_statistics",
    "compare_recordings",
    "compare_rollouts",
    "comparison_table",
    "component_graph",
    "composition_scores",
    "deep_lift",
    "direct_action_attribution",
    "discover_circuit",
    "dose_response",
    "edge_attribution",
    "edge_patching",
    "exact_integrated_gradients",
    "from_minari",
    "integrated_gradients",
    "interchange_intervention",
    "key_feature_effects",
    "layer_conductance",
    "load",
    "local_affine",
    "make_env",
    "mean_ablation",
    "neuron_conductance",
    "off_manifold_distance",
    "optimal_constants",
    "ov_circuit",
    "ov_factored",
    "pairwise_interactions",
    "patch",
    "path_expansion",
    "path_patching",
    "pattern_effects",
    "plot",
    "policy_kl",
    "qk_circuit",
    "qk_factored",
    "record",
    "region_margins",
    "report",
    "resample_ablation",
    "saliency",
    "save_policy",
    "save_video",
    "scene_field",
    "seeds_needed",
    "sliding_windows",
    "smallest_change",
    "spec_of",
    "state_value",
    "steer",
    "steering_sweep",
    "subspace_patch",
    "testbed",
    "to_minari",
    "when",
    "zero_ablation",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'rlmech' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
