"""Many closed loops at once: the same bits as one by one, whatever is driven, in whatever company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.interventions import subspace_patch
from rlmech.episodes import Recording, record, simulation
from rlmech.episodes.driving import Condition, Driver
from rlmech.episodes.episode_tables import Episodes
from rlmech.episodes.simulation import Runner, _equal
from rlmech.simulators import environment, make_env

SEEDS = [3, 0, 8]
WAYS = {"side by side": (np.inf, -1.0), "shared": (np.inf, np.inf), "a seed at a time": (-1.0, np.inf)}


class Masked(gym.Env[np.ndarray, int]):
    """A walk in which the action of two steps ago is closed; ends at different steps."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (4,)), gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.past = self.np_random.normal(size=4).astype(np.float32), [0, 1]
        return self.x, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action]
        self.x[:3] += self.np_random.normal(size=3) / 3  # into the same array
        self.x[action] += 1.5 if action < 2 else -1.5
        self.past = [*self.past, action]
        done = abs(float(self.x[:3].sum())) > 6 or len(self.past) > 14
        return self.x, float(self.x[action]), done, False, {"last": action, "is_success": done}

    def action_masks(self) -> np.ndarray:
        mask = np.ones(3, bool)
        mask[self.past[-2]] = False
        return mask


class MaskedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        scores = self.head(torch.tanh(self.body(obs["observation"])))
        return scores.masked_fill(~obs["action_mask"].bool(), -1e8)


def plain() -> tuple[rlm.HookedPolicy, gym.Env, str]:
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    env = make_env("CartPole-v1", max_episode_steps=16)
    return rlm.HookedPolicy(net, torch.rand(2, 4), output_kind="logits"), env, "2.hook_out"


def placed() -> tuple[rlm.HookedPolicy, gym.Env, str]:
    net = nn.Sequential(nn.Linear(4, 25), nn.SiLU(), nn.Linear(25, 2))  # rounds by place: runs one row at a time
    env = make_env("CartPole-v1", max_episode_steps=16)
    return rlm.HookedPolicy(net, torch.rand(2, 4), output_kind="logits"), env, "0.hook_out"


