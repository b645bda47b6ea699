"""Episodes: what a policy does in its environment, recorded, and compared under interventions on the same seeds.

Record: `record` runs a policy and writes a `Recording`; `save_video` makes a film of it.
Intervene: `when` says at which moments edits act; a `Condition` is edits, a moment and a policy.
Compare: `compare_rollouts` runs conditions on the same seeds, `compare_recordings` compares what was recorded;
`dose_response` steers by several coefficients; `comparison_table` prints a comparison; `seeds_needed` plans the next.
Exchange: `to_minari`, `from_minari`.

Importing this module imports neither xarray nor an environment; each name does so when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmech.episodes import when
    from rlmech.episodes.compare import compare_rollouts, dose_response
    from rlmech.episodes.comparison import compare_recordings, comparison_table, seeds_needed
    from rlmech.episodes.controls import Control
    from rlmech.episodes.driving import Condition
    from rlmech.episodes.exchange import from_minari, to_minari
    from rlmech.episodes.recorder import record
    from rlmech.episodes.recording import Recording
    from rlmech.episodes.video import save_video

_MODULE_OF = {
    "Condition": "driving",
    "Control": "controls",
    "Recording": "recording",
    "compare_recordings": "comparison",
    "compare_rollouts": "compare",
    "comparison_table": "comparison",
    "dose_response": "compare",
    "from_minari": "exchange",
    "record": "recorder",
    "save_video": "video",
    "seeds_needed": "comparison",
    "to_minari": "exchange",
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
    "record",
    "save_video",
    "seeds_needed",
    "to_minari",
    "when",
]


def __getattr__(name: str) -> Any:
    if name == "when":
        value: Any = import_module(f"{__name__}.when")
    elif name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
