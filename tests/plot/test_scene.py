from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from rlmech.episodes import Recording
from rlmech.errors import ConfigError, RecordingError
from rlmech.plot import SvgFigure, scene
from rlmech.plot.road import SMALLEST
from rlmech.plot.style import CRASHED, EGO, head_colour
from rlmech.spec import PolicySpec

SVG = "{http://www.w3.org/2000/svg}"


def vehicle(
    row: int, x: float, y: float, *, heading: float = 0.0, crashed: bool = False, step: int = 0
) -> dict[str, Any]:
    return {
        "episode": 0,
        "seed": 0,
        "step": step,
        "vehicle": row if row >= 0 else 99,
        "row": row,
        "kind": "IDMVehicle",
        "x": x,
        "y": y,
        "heading": heading,
        "speed": 7.25,
        "length": 5.0,
        "width": 2.0,
        "crashed": crashed,
    }


def stand_in(*vehicles: dict[str, Any]) -> Any:
    """What the drawing reads of a recording."""
    return SimpleNamespace(
        vehicles=pd.DataFrame(list(vehicles)),
        steps=pd.DataFrame({"episode": [0], "step": [0]}),
        manifest={"lanes": [{"points": [[-100.0, 0.0], [100.0, 0.0]], "width": 4.0}]},
        spec=PolicySpec(entities=("ego", "vehicle_1", "vehicle_2"), env_id="intersection-v2"),
    )


def pattern(*weights: list[float]) -> xr.DataArray:
    return xr.DataArray(np.array(weights), dims=("head", "key"))


def parsed(figure: SvgFigure) -> ElementTree.Element:
    return ElementTree.fromstring(figure.svg)


def groups(figure: SvgFigure, name: str) -> list[ElementTree.Element]:
    return [element for element in parsed(figure).iter(f"{SVG}g") if element.get("class") == name]


def test_every_vehicle_is_a_rectangle_in_metres_at_its_place_and_heading():
    figure = scene(stand_in(vehicle(0, 0, 0), vehicle(1, 10, 4, heading=math.pi / 2)), episode=0, step=0)
    drawn = groups(figure, "vehicle")
    assert len(drawn) == 2
    turned = drawn[1].find(f"{SVG}g")
    assert turned is not None
    assert turned.get("transform") == "translate(10.00 4.00) rotate(90.0)"
    body = turned.find(f"{SVG}rect")
    assert body is not None
    assert (body.get("width"), body.get("height")) == ("5", "2")


def test_the_ego_has_its_colour_and_a_crashed_vehicle_too():
    figure = scene(stand_in(vehicle(0, 0, 0), vehicle(1, 10, 0, crashed=True)), episode=0, step=0)
    fills = [group.find(f"{SVG}g/{SVG}rect").get("fill") for group in groups(figure, "vehicle")]  # type: ignore[union-attr]
    assert fills == [EGO, CRASHED]


def test_a_vehicle_that_is_not_observed_is_an_outline():
    figure = scene(stand_in(vehicle(0, 0, 0), vehicle(-1, 10, 0)), episode=0, step=0)
    body = groups(figure, "vehicle")[1].find(f"{SVG}g/{SVG}rect")
    assert body is not None
    assert (body.get("fill"), body.get("stroke-dasharray")) == ("#ffffff", "0.8 0.5")


def test_a_line_goes_from_the_ego_to_the_vehicle_of_the_row_not_to_the_nearest():
    vehicles = stand_in(vehicle(0, 0, 0), vehicle(1, 30, 0), vehicle(2, 5, 0))
    (head,) = groups(scene(vehicles, episode=0, step=0, pattern=pattern([0.0, 1.0, 0.0])), "head-0")
    (line,) = head.findall(f"{SVG}line")
    assert [float(line.get(end, "nan")) for end in ("x1", "y1", "x2", "y2")] == [0, 0, 30, 0]


