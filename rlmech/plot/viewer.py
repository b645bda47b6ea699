"""Recorded episodes, step by step: the road or grid, what the policy thinks of each action, whom it attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.plot.actions_taken import Taken, taken
from rlmech.plot.attention_heads import attention, recorded_pattern, recorded_patterns
from rlmech.plot.drawn_scene import is_drawable, is_grid, scene
from rlmech.plot.episode import SCORES, q_values, scores
from rlmech.plot.report_page import Figure, Frame, Steps
from rlmech.plot.svg import SvgFigure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rlmech.episodes.recording import Recording


@explain_misuse
def episodes(
    recording: Recording,
    *,
    pattern: str | None = None,
    only: Iterable[int] | None = None,
    pictures: Mapping[int, SvgFigure] | None = None,
) -> Steps:
    """Lay a recording out as steps of a page, the steps marked at which the action changes.

    Args:
        recording: Any recording; of highway-env or MiniGrid for the drawing, with `*hook_pattern` for attention.
        pattern: Hook point of the attention to draw; by default the recording's only one.
        only: Numbers of the episodes; all by default.
        pictures: Pictures of rows of the recording, by row, where its simulator is none that is drawn here.

    Returns:
        For each step the road, with attention from the first query, or the grid, the action scores and the CircuitsVis
        pattern, as far as the recording has them; for each episode the scores along it. It opens at a change of action
        at which much attention goes to other vehicles.

    Example:
        >>> import gymnasium as gym, torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> env = gym.make("CartPole-v1")
        >>> recording = rlm.record(policy, env, seeds=[0], progress=False)
        >>> len(rlm.plot.episodes(recording).frames) == len(recording.steps)
        True
    """
    weights = recorded_pattern(recording, pattern) if pattern or len(recorded_patterns(recording)) == 1 else None
    kind = recording.manifest["policy"]["output_kind"]
    done = taken(recording)
    numbers, steps = (recording.steps[name].to_numpy() for name in ("episode", "step"))
    frames: list[Frame] = []
    looks_away: list[float] = []
    overviews: dict[str, Figure] = {}
    for number in np.unique(numbers) if only is None else only:
        rows = np.flatnonzero(numbers == number)
        group = _group(recording, int(number))
        if recording.scores.ndim == 2:
            overviews[group] = q_values(recording, episode=int(number), output_kind=kind)
        for before, row in zip([None, *rows[:-1].tolist()], rows.tolist(), strict=True):
            step, here = int(steps[row]), None if weights is None else weights.isel(step=row)
            shown = None if pictures is None else pictures.get(row)
            frames.append(
                Frame(
                    group=group,
                    label=f"step {step}: {done.words[row]}",
                    mark=_mark(done, before, row, step),
                    position=step,
                    figures=_figures(recording, row, here, done, shown),
                )
            )
            looks_away.append(0.0 if here is None else 1.0 - float(here.isel(query=0, key=0).mean()))
    return Steps(frames=tuple(frames), overviews=overviews, start=_most_telling(frames, looks_away))


def _mark(done: Taken, before: int | None, row: int, step: int) -> str:
    """The change of a chosen action; continuous ones change all the time."""
    if before is None or done.numbers is None or done.numbers[before] == done.numbers[row]:
        return ""
    return f"step {step}: {done.words[before]} → {done.words[row]}"


def _most_telling(frames: list[Frame], looks_away: list[float]) -> int:
    """The step to open with: a change of action, if there is one, at which most attention goes to others."""
    marked = [index for index, frame in enumerate(frames) if frame.mark] or list(range(len(frames)))
    return max(marked, key=lambda index: looks_away[index])


def _figures(
    recording: Recording, row: int, pattern: xr.DataArray | None, done: Taken, picture: SvgFigure | None
) -> tuple[Figure, ...]:
    kind = recording.manifest["policy"]["output_kind"]
    label = SCORES.get(kind, "score")
    flat = recording.scores.ndim == 2
    bars = (scores(recording.scores[row], names=done.names, taken=done.number(row), label=label),) if flat else ()
    attended = () if pattern is None else (attention(pattern),)
    if not is_drawable(recording):
        return (*(() if picture is None else (picture,)), *bars, *attended)
    seed, episode, step = (int(recording.steps[name].to_numpy()[row]) for name in ("seed", "episode", "step"))
    title = f"Seed {seed}, step {step}: the policy takes {done.words[row]}"
    ego = None if pattern is None or is_grid(recording) else pattern.isel(query=0)
    return (scene(recording, episode=episode, step=step, pattern=ego, title=title), *bars, *attended)


def _group(recording: Recording, episode: int) -> str:
    """An episode in a few words: its seed, its return and how it ended."""
    table: Any = recording.episodes
    row = table[table["episode"] == episode].to_dict("records")[0]
    ending = [name for name in ("crashed", "arrived", "success") if bool(row.get(name, False))]
    return " · ".join([f"seed {row['seed']}", f"return {row['return']:.2f}", *ending])
