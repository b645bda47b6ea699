"""The scene at one step of a recording, as its simulator has it: a road, or a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.grid import grid_scene
from rlmech.plot.road import road_scene
from rlmech.plot.svg import SvgFigure

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording


@explain_misuse
def scene(
    recording: Recording,
    *,
    episode: int,
    step: int,
    pattern: xr.DataArray | None = None,
    title: str = "",
    way: np.ndarray | None = None,
) -> SvgFigure:
    """Draw the road, or MiniGrid's grid, at one step of a recording.

    Args:
        recording: A recording of a highway-env or a MiniGrid environment.
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
        ConfigError: The pattern has other dimensions, or it is to be drawn over a grid.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> env = rlm.make_env("intersection-v2", config={"duration": 1})
        >>> recording = rlm.record(policy, env, seeds=[0], progress=False)
        >>> rlm.plot.scene(recording, episode=0, step=0).svg.startswith("<svg")
        True
    """
    if not is_grid(recording):
        return road_scene(recording, episode=episode, step=step, pattern=pattern, title=title, way=way)
    if pattern is not None or way is not None:
        raise ConfigError(
            "Attention and a way are drawn over a road alone.",
            given=f"pattern and way for a recording of {recording.manifest['env']['id']}",
            expected="None: a grid is drawn whole, and its observations have no rows to attend to",
            fix="leave them out; rlm.plot.attention draws a pattern by itself",
        )
    return grid_scene(recording, episode=episode, step=step, title=title)


def is_grid(recording: Recording) -> bool:
    """Whether it is of one of MiniGrid's environments."""
    return recording.manifest.get("simulator") == "minigrid"


def is_drawable(recording: Recording) -> bool:
    """Whether its scenes can be drawn."""
    return is_grid(recording) or len(recording.vehicles) > 0
