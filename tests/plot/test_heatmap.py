from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from rlmech.errors import ConfigError
from rlmech.plot import circuit, heatmap, sweep


def sites(hooks: list[str], effect: list[float], **selected: list[object]) -> xr.Dataset:
    values = np.array(effect)
    return xr.Dataset(
        {
            "effect": ("site", values, {"units": "return", "long_name": "change of action_gap"}),
            "effect_low": ("site", values - 0.25),
            "effect_high": ("site", values + 0.5),
        },
        coords={"hook": ("site", hooks), **{axis: ("site", names) for axis, names in selected.items()}},
    )


def test_a_cell_stands_under_the_names_of_its_coordinates():
    array = xr.DataArray(
        [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        dims=("feature", "action"),
        coords={"feature": ["x", "y"], "action": ["SLOWER", "IDLE", "FASTER"]},
    )
    trace = heatmap(array).data[0]
    assert list(trace.x) == ["SLOWER", "IDLE", "FASTER"]
    assert list(trace.y) == ["x", "y"]
    assert trace.z[1][0] == 4.0


def test_rows_and_columns_can_be_swapped_by_name():
    array = xr.DataArray([[1.0, 2.0, 3.0]], dims=("head", "entity"))
    assert np.asarray(heatmap(array, rows="entity", columns="head").data[0].z).shape == (3, 1)


def test_three_dimensions_become_one_panel_per_head_on_one_colour_scale():
    array = xr.DataArray(np.arange(-9.0, 9.0).reshape(3, 2, 3), dims=("feature", "head", "action"))
    figure = heatmap(array)
    assert len(figure.data) == 2
    assert [a.text for a in figure.layout.annotations[:2]] == ["head 0", "head 1"]
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    np.testing.assert_array_equal(np.asarray(figure.data[1].z), array.values[:, 1])


def test_colours_are_symmetric_around_zero_where_values_have_both_signs():
    axis = heatmap(xr.DataArray([-1.0, 4.0], dims="head")).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-4.0, 4.0)
    assert axis.colorscale[3] == (0.5, "#ffffff")


def test_colours_begin_at_white_zero_where_no_value_is_negative():
    axis = heatmap(xr.DataArray([1.0, 4.0], dims="head")).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0.0, 4.0)
    assert axis.colorscale[0] == (0.0, "#ffffff")


def test_a_limit_fixes_the_value_of_full_colour():
    assert heatmap(xr.DataArray([-1.0, 4.0], dims="head"), limit=2.0).layout.coloraxis.cmax == 2.0


def test_the_unit_is_written_above_the_cells():
    array = xr.DataArray([1.0], dims="head", attrs={"units": "return", "long_name": "Q_value"})
    assert heatmap(array).layout.annotations[-1].text == "colour and numbers: Q value [return]"


def test_a_dimensionless_result_has_no_unit_in_brackets():
    array = xr.DataArray([1.0], dims="head", attrs={"units": "1", "long_name": "recovery"})
    assert heatmap(array).layout.annotations[-1].text == "colour and numbers: recovery"


def test_an_exact_zero_is_told_from_a_small_number():
    trace = heatmap(xr.DataArray([0.0, 0.0004, -0.0], dims="head")).data[0]
    assert list(trace.text[0]) == ["0", "0.00", "0"]


def test_a_missing_value_is_an_empty_cell():
    assert heatmap(xr.DataArray([np.nan, 1.0], dims="head")).data[0].text[0][0] == ""


@pytest.mark.parametrize("dims", [(), ("head", "entity", "feature", "action")])
def test_other_numbers_of_dimensions_are_refused_with_the_way_out(dims: tuple[str, ...]):
    with pytest.raises(ConfigError, match="one, two or three dimensions") as error:
        heatmap(xr.DataArray(np.zeros((1,) * len(dims)), dims=dims))
    assert "isel" in error.value.fix


def test_a_dimension_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no dimension 'layer'"):
        heatmap(xr.DataArray([1.0], dims="head"), rows="layer")


def test_a_sweep_stands_by_hook_and_head_with_its_interval():
    result = sites(["a.hook_v"] * 2 + ["a.hook_z"] * 2, [0.1, 0.2, 0.3, 0.4], head=[0, 1, 0, 1])
    trace = sweep(result).data[0]
    assert (list(trace.y), list(trace.x)) == (["hook_v", "hook_z"], ["0", "1"])
    np.testing.assert_allclose(np.asarray(trace.z), [[0.1, 0.2], [0.3, 0.4]])
    np.testing.assert_allclose(np.asarray(trace.customdata)[1, 0], [0.05, 0.8])
    assert "95 % interval" in trace.hovertemplate
    assert "0.05 … 0.80" in trace.text[1][0]


def test_a_sweep_over_heads_and_entities_has_a_panel_per_hook():
    result = sites(
        ["a.hook_k", "a.hook_k", "a.hook_v"], [1.0, 2.0, 3.0], head=[0, 0, 0], entity=["ego", "vehicle_1", "ego"]
    )
    figure = sweep(result)
    assert [a.text for a in figure.layout.annotations[:2]] == ["hook_k", "hook_v"]
    assert list(figure.data[0].x) == ["ego", "vehicle_1"]


