"""The measures of a road's vehicles in a few calls of the kernel: the same bits as `measures` and `vehicles` give.

Python's `math.hypot` has an algorithm of its own, so that lengths are taken by it, here as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from rlmech.simulators.highway.fast.kernel import kernel
from rlmech.simulators.highway.fast.lanes import lane_table

if TYPE_CHECKING:
    from highway_env.road.road import RoadNetwork
    from highway_env.vehicle.controller import ControlledVehicle

Towards = list[tuple[float, float, float, float]]
Body = tuple[float, float, float, float, float, float, float, float]
"""x, y, cosine and sine of the heading, vx, vy, length, width."""
Positions = Float[np.ndarray, "vehicle 2"]


def towards(bodies: Sequence[Body]) -> Towards:
    """Distance, gap, closing speed and time to collision of the first with each; nothing for itself.

    Args:
        bodies: The vehicles.
    """
    n = len(bodies)
    arrays = np.array(bodies)
    meetings = np.zeros((n, 21))
    kernel().encounters(arrays.ctypes.data, n, meetings.ctypes.data)
    found: Towards = [(math.nan, math.nan, math.nan, math.nan)]
    hypot = math.hypot
    for meeting in meetings.tolist()[1:]:
        dx, dy, closing, ttc, n_near = meeting[:5]
        distance, last = hypot(dx, dy), 5 + 2 * int(n_near)
        gap = min(map(hypot, meeting[5:last:2], meeting[6:last:2]), default=0.0)
        found.append((distance, gap, closing / distance if distance > 0 else 0.0, ttc))
    return found


def along_and_across(
    vehicles: Sequence[ControlledVehicle], positions: Positions, network: RoadNetwork
) -> list[list[float]] | None:
    """Each vehicle's coordinates on its own lane; None where the kernel does not know one of the lanes."""
    lanes = lane_table(network)
    places = [-1 if lanes is None else lanes.place.get(id(one.lane), -1) for one in vehicles]
    if lanes is None or -1 in places:
        return None
    which = np.array(places, dtype=np.int64)
    found = np.empty_like(positions)
    arrays = which.ctypes.data, positions.ctypes.data, len(places), found.ctypes.data
    kernel().on_own_lanes(lanes.address, *arrays)
    return found.tolist()


def in_front(positions: Positions, headings: Sequence[float]) -> list[bool]:
    """Whether each is at least as far in front of the first as the first is of it, as `respect_priorities` has it."""
    turned = np.array(headings, dtype=np.float64)
    cos, sin = np.cos(turned), np.sin(turned)
    back = positions[0] - positions
    to_ego = cos * back[:, 0] + sin * back[:, 1]
    from_ego = cos[0] * -back[:, 0] + sin[0] * -back[:, 1]
    return (to_ego <= from_ego).tolist()
