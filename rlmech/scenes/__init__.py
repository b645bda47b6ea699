"""Scenes: the simulator at one moment, edited, observed, decided in and driven on from.

Capture: `Scene.capture` copies an environment as it is; `Scene.replay` the moment after some actions of an episode.
Edit: a scene's methods (`remove`, `add`, `move`, `brake`, ...) each return a new scene; a `SceneEdit` says what was
done and whether the simulator could come to that state.
Ask: `smallest_change` finds the least change that makes the policy act otherwise; `scene_field` measures
the policy over a plane of states.
Drive on: `Scene.decide` returns a `Decision`, `Scene.roll` a `Roll`.
"""

from typing import TYPE_CHECKING

from rlmech.public_names import lazy

if TYPE_CHECKING:
    from rlmech.scenes.decision import Decision
    from rlmech.scenes.field import scene_field
    from rlmech.scenes.flip_search import smallest_change
    from rlmech.scenes.rolling import Roll
    from rlmech.scenes.scene import Scene
    from rlmech.simulators.highway.staging.editable import SceneEdit

_MODULE_OF = {
    "Decision": "rlmech.scenes.decision",
    "Roll": "rlmech.scenes.rolling",
    "Scene": "rlmech.scenes.scene",
    "SceneEdit": "rlmech.simulators.highway.staging.editable",
    "scene_field": "rlmech.scenes.field",
    "smallest_change": "rlmech.scenes.flip_search",
}

__all__ = ["Decision", "Roll", "Scene", "SceneEdit", "scene_field", "smallest_change"]

__getattr__, __dir__ = lazy(__name__, _MODULE_OF)
