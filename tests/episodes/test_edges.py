"""Environments, conditions and callers a little unlike the usual ones: recordings stay right, or say why not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.episodes.episode_tables import table_of
from rlmech.episodes.shards import sole_writer
from rlmech.episodes.when import When, when_of
from rlmech.errors import ConfigError, EnvironmentFitError, MetricError, RecordingError

STILL = [rlm.zero_ablation("hook_obs")]


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(nn.Linear(4, 2), torch.rand(2, 4))


def named(test: Any) -> When:
    condition = when_of(test)
    assert condition is not None
    return condition


def cartpole(**options: Any) -> gym.Env:
    return gym.make("CartPole-v1", **options)


def recorded(policy: rlm.HookedPolicy, env: gym.Env | None = None, **options: Any) -> rlm.Recording:
    given: dict[str, Any] = {"seeds": range(3), "progress": False}
    return rlm.record(policy, env or cartpole(), **(given | options))


class Rewriting(gym.Env[np.ndarray, Any]):
    """Counts to four in one array, which it gives out as every observation."""

    observation_space = gym.spaces.Box(-9, 9, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.zeros(4, np.float32)
        return self.state, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state += 1
        return self.state, 1.0, bool(self.state[0] == 4), False, {}


class Unforked(gym.Wrapper[Any, Any, Any, Any]):
    """Cannot be copied, for a reason of its own."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise LookupError("one of a kind")


def test_observations_that_an_environment_overwrites_are_kept(policy: rlm.HookedPolicy) -> None:
    recording: Any = recorded(policy, Rewriting(), seeds=[0])
    assert recording.observations[:, 0].tolist() == [0, 1, 2, 3]
    assert recording.final_observations[0, 0] == 4


def test_a_value_that_only_later_steps_have_is_not_lost() -> None:
    assert table_of([{"a": 1}, {"a": 2, "b": True}]).to_pydict() == {"a": [1, 2], "b": [None, True]}


def test_an_environment_that_cannot_be_copied_for_whatever_reason_is_run_apart(policy: rlm.HookedPolicy) -> None:
    found = rlm.compare_rollouts(
        policy, Unforked(cartpole()), conditions={"still": STILL}, seeds=range(2), progress=False
    )
    assert "one of a kind" in found.attrs["shared_simulation"]
    assert float(found["delta_length"].sel(condition="still")) != 0


def test_a_network_in_train_mode_drives_as_it_does_in_eval_mode_and_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    training = rlm.HookedPolicy(network, torch.rand(2, 4))
    resting = recorded(training.eval())
    training.train()
    assert recorded(training).equals(resting)
    assert all(part.training for part in network.modules())


def test_a_recording_is_not_gone_on_with_under_another_function_of_the_moment(
    policy: rlm.HookedPolicy, tmp_path: Path
) -> None:
    recorded(policy, edits=STILL, when=~named(lambda moment: moment.step > 2), path=tmp_path / "r")
    with pytest.raises(RecordingError, match="its condition is a function"):
        recorded(policy, edits=STILL, when=~named(lambda moment: moment.step > 5), path=tmp_path / "r")


@pytest.mark.parametrize("options", [{"sutton_barto_reward": True}, {"max_episode_steps": 5}])
def test_a_recording_is_not_gone_on_with_in_an_environment_made_otherwise(
    policy: rlm.HookedPolicy, tmp_path: Path, options: dict[str, Any]
) -> None:
    recorded(policy, cartpole(**options), path=tmp_path / "r")
    assert len(recorded(policy, cartpole(**options), seeds=[0, 7], path=tmp_path / "r")) == 2
    with pytest.raises(RecordingError, match="of another environment") as caught:
        recorded(policy, path=tmp_path / "r")
    assert ("_sutton_barto_reward" if "sutton_barto_reward" in options else "_max_episode_steps") in caught.value.given


@pytest.mark.parametrize("seeds", [[1.5], 5, [2**63], ["0"], [-1], []])
def test_seeds_that_are_none_are_told(policy: rlm.HookedPolicy, seeds: Any) -> None:
    with pytest.raises(ConfigError, match="seed of its own"):
        recorded(policy, seeds=seeds)


def test_numpys_whole_numbers_and_generators_are_seeds(policy: rlm.HookedPolicy) -> None:
    assert list(recorded(policy, seeds=(np.int64(2**40 + i) for i in range(2))).episodes["seed"]) == [2**40, 2**40 + 1]


def test_actions_that_do_not_begin_at_0_are_refused(policy: rlm.HookedPolicy) -> None:
    env = cartpole()
    env.action_space = gym.spaces.Discrete(2, start=1)
    with pytest.raises(EnvironmentFitError, match="from elsewhere than 0"):
        recorded(policy, env)


def test_a_recording_has_one_writer_at_a_time(policy: rlm.HookedPolicy, tmp_path: Path) -> None:
    recorded(policy, path=tmp_path / "r")
    with sole_writer(tmp_path / "r"), pytest.raises(RecordingError, match="Another process"):
        recorded(policy, seeds=[7], path=tmp_path / "r")
    assert len(recorded(policy, seeds=[7], path=tmp_path / "r")) == 1


