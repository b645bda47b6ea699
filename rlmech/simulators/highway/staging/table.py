"""The vehicles of a scene as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rlmech.simulators.highway.staging.stage import Stage
from rlmech.untyped import JsonObject


def vehicle_table(stage: Stage) -> pd.DataFrame:
    """A line for each vehicle in sight or on the road; see `Scene.vehicles` for the columns."""
    ego = stage.ego if stage.has_road else None
    lines: list[JsonObject] = []
    for number in stage.numbers:
        vehicle = stage.vehicle(number)
        along, lateral = vehicle.lane.local_coordinates(vehicle.position)
        route = getattr(vehicle, "route", None)
        lines.append(
            {
                "vehicle": number,
                "row": stage.in_sight.get(number, -1),
                "kind": type(vehicle).__name__,
                "x": float(vehicle.position[0]),
                "y": float(vehicle.position[1]),
                "heading": float(vehicle.heading),
                "speed": float(vehicle.speed),
                "target_speed": float(getattr(vehicle, "target_speed", np.nan)),
                "length": float(vehicle.LENGTH),
                "width": float(vehicle.WIDTH),
                "crashed": bool(vehicle.crashed),
                "lane": vehicle.lane_index,
                "along": float(along),
                "lateral": float(lateral),
                "goal": route[-1][1] if route else None,
                "distance": float(np.hypot(*(vehicle.position - ego.position))) if ego is not None else np.nan,
                "on_road": stage.is_on_road(number),
            }
        )
    return pd.DataFrame(lines)
