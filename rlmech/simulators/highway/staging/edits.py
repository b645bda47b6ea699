"""All edits of a road's scene, by name: `scene.brake(row=1, ...)` is `EDITS["brake"](scene, row=1, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rlmech.simulators.highway.staging import road_edits, vehicle_edits

EDITS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "remove": vehicle_edits.remove,
        "add": vehicle_edits.add,
        "move": vehicle_edits.move,
        "set_speed": vehicle_edits.set_speed,
        "brake": vehicle_edits.brake,
        "speed_up": vehicle_edits.speed_up,
        "reroute": vehicle_edits.reroute,
        "set_spawn_rate": road_edits.set_spawn_rate,
        "set_priority": road_edits.set_priority,
        "set_feature": road_edits.set_feature,
    }
)
