"""The same questions to every policy of a folder, by the same code: what published agents are like inside.

- `map_policies`: who runs; single units in the states met, and driven; first-order patching, linear maps, borders,
  noise, mirrors, features; pairs of algorithms. A row a policy, resumable, with untrained networks beside. `Sizes` says
  how many states and seeds; `answers` gives the twenty answers, with intervals over policies.
- `drive_units` asks a policy of your own the heart of it: each of its `hidden_units` at its mean, through episodes.
- `effective_rank` beside `gaussian_rank`, `participation_ratio`, `smallest_keeping` (the units that suffice) and
  `share_of_way` (how far down to a random policy) for policies of your own.
"""

from rlmech.atlas.closed_loops import drive_units
from rlmech.atlas.measures import effective_rank, gaussian_rank, participation_ratio, share_of_way, smallest_keeping
from rlmech.atlas.questions import answers
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import hidden_units
from rlmech.atlas.tables import map_policies

__all__ = [
    "Sizes",
    "answers",
    "drive_units",
    "effective_rank",
    "gaussian_rank",
    "hidden_units",
    "map_policies",
    "participation_ratio",
    "share_of_way",
    "smallest_keeping",
]
