"""Environments, their specs, and whether policies fit them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError, EnvironmentFitError, MissingPackageError
from rlmech.simulators.env import check_fit, make_env, spec_of
from rlmech.simulators.training_env import current_id


def test_importing_episodes_does_not_import_highway_env() -> None:
    code = "import rlmech.episodes, sys; assert 'highway_env' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_environment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="knows no environment 'intersection-v9'") as caught:
        make_env("intersection-v9")
    assert "did you mean 'intersection-v" in caught.value.fix


def test_a_configuration_for_an_environment_that_takes_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="CartPole-v1 takes no configuration"):
        make_env("CartPole-v1", config={"lanes": 2})


def test_an_empty_configuration_is_none():
    assert make_env("CartPole-v1", config={}).spec.id == "CartPole-v1"


def test_the_spec_of_an_intersection_has_metres_and_metres_per_second() -> None:
    spec = spec_of(make_env("intersection-v2"))
    assert spec.entities == ("ego", *(f"vehicle_{i}" for i in range(1, 15)))
    assert [f.label for f in spec.features] == ["presence", "x [m]", "y [m]", "vx [m/s]", "vy [m/s]", "cos_h", "sin_h"]
    assert (spec.features[1].low, spec.features[4].high) == (-100, 20)
    assert spec.actions == ("SLOWER", "IDLE", "FASTER")
    assert (spec.presence, spec.relative, spec.env_id) == ("presence", False, "intersection-v2")


def test_the_spec_of_a_highway_has_its_default_ranges() -> None:
    env = make_env("highway-fast-v0", config={"lanes_count": 3})
    spec = spec_of(env)
    ranges = env.unwrapped.observation_type.features_range
    assert {f.name: [f.low, f.high] for f in spec.features if f.low is not None} == ranges
    assert spec.actions == tuple(env.unwrapped.action_type.actions.values())
    assert spec.relative


@pytest.mark.parametrize(("along", "across"), [(True, False), (False, True), (True, True)])
def test_action_names_are_highway_envs_own(along: bool, across: bool) -> None:
    action = {"type": "DiscreteMetaAction", "longitudinal": along, "lateral": across}
    env = make_env("highway-fast-v0", config={"vehicles_count": 2, "action": action})
    assert spec_of(env).actions == tuple(env.unwrapped.action_type.actions.values())


def test_a_spec_makes_the_same_environment_again() -> None:
    spec = spec_of(make_env("intersection-v2", config={"duration": 5}))
    assert spec_of(make_env(str(spec.env_id), config=spec.env_config)) == spec


def test_other_environments_have_an_empty_spec() -> None:
    spec = spec_of(make_env("CartPole-v1"))
    assert (spec.entities, spec.features, spec.actions, spec.env_id) == ((), (), (), "CartPole-v1")


def test_a_policy_of_other_observations_does_not_fit() -> None:
    policy = rlm.HookedPolicy(nn.Linear(5, 2), torch.rand(2, 5))
    with pytest.raises(EnvironmentFitError, match="observations do not fit") as caught:
        check_fit(policy, make_env("CartPole-v1"))
    assert caught.value.given == "CartPole-v1 observes (4,)"
    assert caught.value.expected == "(5,)"


def test_a_policy_of_other_actions_does_not_fit() -> None:
    policy = rlm.HookedPolicy(nn.Linear(4, 3), torch.rand(2, 4))
    with pytest.raises(EnvironmentFitError, match="actions do not fit"):
        check_fit(policy, make_env("CartPole-v1"))


@pytest.mark.parametrize(("old", "new"), [("LunarLander-v2", "LunarLander-v3"), ("Hopper-v3", "Hopper-v4")])
def test_an_id_that_cannot_be_made_any_longer_is_that_of_today(old, new):
    assert current_id(old) == new


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_an_environment_whose_package_is_missing_says_so_and_names_later_versions():
    with pytest.raises(MissingPackageError, match="HalfCheetah-v3 cannot be made here") as error:
        make_env("HalfCheetah-v3")

    assert "HalfCheetah-v4" in error.value.fix
