"""Recordings: what is in them, that recording disturbs nothing, and what a kill or a full disk leaves."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.episodes import Recording, log, manifest, record, shards, simulation
from rlmech.episodes.episode import run_episode, summary
from rlmech.episodes.manifest import write_manifest
from rlmech.errors import ConfigError, EnvironmentFitError, RecordingError, SiteError
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env, simulator_of

CROSSING = {"simulation_frequency": 5, "duration": 4}


@pytest.fixture(scope="module")
def cartpole() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(2, 4))


@pytest.fixture(scope="module")
def driver() -> rlm.HookedPolicy:
    torch.manual_seed(1)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))


def crossing(**kwargs: Any) -> gym.Env:
    return make_env("intersection-v2", config=CROSSING, **kwargs)


@pytest.fixture(scope="module")
def crossings(driver: rlm.HookedPolicy, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recordings") / "crossings"
    names = ["attention_layer.hook_pattern", "hook_obs"]
    return record(driver, crossing(), seeds=[4, 2, 9], names=names, path=path, progress=False)


def test_rows_of_all_parts_belong_together(crossings: Recording, driver: rlm.HookedPolicy) -> None:
    steps = len(crossings.steps)
    assert len(crossings) == 3
    assert list(crossings.episodes["seed"]) == [4, 2, 9]
    assert crossings.episodes["length"].sum() == steps
    assert crossings.observations.shape == (steps, 15, 7)
    assert crossings.activation("attention_layer.hook_pattern").shape == (steps, 4, 1, 15)
    assert crossings.axes("attention_layer.hook_pattern") == ("step", "head", "query", "key")
    assert np.array_equal(crossings.activation("hook_obs"), crossings.observations)
    again, cache = driver.run_with_cache(crossings.observations)
    assert np.allclose(crossings.scores, again.detach().numpy(), atol=1e-5)
    recorded = crossings.activation("attention_layer.hook_pattern")
    assert np.allclose(recorded, cache["attention_layer.hook_pattern"].detach().numpy(), atol=1e-6)
    assert np.array_equal(crossings.actions, crossings.scores.argmax(1))
    assert np.array_equal(crossings.actions, crossings.steps["action"])


def test_recording_does_not_change_the_episode(crossings: Recording, driver: rlm.HookedPolicy) -> None:
    env = crossing()
    for seed in (4, 2, 9):
        alone = list(run_episode(env, lambda o: int(driver.predict(o)[0]), seed=seed))
        recorded = crossings.episode(seed)
        assert np.array_equal(recorded.observations, np.stack([step.observation for step in alone]))
        assert list(recorded.steps["reward"]) == [step.reward for step in alone]
        assert recorded.episodes.iloc[0].drop(["episode", "seed"]).to_dict() == pytest.approx(
            summary(alone, simulator_of(env).outcomes)
        )


def test_vehicles_stand_behind_the_recorded_rows(crossings: Recording) -> None:
    x = crossings.spec.features[1]
    rows = crossings.steps.reset_index().merge(crossings.vehicles, on=["episode", "step"])
    rows = rows[rows["row"] >= 0]
    seen = x.physical(crossings.observations[rows["index"], rows["row"], 1])
    assert np.allclose(seen, rows["x"].clip(-100, 100), atol=1e-4)
    assert len(rows) == (crossings.observations[:, :, 0] > 0.5).sum()


def test_the_scene_after_the_last_action_is_kept(crossings: Recording) -> None:
    last = crossings.vehicles.groupby("episode")["step"].max()
    assert list(last) == list(crossings.episodes["length"])


def test_a_recording_loads_back_equal(crossings: Recording) -> None:
    loaded = Recording.load(crossings.path)
    assert loaded.equals(crossings)
    assert loaded.manifest == crossings.manifest
    assert not loaded.equals(crossings.episode(2))


def test_the_manifest_tells_how_it_was_made(crossings: Recording, driver: rlm.HookedPolicy) -> None:
    manifest = json.loads((crossings.path / "manifest.json").read_text())
    assert manifest["policy"] == {"fingerprint": driver.fingerprint, "output_kind": "q_values"}
    assert manifest["env"]["id"] == "intersection-v2"
    assert manifest["env"]["config"]["simulation_frequency"] == 5
    assert manifest["versions"]["torch"] == torch.__version__
    assert len(manifest["lanes"]) == 20


def test_nothing_in_a_recording_is_pickled(crossings: Recording) -> None:
    kinds = {file.suffix for file in crossings.path.rglob("*") if file.is_file()}
    assert kinds == {".json", ".parquet", ".safetensors"}


@pytest.mark.slow
def test_many_workers_record_what_one_does(driver: rlm.HookedPolicy, crossings: Recording, tmp_path: Path) -> None:
    names = ["attention_layer.hook_pattern", "hook_obs"]
    both = record(driver, crossing(), seeds=[4, 2, 9], names=names, workers=2, path=tmp_path / "both", progress=False)
    assert both.equals(crossings)


def test_shuffled_observations_are_recorded_without_another_draw(driver: rlm.HookedPolicy) -> None:
    base: Any = crossing().unwrapped
    config = CROSSING | {"observation": base.config["observation"] | {"order": "shuffled"}}
    env = make_env("intersection-v2", config=config)
    recorded = record(driver, env, seeds=[3], progress=False)
    alone = list(run_episode(env, lambda o: int(driver.predict(o)[0]), seed=3))
    assert np.array_equal(recorded.observations, np.stack([step.observation for step in alone]))


def test_edits_act_at_every_step(cartpole: rlm.HookedPolicy) -> None:
    env = make_env("CartPole-v1")
    edit = rlm.zero_ablation(rlm.Site("2.hook_out"))
    edited = record(cartpole, env, seeds=range(2), edits=[edit], progress=False)
    assert np.all(edited.scores == 0)
    assert set(edited.actions) == {0}
    assert edited.manifest["edits"] == [str(edit)]
    assert edited.steps["edited"].all()
    changed = edited.steps["action_changed"].to_numpy()
    assert np.array_equal(changed, edited.actions != cartpole.predict(edited.observations)[0])
    assert not np.all(record(cartpole, env, seeds=range(2), progress=False).scores == 0)


def test_environments_without_roads_are_recorded(cartpole: rlm.HookedPolicy) -> None:
    recording = record(cartpole, make_env("CartPole-v1"), seeds=range(2), names="*", progress=False)
    assert recording.vehicles.empty
    assert set(recording.manifest["activations"]) == set(cartpole.hook_dict)
    assert recording.manifest["lanes"] == []
    assert recording.episodes["return"].tolist() == recording.episodes["length"].tolist()
    assert "crashed" not in recording.steps


def test_continuous_actions_are_recorded() -> None:
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    policy = rlm.HookedPolicy(
        nn.Linear(3, 1), torch.rand(2, 3), output_kind="mean_action", action_space=env.action_space
    )
    recording = record(policy, env, seeds=[0], progress=False)
    assert recording.actions.shape == (5, 1)
    assert np.allclose(recording.actions, np.clip(recording.scores, -2, 2))
    assert bool(recording.steps["truncated"].iloc[-1])
    assert "action" not in recording.steps


class Compass(gym.Env[dict[str, np.ndarray], int]):
    """Three steps with a dictionary observation."""

    observation_space = gym.spaces.Dict({"where": gym.spaces.Box(-1, 1, (2,)), "heading": gym.spaces.Box(-1, 1, (1,))})
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.see(), float(action), self.t == 3, False, {}

    def see(self) -> dict[str, np.ndarray]:
        return {"where": np.full(2, self.t / 3, np.float32), "heading": self.np_random.random(1, dtype=np.float32)}


class Steering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.out(torch.cat([obs["where"], obs["heading"]], dim=1))


def test_dictionary_observations_are_recorded_by_key() -> None:
    policy = rlm.HookedPolicy(Steering(), {"where": torch.rand(2, 2), "heading": torch.rand(2, 1)})
    recording = record(policy, Compass(), seeds=[1, 2], progress=False)
    assert isinstance(recording.observations, dict)
    assert {key: value.shape for key, value in recording.observations.items()} == {"where": (6, 2), "heading": (6, 1)}
    assert Recording.load(recording.path).equals(recording)


def test_frames_show_every_scene_decided_in(driver: rlm.HookedPolicy) -> None:
    recording = record(driver, crossing(render_mode="rgb_array"), seeds=[0], frames=True, progress=False)
    assert recording.frames.shape == (len(recording.steps), 600, 600, 3)
    assert recording.frames.dtype == np.uint8
    assert recording.frames.std() > 0
    plain = record(driver, crossing(), seeds=[0], progress=False)
    assert plain.steps.equals(recording.steps), "drawing changes nothing"
    with pytest.raises(RecordingError, match="has no frames"):
        _ = plain.frames


def test_a_temporary_recording_goes_when_nobody_holds_it(cartpole: rlm.HookedPolicy) -> None:
    recording = record(cartpole, make_env("CartPole-v1"), seeds=[0, 1], progress=False)
    one = recording.episode(1)
    path = recording.path
    del recording
    assert len(one.steps) == len(one.scores), "a part of it holds it"
    del one
    assert not path.exists()


def test_an_existing_path_is_refused_and_left_alone(cartpole: rlm.HookedPolicy, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for taken in (tmp_path / "mine", tmp_path):
        with pytest.raises(RecordingError, match="something at the recording's path already"):
            record(cartpole, make_env("CartPole-v1"), seeds=[0], path=taken, progress=False)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_full_disk_keeps_the_finished_episodes(
    cartpole: rlm.HookedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, path = shards.pq.write_table, tmp_path / "full"

    def until_full(table: pa.Table, target: Path, **kwargs: Any) -> None:
        if 2 in table["episode"].to_pylist():
            Path(target).write_bytes(b"PAR1 half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, target, **kwargs)

    monkeypatch.setattr(shards.pq, "write_table", until_full)
    with pytest.raises(RecordingError, match=r"Episode 2 could not be written") as caught:
        record(cartpole, make_env("CartPole-v1"), seeds=range(5), path=path, progress=False)
    assert "No space left" in caught.value.given
    monkeypatch.undo()
    left = Recording.load(path)
    assert list(left.episodes["seed"]) == [0, 1]
    assert left.missing_seeds == [2, 3, 4]
    assert sorted(p.name for p in (path / "shards").iterdir()) == ["00000000", "00000001"]
    record(cartpole, make_env("CartPole-v1"), seeds=range(5), path=path, progress=False)
    whole = record(cartpole, make_env("CartPole-v1"), seeds=range(5), progress=False)
    assert Recording.load(path).equals(whole), "what was not finished is redone, as if nothing had happened"


def test_a_full_disk_at_the_first_episode_leaves_nothing(
    cartpole: rlm.HookedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.pq, "write_table", full)
    with pytest.raises(RecordingError, match="make room"):
        record(cartpole, make_env("CartPole-v1"), seeds=[0], path=tmp_path / "full", progress=False)
    assert not (tmp_path / "full").exists()


def test_a_disk_too_full_for_the_manifest_leaves_nothing(
    cartpole: rlm.HookedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write_sealed_json", full)
    with pytest.raises(RecordingError, match="The recording could not be written"):
        record(cartpole, make_env("CartPole-v1"), seeds=[0], path=tmp_path / "full", progress=False)
    assert not (tmp_path / "full").exists()


def test_an_interrupted_recording_keeps_the_finished_episodes(
    cartpole: rlm.HookedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shards.Writer.add
    monkeypatch.setattr(simulation, "MOST", 4)  # episodes that are driven together
    monkeypatch.setattr(log, "PATIENCE", 0.0)  # and written at once

    def until_interrupted(writer: shards.Writer, part: shards.Episodes) -> None:
        if part.numbers[0] > 3:
            (writer.path / "shards" / ".00000004.1").mkdir()
            raise KeyboardInterrupt
        write(writer, part)

    monkeypatch.setattr(shards.Writer, "add", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(cartpole, make_env("CartPole-v1"), seeds=range(9), path=tmp_path / "cut", progress=False)
    left = list(Recording.load(tmp_path / "cut").episodes["seed"])
    assert left == list(range(len(left)))
    assert 0 < len(left) <= 4
    assert all(folder.name[0] != "." for folder in (tmp_path / "cut" / "shards").iterdir())


def test_a_recording_goes_on_where_it_stopped_and_takes_more_seeds(cartpole: rlm.HookedPolicy, tmp_path: Path) -> None:
    env, path = make_env("CartPole-v1"), tmp_path / "growing"
    record(cartpole, env, seeds=[3, 1], path=path, progress=False)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.parquet")}
    again = record(cartpole, env, seeds=[1, 3], path=path, progress=False)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.parquet")} == before, "nothing is run twice"
    assert list(again.episodes["seed"]) == [3, 1]
    more = record(cartpole, env, seeds=[3, 8], path=path, progress=False)
    assert list(more.episodes["seed"]) == [3, 8]
    assert Recording.load(path).equals(record(cartpole, env, seeds=[3, 1, 8], progress=False))


def test_a_recording_made_otherwise_is_not_gone_on_with(cartpole: rlm.HookedPolicy, tmp_path: Path) -> None:
    env, path = make_env("CartPole-v1"), tmp_path / "mine"
    _, reference = cartpole.run_with_cache(torch.rand(5, 4))
    _, other = cartpole.run_with_cache(torch.rand(5, 4))
    site = rlm.Site("1.hook_out", neuron=3)
    record(cartpole, env, seeds=[0], edits=[rlm.mean_ablation(site, reference=reference)], path=path, progress=False)
    for differs, kwargs in {
        "edits": {"edits": []},
        "edits_digest": {"edits": [rlm.mean_ablation(site, reference=other)]},
        "when": {"edits": [rlm.mean_ablation(site, reference=reference)], "when": 3},
        "activations": {"edits": [rlm.mean_ablation(site, reference=reference)], "names": "hook_obs"},
    }.items():
        with pytest.raises(RecordingError, match="another recording at this path") as caught:
            record(cartpole, env, seeds=[1], path=path, progress=False, **kwargs)  # type: ignore[arg-type]
        assert f"differs in {differs}" in caught.value.given or f", {differs}" in caught.value.given
    function = ("1.hook_out", lambda tensor, hook: tensor)
    record(cartpole, env, seeds=[0], edits=[function], path=tmp_path / "function", progress=False)
    with pytest.raises(RecordingError, match="another recording at this path") as caught:
        record(cartpole, env, seeds=[1], edits=[function], path=tmp_path / "function", progress=False)
    assert "its edits are functions" in caught.value.given


@pytest.mark.slow
def test_a_kill_leaves_the_finished_episodes(tmp_path: Path) -> None:
    path = tmp_path / "killed"
    code = f"""
