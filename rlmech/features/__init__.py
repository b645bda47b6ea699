"""Features that no neuron is alone: subspaces and dictionaries, judged by what the policy then does.

- A causal variable: `interchange_pairs` draws pairs of states, `align_subspace` learns the directions along which the
  variable is exchanged (DAS) beside its controls; `AlignedSubspace.basis` goes into `rlm.subspace_patch`.
- A dictionary of a site: `fit_dictionary` (TopK, BatchTopK, JumpReLU, transcoders with `into=`; principal components,
  independent ones and neurons); `compare_dictionaries` scores them by decisions, divergence and return, and says which
  are not worth it.
- Its features: `feature_effects` on each action, `drive_features`; `Dictionary.ablate`, `scale`, `steer` and `splice`
  are edits, `splice_hooks` those of a transcoder; in `spliced(policy, dictionary)` features are neurons for any sweep.
"""

from rlmech.features.alignment import AlignedSubspace, align_subspace
from rlmech.features.dictionary import Dictionary
from rlmech.features.effects import drive_features, feature_effects
from rlmech.features.fitting import fit_dictionary
from rlmech.features.pairs import InterchangePairs, interchange_pairs
from rlmech.features.scores import DictionaryScores, compare_dictionaries
from rlmech.features.splicing import splice_hooks, spliced

__all__ = [
    "AlignedSubspace",
    "Dictionary",
    "DictionaryScores",
    "InterchangePairs",
    "align_subspace",
    "compare_dictionaries",
    "drive_features",
    "feature_effects",
    "fit_dictionary",
    "interchange_pairs",
    "splice_hooks",
    "spliced",
]