def recurrent() -> tuple[rlm.HookedPolicy, gym.Env, str]:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(4, 16), nn.Linear(16, 2)

        def forward(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            state = self.cell(obs, state)
            return self.head(state), state

    env = make_env("CartPole-v1", max_episode_steps=16)
    policy = rlm.HookedPolicy(Agent(), torch.rand(2, 4), state=lambda n: torch.zeros(n, 16), output_kind="logits")
    return policy, env, "cell.hook_h"


def masked() -> tuple[rlm.HookedPolicy, gym.Env, str]:
    example = {"observation": torch.rand(2, 4), "action_mask": torch.ones(2, 3, dtype=torch.bool)}
    space = gym.spaces.Dict(observation=Masked.observation_space, action_mask=gym.spaces.Box(0, 1, (3,), np.bool_))
    policy = rlm.HookedPolicy(MaskedNet(), example, output_kind="logits", observation_space=space)
    return policy, Masked(), "body.hook_out"


def continuous() -> tuple[rlm.HookedPolicy, gym.Env, str]:
    env = make_env("Pendulum-v1", max_episode_steps=12)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    given: dict[str, Any] = {"output_kind": "mean_action", "action_space": env.action_space}
    return rlm.HookedPolicy(net, torch.rand(2, 3), **given), env, "0.hook_out"


MAKERS = {maker.__name__: maker for maker in (plain, placed, recurrent, masked, continuous)}


def conditions(policy: rlm.HookedPolicy, name: str) -> dict[str, Condition]:
    """Every kind of edit, at one point or at several, always or now and then."""
    n = policy.point(name).size("neuron")
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(12, n, generator=generator)
    unit, scores = rlm.Site(name, neuron=3), next(p for p in policy.hook_dict if policy.point(p).kind == "output")
    push = rlm.steer(scores, torch.randn(policy.point(scores).shape[1:], generator=generator))
    when = rlm.episodes.when
    edits: dict[str, list[Any]] = {
        "zero": [rlm.zero_ablation(unit)],
        "mean": [rlm.mean_ablation(rlm.Site(name, neuron=[0, 5]), reference={name: rows})],
        "another mean": [rlm.mean_ablation(rlm.Site(name, neuron=5), reference={name: rows})],
        "patch": [rlm.patch(unit, source={name: rows[:1]})],
        "in time": [rlm.patch(unit, source={name: rows[None]})],
        "resample": [rlm.resample_ablation(name, reference={name: rows}), push],
        "steer": [rlm.steer(name, rows[0], 0.5)],
        "zero, then steer": [rlm.zero_ablation(unit), rlm.steer(unit, torch.tensor(0.7))],
        "subspace": [subspace_patch(name, rows[:2], source={name: rows[2:3]})],
        "erase": [rlm.erase(name, rows[0], mean=rows.mean(0))],
        "two points": [rlm.zero_ablation(unit), push],
        "at a step": [rlm.steer(rlm.Site(name, step=2), rows[1]), rlm.zero_ablation(rlm.Site(name, step=5, neuron=1))],
    }
    made = {label: Condition(edits=own) for label, own in edits.items() if label != "in time"}
    made["in time"] = Condition(edits=edits["in time"], when=range(12))
    made["now and then"] = Condition(edits=edits["steer"], when=when.action_about_to_change() | when.at_steps(1))
    return made


def drive(
    env: gym.Env, drivers: dict[str, Driver], *, way: str, seeds: list[int] = SEEDS
) -> dict[tuple[str, int], Episodes]:
    """Episodes by driver and seed."""
    found: dict[tuple[str, int], Episodes] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simulation, "CHEAP", WAYS[way][0])
        patched.setattr(simulation, "FORK", WAYS[way][1])
        for part in Runner(env, drivers).run(list(enumerate(seeds))):
            for name, episodes in part.items():
                for place, number in enumerate(episodes.numbers):
                    found[name, seeds[number]] = episodes.part(place, place + 1)
    return found


@pytest.fixture(params=MAKERS, scope="module")
def setup(request: pytest.FixtureRequest) -> tuple[rlm.HookedPolicy, gym.Env, dict[str, Condition]]:
    torch.manual_seed(2)
    policy, env, name = MAKERS[request.param]()
    return policy, environment(env, policy=policy), {"baseline": Condition()} | conditions(policy, name)


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_way_of_driving_gives_the_same_bits(
    setup: tuple[rlm.HookedPolicy, gym.Env, dict[str, Condition]], deterministic: bool
) -> None:
    policy, env, chosen = setup
    if not deterministic and policy.output_kind != "logits":
        pytest.skip("nothing to draw from")
    names = [next(iter(chosen["zero"].edits)).site.name]
    drivers = {
        label: Driver.of(policy, condition, names=names, deterministic=deterministic)
        for label, condition in chosen.items()
    }
    found = {way: drive(env, drivers, way=way) for way in WAYS}
    acted = {found["shared"][label, SEEDS[0]].arrays["action"].tobytes() for label in chosen}
    assert len(acted) > 1, "they part"
    for label, driver in drivers.items():
        seed = SEEDS[len(label) % len(SEEDS)]
        alone = drive(env, {label: driver}, way="a seed at a time", seeds=[seed])[label, seed]
        assert _equal(alone.numbered([SEEDS.index(seed)]), found["shared"][label, seed]), label
    for key, episodes in found["shared"].items():
        for way in WAYS:
            assert _equal(found[way][key], episodes), f"{key}, {way}"
            assert found[way][key].episodes.equals(episodes.episodes)


