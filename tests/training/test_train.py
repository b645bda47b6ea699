"""Training runs: checkpoints, curve, resuming, the card, and what ends up in a zoo."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stable_baselines3 import DQN

from rlmech import load
from rlmech.errors import ConfigError
from rlmech.simulators.env import make_env
from rlmech.training import TrainConfig, publish, train
from rlmech.training.assess import _binned_curve, _choose, _curve, checkpoints
from rlmech.training.train import _RunRecorder, learn
from rlmech.zoo import Card

TRAINING, EVALUATING = (importlib.import_module(f"rlmech.training.{name}") for name in ("train", "evaluate"))
CONFIG = TrainConfig(
    name="tiny-driver",
    about="A driver for tests.",
    seed=1,
    total_steps=60,
    n_checkpoints=3,
    env_id="intersection-v2",
    env_config={"simulation_frequency": 5, "duration": 4},
    algorithm="DQN",
    algorithm_kwargs={
        "policy": "MlpPolicy",
        "learning_starts": 8,
        "train_freq": 1,
        "learning_rate": {"start": 1e-3, "end": 1e-4},
        "buffer_size": 100,
        "batch_size": 8,
    },
    policy_kwargs={
        "features_extractor_class": "EgoAttentionExtractor",
        "features_extractor_kwargs": {"d_model": 8, "n_heads": 2, "embedding": [8]},
        "net_arch": [8],
    },
    evaluation_first_seed=1000,
    evaluation_episodes=3,
    validation_episodes=2,
    also_on=[{"id": "intersection-v2", "config": {"duration": 2}, "n_episodes": 2}],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    train(CONFIG, path, progress=False)
    return path


def test_a_run_keeps_its_checkpoints_and_its_curve(run: Path) -> None:
    kept = sorted(path.stem for path in (run / "checkpoints").iterdir())
    assert kept == ["step_0000000", "step_0000020", "step_0000040", "step_0000060"]
    header, *rows = (run / "curve.csv").read_text().splitlines()
    assert header == "step,return,length,crashed,arrived"
    assert 10 <= len(rows) <= 60
    assert all(row.split(",")[4] in ("0", "1") for row in rows)


def test_the_learning_rate_falls_as_configured(run: Path) -> None:
    model = DQN.load(run / "checkpoints" / "step_0000060.zip")
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)
    assert model.lr_schedule(0.0) == pytest.approx(1e-4)


def test_the_card_tells_how_good_the_policy_is(run: Path) -> None:
    card = Card.load(run / "card.json")
    assert card.step in (20, 40, 60)
    best = max(card.ladder[1:], key=lambda rung: rung["return"]["mean"])
    assert card.step == best["step"]
    assert [rung["step"] for rung in card.ladder] == [0, 20, 40, 60]
    home, short = card.evaluations
    assert list(home.drivers) == ["policy", "untrained", "random", "always SLOWER", "always IDLE", "always FASTER"]
    assert home.drivers["policy"]["n"] == 3
    assert list(short.drivers) == ["policy", home.best_constant]
    assert short.env_config == {"duration": 2}
    assert set(home.difference) == {"return", "crashed"}
    assert "A driver for tests." in card.about
    assert f"{card.step} environment steps" in card.about
    assert sum(bin["episodes"] for bin in card.curve) == len((run / "curve.csv").read_text().splitlines()) - 1
    assert home.table().loc["policy", "return"] == home.drivers["policy"]["return"]["mean"]


def test_a_finished_run_is_not_run_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an episode was run again")

    monkeypatch.setattr(EVALUATING, "run_episode", refuse)
    monkeypatch.setattr(DQN, "learn", refuse)
    before = (run / "card.json").read_text()
    assert train(CONFIG, run, progress=False) == run
    assert (run / "card.json").read_text() == before


def test_a_directory_of_another_configuration_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="a run of another configuration") as caught:
        train(dataclasses.replace(CONFIG, seed=2), run, progress=False)
    assert "seed=1" in caught.value.given
    assert caught.value.expected == "seed=2"


def test_a_killed_run_goes_on_from_its_last_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAINING, "RESUME_EVERY", 15)
    steps: list[int] = []
    original = _RunRecorder._on_step

    def killed(self: Any) -> bool:
        steps.append(self.num_timesteps)
        if self.num_timesteps == 40 and len(steps) == 40:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(_RunRecorder, "_on_step", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(CONFIG, tmp_path, progress=False)
    assert [p.name for p in (tmp_path / "resume").iterdir()] == ["step_0000030"]
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("38,9.0,1,0,0\n")
    learn(CONFIG, tmp_path, progress=False)
    assert steps[40:] == list(range(31, 61)), "taken up at the copy"
    ends = [int(line.split(",")[0]) for line in (tmp_path / "curve.csv").read_text().splitlines()[1:]]
    assert ends == sorted(ends)
    assert "38,9.0,1,0,0" not in (tmp_path / "curve.csv").read_text()
    model = DQN.load(tmp_path / "checkpoints" / "step_0000060.zip")
    assert model.num_timesteps == 60
    assert model.exploration_rate == pytest.approx(0.05)


def test_a_run_continues_another_one_with_its_own_settings(run: Path, tmp_path: Path) -> None:
    kwargs = CONFIG.algorithm_kwargs | {"learning_rate": 1e-5, "exploration_initial_eps": 0.01}
    config = dataclasses.replace(CONFIG, continues=str(run), total_steps=20, n_checkpoints=1, algorithm_kwargs=kwargs)
    learn(config, tmp_path, progress=False)
    before = DQN.load(run / "resume" / "step_0000060" / "model.zip")
    start, end = (DQN.load(tmp_path / "checkpoints" / f"step_{n:07d}.zip") for n in (0, 20))
    state, change = before.policy.state_dict(), end.policy.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in start.policy.state_dict().items())
    assert 0 < max(float((change[name] - value).abs().max()) for name, value in state.items()) < 1e-2
    assert (end.learning_rate, end.num_timesteps) == (1e-5, 20)
    end.load_replay_buffer(tmp_path / "resume" / "step_0000020" / "buffer.pkl")
    assert end.replay_buffer is not None
    assert end.replay_buffer.size() == 80, "the other run's experience, and its own"
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert [(rung.step, rung.path.parts[-3]) for rung in checkpoints(config, tmp_path)] == [
        (0, run.name),
        (20, run.name),
        (40, run.name),
        (60, run.name),
        (80, tmp_path.name),
    ]
    assert _curve(config, tmp_path)["step"].is_monotonic_increasing
    with pytest.raises(ConfigError, match="no run to continue"):
        learn(dataclasses.replace(config, continues="nowhere"), tmp_path / "other", progress=False)
    with pytest.raises(ConfigError, match="not that of a training run"):
        checkpoints(dataclasses.replace(config, continues="nowhere"), tmp_path)


def test_a_published_policy_acts_as_the_checkpoint_does(run: Path, tmp_path: Path) -> None:
    folder = publish(CONFIG, run, tmp_path, name="tiny-one", ladder=[0, 60])
    assert folder == tmp_path / "tiny_one"
    assert sorted(p.name for p in folder.rglob("*.safetensors")) == [
        "policy.safetensors",
        "step_0000000.safetensors",
        "step_0000060.safetensors",
    ]
    card = Card.load(folder / "card.json")
    assert card.name == "tiny-one"
    policy = load(folder / "policy.safetensors")
    model = DQN.load(run / "checkpoints" / f"step_{card.step:07d}.zip")
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(200, 15, 7)).astype(np.float32)
    assert np.array_equal(policy.predict(observations)[0], model.predict(observations, deterministic=True)[0])
    assert policy.spec.actions == ("SLOWER", "IDLE", "FASTER")
    assert policy.spec.env_id == "intersection-v2"


@pytest.mark.parametrize(
    ("change", "problem", "fix"),
    [
        ({"algorithm_kwargs": {"policy": "MlpPolicy", "bufer_size": 5}}, "no argument 'bufer_size'", "'buffer_size'"),
        ({"policy_kwargs": {"features_extractor_class": "Cnn"}}, "no features extractor 'Cnn'", "leave"),
        ({"env_id": "intersection-v9"}, "no environment 'intersection-v9'", "did you mean"),
    ],
)
def test_what_cannot_be_trained_is_told(tmp_path: Path, change: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        learn(dataclasses.replace(CONFIG, **change), tmp_path, progress=False)
    assert fix in caught.value.fix
    assert not list(tmp_path.iterdir()), "nothing is claimed by a run that never began"


def test_a_curve_is_binned_by_the_steps_at_which_episodes_end() -> None:
    rows = {"step": [10, 19, 20], "return": [1.0, 2.0, 4.0], "length": [10, 9, 1], "crashed": [0, 0, 1]}
    curve = _binned_curve(pd.DataFrame(rows))
    assert [(b["step"], b["episodes"], b["return"]) for b in curve] == [(10, 1, 1), (19, 1, 2), (20, 1, 4)]


def test_a_checkpoint_that_crashes_too_often_is_passed_over() -> None:
    ladder = [
        {"step": step, "return": {"mean": mean}, "crashed": {"mean": rate}}
        for step, mean, rate in [(1, 7.0, 0.2), (2, 6.0, 0.1), (3, 5.0, 0.0)]
    ]
    assert _choose(ladder, CONFIG) == (1, "highest mean return of 3 checkpoints over 2 validation seeds from 50000")
    careful = _choose(ladder, dataclasses.replace(CONFIG, crash_limit=0.15))
    assert careful[0] == 2
    assert "those 2 of 3 checkpoints that crash in at most 15% of episodes" in careful[1]
    assert _choose(ladder[:1], dataclasses.replace(CONFIG, crash_limit=0.1))[0] == 1, "the best there is"


def test_a_run_is_trained_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(TRAINING, "learn", lambda config, run, progress: seen.append((config, run)))
    monkeypatch.setattr(TRAINING, "assess", lambda config, run, progress: None)
    path = Path(__file__).parents[2] / "experiments" / "00_train_the_zoo" / "highway_dqn_mlp.toml"
    assert train(path, progress=False) == Path("runs/highway_dqn_mlp_40k")
    assert seen == [(TrainConfig.load(path), Path("runs/highway_dqn_mlp_40k"))]
    assert json.dumps(seen[0][0].to_json())
    assert make_env(seen[0][0].env_id).observation_space.shape == (5, 5)
