"""The scene at one step of a recording, or as it was edited, as its simulator has it: a road, or a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.grid import draw_grid, grid_scene
from rlmech.plot.road import draw_road, road_scene, vehicles_of
from rlmech.plot.svg import SvgFigure
from rlmech.scenes import Scene
from rlmech.simulators.choice import simulator_of

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording


@explain_misuse
def scene(
    recording: Recording | Scene,
    *,
    episode: int | None = None,
    step: int | None = None,
    pattern: xr.DataArray | None = None,
    title: str = "",
    way: np.ndarray | None = None,
) -> SvgFigure:
    """Draw the road, or MiniGrid's grid, at one step of a recording, or of a scene, edited or not.

    Args:
        recording: A recording of a highway-env or a MiniGrid environment, or a `Scene` of one.
        episode: Number of the episode in the recording.
        step: Step in the episode.
        pattern: On a road, the policy's attention in that state, `[head key]`, or `[head query key]` with one query;
            position along `key` is the observation row. None draws no attention.
        title: One line above the drawing.
        way: On a road, positions `[point, xy]` in m that the window lies around, so that two episodes can be drawn
            alike; by default the ego's in this episode. A grid is drawn whole.

    Returns:
        The drawing; hovering a vehicle tells its row, its speed and the weights that it gets, hovering an object what
        it is and whether it is seen.

    Raises:
        RecordingError: The recording tells of nobody, or not of this step.
        ConfigError: The pattern has other dimensions, it is to be drawn over a grid, or a step of a recording is not
            named.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> env = rlm.make_env("intersection-v2", config={"duration": 1})
        >>> recording = rlm.record(policy, env, seeds=[0], progress=False)
        >>> rlm.plot.scene(recording, episode=0, step=0).svg.startswith("<svg")
        True
    """
    if isinstance(recording, Scene):
        return _of_scene(recording, pattern=pattern, title=title, way=way)
    if episode is None or step is None:
        raise ConfigError(
            "Which step of the recording is drawn is not said.",
            given=f"episode={episode}, step={step}",
            expected="both",
            fix="scene(recording, episode=0, step=0)",
        )
    if not is_grid(recording):
        return road_scene(recording, episode=episode, step=step, pattern=pattern, title=title, way=way)
    _refuse_on_a_grid(pattern, way, recording.manifest["env"]["id"])
    return grid_scene(recording, episode=episode, step=step, title=title)


def _of_scene(shown: Scene, *, pattern: xr.DataArray | None, title: str, way: np.ndarray | None) -> SvgFigure:
    env, entities = shown.stage.env, shown.entities
    simulator = simulator_of(env)
    label = shown.describe()
    if simulator.name == "minigrid":
        _refuse_on_a_grid(pattern, way, env.spec.id if env.spec is not None else type(env.unwrapped).__name__)
        layout = str(simulator.episode_values(simulator.world(env))["layout"])
        return draw_grid(entities.to_dict("records"), layout, title=title, label=label)
    if len(shown.vehicles) == 0:
        raise ConfigError(
            "The scene has nothing to draw.",
            given=f"a scene of {type(env.unwrapped).__name__}",
            expected="a scene of a highway-env or a MiniGrid environment",
            fix="rlm.plot.q_values draws the scores of a recording of any environment",
        )
    return draw_road(
        vehicles_of(entities),
        simulator.map(env),
        way=way,
        entities=shown.spec.entities,
        pattern=pattern,
        title=title,
        label=label,
    )


def _refuse_on_a_grid(pattern: xr.DataArray | None, way: np.ndarray | None, env_id: str) -> None:
    if pattern is not None or way is not None:
        raise ConfigError(
            "Attention and a way are drawn over a road alone.",
            given=f"pattern and way for {env_id}",
            expected="None: a grid is drawn whole, and its observations have no rows to attend to",
            fix="leave them out; rlm.plot.attention draws a pattern by itself",
        )


def is_grid(recording: Recording) -> bool:
    """Whether it is of one of MiniGrid's environments."""
    return recording.manifest.get("simulator") == "minigrid"


def is_drawable(recording: Recording) -> bool:
    """Whether its scenes can be drawn."""
    return is_grid(recording) or len(recording.vehicles) > 0