import torch, rlmech as rlm
policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(100000), names="*", path={str(path)!r}, progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(path.glob("shards/[0-9]*"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = Recording.load(path)
    assert len(left) >= 5
    assert len(left.steps) == len(left.scores) == len(left.activation("hook_obs")) == left.episodes["length"].sum()


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_must_be_there_and_differ(cartpole: rlm.HookedPolicy, seeds: list[int]) -> None:
    with pytest.raises(ConfigError, match="needs a seed of its own"):
        record(cartpole, make_env("CartPole-v1"), seeds=seeds, progress=False)


def test_frames_of_an_environment_that_makes_none_are_refused(cartpole: rlm.HookedPolicy) -> None:
    with pytest.raises(ConfigError, match="makes no pictures"):
        record(cartpole, make_env("CartPole-v1"), seeds=[0], frames=True, progress=False)


def test_there_is_at_least_one_worker(cartpole: rlm.HookedPolicy) -> None:
    with pytest.raises(ConfigError, match="that many workers"):
        record(cartpole, make_env("CartPole-v1"), seeds=[1], workers=0, progress=False)


def test_a_misfit_leaves_no_directory(cartpole: rlm.HookedPolicy, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFitError):
        record(cartpole, crossing(), seeds=[0], path=tmp_path / "misfit", progress=False)
    with pytest.raises(SiteError):
        record(cartpole, make_env("CartPole-v1"), seeds=[0], names="hook_patern", path=tmp_path / "misfit")
    assert not (tmp_path / "misfit").exists()


def test_an_unrecorded_activation_names_the_nearest(crossings: Recording) -> None:
    with pytest.raises(RecordingError, match="holds no activation") as caught:
        crossings.activation("attention_layer.hook_patern")
    assert caught.value.fix == "did you mean 'attention_layer.hook_pattern'?"


def test_an_unknown_seed_is_refused(crossings: Recording) -> None:
    with pytest.raises(RecordingError, match="no episode of seed 77"):
        crossings.episode(77)


def test_another_policys_recording_is_told(crossings: Recording, driver: rlm.HookedPolicy, cartpole: Any) -> None:
    crossings.check_policy(driver)
    with pytest.raises(RecordingError, match="of another policy"):
        crossings.check_policy(cartpole)


def test_damage_is_told(crossings: Recording, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no recording at this path"):
        Recording.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RecordingError, match="is damaged"):
        Recording.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(crossings.manifest | {"format": "rlmech.recording/9"}))
    with pytest.raises(RecordingError, match="does not read that recording"):
        Recording.load(tmp_path)
    write_manifest(tmp_path, crossings.manifest)
    (tmp_path / "shards" / "00000000").mkdir(parents=True)
    with pytest.raises(RecordingError, match="is damaged"):
        Recording.load(tmp_path)
    shutil.rmtree(tmp_path / "shards")
    shutil.copytree(crossings.path / "shards", tmp_path / "shards")
    next(tmp_path.rglob(shards.ARRAYS)).write_bytes(b"half")
    with pytest.raises(RecordingError, match="is damaged"):
        _ = Recording.load(tmp_path).scores


class Weather(gym.Env[np.ndarray, int]):
    """Draws from a generator of its own, whatever the seed."""

    observation_space, action_space = gym.spaces.Box(0, 1, (4,)), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.random.default_rng().random(4, dtype=np.float32), {}


class Deaf(Weather):
    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:  # type: ignore[override]
        return np.zeros(4, np.float32), {}


class Drawing(gym.Env[np.ndarray, np.int64]):
    """Begins as its seed says, and goes on by numbers drawn elsewhere."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (4,)), gym.spaces.Discrete(2)

    def __init__(self, how: str) -> None:
        self.how, self.n_episodes = how, 0
        if how == "a generator of its own":
            self.rng = np.random.default_rng(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_episodes += 1
        return np.zeros(4, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        match self.how:
            case "numpy":
                drawn = np.random.random(4)
            case "torch":
                drawn = torch.rand(4).numpy()
            case "a generator of its own":
                drawn = (self.rng.random(4) > 2).astype(float)  # seldom seen
            case _:
                drawn = np.full(4, self.n_episodes / 9)
        return drawn.astype(np.float32), 0.0, False, True, {}


@pytest.mark.parametrize("how", ["numpy", "torch", "a generator of its own", "episodes counted"])
def test_an_environment_whose_episodes_follow_from_more_than_the_seed_is_refused_by_name(
    cartpole: rlm.HookedPolicy, how: str
) -> None:
    with pytest.raises(EnvironmentFitError, match="does not follow from its seed alone") as caught:
        record(cartpole, Drawing(how), seeds=[1], progress=False)
    named = {"a generator of its own": "Drawing.rng", "episodes counted": "Drawing.n_episodes"}
    assert named.get(how, "Drawing") in str(caught.value)


@pytest.mark.parametrize("env", [Weather(), Deaf()], ids=["ignores it", "takes none"])
def test_an_environment_that_does_not_take_a_seed_is_refused(cartpole: rlm.HookedPolicy, env: Any) -> None:
    with pytest.raises(EnvironmentFitError, match="does not take a seed") as caught:
        record(cartpole, env, seeds=[1], progress=False)
    assert "self.np_random" in caught.value.fix
