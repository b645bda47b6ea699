"""What the numbers of observations and actions mean."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlmech.errors import ConfigError, SiteError
from rlmech.spec import FeatureSpec, PolicySpec, spec_from_config


def test_a_normalised_feature_reads_in_its_unit() -> None:
    x = FeatureSpec(name="x", unit="m", low=-100, high=100)
    assert x.label == "x [m]"
    assert x.physical(np.array([-1.0, 0.0, 0.25])) == pytest.approx([-100, 0, 25])
    assert x.normalised(np.array([-100.0, 0.0, 200.0])) == pytest.approx([-1, 0, 2])


def test_a_feature_without_a_range_is_what_it_is() -> None:
    cosine = FeatureSpec(name="cos_h")
    assert cosine.label == "cos_h"
    assert cosine.physical(np.array([0.3])) == cosine.normalised(np.array([0.3])) == pytest.approx([0.3])


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (None, 1), (1, None), (1, 0)])
def test_a_range_upside_down_is_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(ConfigError, match="range of feature 'x' is not a range"):
        FeatureSpec(name="x", low=low, high=high)


def test_a_spec_survives_json() -> None:
    spec = spec_from_config({"id": "intersection-v2", "observation": {"type": "Kinematics", "absolute": True}})
    assert PolicySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_misspelt_name_is_told_the_nearest() -> None:
    spec = PolicySpec(actions=("SLOWER", "IDLE", "FASTER"))
    with pytest.raises(SiteError, match="no action named 'FASTR'") as caught:
        spec.index("action", "FASTR")
    assert caught.value.fix == "did you mean 'FASTER'?"


def test_a_spec_without_names_says_to_give_a_number() -> None:
    with pytest.raises(SiteError) as caught:
        PolicySpec().index("entity", "ego")
    assert "a number" in caught.value.expected


def test_an_rl_agents_configuration_is_read_without_following_its_imports() -> None:
    config = {
        "id": "intersection-v0",
        "import_module": "no_such_package",
        "observation": {
            "type": "Kinematics",
            "vehicles_count": 3,
            "features": ["presence", "x", "vx", "cos_h"],
            "features_range": {"x": [-100, 100], "vx": [-20, 20]},
            "absolute": True,
        },
        "action": {"type": "DiscreteMetaAction", "longitudinal": True, "lateral": False},
    }
    spec = spec_from_config(config)
    assert spec.entities == ("ego", "vehicle_1", "vehicle_2")
    assert [(f.name, f.unit, f.low, f.high) for f in spec.features] == [
        ("presence", "", None, None),
        ("x", "m", -100.0, 100.0),
        ("vx", "m/s", -20.0, 20.0),
        ("cos_h", "", None, None),
    ]
    assert (spec.actions, spec.presence) == (("SLOWER", "IDLE", "FASTER"), "presence")
    assert (spec.relative, spec.env_id) == (False, "intersection-v0")
    assert "import_module" not in spec.env_config


def test_what_is_left_out_is_highway_envs_default() -> None:
    spec = spec_from_config({"observation": {"type": "Kinematics"}, "lanes_count": 4})
    assert len(spec.entities) == 5
    assert {f.name: (f.low, f.high) for f in spec.features} == {
        "presence": (None, None),
        "x": (-200, 200),
        "y": (-16, 16),
        "vx": (-80, 80),
        "vy": (-80, 80),
    }
    assert spec.relative


def test_a_range_that_the_configuration_does_not_tell_claims_no_unit() -> None:
    spec = spec_from_config({"observation": {"type": "Kinematics"}})
    assert spec.features[2] == FeatureSpec(name="y")


def test_raw_observations_are_already_in_their_unit() -> None:
    spec = spec_from_config({"observation": {"type": "Kinematics", "normalize": False}})
    assert all(f.low is None for f in spec.features)
    assert spec.features[1].label == "x [m]"


def test_continuous_actions_are_named_by_what_they_turn() -> None:
    assert spec_from_config({"action": {"type": "ContinuousAction"}}).actions == ("acceleration", "steering")
    assert spec_from_config({"action": {"type": "ContinuousAction", "longitudinal": False}}).actions == ("steering",)


def test_other_observations_and_actions_are_left_unnamed() -> None:
    spec = spec_from_config({"observation": {"type": "GrayscaleObservation"}, "action": {"type": "DiscreteAction"}})
    assert (spec.entities, spec.features, spec.actions, spec.presence) == ((), (), (), None)
    assert spec_from_config({}) == PolicySpec()