def test_some_seeds_are_the_same_in_another_order_and_gone_on_with(tmp_path: Path) -> None:
    torch.manual_seed(2)
    policy, env, name = plain()
    edits = [rlm.steer(name, torch.randn(32), 0.5)]
    given: dict[str, Any] = {"edits": edits, "names": name, "progress": False}
    whole = record(policy, env, seeds=SEEDS, **given)
    for seeds in (SEEDS[2:], SEEDS[:2], SEEDS):
        record(policy, env, seeds=seeds, path=tmp_path / "r", **given)
    resumed = Recording.load(tmp_path / "r")
    for seed in SEEDS:
        one, other = resumed.episode(seed), whole.episode(seed)
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.activation(name), other.activation(name))
        assert one.episodes.drop(columns="episode").equals(other.episodes.drop(columns="episode"))


def test_a_function_of_the_users_sees_one_row_and_one_episode_at_a_time() -> None:
    torch.manual_seed(2)
    policy, env, name = plain()
    seen: list[tuple[int, int | None]] = []

    def count(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append((len(tensor), hook.step))
        return tensor * (1 + len(seen) % 3)

    recording = record(policy, env, seeds=SEEDS, edits=[(name, count)], progress=False)
    assert seen == [(1, step) for step in recording.steps["step"]]


def test_hooks_attached_to_a_policy_act_as_edits_do() -> None:
    torch.manual_seed(2)
    policy, env, name = plain()
    edit = rlm.steer(name, torch.randn(32), 0.5)
    edited = record(policy, env, seeds=SEEDS, edits=[edit], progress=False)
    with policy.edited(edit):
        attached = record(policy, env, seeds=SEEDS, progress=False)
    assert np.array_equal(edited.scores, attached.scores)
    assert not attached.steps["edited"].any()


class Failing(gym.Env[np.ndarray, int]):
    """Five steps; raises at the third in the episode of a seed."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (4,)), gym.spaces.Discrete(2)
    at = 5

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.seed == self.at and self.t == 3:
            raise ZeroDivisionError
        reward = np.nan if self.seed == 7 and self.t == 2 else 1.0
        return np.full(4, self.t, np.float32), reward, self.t == 5, False, {}


def test_what_an_episode_raises_keeps_the_ones_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "CHEAP", np.inf)
    policy = rlm.HookedPolicy(nn.Linear(4, 2), torch.rand(2, 4))
    with pytest.raises(ZeroDivisionError) as caught:
        record(policy, Failing(), seeds=range(10), path=tmp_path / "r", progress=False)
    assert "seed 5" in caught.value.__notes__[0]
    assert list(Recording.load(tmp_path / "r").episodes["seed"]) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(Failing, "at", -1)
    with pytest.raises(rlm.RlmechError, match="gave NaN") as told:
        record(policy, Failing(), seeds=range(10), path=tmp_path / "n", progress=False)
    assert "the reward of step 1" in str(told.value)
    assert "seed 7" in told.value.__notes__[0]
    assert list(Recording.load(tmp_path / "n").episodes["seed"]) == list(range(7))


class Leaky(Failing):
    """Copies of it count together."""

    outside: list[int] = []  # noqa: RUF012  # shared on purpose
    at = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.outside.clear()
        return super().reset(seed=None if seed is None else seed % 5)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.outside.append(action)
        after, _, *rest = super().step(action)
        return after, float(len(self.outside)), *rest


def test_environments_that_do_not_leave_one_another_alone_are_driven_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulation, "CHEAP", np.inf)
    policy = rlm.HookedPolicy(nn.Linear(4, 2), torch.rand(2, 4))
    runner = Runner(Leaky(), {"": Driver(policy=policy)})
    found = list(runner.run([(k, k) for k in range(6)]))
    assert len(found) == 6, "a seed at a time"
    assert [one[""].episodes["return"].to_pylist() for one in found] == [[15.0]] * 6


@pytest.mark.slow
def test_workers_drive_as_one_process_does() -> None:
    torch.manual_seed(2)
    policy, env, name = plain()
    units = {f"unit {k}": [rlm.zero_ablation(rlm.Site(name, neuron=k))] for k in range(4)}
    given: dict[str, Any] = {"conditions": units, "seeds": range(20), "deterministic": False, "progress": False}
    one, two = (rlm.compare_rollouts(policy, env, workers=workers, **given) for workers in (1, 2))
    assert one.drop_attrs().identical(two.drop_attrs())
