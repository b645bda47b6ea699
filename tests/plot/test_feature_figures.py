"""Figures of dictionaries: what they show is what the results hold, in the order that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import rlmech as rlm
from rlmech.errors import ConfigError
from rlmech.features import compare_dictionaries, feature_effects
from rlmech.plot import dictionary_scores, feature_scenes, feature_table
from tests.probes.test_fit import Balancing


@pytest.fixture(scope="module")
def made() -> tuple[rlm.Recording, xr.Dataset, xr.Dataset]:
    policy = rlm.HookedPolicy(Balancing(), torch.rand(2, 4), spec=rlm.PolicySpec(actions=("LEFT", "RIGHT")))
    recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(5), progress=False)
    found = compare_dictionaries(policy, recording, site="hidden.hook_out", n_features=12, k=2, n_steps=5, n_fits=2)
    return recording, found.result, feature_effects(policy, found.dictionaries["topk"], recording, n_states=50)


def test_each_dictionary_has_a_row_and_each_measure_a_panel(made: tuple[rlm.Recording, xr.Dataset, xr.Dataset]) -> None:
    _, result, _ = made
    figure = dictionary_scores(result)
    assert list(figure.layout.yaxis.ticktext) == ["topk", "pca", "ica", "neurons", "nothing"]
    np.testing.assert_allclose(figure.data[0].customdata, result["agreement"].sel(splice="reconstruction"))
    np.testing.assert_allclose(figure.data[2].customdata, result["explained"])


def test_the_table_sorts_by_what_its_menu_says(made: tuple[rlm.Recording, xr.Dataset, xr.Dataset]) -> None:
    _, _, effects = made
    figure = feature_table(effects)
    buttons = {button.label: button.args[0]["cells.values"][0] for button in figure.layout.updatemenus[0].buttons}
    for name, key in (
        ("most often active", effects["density"]),
        ("most for RIGHT", effects["effect"].sel(action="RIGHT")),
    ):
        numbers = [int(cell) for cell in buttons[name][0]]
        assert (np.diff(key.sel(feature=numbers).values) <= 1e-12).all()
    assert len(figure.data[0].cells["values"][0]) == int((effects["n_active"] > 0).sum())


def test_scenes_are_the_states_with_the_largest_codes(made: tuple[rlm.Recording, xr.Dataset, xr.Dataset]) -> None:
    recording, _, effects = made
    feature = int(effects["density"].values.argmax())
    steps = feature_scenes(recording, effects, only=[feature], n_scenes=2)
    row = recording.steps.iloc[int(effects["top_state"].sel(feature=feature, rank=0))]
    assert steps.frames[0].label.startswith(f"Seed {row['seed']}, step {row['step']}: feature {feature}")
    assert list(steps.overviews) == [steps.frames[0].group]


def test_other_results_are_refused(made: tuple[rlm.Recording, xr.Dataset, xr.Dataset]) -> None:
    recording, result, effects = made
    with pytest.raises(ConfigError, match="another result"):
        dictionary_scores(effects)
    with pytest.raises(ConfigError, match="another result"):
        feature_table(result)
    silent = effects.assign(n_active=effects["n_active"] * 0, top_state=effects["top_state"] * 0 - 1)
    with pytest.raises(ConfigError, match="No feature is active"):
        feature_table(silent)
    with pytest.raises(ConfigError, match="None of the features"):
        feature_scenes(recording, silent)
