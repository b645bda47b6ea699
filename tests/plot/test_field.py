"""Fields as figures: what is drawn is what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from rlmech.errors import ConfigError
from rlmech.plot.fields import field
from rlmech.plot.style import action_colour

SPEED, ALONG = [0.0, 4.5, 9.0], [-5.0, 5.0]


def measured(kind: str, values: Any, *, edited: bool = False) -> xr.Dataset:
    values = np.asarray(values, dtype=float)
    values = np.stack([values, values[::-1]]) if edited else values[None]
    dims = ("condition", "speed", "along")
    possible = np.ones(values.shape, dtype=bool)
    possible[:, 0] = False
    data: dict[str, Any] = {"value": (dims, values), "reachable": (dims, possible)}
    data["action"] = (dims, (values > 0).astype(int), {"names": '["SLOWER", "FASTER"]'})
    if edited:
        data["difference"] = (dims[1:], values[1] - values[0])
    coords = {
        "condition": ["before", "after"][: len(values)],
        "speed": ("speed", SPEED, {"here": 9.0}),
        "along": ("along", ALONG, {"units": "m", "here": 0.0}),
    }
    attrs = {"kind": kind, "measure": "FASTER - SLOWER", "vehicle": 3, "before": "as captured"}
    return xr.Dataset(data, coords=coords, attrs=attrs | {"after": "vehicle 1 removed (reachable)"})


VALUES = [[-1.0, 2.0], [0.5, 0.25], [0.0, 1.0]]


def test_a_field_of_actions_is_drawn_without_an_edit() -> None:
    names = [trace.name for trace in field(measured("action", [[0, 1], [1, 0], [1, 1]])).data]

    assert {"SLOWER", "FASTER"} <= set(names)


def test_before_after_and_difference_stand_side_by_side() -> None:
    figure = field(measured("gap", VALUES, edited=True))
    maps = [trace for trace in figure.data if trace.type == "heatmap" and trace.coloraxis]
    assert [trace.coloraxis for trace in maps] == ["coloraxis", "coloraxis", "coloraxis2"]
    assert np.array_equal(maps[0].z, VALUES)
    assert np.array_equal(maps[2].z, np.array(VALUES)[::-1] - VALUES)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["before: as captured", "after: vehicle 1 removed", "after \u2212 before"]
    assert figure.layout.xaxis.title.text == "along [m]"


def test_states_that_are_not_reachable_are_veiled_and_said_to_be_so() -> None:
    figure = field(measured("gap", VALUES))
    cells, veil = (trace for trace in figure.data if trace.type == "heatmap")
    assert np.array_equal(np.isnan(veil.z), [[False, False], [True, True], [True, True]])
    assert cells.text[0][0] == "-1<br>not reachable"
    assert cells.text[1][0] == "0.5"
    assert any(trace.name == "not reachable" for trace in figure.data)


def test_actions_have_their_own_colours_and_names() -> None:
    figure = field(measured("action", [[0, 1], [1, 0], [1, 1]], edited=True))
    cells = figure.data[0]
    assert {colour for _, colour in cells.colorscale} == {action_colour(0), action_colour(1)}
    assert cells.text[1][0] == "FASTER"
    assert [trace.name for trace in figure.data if trace.showlegend] == ["SLOWER", "FASTER", "not reachable"]
    assert not figure.layout.coloraxis.showscale
    assert figure.layout.annotations[-1].text == "where the action changes"


def test_a_line_runs_where_a_gap_changes_its_sign_and_nowhere_else() -> None:
    assert any(trace.type == "contour" for trace in field(measured("gap", VALUES)).data)
    assert not any(trace.type == "contour" for trace in field(measured("site", VALUES)).data)
    assert not any(trace.type == "contour" for trace in field(measured("gap", np.abs(VALUES))).data)


def test_the_vehicle_is_marked_where_it_is_and_values_that_are_missing_are_left_out() -> None:
    figure = field(measured("site", [[np.nan, 0.2], [0.1, 0.3], [0.2, np.nan]]))
    mark = next(trace for trace in figure.data if trace.type == "scatter" and trace.x[0] is not None)
    assert (mark.x[0], mark.y[0]) == (0.0, 9.0)
    assert figure.data[0].text[2][1] == "not observed"
    assert figure.layout.coloraxis.cmin == 0.0


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a field") as caught:
        field(xr.Dataset({"effect": ("site", [1.0])}))
    assert "rlm.plot.heatmap" in caught.value.fix
