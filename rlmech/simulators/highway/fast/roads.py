"""Roads and networks that answer from the kernel: who is near, which lane is closest, and frames that nobody watches.

An object becomes one by a change of its class, and everything that is not overridden is highway-env's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from highway_env.road.regulation import RegulatedRoad
from highway_env.road.road import Road, RoadNetwork

from rlmech.simulators.highway.fast.frames import run_frames
from rlmech.simulators.highway.fast.kernel import kernel
from rlmech.simulators.highway.fast.known import unknown
from rlmech.simulators.highway.fast.lanes import lane_table

if TYPE_CHECKING:
    pass


class AcceleratedNetwork(RoadNetwork):
    """A network whose closest lane is found by the kernel."""

    def get_closest_lane_index(self, position: Any, heading: float | None = None) -> Any:
        """As `RoadNetwork.get_closest_lane_index`."""
        lanes = lane_table(self)
        if heading is None or lanes is None or not len(lanes):
            return super().get_closest_lane_index(position, heading)
        x, y = map(float, position)
        return lanes.index[kernel().closest_lane(lanes.address, len(lanes), x, y, float(heading))]


class _Near(Road):
    def close_objects_to(
        self,
        vehicle: Any,
        distance: float,
        count: int | None = None,
        see_behind: bool = True,  # noqa: FBT001, FBT002  # highway-env's signature
        sort: bool = True,  # noqa: FBT001, FBT002
        vehicles_only: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """As `Road.close_objects_to`."""
        lanes = lane_table(self.network)
        place = None if lanes is None else lanes.place.get(id(vehicle.lane))
        everyone = [*self.vehicles, *self.objects]
        if lanes is None or place is None or not everyone:
            return super().close_objects_to(vehicle, distance, count, see_behind, sort, vehicles_only)
        n_vehicles = len(self.vehicles)
        positions = np.array([*(one.position for one in everyone), vehicle.position], dtype=np.float64)
        along = np.empty_like(positions)
        kernel().coordinates(lanes.row(place), positions.ctypes.data, len(positions), along.ctypes.data)
        offset = positions[:-1] - positions[-1]
        near = np.sqrt(offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1]) < distance
        ahead = along[:-1, 0] - along[-1, 0]
        in_view = ahead > -2 * vehicle.LENGTH
        if see_behind:
            in_view[:n_vehicles] = True
        chosen = (near & in_view).nonzero()[0].tolist()
        chosen = [k for k in chosen if everyone[k] is not vehicle or k >= n_vehicles]
        if vehicles_only:
            chosen = [k for k in chosen if k < n_vehicles]
        if sort:
            gaps = np.abs(ahead).tolist()
            chosen.sort(key=gaps.__getitem__)
        return [everyone[k] for k in (chosen[:count] if count else chosen)]


class AcceleratedRoad(_Near, Road):
    """A `Road` that finds neighbours by the kernel."""


class AcceleratedRegulatedRoad(_Near, RegulatedRoad):
    """A `RegulatedRoad` that finds neighbours by the kernel."""


class _Behind(Road):
    """A road whose frames are run when somebody looks at its vehicles, all at once."""

    frames_behind: int
    acted: bool
    dt: float

    @property
    def vehicles(self) -> list[Any]:
        """The road's vehicles, brought up to date."""
        self.catch_up()
        return self.__dict__["vehicles"]

    @vehicles.setter
    def vehicles(self, vehicles: list[Any]) -> None:
        self.catch_up()
        self.__dict__["vehicles"] = vehicles

    def act(self) -> None:
        """Put off what the vehicles decide."""
        if self.acted:
            self.catch_up()
        self.acted = True

    def step(self, dt: float) -> None:
        """Put off what becomes of it."""
        if not self.acted or (self.frames_behind and dt != self.dt):
            self.catch_up()
        if not self.acted:
            super().step(dt)
            return
        self.acted, self.dt = False, dt
        self.frames_behind += 1

    def catch_up(self) -> None:
        """Run what was put off."""
        frames, acted = self.frames_behind, self.acted
        self.frames_behind, self.acted = 0, False
        if frames and not run_frames(self, dt=self.dt, frames=frames):
            for _ in range(frames):
                super().act()
                super().step(self.dt)
        if acted:
            super().act()


class _BehindRoad(_Behind, AcceleratedRoad): ...


class _BehindRegulatedRoad(_Behind, AcceleratedRegulatedRoad): ...


ROADS: dict[type, type] = {Road: AcceleratedRoad, RegulatedRoad: AcceleratedRegulatedRoad}
BEHIND: dict[type, type] = {AcceleratedRoad: _BehindRoad, AcceleratedRegulatedRoad: _BehindRegulatedRoad}


def accelerate_road(road: Any) -> None:
    """Make a road and its network answer from the kernel, where they are highway-env's own."""
    if type(road) in ROADS:
        road.__class__ = ROADS[type(road)]
    if road is not None and type(road.network) is RoadNetwork:
        road.network.__class__ = AcceleratedNetwork


@contextmanager
def put_off(road: Any) -> Generator[None]:
    """Run the road's frames together, when its vehicles are next looked at; for code that keeps hold of none of them.

    Nothing is put off where the kernel would not run it: highway-env's own code may draw random numbers at each frame.
    """
    own = type(road)
    if own not in BEHIND or unknown(road) is not None:
        yield
        return
    road.frames_behind, road.acted, road.dt = 0, False, 0.0
    road.__class__ = BEHIND[own]
    try:
        yield
        road.catch_up()
    finally:
        road.__class__ = own
        for name in ("frames_behind", "acted", "dt"):
            del road.__dict__[name]