def test_a_line_is_as_wide_as_its_weight_says_in_the_heads_colour():
    vehicles = stand_in(vehicle(0, 0, 0), vehicle(1, 30, 0), vehicle(2, 5, 0))
    figure = scene(vehicles, episode=0, step=0, pattern=pattern([0.0, 0.2, 0.8], [0.0, 1.0, 0.0]))
    weak, strong = groups(figure, "head-0")[0].findall(f"{SVG}line")
    assert float(weak.get("stroke-width", 0)) < float(strong.get("stroke-width", 0))
    assert {weak.get("stroke"), strong.get("stroke")} == {head_colour(0)}
    assert groups(figure, "head-1")[0].find(f"{SVG}line").get("stroke") == head_colour(1)  # type: ignore[union-attr]


def test_attention_to_itself_is_a_ring_around_the_ego():
    figure = scene(stand_in(vehicle(0, 3, 4)), episode=0, step=0, pattern=pattern([1.0, 0.0, 0.0]))
    (ring,) = groups(figure, "head-0")[0].findall(f"{SVG}circle")
    assert (ring.get("cx"), ring.get("cy"), ring.get("fill")) == ("3", "4", "none")


def test_absent_rows_and_tiny_weights_are_not_drawn():
    vehicles = stand_in(vehicle(0, 0, 0), vehicle(1, 30, 0))
    figure = scene(vehicles, episode=0, step=0, pattern=pattern([0.5, SMALLEST / 2, 0.5]))
    assert groups(figure, "head-0")[0].findall(f"{SVG}line") == []


def test_a_line_that_leaves_the_picture_says_where_it_leads():
    far = stand_in(vehicle(0, 0, 0), vehicle(1, 0, -95))
    labels = [
        t.text for t in parsed(scene(far, episode=0, step=0, pattern=pattern([0.0, 1.0, 0.0]))).iter(f"{SVG}text")
    ]
    assert "1: 95 m" in labels


def test_hovering_a_vehicle_tells_its_name_speed_and_weights():
    vehicles = stand_in(vehicle(0, 0, 0), vehicle(1, 30, 0))
    figure = scene(vehicles, episode=0, step=0, pattern=pattern([0.75, 0.25, 0.0]))
    assert groups(figure, "vehicle")[1].find(f"{SVG}title").text == "vehicle_1: 7.2 m/s\nhead 0: 0.25"  # type: ignore[union-attr]


def test_the_window_stands_still_while_the_ego_crosses_a_junction():
    way = [vehicle(0, 0, y, step=step) for step, y in enumerate((50.0, 20.0, -20.0))]
    views = {
        next(parsed(scene(stand_in(*way), episode=0, step=step)).iter(f"{SVG}svg")).find(f"{SVG}svg").get("viewBox")  # type: ignore[union-attr]
        for step in range(3)
    }
    assert len(views) == 1


def test_the_window_goes_along_on_a_long_road():
    way = [vehicle(0, x, 0, step=step) for step, x in enumerate((0.0, 300.0, 600.0))]
    left = [
        float(parsed(scene(stand_in(*way), episode=0, step=step)).find(f"{SVG}svg").get("viewBox", "").split()[0])  # type: ignore[union-attr]
        for step in range(3)
    ]
    assert np.diff(left).tolist() == [300.0, 300.0]


def test_a_step_that_is_not_there_is_refused():
    with pytest.raises(RecordingError, match="no such step"):
        scene(stand_in(vehicle(0, 0, 0)), episode=0, step=5)


def test_a_recording_without_a_road_is_refused():
    recording: Any = SimpleNamespace(vehicles=pd.DataFrame(), spec=PolicySpec(env_id="CartPole-v1"), manifest={})
    with pytest.raises(RecordingError, match="holds no vehicles"):
        scene(recording, episode=0, step=0)


def test_a_pattern_of_many_queries_is_refused():
    with pytest.raises(ConfigError, match="one query"):
        scene(
            stand_in(vehicle(0, 0, 0)),
            episode=0,
            step=0,
            pattern=xr.DataArray(np.zeros((1, 3, 3)), dims=("head", "query", "key")),
        )


def test_a_true_recording_is_drawn_with_all_its_vehicles(recording: Recording):
    here = recording.vehicles[(recording.vehicles["episode"] == 1) & (recording.vehicles["step"] == 2)]
    figure = scene(recording, episode=1, step=2, title="a < b & c")
    assert len(groups(figure, "vehicle")) == len(here)
    assert parsed(figure).get("aria-label") == "a < b & c"
