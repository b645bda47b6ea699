"""Recordings to Minari and back, and a dataset that Minari's own collector made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlmech.core.policy import HookedPolicy
from rlmech.episodes.exchange import from_minari, to_minari
from rlmech.episodes.recorder import record
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, MissingPackageError, RecordingError
from rlmech.simulators.env import make_env

minari = pytest.importorskip("minari")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*` is set to None:UserWarning"),  # Minari's advice to its authors
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of its collector's directories
    pytest.mark.filterwarnings("ignore:env_spec is None:UserWarning"),
]


@pytest.fixture(scope="module")
def policy() -> HookedPolicy:
    torch.manual_seed(0)
    return HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))


@pytest.fixture(scope="module")
def recording(policy: HookedPolicy) -> Recording:
    return record(policy, make_env("CartPole-v1"), seeds=[5, 3, 11], progress=False)


ABOUT = {
    "description": "random actions",
    "algorithm_name": "random",
    "author": "somebody",
    "author_email": "a@b.c",
    "code_permalink": "x",
}


def buffer_of(env: gym.Env, *, seed: int | None) -> Any:
    """One random episode, as Minari wants it."""
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    seen, infos, done = [observation], [info], False
    taken: list[tuple[Any, ...]] = []
    while not done:
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        infos.append(info)
        taken.append((action, reward, terminated, truncated))
        done = terminated or truncated
    names = ("actions", "rewards", "terminations", "truncations")
    by_key = {key: [o[key] for o in seen] for key in seen[0]} if isinstance(seen[0], dict) else seen
    told = {key: [i[key] for i in infos] for key in infos[0]}
    columns = {name: list(values) for name, values in zip(names, zip(*taken, strict=True), strict=True)}
    return minari.data_collector.EpisodeBuffer(seed=seed, observations=by_key, infos=told, **columns)


@pytest.fixture(scope="module", params=["buffers", "collector"])
def collected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three episodes, as somebody without rlmech collects them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        if request.param == "buffers":
            env = gym.make("CartPole-v1")
            buffers = [buffer_of(env, seed=seed) for seed in (4, 9, 2)]
            return minari.create_dataset_from_buffers("cartpole/others-v0", buffers, env=env, **ABOUT)
        pytest.importorskip("jax", reason="Minari's collector uses jax")
        collector = minari.DataCollector(gym.make("CartPole-v1"))
        for seed in (4, 9, 2):
            buffer_of(collector, seed=seed)
        dataset = collector.create_dataset("cartpole/others-v0", **ABOUT)
        collector.close()
        return dataset


def test_there_and_back_everything_is_bit_equal(recording: Recording, policy: HookedPolicy, tmp_path: Path) -> None:
    again = from_minari(to_minari(recording, "cartpole/linear-v0", root=tmp_path))
    assert np.array_equal(again.observations, recording.observations)
    assert again.observations.dtype == recording.observations.dtype
    assert np.array_equal(again.final_observations, recording.final_observations)
    assert np.array_equal(again.actions, recording.actions)
    same = ["episode", "seed", "step", "action", "reward", "terminated", "truncated"]
    assert again.steps[same].equals(recording.steps[same])
    assert again.episodes.equals(recording.episodes[list(again.episodes)])
    with torch.no_grad():
        assert np.array_equal(np.asarray(policy(again.observations)), np.asarray(policy(recording.observations)))
    assert again.manifest["minari"]["rlmech"]["policy"]["fingerprint"] == policy.fingerprint


def test_the_dataset_is_as_minari_has_them(recording: Recording, tmp_path: Path) -> None:
    dataset = to_minari(recording, "cartpole/linear-v0", root=tmp_path, description="a line")
    found = minari.MinariDataset(tmp_path / "cartpole/linear-v0/data")
    assert (found.total_episodes, found.total_steps) == (3, len(recording.steps))
    assert [meta["seed"] for meta in dataset.storage.get_episode_metadata(range(3))] == [5, 3, 11]
    assert found.recover_environment().spec.id == "CartPole-v1"
    start = 0
    for episode, length in zip(found, recording.episodes["length"], strict=True):
        assert len(episode.observations) == length + 1, "the last one is what the last action led to"
        assert episode.observations[0] in found.observation_space
        assert np.array_equal(episode.infos["scores"], recording.scores[start : start + length])
        assert (episode.terminations | episode.truncations).sum() == 1
        start += length
    # the same episode, driven again from its seed
    env = found.recover_environment()
    first = found[0]
    assert np.array_equal(env.reset(seed=5)[0], first.observations[0])
    for t, action in enumerate(first.actions):
        assert np.array_equal(env.step(action)[0], first.observations[t + 1])


def test_a_highway_env_recording_keeps_its_outcomes_and_its_environment(tmp_path: Path) -> None:
    env = make_env("intersection-v2", config={"duration": 3, "simulation_frequency": 5})
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(105, 3))
    recording = record(HookedPolicy(head, torch.rand(2, 15, 7)), env, seeds=[1, 2], progress=False)
    dataset = to_minari(recording, "intersection/test-v0", root=tmp_path)
    env = dataset.recover_environment()
    assert env.unwrapped.config["duration"] == 3
    assert np.array_equal(env.reset(seed=1)[0], dataset[0].observations[0])
    again = from_minari(tmp_path / "intersection/test-v0", path=tmp_path / "again")
    assert np.array_equal(again.observations, recording.observations)
    columns = ["crashed", "speed", "distance", "ttc"]
    assert again.steps[columns].equals(recording.steps[columns])
    assert again.episodes[["crashed", "speed"]].equals(recording.episodes[["crashed", "speed"]])
    assert again.spec == recording.spec
    assert again.manifest["env"] == recording.manifest["env"]
    assert again.vehicles.empty


def test_a_dataset_of_others_becomes_a_recording(collected: Any, policy: HookedPolicy, tmp_path: Path) -> None:
    recording = from_minari(collected, path=tmp_path / "imported")
    assert list(recording.episodes["seed"]) == [4, 9, 2]
    assert np.array_equal(recording.observations, np.concatenate([e.observations[:-1] for e in collected]))
    assert np.array_equal(recording.final_observations, np.stack([e.observations[-1] for e in collected]))
    assert np.array_equal(recording.actions, np.concatenate([e.actions for e in collected]))
    assert list(recording.episodes["length"]) == [len(e) for e in collected]
    assert recording.where(terminated=True).steps.shape[0] == 3
    assert policy(recording.observations).shape == (len(recording.steps), 2)
    assert recording.episode(9).observations.shape[0] == len(collected[1])
    assert recording.spec.env_id == "CartPole-v1"
    with pytest.raises(RecordingError, match="no scores"):
        recording.scores  # noqa: B018
    again = to_minari(recording, "cartpole/again-v0", root=tmp_path)
    assert all(np.array_equal(a.observations, b.observations) for a, b in zip(again, collected, strict=True))


def test_filtered_datasets_are_imported_as_they_are(collected: Any) -> None:
    kept = collected.filter_episodes(lambda episode: episode.id != 1)
    assert list(from_minari(kept).episodes["seed"]) == [4, 2]


class Mixed(gym.Env):
    """A dictionary of a vector and an image; actions are continuous; seeds are forgotten."""

    observation_space = gym.spaces.Dict(
        {"goal": gym.spaces.Box(-1, 1, (2,)), "view": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)}
    )
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 4
        return self.seen(), {"depth": 0.5}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.seen(), 1.0, False, self.left == 0, {"depth": float(self.left)}

    def seen(self) -> Any:
        image = self.np_random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return {"goal": self.np_random.random(2, dtype=np.float32), "view": image}


def test_dictionaries_images_and_infos_come_over_and_missing_seeds_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = Mixed()
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    buffers = [buffer_of(env, seed=None) for _ in range(2)]
    dataset = minari.create_dataset_from_buffers("mixed-v0", buffers, **spaces, **ABOUT, jpeg_encoding=False)
    recording = from_minari(dataset)
    assert list(recording.episodes["seed"]) == [0, 1]
    assert "numbered" in recording.manifest["minari"]["seeds"]
    assert list(recording.steps["depth"]) == [3, 2, 1, 0] * 2, "what each action led to; the reset's is left out"
    assert np.array_equal(recording.observations["view"][:4], dataset[0].observations["view"][:4])
    assert recording.actions.shape == (8, 2)
    back = to_minari(recording, "back-v0")
    assert minari.load_dataset("back-v0").total_steps == 8
    assert all(
        np.array_equal(a.observations["view"], b.observations["view"]) for a, b in zip(back, dataset, strict=True)
    )
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(back, dataset, strict=True))


def test_what_cannot_be_exchanged_is_said(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecordingError, match="whole episodes"):
        to_minari(recording.where(step_below=3), "cartpole/part-v0", root=tmp_path)
    with pytest.raises(ConfigError, match="no id"):
        to_minari(recording, "not an id!", root=tmp_path)
    to_minari(recording, "cartpole/one-v0", root=tmp_path)
    with pytest.raises(RecordingError, match="already"):
        to_minari(recording, "cartpole/one-v0", root=tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(RecordingError, match="no such Minari dataset"):
        from_minari("cartpole/none-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingPackageError, match="not installed") as missing:
        from_minari("cartpole/one-v0")
    assert 'pip install "rlmech[minari]"' in missing.value.fix
