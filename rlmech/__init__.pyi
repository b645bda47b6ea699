# Written by rlmech/public_names.py.
from rlmech import atlas as atlas, attribution as attribution, certify as certify, circuits as circuits, distil as distil, edges as edges, episodes as episodes, features as features, metrics as metrics, patching as patching, plot as plot, probes as probes, scenes as scenes, similarity as similarity, simulators as simulators, testbed as testbed, zoo as zoo
from rlmech.adapters.load import load as load
from rlmech.adapters.native import save_policy as save_policy
from rlmech.attribution import attribute_actions as attribute_actions, attribution_patching as attribution_patching
from rlmech.core.cache import ActivationCache as ActivationCache
from rlmech.core.edit import Edit as Edit
from rlmech.core.hook_point import HookPoint as HookPoint
from rlmech.core.interventions import erase as erase, mean_ablation as mean_ablation, patch as patch, resample_ablation as resample_ablation, steer as steer, subspace_patch as subspace_patch, zero_ablation as zero_ablation
from rlmech.core.policy import HookedPolicy as HookedPolicy
from rlmech.core.site import Site as Site
from rlmech.episodes.compare import compare_rollouts as compare_rollouts
from rlmech.episodes.driving import Condition as Condition
from rlmech.episodes.recorder import record as record
from rlmech.episodes.recording import Recording as Recording
from rlmech.errors import RlmechError as RlmechError
from rlmech.first_look import report as report
from rlmech.patching import ablation_sweep as ablation_sweep, activation_patching as activation_patching
from rlmech.scenes import Scene as Scene
from rlmech.simulators.env import make_env as make_env
from rlmech.spec import FeatureSpec as FeatureSpec, PolicySpec as PolicySpec

__version__: str
