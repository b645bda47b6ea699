"""What a user wants to be told of episodes: recorded, compared as a rate or a mean, or refused in words."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.errors import ConfigError, EnvironmentFitError
from rlmech.simulators import Outcome
from rlmech.statistics import wilson


class Task(gym.Env[np.ndarray, int]):
    """Three steps; a success where the sum of the actions is the seed's parity, and effort at each step."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (4,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, *, reward: float = 1.0, seen: float = 0.0) -> None:
        self.reward, self.seen = reward, seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.wanted, self.sum = 0, int(self.np_random.integers(2)), 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t, self.sum = self.t + 1, self.sum + action
        info: dict[str, Any] = {"effort": 2.0 * self.t}
        if self.t == 3:
            info["is_success"] = np.bool_(self.sum % 2 == self.wanted)
            info["episode"] = {"r": 3.0}
        return np.full(4, self.seen, np.float32), self.reward, self.t == 3, False, info


SUCCESS = Outcome(name="is_success", kind="share", meaning="the task was done")
EFFORT = Outcome(name="effort", kind="mean", unit="N")


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))


def recorded(policy: rlm.HookedPolicy, env: Any = None, **options: Any) -> rlm.Recording:
    return rlm.record(policy, env or Task(), **({"seeds": range(8), "progress": False} | options))


def test_a_share_is_as_it_was_at_the_end_and_a_mean_over_the_steps(policy: rlm.HookedPolicy) -> None:
    recording = recorded(policy, outcomes=[SUCCESS, EFFORT])
    assert recording.episodes["is_success"].dtype == bool
    assert recording.episodes["is_success"].nunique() == 2
    assert (recording.episodes["effort"] == 4.0).all()
    assert recording.steps["effort"].tolist()[:3] == [2.0, 4.0, 6.0]
    last = recording.steps.groupby("seed")["is_success"].last().astype(bool)
    assert last.tolist() == recording.episodes.sort_values("seed")["is_success"].tolist()
    assert [one["name"] for one in recording.manifest["outcomes"]] == ["is_success", "effort"]


def test_outcomes_are_compared_as_rates_and_means(policy: rlm.HookedPolicy) -> None:
    push = rlm.steer("hook_q_values", torch.tensor([0.0, 500.0]))
    result = rlm.compare_rollouts(
        policy, Task(), conditions={"right": [push]}, seeds=range(12), outcomes=[SUCCESS, EFFORT], progress=False
    )
    assert result["is_success"].attrs == {
        "units": "share of episodes",
        "long_name": "the task was done",
        "kind": "share",
    }
    assert result["effort"].attrs["units"] == "N"
    rate = result["is_success"].sel(condition="right").values
    low, high = wilson(float(rate.mean()), 12)
    assert float(result["mean_is_success_low"].sel(condition="right")) == pytest.approx(low)
    assert float(result["mean_is_success_high"].sel(condition="right")) == pytest.approx(high)
    assert {"delta_is_success_p", "delta_effort_low"} <= set(result.data_vars)
    assert "is_success" in rlm.episodes.comparison_table(result)
    assert rlm.episodes.seeds_needed(result, "is_success", half_width=0.2).sizes == {"condition": 2}
    assert len(rlm.plot.comparison(result, variables=["is_success", "effort"]).data) == 2
    assert "steps_to_crash" not in result, "nobody crashes here"


def test_workers_and_resumption_keep_outcomes(policy: rlm.HookedPolicy, tmp_path: Any) -> None:
    alone = recorded(policy, outcomes=[SUCCESS], path=tmp_path / "r")
    assert (
        recorded(policy, seeds=range(10), outcomes=[SUCCESS], path=tmp_path / "r").episodes["is_success"].notna().all()
    )
    with pytest.raises(rlm.RlmechError, match="another recording at this path"):
        recorded(policy, outcomes=[SUCCESS, EFFORT], path=tmp_path / "r")
    nested = Outcome(name="total", kind="mean", read=lambda info: info.get("episode", {}).get("r"))
    two = recorded(policy, outcomes=[SUCCESS, nested], workers=2)
    assert two.episodes["is_success"].tolist() == alone.episodes["is_success"].tolist()
    assert (two.episodes["total"] == 3.0).all()


