"""The intersection as the policy meets it: lanes, who is where on them, and which ways cross the ego's.

The ego comes from the south (node o0) and turns left, to the west (o1). Seen from it, vehicles come from the `left`
(o1), the `front` (o2) and the `right` (o3). All lengths in metres, headings in radians, y down the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

ARMS = {"left": 1, "front": 2, "right": 3}
EGO_WAY = ("o0", "ir0", "il1", "o1")
HALF_WIDTH = 2.0  # of a lane
ALONG_IT = np.radians(30)  # a vehicle whose heading differs more is not driving along the lane
ROOM = 3.0  # between centre lines: nearer ways are in each other's, as vehicles are 2 m wide
BEYOND = 15.0  # how far ways are followed past the intersection


@dataclass(frozen=True)
class Way:
    """A line to drive along: one lane, or several, end to end.

    Attributes:
        points: Its centre line, `[point, 2]`.
    """

    points: np.ndarray

    @cached_property
    def travelled(self) -> np.ndarray:
        """Distance from the start to each point."""
        return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self.points, axis=0), axis=1))])

    @property
    def length(self) -> float:
        """From end to end."""
        return float(self.travelled[-1])

    def at(self, s: float) -> tuple[float, float, float]:
        """Position and heading, `s` metres from the start."""
        x, y = (float(np.interp(s, self.travelled, self.points[:, axis])) for axis in (0, 1))
        pieces = np.diff(self.points, axis=0)
        turning = np.unwrap(np.arctan2(pieces[:, 1], pieces[:, 0]))
        middles = (self.travelled[1:] + self.travelled[:-1]) / 2
        return x, y, float(np.interp(s, middles, turning))

    def along(self, places: np.ndarray, headings: np.ndarray) -> np.ndarray:
        """How far along it vehicles are, `[vehicle]`; not a number for those that do not drive on it.

        Args:
            places: Positions, `[vehicle, 2]`.
            headings: `[vehicle]`.
        """
        pieces = np.diff(self.points, axis=0)
        sizes = np.linalg.norm(pieces, axis=1)
        from_start = places[:, None] - self.points[None, :-1]
        share = np.clip((from_start * pieces).sum(-1) / sizes**2, 0, 1)
        off = np.linalg.norm(from_start - share[..., None] * pieces, axis=-1)
        nearest = off.argmin(1)
        which = np.arange(len(places))
        turned = headings - np.arctan2(pieces[nearest, 1], pieces[nearest, 0])
        turned = np.abs((turned + np.pi) % (2 * np.pi) - np.pi)
        on = (off[which, nearest] <= HALF_WIDTH) & (turned <= ALONG_IT)
        return np.where(on, self.travelled[nearest] + share[which, nearest] * sizes[nearest], np.nan)


class Road:
    """The lanes of a recording's manifest, by the nodes that they join."""

    def __init__(self, lanes: Sequence[dict[str, Any]]) -> None:
        self._lanes = {(lane["from"], lane["to"]): np.asarray(lane["points"]) for lane in lanes}

    def way(self, *nodes: str) -> Way:
        """The way from node to node."""
        parts = [self._lanes[pair] for pair in pairwise(nodes)]
        return Way(np.concatenate([parts[0], *(part[1:] for part in parts[1:])]))

    def incoming(self, arm: int) -> Way:
        """The lane towards the intersection; its end is the entry."""
        return self.way(f"o{arm}", f"ir{arm}")

    def outgoing(self, arm: int) -> Way:
        """The lane away from it."""
        return self.way(f"il{arm}", f"o{arm}")

    def turn(self, arm: int, *, crossing: bool) -> int:
        """Where a vehicle from `arm` turns to, right or left.

        Of every arm's two turns one is in the ego's way and one is not.
        """
        turns = {self.crosses_ego(arm, to): to for to in ((arm - 1) % 4, (arm + 1) % 4)}
        return turns[crossing]

    def crosses_ego(self, arm: int, to: int) -> bool:
        """Whether the way from one arm to another crosses the ego's, or leads into it."""
        theirs = self._inside(self.way(f"o{arm}", f"ir{arm}", f"il{to}", f"o{to}"))
        ours = self._inside(self.way(*EGO_WAY))
        return bool(np.linalg.norm(theirs[:, None] - ours[None], axis=-1).min() < ROOM)

    def _inside(self, way: Way) -> np.ndarray:
        """Points every half metre, from the entry to a bit beyond the exit."""
        before = self.incoming(0).length
        return np.array([way.at(s)[:2] for s in np.arange(before, way.length - before + BEYOND, 0.5)])
