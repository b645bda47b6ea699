from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from rlmech.episodes import Recording
from rlmech.errors import ConfigError
from rlmech.plot import attention, recorded_pattern
from rlmech.plot.attention_heads import circuitsvis_js

EGO = xr.DataArray(
    [[[0.75, 0.25]], [[0.125, 0.875]]], dims=("head", "query", "key"), coords={"key": ["ego", "vehicle_1"]}
)


def test_an_ego_pattern_is_a_row_of_tokens_per_head_with_its_weights():
    elements = attention(EGO).elements
    assert [element.label for element in elements] == ["head 0", "head 1"]
    assert {element.name for element in elements} == {"ColoredTokens"}
    assert [element.props["values"] for element in elements] == [[0.75, 0.25], [0.125, 0.875]]
    assert [token.strip() for token in elements[0].props["tokens"]] == ["ego", "vehicle_1"]


def test_weights_are_coloured_on_the_same_scale_in_every_head():
    assert {(e.props["minValue"], e.props["maxValue"]) for e in attention(EGO).elements} == {(-1, 1)}


def test_a_pattern_without_a_query_axis_is_one_query():
    assert attention(EGO.isel(query=0)).elements == attention(EGO).elements


def test_a_square_pattern_is_not_masked():
    (element,) = attention(xr.DataArray(np.full((2, 3, 3), 1 / 3), dims=("head", "query", "key"))).elements
    assert element.name == "AttentionHeads"
    assert element.props["maskUpperTri"] is False


def test_the_order_of_dimensions_does_not_matter():
    assert attention(EGO.transpose("key", "head", "query")).elements == attention(EGO).elements


def test_a_pattern_that_is_neither_is_refused_with_a_way_to_draw_it():
    with pytest.raises(ConfigError, match="square patterns, or the pattern of one query") as error:
        attention(xr.DataArray(np.zeros((1, 2, 3)), dims=("head", "query", "key")))
    assert "isel(query=[0])" in error.value.fix


def test_a_batch_of_patterns_is_refused():
    with pytest.raises(ConfigError, match="one state"):
        attention(EGO.expand_dims("step"))


def test_a_saved_page_carries_circuitsvis_once_and_loads_nothing(tmp_path: Path):
    page = attention(EGO).save(tmp_path / "pattern.html").read_text(encoding="utf-8")
    assert page.count("var CircuitsVis=") == 1
    assert "unpkg.com" not in page
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", page)


def test_the_library_cannot_close_its_own_script_element():
    assert "</script" not in circuitsvis_js()


def test_a_token_cannot_close_the_script_element_either():
    pattern = EGO.assign_coords(key=["</script><b>", "vehicle_1"])
    fragment = attention(pattern).fragment()
    assert "</script><b>" not in fragment
    data = re.search(r'<script type="application/json">(.*?)</script>', fragment)
    assert data is not None
    assert "</script><b>" in json.loads(data.group(1))["props"]["tokens"][0]


def test_a_recorded_pattern_has_its_axes_and_the_entities_named(recording: Recording):
    pattern = recorded_pattern(recording)
    assert pattern.dims == ("step", "head", "query", "key")
    assert pattern.name == "attention_layer.hook_pattern"
    assert list(pattern.coords["key"].values[:2]) == ["ego", "vehicle_1"]
    np.testing.assert_array_equal(pattern.values, recording.activation("attention_layer.hook_pattern"))
