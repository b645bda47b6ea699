"""What an environment shows of itself at the steps of a recording, for simulators that are not drawn here.

The recorded actions are taken again in the same environment, and the rewards compared with those recorded: where they
differ the pictures end. Cost: those steps once more, and a few kilobytes a picture.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from rlmech.episodes import Recording
from rlmech.plot.svg import SvgFigure, tag

if TYPE_CHECKING:
    import gymnasium as gym

MOST = 200
_WIDTH = 360  # pixels


def shows_itself(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment can be made to return pictures."""
    return "rgb_array" in (env.metadata.get("render_modes") or ())


def pictures(env: gym.Env[Any, Any], recording: Recording, *, most: int = MOST) -> dict[int, SvgFigure]:
    """Pictures of the first rows of a recording.

    Args:
        env: The environment that was recorded, of `render_mode="rgb_array"`; another gives none.
        recording: Its episodes.
        most: How many pictures, at most.

    Returns:
        Row -> picture.
    """
    if env.render_mode != "rgb_array":
        return {}
    found: dict[int, SvgFigure] = {}
    steps: Any = recording.steps
    for seed, rows in steps.groupby("seed", sort=False).indices.items():
        env.reset(seed=int(seed))
        for row in np.sort(rows):
            if len(found) == most:
                return found
            found[int(row)] = _picture(env.render())
            action = recording.actions[row]
            reward = env.step(int(action) if np.ndim(action) == 0 else np.asarray(action))[1]
            if not np.isclose(float(reward), float(steps["reward"].iloc[row])):
                return found  # it does not go on as it was recorded
    return found


def _picture(frame: Any) -> SvgFigure:
    from PIL import Image

    image = Image.fromarray(np.asarray(frame, dtype=np.uint8)).convert("RGB")
    height = max(1, round(image.height * _WIDTH / image.width))
    packed = io.BytesIO()
    image.resize((_WIDTH, height)).save(packed, format="JPEG", quality=70)
    data = f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
    drawn = tag("image", width=_WIDTH, height=height, href=data)
    size = {"viewBox": f"0 0 {_WIDTH} {height}", "width": _WIDTH, "height": height, "style": f"max-width: {_WIDTH}px"}
    label = "the environment's own picture"
    return SvgFigure(svg=tag("svg", drawn, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label, **size))
