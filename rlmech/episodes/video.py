"""Recorded pictures as a film: `.mp4` through ffmpeg, `.gif` and animated `.webp` through Pillow.

A film has one picture a decision, shown for as long as the decision lasted, so that by default it runs at true speed.
Cost: a few milliseconds a picture. Sound, captions and what happens between two decisions are not in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rlmech.arguments import explain_misuse
from rlmech.episodes.origin import environment_of
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, MissingPackageError, RecordingError
from rlmech.files import moved_into_place

Picture = UInt8[np.ndarray, "height width channel"]
GIF_TICK, WEBP_TICK = 10, 1  # ms; the shortest time that the format can tell


@explain_misuse
def save_video(recording: Recording, path: str | Path, *, seed: int | None = None, fps: float | None = None) -> Path:
    """Save an episode's pictures as a film.

    Args:
        recording: A recording made with `frames=True`.
        path: File to write, `.mp4`, `.gif` or `.webp`; one that is there is replaced.
        seed: The episode; None for all of them, one after the other.
        fps: Pictures a second; None for true speed: as many as the policy makes decisions.

    Returns:
        The path.

    Raises:
        RecordingError: No pictures were recorded, no episode has that seed, or the file could not be written.
        ConfigError: Another kind of file, or a speed that is not positive or cannot be told from the environment.
        MissingPackageError: `.mp4` without `rlmech[video]`.

    Example:
        >>> import rlmech as rlm
        >>> env = rlm.make_env("intersection-v2", render_mode="rgb_array")  # doctest: +SKIP
        >>> recording = rlm.record(policy, env, seeds=[3], frames=True)  # doctest: +SKIP
        >>> save_video(recording, "episode.mp4", seed=3)  # doctest: +SKIP
    """
    path = Path(path)
    writers: dict[str, Callable[[Path, Iterator[Picture], list[float]], None]]
    writers = {".mp4": _save_mp4, ".gif": _save_gif, ".webp": _save_webp}
    if path.suffix.lower() not in writers:
        raise ConfigError(
            "A film of this kind cannot be written.",
            given=path.name,
            expected=f"a name that ends in one of {', '.join(writers)}",
            fix=f"save it as {path.stem}.mp4",
        )
    rate = _true_speed(recording) if fps is None else fps
    if not rate > 0:
        raise ConfigError("A film needs a speed.", given=f"fps={fps}", expected="fps > 0", fix="leave fps out")
    shown = recording if seed is None else recording.episode(seed)
    pictures = _pictures(shown)
    first = next(pictures)  # before anything is written: there may be none
    times = [n / rate for n in range(len(shown.steps) + 1)]
    try:
        with moved_into_place(path) as partial:
            writers[path.suffix.lower()](partial, itertools.chain([first], pictures), times)
    except OSError as error:
        raise RecordingError(
            "The film could not be written.",
            given=f"{path}: {error}",
            expected="a directory that exists, with room and permission to write",
            fix="make the directory, or choose another path",
        ) from error
    return path


def _pictures(recording: Recording) -> Iterator[Picture]:
    """One after the other, an episode at a time in memory."""
    for part in recording.parts(n_steps=1):
        yield from part.frames


def _true_speed(recording: Recording) -> float:
    rate = recording.manifest["env"]["config"].get("policy_frequency")
    if rate is None and (env := environment_of(recording)) is not None:
        rate = env.metadata.get("render_fps")
    if rate is None:
        raise ConfigError(
            "It is not known how long a decision lasts.",
            given=f"environment {recording.manifest['env']['id']!r}, with neither a policy_frequency nor a render_fps",
            expected="a speed",
            fix="give fps=..., pictures a second",
        )
    return float(rate)


def _save_mp4(path: Path, pictures: Iterator[Picture], times: list[float]) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingPackageError(
            "An .mp4 is written by ffmpeg, which is not installed.",
            given="no package 'imageio_ffmpeg'",
            expected="imageio-ffmpeg 0.5 or later",
            fix='pip install "rlmech[video]", or save a .gif or .webp, which does without',
        ) from error
    first = _even(next(pictures))
    write_frames: Any = imageio_ffmpeg.write_frames  # its fps are annotated as whole numbers; any do
    film = write_frames(
        str(path),
        size=(first.shape[1], first.shape[0]),
        fps=1 / times[1],
        macro_block_size=1,
        output_params=["-f", "mp4"],
    )
    film.send(None)
    try:
        for picture in itertools.chain([first], map(_even, pictures)):
            film.send(np.ascontiguousarray(picture))
    finally:
        film.close()


def _even(picture: Picture) -> UInt8[np.ndarray, "_ _ channel"]:
    """With an even height and width, as H.264 wants them: the last row or column twice."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _save_gif(path: Path, pictures: Iterator[Picture], times: list[float]) -> None:
    _save_animation(path, pictures, times, kind="GIF", tick=GIF_TICK)


def _save_webp(path: Path, pictures: Iterator[Picture], times: list[float]) -> None:
    _save_animation(path, pictures, times, kind="WEBP", tick=WEBP_TICK)


def _save_animation(path: Path, pictures: Iterator[Picture], times: list[float], *, kind: str, tick: int) -> None:
    from PIL import Image

    ticks = [round(1000 * time / tick) * tick for time in times]  # of the whole film, so that nothing adds up
    durations = [after - before for before, after in itertools.pairwise(ticks)]
    images = map(Image.fromarray, pictures)
    first = next(images)
    first.save(path, format=kind, save_all=True, append_images=images, duration=durations, loop=0, quality=90)
