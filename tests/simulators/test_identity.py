"""Identities: equal for environments whose episodes are, and whatever makes another episode has a name in them."""

from __future__ import annotations

from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import ConfigError, RecordingError
from rlmech.simulators import identity as identity_module
from rlmech.simulators import simulator_of
from rlmech.simulators.identity import differences
from rlmech.simulators.values import told


class Scaled(gym.ObservationWrapper[Any, Any, Any]):
    """Multiplies observations, and counts what nobody asks for."""

    def __init__(self, env: gym.Env[Any, Any], factor: float = 1.0) -> None:
        super().__init__(env)
        self.factor, self.n_seen, self.rule = factor, 0, lambda value: value * 2

    def observation(self, observation: Any) -> Any:
        self.n_seen += 1
        return observation * np.float32(self.factor)


def identity(env: gym.Env[Any, Any]) -> dict[str, str]:
    return simulator_of(env).identity(env)


def cartpole(**keywords: Any) -> Any:
    return gym.make("CartPole-v1", **keywords)


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "LunarLander-v3", "highway-fast-v0", "parking-v0"]
)
def test_environments_made_alike_used_and_unpickled_are_the_same(env_id: str) -> None:
    if env_id == "LunarLander-v3":
        pytest.importorskip("Box2D")
    env = rlm.make_env(env_id)
    first = identity(env)
    env.reset(seed=5)
    for _ in range(20):
        if any(env.step(env.action_space.sample())[2:4]):
            break
    assert differences(first, identity(env)) == []
    assert differences(first, identity(rlm.make_env(env_id))) == []
    assert differences(first, identity(cloudpickle.loads(cloudpickle.dumps(env)))) == []


def changed_attribute() -> Any:
    env = cartpole()
    env.unwrapped.gravity = 3.0
    return env


def changed_rule() -> Any:
    env = Scaled(cartpole())
    env.rule = lambda value: value * 3
    return env


@pytest.mark.parametrize(
    ("env", "other", "name"),
    [
        (cartpole, changed_attribute, "CartPoleEnv.gravity (9.8, 3.0)"),
        (cartpole, lambda: cartpole(sutton_barto_reward=True), "CartPoleEnv._sutton_barto_reward (False, True)"),
        (cartpole, lambda: cartpole(max_episode_steps=7), "TimeLimit._max_episode_steps (500, 7)"),
        (cartpole, lambda: Scaled(cartpole()), "the layer Scaled is only in the second"),
        (lambda: Scaled(cartpole()), lambda: Scaled(cartpole(), factor=2.0), "Scaled.factor (1.0, 2.0)"),
        (lambda: Scaled(cartpole()), changed_rule, "Scaled.rule (function "),
        (
            lambda: rlm.make_env("highway-fast-v0"),
            lambda: rlm.make_env("highway-fast-v0", config={"vehicles_count": 7}),
            "HighwayEnvFast.config",
        ),
    ],
    ids=["attribute", "keyword", "length", "wrapper", "wrapper's state", "function", "configuration"],
)
def test_what_differs_is_named(env: Any, other: Any, name: str) -> None:
    assert any(found.startswith(name) for found in differences(identity(env()), identity(other())))


def test_what_only_counts_tells_nothing_apart() -> None:
    env = Scaled(cartpole())
    before = identity(env)
    assert before["Scaled.n_seen"] == "changes by running"
    for seed in range(3):
        env.reset(seed=seed)
    assert differences(before, identity(env)) == []
    counted: Any = gym.wrappers.RecordEpisodeStatistics(cartpole())
    assert differences(identity(cartpole()), identity(counted)) == []


def test_constants_of_classes_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from highway_env.vehicle.behavior import IDMVehicle

    before = identity(rlm.make_env("highway-fast-v0"))
    monkeypatch.setattr(IDMVehicle, "ACC_MAX", 3.0)
    found = differences(before, identity(rlm.make_env("highway-fast-v0")))
    assert found == ["class IDMVehicle.ACC_MAX (6.0, 3.0)"]


