"""Two policies on the same states: alike in what they represent, in what they do, in what they can use of each other.

- `compare_policies`: linear CKA, canonical correlation, shared nearest neighbours and agreement, beside untrained
  networks and chance.
- `joint_dictionary`: features of both together, and which of them only one policy holds.
- `stitch`: one policy's layer by an affine map into the other, driven. A circuit of one is measured in the other by
  `Circuit.evaluate(policy, ...)`, where the names agree.
"""

from rlmech.similarity.diffing import joint_dictionary
from rlmech.similarity.policies import compare_policies
from rlmech.similarity.stitching import stitch

__all__ = ["compare_policies", "joint_dictionary", "stitch"]
