"""Counterfactual scenes: the simulator at one moment, edited, observed, decided in and driven on from."""

from rlmech.rollouts.scenes.editable import SceneEdit
from rlmech.rollouts.scenes.field import scene_field
from rlmech.rollouts.scenes.roll import Roll
from rlmech.rollouts.scenes.scene import Decision, Scene
from rlmech.rollouts.scenes.smallest_change import smallest_change

__all__ = ["Decision", "Roll", "Scene", "SceneEdit", "scene_field", "smallest_change"]