@pytest.mark.parametrize(
    ("outcomes", "problem", "fix"),
    [
        ([Outcome(name="succes", kind="share")], "does not tell the outcome 'succes'", "check the name"),
        ([Outcome(name="effort", kind="share")], "'effort' is not what was said", "another kind"),
        ([Outcome(name="total", kind="mean", read=lambda i: i["episode"]["r"])], "could not be read", "info.get"),
        ([Outcome(name="reward", kind="mean")], "a column 'reward' already", "own_reward"),
        ([SUCCESS, SUCCESS], "a column 'is_success' already", "own_is_success"),
        (["is_success"], "That is no outcome", "Outcome(name='is_success', kind='share')"),
    ],
    ids=["untold", "no share", "unreadable", "taken", "twice", "a name"],
)
def test_an_outcome_that_is_none_is_refused_in_words(
    policy: rlm.HookedPolicy, outcomes: Any, problem: str, fix: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        recorded(policy, outcomes=outcomes)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("env", "what"),
    [
        (Task(reward=np.nan), "NaN"),
        (Task(seen=np.inf), "an infinite number"),
        (Task(seen=np.nan), "NaN"),
        (Task(reward=-np.inf), "an infinite number"),
    ],
    ids=["reward NaN", "observation infinite", "observation NaN", "reward infinite"],
)
def test_what_is_no_number_is_told_when_it_is_recorded(policy: rlm.HookedPolicy, env: Any, what: str) -> None:
    with pytest.raises(EnvironmentFitError, match=f"The environment gave {what}") as caught:
        recorded(policy, env, seeds=[4])
    assert "step 0" in caught.value.given
    assert "seed 4" in caught.value.__notes__[0]


def test_an_environment_is_given_by_its_id_and_an_action_by_its_name(policy: rlm.HookedPolicy) -> None:
    by_id = rlm.record(policy, "CartPole-v1", seeds=[0], progress=False)
    assert by_id.equals(rlm.record(policy, gym.make("CartPole-v1"), seeds=[0], progress=False))
    driver = rlm.load("zoo:highway-dqn-mlp")
    still = [rlm.zero_ablation("hook_obs")]
    when = rlm.episodes.when
    named = rlm.record(driver, "highway-fast-v0", seeds=[0], edits=still, when=when.action_is("FASTER"), progress=False)
    numbered = rlm.record(driver, "highway-fast-v0", seeds=[0], edits=still, when=when.action_is(3), progress=False)
    assert named.steps["edited"].tolist() == numbered.steps["edited"].tolist()
    with pytest.raises(ConfigError, match="no action 'FASTR'") as caught:
        rlm.record(driver, "highway-fast-v0", seeds=[0], edits=still, when=when.action_is("FASTR"), progress=False)
    assert caught.value.fix == "did you mean 'FASTER'?"
    scene = rlm.Scene.replay("highway-fast-v0", seed=0, actions=["SLOWER", 1])
    assert np.array_equal(scene.observation, rlm.Scene.replay("highway-fast-v0", seed=0, actions=[4, 1]).observation)


class Pictures(gym.Env[np.ndarray, int]):
    """Height, width, channel."""

    observation_space, action_space = gym.spaces.Box(0, 255, (10, 12, 3), np.uint8), gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.see(), float(action), self.t == 3, False, {}

    def see(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (10, 12, 3), dtype=np.uint8)


def test_images_are_turned_as_the_policy_takes_them() -> None:
    class Look(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(360, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x.float().flatten(1))

    space = gym.spaces.Box(0, 255, (3, 10, 12), np.uint8)
    pixels = torch.randint(0, 255, (2, 3, 10, 12), dtype=torch.uint8)
    policy = rlm.HookedPolicy(Look(), pixels, observation_space=space)
    recording: Any = rlm.record(policy, Pictures(), seeds=[0], progress=False)
    first = Pictures().reset(seed=0)[0]
    assert np.array_equal(recording.observations[0], first.transpose(2, 0, 1))


@pytest.mark.parametrize("made", ["gymnasium", "stable_baselines3"])
def test_several_environments_at_once_are_refused_with_that_word(policy: rlm.HookedPolicy, made: str) -> None:
    if made == "gymnasium":
        env: Any = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    else:
        from stable_baselines3.common.vec_env import DummyVecEnv

        env = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    with pytest.raises(ConfigError, match="vector environment"):
        rlm.record(policy, env, seeds=[0], progress=False)
    with pytest.raises(ConfigError, match="vector environment"):
        rlm.compare_rollouts(policy, env, conditions={"a": [rlm.zero_ablation("hook_obs")]}, seeds=[0], progress=False)
