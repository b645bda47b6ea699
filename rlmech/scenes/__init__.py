"""Scenes: the simulator at one moment, edited, observed, decided in and driven on from.

Capture: `Scene.capture` copies an environment as it is; `Scene.replay` the moment after some actions of an episode.
Edit: a scene's methods (`remove`, `add`, `move`, `brake`, ...) each return a new scene; a `SceneEdit` says what was
done and whether the simulator could come to that state.
Ask: `smallest_change` finds the least change that makes the policy act otherwise; `scene_field` measures
the policy over a plane of states.
Drive on: `Scene.decide` returns a `Decision`, `Scene.roll` a `Roll`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmech.scenes.editable import SceneEdit
    from rlmech.scenes.field import scene_field
    from rlmech.scenes.flip_search import smallest_change
    from rlmech.scenes.rolling import Roll
    from rlmech.scenes.scene import Decision, Scene

_MODULE_OF = {
    "Decision": "scene",
    "Roll": "rolling",
    "Scene": "scene",
    "SceneEdit": "editable",
    "scene_field": "field",
    "smallest_change": "flip_search",
}

__all__ = ["Decision", "Roll", "Scene", "SceneEdit", "scene_field", "smallest_change"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
