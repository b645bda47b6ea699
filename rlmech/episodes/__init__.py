"""Episodes: what a policy does in its environment, recorded, and compared under interventions on the same seeds.

Record: `record` runs a policy and writes a `Recording`; `save_video` makes a film of it.
Intervene: `when` says at which moments edits act; a `Condition` is edits, a moment and a policy.
Compare: `compare_rollouts` runs conditions on the same seeds, `compare_recordings` compares what was recorded;
`dose_response` steers by several coefficients; `comparison_table` prints a comparison; `seeds_needed` plans the next.
Ask: `moments` are what was decided in, as any analysis takes it, with the state of a policy that remembers.
Exchange: `to_minari`, `from_minari`.

Importing this module imports neither xarray nor an environment; each name does so when it is first used.
"""

from typing import TYPE_CHECKING

from rlmech.public_names import lazy

if TYPE_CHECKING:
    from rlmech.episodes import when
    from rlmech.episodes.compare import compare_rollouts, dose_response
    from rlmech.episodes.comparison import compare_recordings, comparison_table, seeds_needed
    from rlmech.episodes.controls import Control
    from rlmech.episodes.driving import Condition
    from rlmech.episodes.exchange import from_minari, to_minari
    from rlmech.episodes.recorded_moments import moments
    from rlmech.episodes.recorder import record
    from rlmech.episodes.recording import Recording
    from rlmech.episodes.video import save_video

_MODULE_OF = {
    "Condition": "rlmech.episodes.driving",
    "Control": "rlmech.episodes.controls",
    "Recording": "rlmech.episodes.recording",
    "compare_recordings": "rlmech.episodes.comparison",
    "compare_rollouts": "rlmech.episodes.compare",
    "comparison_table": "rlmech.episodes.comparison",
    "dose_response": "rlmech.episodes.compare",
    "from_minari": "rlmech.episodes.exchange",
    "moments": "rlmech.episodes.recorded_moments",
    "record": "rlmech.episodes.recorder",
    "save_video": "rlmech.episodes.video",
    "seeds_needed": "rlmech.episodes.comparison",
    "to_minari": "rlmech.episodes.exchange",
}

__all__ = [
    "Condition",
    "Control",
    "Recording",
    "compare_recordings",
    "compare_rollouts",
    "comparison_table",
    "dose_response",
    "from_minari",
    "moments",
    "record",
    "save_video",
    "seeds_needed",
    "to_minari",
    "when",
]

__getattr__, __dir__ = lazy(__name__, _MODULE_OF, ("when",))
