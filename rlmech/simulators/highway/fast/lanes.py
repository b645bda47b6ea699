"""A road network as numbers: a row for each lane, and where neighbours on each lane are looked for.

Built once for a network and kept for as long as its lanes' attributes are the same objects; lanes that are changed,
added or replaced are seen at the next look. Networks with other lanes than straight, circular and sine have no table.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from highway_env.road.lane import CircularLane, SineLane, StraightLane
from highway_env.road.road import RoadNetwork

from rlmech.simulators.highway.fast.kernel import SIZES

if TYPE_CHECKING:
    pass

KINDS: dict[type, float] = {StraightLane: 0.0, CircularLane: 1.0, SineLane: 2.0}


_OF_ALL = ("length", "width", "speed_limit", "forbidden", "priority")
_OF_STRAIGHT = ("start", "direction", "direction_lateral", "heading")
READ: dict[type, attrgetter[object]] = {
    StraightLane: attrgetter(*_OF_STRAIGHT, *_OF_ALL),
    CircularLane: attrgetter("center", "radius", "start_phase", "direction", *_OF_ALL),
    SineLane: attrgetter(*_OF_STRAIGHT, "amplitude", "pulsation", "phase", *_OF_ALL),
}
"""What a lane's row is made of."""


class LaneTable:
    """The lanes of a network.

    Attributes:
        lanes: The lanes, in the order in which the network lists them.
        index: The network's index of each.
        number: Place of each index.
        place: Place of each lane, by its `id`.
        address: Of the rows, for the kernel.
        one_lane: Whether every road has one lane.
        limited: Whether every lane has a speed limit.
    """

    def __init__(self, network: Any) -> None:
        roads = [(a, b, lanes) for a, ends in network.graph.items() for b, lanes in ends.items()]
        self.index = [(a, b, k) for a, b, lanes in roads for k in range(len(lanes))]
        self.lanes = [lane for _, _, lanes in roads for lane in lanes]
        self._reads = [READ[type(lane)] for lane in self.lanes]
        self._read = [read(lane) for read, lane in zip(self._reads, self.lanes, strict=True)]
        self._listed, self._n_attributes = _listed(network), sum(map(len, map(vars, self.lanes)))
        self.number = {index: place for place, index in enumerate(self.index)}
        self.place = {id(lane): place for place, lane in enumerate(self.lanes)}
        self.one_lane = all(len(lanes) == 1 for _, _, lanes in roads)
        self.limited = all(lane.speed_limit is not None for lane in self.lanes)
        self._rows = np.array(
            [
                [*_row(lane), number, k, len(lanes)]
                for number, (_, _, lanes) in enumerate(roads)
                for k, lane in enumerate(lanes)
            ],
            dtype=np.float64,
        ).reshape(-1, SIZES["Lane"])
        self.address = self._rows.ctypes.data
        self._searches = {connected: self._search(network.graph, connected=connected) for connected in (False, True)}

    def __len__(self) -> int:
        return len(self.lanes)

    def describes(self, network: RoadNetwork) -> bool:
        """Whether the network's lanes are as they were: about 10 microseconds."""
        if _listed(network) != self._listed or sum(map(len, map(vars, self.lanes))) != self._n_attributes:
            return False
        try:  # what is the same object is equal without comparing arrays
            return [read(lane) for read, lane in zip(self._reads, self.lanes, strict=True)] == self._read
        except ValueError:  # two arrays: one has been replaced
            return False

    def row(self, place: int) -> int:
        """Address of a lane's row."""
        return self.address + 8 * SIZES["Lane"] * place

    def search(self, *, connected: bool) -> tuple[int, int, int]:
        """Addresses of where neighbours are looked for: first entry of each lane, then lanes and offsets."""
        first, lanes, offsets = self._searches[connected]
        return first.ctypes.data, lanes.ctypes.data, offsets.ctypes.data

    def _search(self, graph: Any, *, connected: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `Road.neighbour_vehicles` lists `lanes_offsets`."""
        found: list[list[tuple[int, float]]] = []
        for here, (a, b, k) in enumerate(self.index):
            found.append([(here, 0.0)])
            if not connected:
                continue
            following = [lanes for lanes in graph.get(b, {}).values() if lanes]
            leading = [ends[a] for ends in graph.values() if ends.get(a)]
            found[-1] += [(self._beside(lanes, k), float(self.lanes[here].length)) for lanes in following]
            found[-1] += [(place := self._beside(lanes, k), -float(self.lanes[place].length)) for lanes in leading]
        first = np.cumsum([0, *map(len, found)], dtype=np.int64)
        lanes, offsets = zip(*(entry for entries in found for entry in entries), strict=True) if found else ((), ())
        return first, np.array(lanes, dtype=np.int64), np.array(offsets, dtype=np.float64)

    def _beside(self, lanes: list[object], k: int) -> int:
        return self.place[id(lanes[k] if k < len(lanes) else lanes[0])]


_tables: WeakKeyDictionary[RoadNetwork, LaneTable | None] = WeakKeyDictionary()


def lane_table(network: RoadNetwork) -> LaneTable | None:
    """The table of a network as it is now; None where it has lanes that the kernel does not know."""
    known = _tables.get(network)
    if known is not None and known.describes(network):
        return known
    lanes = network.lanes_list()
    distinct = len({id(lane) for lane in lanes}) == len(lanes)
    made = LaneTable(network) if distinct and all(type(lane) in KINDS for lane in lanes) else None
    _tables[network] = made
    return made


def _listed(network: RoadNetwork) -> list[object]:
    """Nodes and lanes in order."""
    found: list[Any] = []
    for a, ends in network.graph.items():
        for b, lanes in ends.items():
            found += (a, b, *lanes)
    return found


def _row(lane: Any) -> list[float]:
    """The members of the kernel's `Lane`, but for the road's."""
    if type(lane) is CircularLane:
        place, direction, heading = lane.center, (0.0, 0.0, 0.0, 0.0), 0.0
        shape = (lane.radius, lane.start_phase, lane.direction, 0.0, 0.0)
    else:
        place, direction, heading = lane.start, (*lane.direction, *lane.direction_lateral), lane.heading
        wave = type(lane) is SineLane
        shape = (0.0, lane.phase, 0.0, lane.amplitude, lane.pulsation) if wave else (0.0,) * 5
    limit = math.nan if lane.speed_limit is None else lane.speed_limit
    body = (heading, lane.length, lane.width, limit, bool(lane.forbidden), lane.priority)
    return [float(value) for value in (KINDS[type(lane)], *place, *direction, *body, *shape)]
