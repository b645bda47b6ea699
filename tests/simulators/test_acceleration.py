"""What is accelerated, what is left to highway-env, and that it is said."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import highway_env
import numpy as np
import pytest
import torch
from highway_env.envs.common.observation import KinematicObservation
from highway_env.envs.intersection_env import IntersectionEnv
from highway_env.road.road import Road, RoadNetwork
from highway_env.vehicle.behavior import IDMVehicle

import rlmech as rlm
from rlmech.simulators import Acceleration, compiled
from rlmech.simulators.env import acceleration, make_env
from rlmech.simulators.highway import fast
from rlmech.simulators.highway.fast import environments, kernel
from tests.simulators.stepping import at_random, pair, step_alike

SMALL = {"vehicles_count": 6, "lanes_count": 2, "simulation_frequency": 5}
needs_kernel = pytest.mark.skipif(isinstance(kernel.kernel(), str), reason=str(kernel.kernel()))


class Cautious(IDMVehicle):
    """A vehicle class of a user's own."""

    def acceleration(self, *args: Any, **kwargs: Any) -> Any:
        return 0.5 * super().acceleration(*args, **kwargs)


@needs_kernel
def test_environments_are_accelerated_unless_it_is_asked_for_otherwise() -> None:
    quick, stock = make_env("highway-v0", config=SMALL), make_env("highway-v0", config=SMALL, accelerated=False)
    assert acceleration(quick) == Acceleration(frames=True, observations=True)
    assert not acceleration(stock)
    assert "accelerated=True" in acceleration(stock).why
    assert type(quick.unwrapped).__name__ == type(stock.unwrapped).__name__
    assert isinstance(quick.unwrapped, type(stock.unwrapped))


@needs_kernel
def test_highway_env_itself_is_untouched() -> None:
    before = {cls: dict(vars(cls)) for cls in (IntersectionEnv, Road, RoadNetwork, IDMVehicle, KinematicObservation)}
    make_env("highway-v0", config=SMALL).reset(seed=0)
    other = gym.make("highway-v0", config=SMALL)  # type: ignore[arg-type]
    other.reset(seed=0)
    assert {cls: dict(vars(cls)) for cls in before} == before
    assert type(other.unwrapped.road) is Road  # type: ignore[attr-defined]
    assert type(other.unwrapped.observation_type) is KinematicObservation  # type: ignore[attr-defined]


@needs_kernel
def test_a_vehicle_class_of_the_users_own_moves_as_it_says() -> None:
    config = {**SMALL, "other_vehicles_type": f"{__name__}.Cautious"}
    sys.modules.setdefault(__name__, sys.modules[Cautious.__module__])
    stock, quick = pair(lambda: gym.make("highway-v0", config=config))  # type: ignore[arg-type]
    step_alike(stock, quick, seeds=[0], choose=at_random, most=2)
    assert not acceleration(quick).frames
    assert "Cautious" in acceleration(quick).why


@needs_kernel
@pytest.mark.parametrize("owner", ["class", "vehicle"])
def test_a_function_that_was_replaced_is_run(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, quick = pair(lambda: gym.make("highway-v0", config=SMALL))  # type: ignore[arg-type]
    stock.reset(seed=0), quick.reset(seed=0)
    if owner == "class":
        monkeypatch.setattr(IDMVehicle, "mobil", lambda self, lane_index: True)
    else:
        for env in (stock, quick):
            env.unwrapped.road.vehicles[1].act = lambda: None
    results = stock.step(1), quick.step(1)
    assert np.array_equal(results[0][0], results[1][0])
    speeds = [[v.speed for v in env.unwrapped.road.vehicles] for env in (stock, quick)]
    assert speeds[0] == speeds[1]


def test_a_version_that_was_not_checked_runs_in_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "HIGHWAY_VERSIONS", ("0.0",))
    env = make_env("highway-v0", config=SMALL)
    assert not acceleration(env)
    assert acceleration(env).why == f"highway-env {highway_env.__version__} has not been checked, only 0.0"


def test_without_the_compiled_part_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "kernel", lambda: kernel.NOT_BUILT)
    monkeypatch.setattr(compiled, "_told", set())
    for _ in range(2):
        env = make_env("highway-v0", config=SMALL)
    assert acceleration(env).why == kernel.NOT_BUILT
    assert " ".join(capsys.readouterr().err.split()).count(kernel.NOT_BUILT) == 1
    env.reset(seed=0)
    env.step(1)


@needs_kernel
def test_a_primitive_that_is_not_numpys_switches_the_kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def expected(x: Any, y: Any, z: Any) -> list[Any]:
        values = found(x, y, z)
        values[6] = np.nextafter(values[6], np.inf)
        return values

    found = kernel._expected
    assert kernel._different(kernel.kernel()) is None
    monkeypatch.setattr(kernel, "_expected", expected)
    assert kernel._different(kernel.kernel()) == "power"


def test_other_environments_run_as_they_are() -> None:
    assert acceleration(make_env("CartPole-v1")).why == "nothing is known that would be faster than CartPoleEnv"


@needs_kernel
def test_a_recording_says_what_it_was_made_with_and_goes_on_with_the_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 5)), torch.rand(2, 5, 5))
    quick, stock = make_env("highway-v0", config=SMALL), make_env("highway-v0", config=SMALL, accelerated=False)
    for env, where in ((quick, "quick"), (stock, "stock")):
        recording = rlm.record(policy, env, seeds=[0], path=tmp_path / where, progress=False)
        assert recording.manifest["acceleration"]["frames"] == (where == "quick")
    rlm.record(policy, stock, seeds=[0, 1], path=tmp_path / "quick", progress=False)
    both = [
        rlm.record(policy, stock, seeds=[0, 1], path=tmp_path / where, progress=False) for where in ("quick", "stock")
    ]
    assert both[0].steps.equals(both[1].steps)
    assert both[0].vehicles.equals(both[1].vehicles)


def test_a_changed_source_has_another_version():
    """A build of the source before is not used then: raise SOURCE_VERSION in kernel.c and kernel.py, and this."""
    source = Path(kernel.__file__).with_name("kernel.c").read_bytes()
    assert f"#define SOURCE_VERSION {kernel.SOURCE_VERSION} " in source.decode()
    assert (kernel.SOURCE_VERSION, hashlib.sha256(source).hexdigest()) == (
        1,
        "149686a2adb288c3858c5eacdd9dacdc2cb0202add1ad4ac0f12a46a9437a90c",
    )
