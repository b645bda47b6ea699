"""What holds for every state of a region: proofs, and the counterexamples that show where they must end.

- Bounds: `score_bounds`, on scores and action gaps in a box or ball (`Move`: what may move, in the features' units).
"""

from rlmech.certify.bounds import score_bounds
from rlmech.certify.moves import Move

__all__ = ["Move", "score_bounds"]
