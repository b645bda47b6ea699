from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xarray as xr

from rlmech.errors import ConfigError
from rlmech.plot import comparison, dose_response
from rlmech.plot.style import POSITIVE

NAMES = ["baseline", "head 0", "head 1", "head 0, random site 1"]


def compared(*, never_active: Sequence[str] = (), **changes: Any) -> xr.Dataset:
    """A comparison of four conditions, one a control of another, as `compare_rollouts` gives it."""
    delta = {"return": [0.0, -2.0, 0.5, -0.2], "crashed": [0.0, 0.25, 0.0, 0.0]}
    units = {"return": "return", "crashed": "share of episodes"}
    data: dict[str, Any] = {}
    for name, values in delta.items():
        attrs, value = {"units": units[name]}, np.array(values)
        data[name] = (("condition", "seed"), np.zeros((4, 5)), attrs)
        for kind, centre in (("mean", 5.0 + value), ("delta", value)):
            for end, shift in (("", 0.0), ("_low", -0.4), ("_high", 0.6)):
                data[f"{kind}_{name}{end}"] = ("condition", centre + shift, attrs)
        data[f"delta_{name}_p_holm"] = ("condition", np.array([1.0, 0.01, 0.9, 1.0]), attrs)
    coords = {"condition": NAMES, "seed": range(5), "control_of": ("condition", ["", "", "", "head 0"])}
    coords["never_active"] = ("condition", [name in never_active for name in NAMES])
    return xr.Dataset(data, coords=coords, attrs={"confidence": 0.95, **changes})


def test_a_marker_stands_at_each_mean_difference_with_its_own_interval():
    conditions, control, *_ = comparison(compared()).data
    assert list(conditions.x) == [-2.0, 0.5]
    np.testing.assert_allclose(conditions.error_x.arrayminus, 0.4)
    np.testing.assert_allclose(conditions.error_x.array, 0.6)
    assert list(control.x) == [-0.2]


def test_only_conditions_that_pass_holms_correction_are_filled():
    colours = comparison(compared(), variables=["return"]).data[0].marker.color
    assert list(colours) == [POSITIVE, "#ffffff"]


def test_a_control_stands_below_the_condition_it_belongs_to_and_smaller():
    figure = comparison(compared(), variables=["return"])
    names = figure.layout.yaxis.ticktext
    assert [next(name for name in ("random site 1", "head 0", "head 1") if name in shown) for shown in names] == [
        "head 0",
        "random site 1",
        "head 1",
    ]
    conditions, control = figure.data
    assert list(conditions.y) == [0, 2]
    assert list(control.y) == [1]
    assert control.marker.size < conditions.marker.size


def test_each_variable_has_its_panel_with_its_unit_and_the_baselines_mean():
    figure = comparison(compared())
    headings = [one.text for one in figure.layout.annotations]
    assert "baseline 5.00" in headings[0]
    assert "baseline 5.00 of episodes" in headings[1]
    assert "[return]" in figure.layout.xaxis.title.text
    assert "[share of episodes]" in figure.layout.xaxis2.title.text


def test_the_baseline_is_the_line_at_zero_and_no_row():
    figure = comparison(compared())
    assert not any("baseline" in name for name in figure.layout.yaxis.ticktext)
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(0, 0), (0, 0)]


def test_a_condition_that_was_never_at_work_says_so():
    names = comparison(compared(never_active=["head 1"])).layout.yaxis.ticktext
    assert ["never at work" in name for name in names] == [False, False, True]


def test_the_figure_says_over_how_many_seeds_and_at_which_confidence():
    assert "same 5 seeds, 90 % interval" in comparison(compared(confidence=0.9)).layout.annotations[-1].text


def test_another_variable_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no variable 'crash'") as error:
        comparison(compared(), variables=["crash"])
    assert error.value.fix == "did you mean 'crashed'?"


def test_what_is_no_comparison_is_refused():
    with pytest.raises(ConfigError, match="not a comparison"):
        comparison(xr.Dataset({"effect": ("site", [1.0])}))


def doses() -> xr.Dataset:
    return compared().assign_coords(coefficient=("condition", [0.0, 2.0, -1.0, np.nan]))


def test_means_run_over_the_coefficient_with_the_band_of_their_interval():
    band, line, *_ = dose_response(doses(), variables=["return"]).data
    assert list(line.x) == [-1.0, 0.0, 2.0]
    assert list(line.y) == [5.5, 5.0, 3.0]
    np.testing.assert_allclose(band.y, [6.1, 5.6, 3.6, 2.6, 4.6, 5.1])
    assert list(band.x) == [-1.0, 0.0, 2.0, 2.0, 0.0, -1.0]


def test_the_baseline_is_marked_at_zero():
    marked = dose_response(doses(), variables=["return"]).data[-1]
    assert (list(marked.x), list(marked.y), marked.marker.symbol) == ([0.0], [5.0], "diamond")


def test_a_dose_s_control_stands_at_its_dose():
    control = dose_response(doses(), variables=["return"]).data[2]
    assert (list(control.x), list(control.y)) == ([2.0], [4.8])


def test_a_comparison_without_doses_is_refused():
    with pytest.raises(ConfigError, match="no doses") as error:
        dose_response(compared())
    assert "rlm.episodes.dose_response" in error.value.fix