def test_a_change_that_no_attribute_tells_shows_in_the_first_steps() -> None:
    weather = {"wind": 0.0}

    class Windy(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return (observation + np.float32(sum(map(float, WIND))), *rest)

    env, before = Windy(cartpole()), None
    before = identity(env)
    WIND.append(weather["wind"] + 1.0)
    try:
        assert differences(before, identity(env)) == [
            "the first steps of an episode, for a reason that its attributes do not tell"
        ]
    finally:
        WIND.clear()


WIND: list[float] = []


def test_a_live_change_goes_with_the_environment_to_workers(policy: rlm.HookedPolicy) -> None:
    env = changed_attribute()
    one = rlm.record(policy, env, seeds=[0, 1], progress=False)
    two = rlm.record(policy, env, seeds=[0, 1], workers=2, progress=False)
    assert np.array_equal(one.observations, two.observations)
    assert not one.equals(rlm.record(policy, cartpole(), seeds=[0, 1], progress=False))


class Fresh(gym.Env[np.ndarray, int], gym.utils.EzPickle):
    """Is made anew when it is unpickled: a change since is lost on the way to a worker."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (4,), np.float32), gym.spaces.Discrete(2)

    def __init__(self) -> None:
        gym.utils.EzPickle.__init__(self)
        self.level = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.full(4, self.level, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.full(4, self.level + self.t, np.float32), 1.0, self.t == 3, False, {}


def test_what_would_be_lost_on_the_way_to_a_worker_is_refused_by_name(policy: rlm.HookedPolicy) -> None:
    env = Fresh()
    env.level = 2.0
    with pytest.raises(ConfigError, match="cannot be sent to workers as it is") as caught:
        rlm.record(policy, env, seeds=[0, 1], workers=2, progress=False)
    assert "Fresh.level (2.0, 0.0)" in caught.value.given


def test_a_recording_is_not_gone_on_with_after_a_live_change(policy: rlm.HookedPolicy, tmp_path: Any) -> None:
    env = cartpole()
    rlm.record(policy, env, seeds=[0], path=tmp_path / "r", progress=False)
    assert len(rlm.record(policy, env, seeds=[0, 1], path=tmp_path / "r", progress=False)) == 2
    env.unwrapped.gravity = 3.0
    with pytest.raises(RecordingError, match="of another environment") as caught:
        rlm.record(policy, env, seeds=[0, 1, 2], path=tmp_path / "r", progress=False)
    assert "CartPoleEnv.gravity (9.8, 3.0)" in caught.value.given


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (np.arange(3), np.arange(3.0)),
        ({"a": 1}, {"a": 2}),
        ([1, [2, 3]], [1, [2, 4]]),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (lambda x: x + 1, lambda x: x + 2),
        (torch.zeros(2), torch.ones(2)),
    ],
    ids=["dtype", "mapping", "nested", "generator", "function", "tensor"],
)
def test_values_are_told_apart(value: Any, other: Any) -> None:
    assert told([value]) == told([value])
    assert told([value]) != told([other])


def test_a_value_that_leads_back_to_itself_is_told() -> None:
    one: dict[str, Any] = {}
    one["self"] = [one]
    other: dict[str, Any] = {}
    other["self"] = [other]
    assert told(one) == told(other)


def test_compiled_code_makes_no_other_environment() -> None:
    own, compiled = (rlm.make_env("highway-fast-v0", accelerated=accelerated) for accelerated in (False, True))
    assert differences(identity(own), identity(compiled)) == []
    made = simulator_of(compiled).maker(compiled)
    assert made is not None
    again = made()
    assert bool(rlm.simulators.acceleration(again)) == bool(rlm.simulators.acceleration(compiled))


class Forgetful:
    """Keeps half of itself when it is pickled."""

    def __init__(self) -> None:
        self.kept, self.left = 1, 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Forgetful, ()


def _grown(env: Any) -> None:
    env.unwrapped.own["list"].append(3)


def _forgotten(env: Any) -> None:
    env.unwrapped.own["forgetful"].left = 2


def _written(env: Any) -> None:
    env.unwrapped.own["array"][0] = 5


def _other_function(env: Any) -> None:
    env.unwrapped.own["function"] = lambda: 2


def _other_layer(env: Any) -> None:
    env.factor = 3.0


@pytest.mark.parametrize("change", [_grown, _forgotten, _written, _other_function, _other_layer])
def test_what_is_told_once_is_told_anew_after_any_live_change(change: Any) -> None:
    env: Any = Scaled(cartpole())
    env.unwrapped.own = {
        "list": [1, 2],
        "forgetful": Forgetful(),
        "array": np.zeros(3),
        "function": lambda: 1,
        "back": env.unwrapped,
    }
    first, again = identity(env), identity(env)
    assert first == again
    change(env)
    changed = identity(env)
    assert changed != first
    identity_module._TOLD.clear()  # as it is told without a memory
    assert identity(env) == changed