@pytest.mark.parametrize("nothing", ["", None, -1, float("nan")])
def test_sites_that_select_other_axes_do_not_share_a_panel(nothing: object):
    result = sites(
        ["z", "e"],
        [1.0, 2.0],
        head=np.array([2, nothing], dtype=object),
        entity=np.array([nothing, "ego"], dtype=object),
    )
    figure = sweep(result)
    assert [(list(t.y), list(t.x)) for t in figure.data] == [(["z"], ["2"]), (["e"], ["ego"])]


def test_the_module_that_all_hook_points_lie_in_is_said_once():
    result = sites(["net.a.hook_z", "net.b.hook_z"], [1.0, 2.0], head=[0, 0])
    figure = sweep(result)
    assert list(figure.data[0].y) == ["a.hook_z", "b.hook_z"]
    assert figure.layout.annotations[-1].text.endswith("<br>hook points in net")


def test_several_sweeps_stand_below_one_another_by_name():
    one = sites(["z"], [1.0], head=[0])
    trace = sweep({"mean": one, "zero": one * 2}).data[0]
    assert list(trace.y) == ["mean · z", "zero · z"]
    np.testing.assert_allclose(np.asarray(trace.z)[:, 0], [1.0, 2.0])


def test_a_sweep_without_intervals_shows_the_effect_alone():
    result = sites(["z"], [1.0], head=[0]).drop_vars(["effect_low", "effect_high"])
    assert "interval" not in sweep(result).data[0].hovertemplate


def test_what_is_no_sweep_is_refused():
    with pytest.raises(ConfigError, match="not the result of a sweep"):
        sweep(xr.Dataset({"circuit": ("head", [1.0])}))


def test_a_circuit_has_a_panel_per_head_and_shows_its_spread():
    form = xr.DataArray(
        np.arange(24.0).reshape(2, 1, 2, 2, 3),
        dims=("head", "query", "entity", "feature", "action"),
        coords={"entity": ["ego", "vehicle_1"]},
    )
    result = xr.Dataset({"circuit": form, "spread": form / 10})
    figure = circuit(result, entity="vehicle_1")
    np.testing.assert_array_equal(np.asarray(figure.data[1].z), form.values[1, 0, 1])
    np.testing.assert_allclose(np.asarray(figure.data[1].customdata)[..., 0], form.values[1, 0, 1] / 10)


@pytest.mark.parametrize("n_features", [3, 9, 20])
def test_circuits_by_name_stand_side_by_side_for_each_head_on_one_colour_scale(n_features):
    shape, dims = (3, n_features, n_features), ("head", "feature_query", "feature_key")
    trained = xr.DataArray(np.arange(float(np.prod(shape))).reshape(shape), dims=dims)
    figure = circuit({"trained": xr.Dataset({"circuit": trained}), "untrained": -trained / 10})
    titles = [annotation.text for annotation in figure.layout.annotations if "head" in annotation.text]
    assert titles == [f"head {head}, {name}" for head in range(3) for name in ("trained", "untrained")]
    np.testing.assert_array_equal(np.asarray(figure.data[2].z), trained[1].values)
    np.testing.assert_array_equal(np.asarray(figure.data[3].z), -trained[1].values / 10)
    assert figure.layout.coloraxis.cmax == float(trained.max())
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    tops = [figure.layout[trace.yaxis.replace("y", "yaxis")].domain for trace in figure.data]
    assert all(left == right for left, right in zip(tops[::2], tops[1::2], strict=True))  # in one row


def test_circuits_with_different_heads_do_not_stand_side_by_side():
    form = xr.DataArray(np.zeros((2, 2, 2)), dims=("head", "feature", "action"))
    with pytest.raises(ConfigError, match="differ in their heads"):
        circuit({"one": form, "other": form[:1]})
    with pytest.raises(ConfigError, match="differ in their heads"):
        circuit({})


def test_a_circuit_of_each_entity_asks_which_one():
    form = xr.DataArray(
        np.zeros((1, 2, 2, 2)), dims=("head", "entity", "feature", "action"), coords={"entity": ["ego", "vehicle_1"]}
    )
    with pytest.raises(ConfigError, match="for each entity") as error:
        circuit(xr.Dataset({"circuit": form}))
    assert "entity='vehicle_1'" in error.value.fix


def test_drawing_changes_nothing_in_the_result():
    result = sites(["z", "z"], [0.1, 0.2], head=[0, 1])
    before = result.copy(deep=True)
    sweep(result)
    assert result.identical(before)


def _patched(hooks, effect, **coordinates):
    coords = {"hook": ("site", np.array(hooks, dtype=object))}
    coords |= {axis: ("site", np.array(values, dtype=object)) for axis, values in coordinates.items()}
    return xr.Dataset({"effect": ("site", np.array(effect), {"units": "1"})}, coords=coords)


def test_sites_patched_together_stand_in_one_row_where_they_are_one_vehicle():
    hooks = ["net.embedding.hook_out & net.attention.hook_mask"] * 3
    vehicles = ["vehicle_1", "vehicle_2", "vehicle_3"]
    figure = sweep(_patched(hooks, [0.1, 0.5, 0.2], entity=vehicles, key=vehicles))
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    assert np.asarray(heat.z, dtype=float).shape == (1, 3)
    assert "embedding.hook_out & attention.hook_mask" in str(heat.y)


def test_a_recovery_of_next_to_nothing_is_drawn_pale():
    figure = sweep(_patched(["a.hook_out"] * 2, [0.006, 0.0], head=["0", "1"]))
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    scale = figure.layout.coloraxis if heats[0].coloraxis else heats[0]
    assert (scale.cmax if heats[0].coloraxis else scale.zmax) == 0.1
