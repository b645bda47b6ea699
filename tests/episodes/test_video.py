"""Films of recorded episodes: every picture, in order, at true speed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlmech.core.policy import HookedPolicy
from rlmech.episodes.recorder import record
from rlmech.episodes.recording import Recording
from rlmech.episodes.video import save_video
from rlmech.errors import ConfigError, MissingPackageError, RecordingError
from rlmech.simulators.env import make_env

CONFIG = {"duration": 4, "simulation_frequency": 4, "policy_frequency": 2, "screen_width": 151, "screen_height": 120}


@pytest.fixture(scope="module")
def recording() -> Recording:
    head = torch.nn.Linear(105, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # always faster: no two pictures are the same
    policy = HookedPolicy(torch.nn.Sequential(torch.nn.Flatten(), head), torch.rand(2, 15, 7))
    env = make_env("intersection-v2", config=CONFIG, render_mode="rgb_array")
    return record(policy, env, seeds=[3, 4], frames=True, progress=False)


def read_mp4(path: Path) -> tuple[np.ndarray, float]:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = ffmpeg.read_frames(str(path))
    about = next(frames)
    width, height = about["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames]), about["fps"]


def read_animation(path: Path) -> tuple[np.ndarray, list[int]]:
    pictures, durations = [], []
    with Image.open(path) as film:
        for n in range(film.n_frames):
            film.seek(n)
            film.load()
            pictures.append(np.asarray(film.convert("RGB")))
            durations.append(film.info["duration"])
    return np.stack(pictures), durations


def alike(shown: np.ndarray, recorded: np.ndarray) -> bool:
    """Nearer to their own picture than to any other, and near: films are compressed."""
    far = np.abs(shown[:, None].astype(float) - recorded[None].astype(float)).mean((2, 3, 4))
    return bool((far.argmin(1) == np.arange(len(shown))).all() and np.diag(far).max() < 6)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves ffmpeg's pipes
def test_an_mp4_has_every_picture_of_the_episode_at_true_speed(recording: Recording, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path = save_video(recording, tmp_path / "film.mp4", seed=4)
    pictures, fps = read_mp4(path)
    frames = recording.episode(4).frames
    assert fps == 2, "two decisions a second"
    assert pictures.shape == (len(frames), 120, 152, 3), "with an even width"
    assert alike(pictures[:, :, :151], frames)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_has_every_picture_of_all_episodes(recording: Recording, tmp_path: Path, kind: str) -> None:
    pictures, durations = read_animation(save_video(recording, tmp_path / f"film.{kind}"))
    assert sum(durations) == 500 * len(recording.steps)
    assert alike(pictures, recording.frames)


def test_a_speed_that_the_format_cannot_tell_is_kept_on_the_whole(recording: Recording, tmp_path: Path) -> None:
    durations = read_animation(save_video(recording, tmp_path / "film.gif", fps=15))[1]
    assert sum(durations) == pytest.approx(1000 * len(recording.steps) / 15, abs=5), "66.7 ms are 70, 60, 70"


def test_what_cannot_be_filmed_is_said(recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="of this kind") as kind:
        save_video(recording, tmp_path / "film.avi")
    assert "film.mp4" in kind.value.fix
    with pytest.raises(ConfigError, match="needs a speed"):
        save_video(recording, tmp_path / "film.gif", fps=0)
    with pytest.raises(RecordingError, match="no episode of seed 9"):
        save_video(recording, tmp_path / "film.gif", seed=9)
    with pytest.raises(RecordingError, match="could not be written"):
        save_video(recording, tmp_path / "none" / "film.gif")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingPackageError, match="ffmpeg") as missing:
        save_video(recording, tmp_path / "film.mp4")
    assert 'pip install "rlmech[video]"' in missing.value.fix
    assert list(tmp_path.iterdir()) == [], "nothing half-written stays"


def test_a_recording_without_pictures_makes_no_film(tmp_path: Path) -> None:
    policy = HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
    blind = record(policy, make_env("CartPole-v1"), seeds=[1], progress=False)
    with pytest.raises(RecordingError, match="no frames"):
        save_video(blind, tmp_path / "film.gif")
