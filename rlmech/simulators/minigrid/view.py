"""What of a grid an observation shows, and what its axes mean.

MiniGrid's images are `[x, y, channel]`: the first axis runs across. The agent's own view is turned so that it looks up
and stands in the middle of the last row; a full view has the grid's own cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from jaxtyping import Bool

if TYPE_CHECKING:
    from minigrid.minigrid_env import MiniGridEnv

FULL = ("FullyObsWrapper", "RGBImgObsWrapper", "SymbolicObsWrapper")
PIXELS = ("RGBImgObsWrapper", "RGBImgPartialObsWrapper")
CHANNELS = ("object", "color", "state")
NOWHERE = (False, -1, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What an environment's observations show.

    Attributes:
        kind: `own`: what the agent sees from where it is; `full`: the whole grid.
        size: Cells across and down.
        shows: What an image's last axis holds: `cells` (object, colour, state), `bits` (the same, one bit a value),
            `pixels`, or `symbols`.
        wrapped: Whether something outside of MiniGrid changes its observations.
    """

    kind: Literal["own", "full"]
    size: tuple[int, int]
    shows: Literal["cells", "bits", "pixels", "symbols"]
    flat: bool


def layers(env: gym.Env) -> list[Any]:
    """The wrappers of an environment, the innermost first."""
    found: list[Any] = []
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        found.insert(0, layer)
        layer = layer.env
    return found


def is_own(layer: object) -> bool:
    """Whether a wrapper is one of MiniGrid's."""
    return type(layer).__module__ == "minigrid.wrappers"


def view_of(env: gym.Env) -> View:
    """What an environment's observations show, by MiniGrid's wrappers around it."""
    base: Any = env.unwrapped
    size, kind, shows, flat = (base.agent_view_size,) * 2, "own", "cells", False
    for layer in layers(env):
        name = type(layer).__name__ if is_own(layer) else ""
        if name in FULL:
            kind, size = "full", (base.width, base.height)
        if name == "ViewSizeWrapper":
            kind, size, shows = "own", (layer.agent_view_size,) * 2, "cells"
        if name in PIXELS:
            shows = "pixels"
        if name == "RGBImgPartialObsWrapper":
            kind, size = "own", (base.agent_view_size,) * 2
        if name == "SymbolicObsWrapper":
            shows = "symbols"
        if name == "FullyObsWrapper":
            shows = "cells"
        if name == "OneHotPartialObsWrapper":
            shows = "bits"
        flat = flat or name == "FlatObsWrapper"
    return View(kind=kind, size=size, shows=shows, flat=flat)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Seen:
    """What of a grid is seen in one state.

    Attributes:
        base: The environment without its wrappers.
        view: What its observations show.
        mask: Of its own view, which cells are not hidden behind others; None where all are shown.
    """

    base: Any
    view: View
    mask: Bool[np.ndarray, "width height"] | None

    @classmethod
    def of(cls, base: MiniGridEnv, view: View) -> Seen:
        """What is seen now."""
        return cls(base, view, None if view.kind == "full" else base.gen_obs_grid(view.size[0])[1])

    def at(self, x: int, y: int) -> tuple[bool, int, int]:
        """Whether a cell is seen, and its place along the image's two axes."""
        if self.mask is None:
            return True, x, y
        place = in_view(self.base, x, y, size=self.view.size[0])
        return (True, *place) if place is not None and bool(self.mask[place]) else NOWHERE

    def agent(self) -> tuple[bool, int, int]:
        """The same of the agent: its own view does not show it, and its place is where it looks from."""
        x, y = (int(one) for one in self.base.agent_pos)
        if self.mask is None:
            return True, x, y
        return False, self.view.size[0] // 2, self.view.size[0] - 1

    def carried(self) -> tuple[bool, int, int]:
        """The same of what is carried: its own view shows it where the agent stands, a full one not at all."""
        return NOWHERE if self.mask is None else (True, *self.agent()[1:])


def in_view(base: MiniGridEnv, x: int, y: int, *, size: int) -> tuple[int, int] | None:
    """The place of a cell in the agent's own view of some size; None outside of it."""
    ahead, right = (int(one) for one in base.dir_vec), (int(one) for one in base.right_vec)
    dx, dy = x - int(base.agent_pos[0]), y - int(base.agent_pos[1])
    (fx, fy), (rx, ry) = ahead, right
    across, forward = size // 2 + rx * dx + ry * dy, size - 1 - (fx * dx + fy * dy)
    return (across, forward) if 0 <= across < size and 0 <= forward < size else None


def labels_of(view: View) -> dict[str, tuple[str, ...]]:
    """Names along an image's axes, as Stable-Baselines3 turns it: its first axis is called height."""
    if view.shows == "pixels":
        return {"channel": ("red", "green", "blue")}
    across, down = cell_names(view)
    return {"channel": channels_of(view), "height": across, "width": down}


def cell_names(view: View) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the places along an image's first axis, and along its second."""
    n_across, n_down = view.size
    if view.kind == "full":
        return tuple(f"x {x}" for x in range(n_across)), tuple(f"y {y}" for y in range(n_down))
    middle = n_across // 2
    across = (*(f"left {n}" for n in range(middle, 0, -1)), "middle", *(f"right {n}" for n in range(1, middle + 1)))
    return across, (*(f"ahead {n}" for n in range(n_down - 1, 0, -1)), "own")


def channels_of(view: View) -> tuple[str, ...]:
    """Names of what is told of each cell."""
    if view.shows == "symbols":
        return ("x", "y", "object")
    if view.shows == "cells":
        return CHANNELS
    from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

    return tuple(
        f"{kind} {name}"
        for kind, names in zip(CHANNELS, (OBJECT_TO_IDX, COLOR_TO_IDX, STATE_TO_IDX), strict=True)
        for name in sorted(names, key=lambda name: names[name])
    )