def test_what_a_kill_left_before_there_was_a_manifest_is_written_over(policy: rlm.HookedPolicy, tmp_path: Path) -> None:
    (tmp_path / "r" / "shards").mkdir(parents=True)
    assert len(recorded(policy, path=tmp_path / "r")) == 3
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").touch()
    with pytest.raises(RecordingError, match="something at"):
        recorded(policy, path=tmp_path / "own")
    assert (tmp_path / "own" / "thesis.txt").exists()


def test_controls_do_not_depend_on_the_conditions_beside(policy: rlm.HookedPolicy) -> None:
    site = rlm.Site("hook_obs", feature=0)
    edits = {"a": [rlm.zero_ablation(site)], "b": [rlm.zero_ablation(rlm.Site("hook_obs", feature=1))]}
    given: dict[str, Any] = {"controls": ("random_site", "random_direction"), "seeds": range(2), "progress": False}
    ours = rlm.compare_rollouts(policy, cartpole(), conditions=edits, **given)
    theirs = rlm.compare_rollouts(policy, cartpole(), conditions=dict(reversed(edits.items())), **given)
    assert np.array_equal(ours["return"], theirs["return"].sel(condition=ours["condition"]))
    same = theirs["edits"].sel(condition=ours["condition"]).values
    assert ours["edits"].values.tolist() == same.tolist()


def test_an_iterator_of_steps_serves_every_condition(policy: rlm.HookedPolicy) -> None:
    found = rlm.compare_rollouts(
        policy, cartpole(), conditions={"a": STILL, "b": STILL}, seeds=[0], when=iter([1, 2]), progress=False
    )
    assert found["when"].values.tolist() == ["", "at steps 1, 2", "at steps 1, 2"]


def test_values_that_do_not_fit_a_column_are_told(policy: rlm.HookedPolicy) -> None:
    recording = recorded(policy)
    for given in ({"terminated": 1}, {"action": "left"}):
        with pytest.raises(RecordingError, match="cannot be selected so"):
            recording.where(**given)


def test_a_selection_of_nothing_is_a_recording_of_nothing(policy: rlm.HookedPolicy) -> None:
    none: Any = recorded(policy).where(step_above=10**6)
    assert (len(none), len(none.steps), none.scores.shape, np.shape(none.observations)) == (0, 0, (0, 2), (0, 4))
    assert none.dataset().to_table().num_rows == 0
    assert list(none.parts()) == []


def test_one_seed_does_not_tell_how_many_are_needed(policy: rlm.HookedPolicy) -> None:
    found = rlm.compare_rollouts(policy, cartpole(), conditions={"still": STILL}, seeds=[0], progress=False)
    with pytest.raises(MetricError, match="So few seeds"):
        rlm.episodes.seeds_needed(found, half_width=1.0)


def test_parts_of_episodes_are_not_compared(policy: rlm.HookedPolicy) -> None:
    recording = recorded(policy)
    with pytest.raises(RecordingError, match="'late' is of some steps only"):
        rlm.episodes.compare_recordings({"baseline": recording, "late": recording.where(step_above=3)})


@pytest.mark.parametrize("obstacle", ["hook", "wrapper"])
def test_what_cannot_be_sent_to_workers_is_told_before_any_starts(policy: rlm.HookedPolicy, obstacle: str) -> None:
    lock = threading.Lock()
    edits: Any = [("hook_obs", lambda tensor, hook: tensor if lock else None)] if obstacle == "hook" else []
    env: Any = Unforked(cartpole())
    env.lock = lock
    with pytest.raises(ConfigError, match="cannot be sent to workers"):
        recorded(policy, cartpole() if obstacle == "hook" else env, edits=edits, workers=2)


def test_hooks_that_workers_would_not_see_are_told(policy: rlm.HookedPolicy) -> None:
    with pytest.raises(ConfigError, match="stay behind"), policy.edited(STILL):
        recorded(policy, workers=2)


def test_an_edit_of_a_mask_has_no_random_direction_and_says_which_control_it_has() -> None:
    policy = rlm.load("zoo:intersection-ego-attention")
    env = rlm.make_env("intersection-v2", config={**policy.spec.env_config, "duration": 2})
    hidden = rlm.zero_ablation(rlm.Site("features_extractor.attention_layer.hook_mask", key=1))
    with pytest.raises(ConfigError, match=r"holds no real numbers(.|\n)*fix: controls=\['random_site'\]"):
        rlm.compare_rollouts(
            policy, env, conditions={"m": [hidden]}, seeds=[0], controls=["random_direction"], progress=False
        )
    driven = rlm.compare_rollouts(
        policy, env, conditions={"m": [hidden]}, seeds=[0], controls=["random_site"], n_controls=1, progress=False
    )
    assert driven.sizes["condition"] == 3
