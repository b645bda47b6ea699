"""Several drivers in one simulation: the same episodes as one after the other, for less."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.episodes.driving import Driver
from rlmech.episodes.episode_tables import Episodes
from rlmech.episodes.simulation import Runner, _equal
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env

CROSSING = {"simulation_frequency": 5, "duration": 6}


@pytest.fixture(scope="module")
def drivers() -> dict[str, Driver]:
    torch.manual_seed(3)
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
    _, reference = policy.run_with_cache(torch.rand(40, 15, 7))
    z = "attention_layer.hook_z"
    edits = {
        "baseline": (),
        "nothing": (rlm.steer("hook_q_values", torch.zeros(3)),),
        "slower": (rlm.steer("hook_q_values", torch.tensor([9.0, 0.0, 0.0])),),
        "chance": (rlm.resample_ablation(z, reference=reference), rlm.steer("hook_q_values", torch.randn(3) / 10)),
        "head 1": (rlm.mean_ablation(rlm.Site(z, head=1), reference=reference),),
    }
    made = {name: Driver(policy=policy, edits=own, names="*.hook_pattern") for name, own in edits.items()}
    late = Driver(policy=policy, edits=edits["slower"], when=rlm.episodes.when.from_step(3))
    return made | {"slower later": late}


def crossing(order: str) -> gym.Env:
    base: Any = make_env("intersection-v2").unwrapped
    return make_env("intersection-v2", config=CROSSING | {"observation": base.config["observation"] | {"order": order}})


def one(runner: Runner, number: int, seed: int) -> dict[str, Episodes]:
    (found,) = runner.run([(number, seed)])
    return found


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_together_they_drive_as_each_alone(drivers: dict[str, Driver], order: str) -> None:
    simulator = Runner(crossing(order), drivers)
    n_steps = 0
    for number, seed in enumerate([4, 11, 2]):
        shared = one(simulator, number, seed)
        n_steps += sum(len(episode.steps) for episode in shared.values())
        for name, driver in drivers.items():
            alone = one(Runner(crossing(order), {name: driver}), number, seed)[name]
            assert _equal(shared[name], alone), f"{name}, seed {seed}"
            assert shared[name].episodes.equals(alone.episodes)
    assert simulator.sharing == "yes"
    assert simulator.n_simulated < 0.8 * n_steps
    actions = {name: shared[name].arrays["action"].tolist() for name in drivers}
    assert actions["nothing"] == actions["baseline"]
    assert actions["slower later"][:3] == actions["baseline"][:3]


def test_conditions_that_do_the_same_cost_nothing(drivers: dict[str, Driver]) -> None:
    simulator = Runner(crossing("sorted"), {name: drivers[name] for name in ("baseline", "nothing")})
    episodes = one(simulator, 0, 4)
    assert simulator.n_simulated == len(episodes["baseline"].steps)
    assert simulator.sharing == "unknown", "nobody parted"


class Counter(gym.Env[np.ndarray, int]):
    """Counts up by its action; what is kept outside of it is not copied with it."""

    observation_space, action_space = gym.spaces.Box(-1, 99, (4,)), gym.spaces.Discrete(2)
    outside: list[int] = []  # noqa: RUF012  # shared on purpose

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n, self.t = 0, 0
        self.outside.clear()
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n, self.t = self.n + action, self.t + 1
        self.outside.append(action)
        return np.full(4, self.count(), np.float32), float(self.count()), self.t == 4, False, {}

    def count(self) -> int:
        return self.n


class Leaky(Counter):
    def count(self) -> int:
        return sum(self.outside)


class Locked(Counter):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle 'socket' object")


@pytest.mark.parametrize(
    ("env", "sharing"),
    [(Counter(), "yes"), (Leaky(), "go on differently"), (Locked(), "cannot be copied: TypeError: cannot pickle")],
    ids=["copied", "copied wrongly", "not copied"],
)
def test_an_environment_that_cannot_be_copied_is_run_apart(env: gym.Env, sharing: str) -> None:
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
    push = {
        "never": (rlm.steer("hook_q_values", torch.tensor([500.0, 0.0])),),
        "always": (rlm.steer("hook_q_values", torch.tensor([0.0, 500.0])),),
    }
    drivers = {name: Driver(policy=policy, edits=edits) for name, edits in push.items()}
    simulator = Runner(env, drivers)
    for number in range(2):
        episodes = one(simulator, number, number)
        assert episodes["never"].episodes["return"].to_pylist() == [0.0]
        assert episodes["always"].episodes["return"].to_pylist() == [1.0 + 2 + 3 + 4]
    assert sharing in simulator.sharing


def test_an_error_in_an_episode_tells_its_seed() -> None:
    class Breaking(Counter):
        def step(self, action: int) -> Any:
            raise ZeroDivisionError

    policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
    with pytest.raises(ZeroDivisionError) as caught:
        one(Runner(Breaking(), {"": Driver(policy=policy)}), 0, 41)
    assert "seed 41" in caught.value.__notes__[0]
