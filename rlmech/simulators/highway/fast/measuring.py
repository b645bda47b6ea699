"""The measures of a road's vehicles in a few calls of the kernel: the same bits as `measures` and `vehicles` give.

Python's `math.hypot` has an algorithm of its own, so that lengths are taken by it, here as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlmech.simulators.highway.fast.kernel import kernel
from rlmech.simulators.highway.fast.lanes import lane_table
from rlmech.simulators.highway.measures import Rectangle

if TYPE_CHECKING:
    from highway_env.road.road import RoadNetwork
    from highway_env.vehicle.controller import ControlledVehicle

Towards = list[tuple[float, float, float, float]]


def towards(rectangles: Sequence[Rectangle], cosines: Sequence[tuple[float, float]]) -> Towards:
    """Distance, gap, closing speed and time to collision of the first with each; nothing for itself.

    Args:
        rectangles: The vehicles.
        cosines: Cosine and sine of each heading.
    """
    n = len(rectangles)
    bodies = np.array(
        [(r.x, r.y, *turn, r.vx, r.vy, r.length, r.width) for r, turn in zip(rectangles, cosines, strict=True)]
    )
    meetings = np.zeros((n, 21))
    kernel().encounters(bodies.ctypes.data, n, meetings.ctypes.data)
    found: Towards = [(math.nan, math.nan, math.nan, math.nan)]
    for dx, dy, closing, ttc, n_near, *near in meetings.tolist()[1:]:
        distance = math.hypot(dx, dy)
        gap = min((math.hypot(near[2 * k], near[2 * k + 1]) for k in range(int(n_near))), default=0.0)
        found.append((distance, gap, closing / distance if distance > 0 else 0.0, ttc))
    return found


def along_and_across(vehicles: Sequence[ControlledVehicle], network: RoadNetwork) -> list[tuple[float, float]] | None:
    """Each vehicle's coordinates on its own lane; None where the kernel does not know one of the lanes."""
    lanes = lane_table(network)
    places = [-1 if lanes is None else lanes.place.get(id(one.lane), -1) for one in vehicles]
    if lanes is None or -1 in places:
        return None
    which = np.array(places, dtype=np.int64)
    positions = np.array([one.position for one in vehicles], dtype=np.float64)
    found = np.empty_like(positions)
    arrays = which.ctypes.data, positions.ctypes.data, len(places), found.ctypes.data
    kernel().on_own_lanes(lanes.address, *arrays)
    return [(along, across) for along, across in found.tolist()]


def in_front(vehicles: Sequence[ControlledVehicle]) -> list[bool]:
    """Whether each is at least as far in front of the first as the first is of it, as `respect_priorities` has it."""
    positions = np.array([one.position for one in vehicles], dtype=np.float64)
    headings = np.array([one.heading for one in vehicles], dtype=np.float64)
    cos, sin = np.cos(headings), np.sin(headings)
    back = positions[0] - positions
    to_ego = cos * back[:, 0] + sin * back[:, 1]
    from_ego = cos[0] * -back[:, 0] + sin[0] * -back[:, 1]
    return (to_ego <= from_ego).tolist()
