"""What holds for every state of a region: proofs, and the counterexamples that show where they must end.

- Regions: `Move`, what may move around a state, in the features' own units.
- Bounds: `score_bounds`, on scores and action gaps in a region.
- Radii: `certified_radius`, how far each feature or vehicle may move before the action can change.
- Maps: `certified_map`, the action in each cell over two features, proved for the whole cell where it can be.
- Claims: `check` decides `Takes`, `Never`, `Monotone` and `Mirrored`: proved, refuted with an example, or undecided.
"""

from rlmech.certify.bounds import score_bounds
from rlmech.certify.checks import check
from rlmech.certify.claims import Mirrored, Monotone, Never, Takes
from rlmech.certify.maps import certified_map
from rlmech.certify.moves import Move
from rlmech.certify.radius import certified_radius

__all__ = [
    "Mirrored",
    "Monotone",
    "Move",
    "Never",
    "Takes",
    "certified_map",
    "certified_radius",
    "check",
    "score_bounds",
]
