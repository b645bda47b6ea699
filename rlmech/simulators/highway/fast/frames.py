"""All frames of a decision in one call of the kernel.

Where the kernel asks (see `kernel.c`), highway-env's own code answers, with the vehicles concerned brought up to date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from highway_env.road.regulation import RegulatedRoad

from rlmech.simulators.highway.fast.kernel import kernel
from rlmech.simulators.highway.fast.known import known_lanes
from rlmech.simulators.highway.fast.lanes import LaneTable
from rlmech.simulators.highway.fast.packing import CONTROL, desk, pack, pack_hit, pack_plans, pack_settings, write_back

if TYPE_CHECKING:
    pass

MOMENTS = 11  # of a predicted trajectory, as in the kernel
DONE, FOLLOW_ROAD, IS_CONFLICT_POSSIBLE, HANDLE_COLLISIONS = range(4)
N, FIRST, SECOND, ANSWER, STEPS = map(CONTROL.index, ("n", "i", "j", "answer", "steps"))


def run_frames(road: Any, *, dt: float, frames: int) -> bool:
    """Do what `road.act()` and `road.step(dt)` would do, `frames` times in turn.

    Returns:
        Whether it was done; where not, nothing has been changed.
    """
    library = kernel()
    if isinstance(library, str):
        return False
    lanes = known_lanes(road)
    if isinstance(lanes, str) or not pack_settings(dt):
        return False
    everyone = [*road.vehicles, *road.objects] if road.objects else road.vehicles
    for i, entity in enumerate(everyone):
        if not pack(i, entity, lanes):
            return False
    n, n_all, regulated = len(road.vehicles), len(everyone), isinstance(road, RegulatedRoad)
    every = int(1 / dt / road.REGULATION_FREQUENCY) if regulated else 1
    if every < 1:
        return False
    steps = road.steps if regulated else 0
    desk.control[:] = (n, n_all, len(lanes), frames, 0, 0, 1, 0, 1, regulated, steps, every)
    scratch = desk.room(2 * n_all * len(lanes) + 3 * MOMENTS * n_all)
    search = lanes.search(connected=bool(road.neighbour_vehicles_connected_lanes))
    had = [vehicle.__dict__.get("is_yielding", False) for vehicle in road.vehicles] if regulated else None
    arguments = (desk.control_at, desk.entities_at, lanes.address, desk.settings_at, *search, scratch)
    while (question := library.run(*arguments)) != DONE:
        _answer(question, everyone, lanes, had, dt=dt, road=road)
    for i in range(n):
        write_back(i, everyone[i], lanes, had)
    if regulated:
        road.steps = desk.control[STEPS]
    return True


def _answer(question: int, everyone: list[Any], lanes: LaneTable, had: Any, *, dt: float, road: Any) -> None:
    """Have highway-env's own code do what the kernel asks for."""
    i, j, n = desk.control[FIRST], desk.control[SECOND], desk.control[N]
    one = everyone[i]
    write_back(i, one, lanes, had)
    desk.control[ANSWER] = 1
    if question == FOLLOW_ROAD:
        one.follow_road()
        pack_plans(i, one, lanes)
        return
    other = everyone[j]
    if j < n:  # an obstacle has no state of its own
        write_back(j, other, lanes, had)
    if question == IS_CONFLICT_POSSIBLE:
        desk.control[ANSWER] = 3 if road.is_conflict_possible(one, other) else 1
        return
    one.handle_collisions(other, dt)
    pack_hit(i, one)
    if j < n:
        pack_hit(j, other)
