"""Recorded episodes, step by step: the road or grid, what the policy thinks of each action, whom it attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.plot.attention_heads import attention, recorded_pattern, recorded_patterns
from rlmech.plot.drawn_scene import is_drawable, is_grid, scene
from rlmech.plot.episode import SCORES, action_names, q_values, scores
from rlmech.plot.report_page import Figure, Frame, Steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlmech.episodes.recording import Recording


@explain_misuse
def episodes(recording: Recording, *, pattern: str | None = None, only: Iterable[int] | None = None) -> Steps:
    """Lay a recording out as steps of a page, the steps marked at which the action changes.

    Args:
        recording: A recording of discrete actions, of highway-env or MiniGrid for the drawing, with `*hook_pattern`
            for attention.
        pattern: Hook point of the attention to draw; by default the recording's only one.
        only: Numbers of the episodes; all by default.

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
    names = action_names(recording, recording.scores.shape[1])
    numbers = recording.steps["episode"].to_numpy()
    frames: list[Frame] = []
    looks_away: list[float] = []
    overviews: dict[str, Figure] = {}
    for number in np.unique(numbers) if only is None else only:
        rows = np.flatnonzero(numbers == number)
        group = _group(recording, int(number))
        overviews[group] = q_values(recording, episode=int(number), output_kind=kind)
        before: int | None = None
        for row in rows:
            taken, step = int(recording.actions[row]), int(recording.steps["step"].to_numpy()[row])
            here = None if weights is None else weights.isel(step=int(row))
            changed = before is not None and before != taken
            frames.append(
                Frame(
                    group=group,
                    label=f"step {step}: {names[taken]}",
                    mark=f"step {step}: {names[before]} → {names[taken]}" if before is not None and changed else "",
                    position=step,
                    figures=_figures(recording, int(number), step, int(row), here, names, SCORES.get(kind, "score")),
                )
            )
            looks_away.append(0.0 if here is None else 1.0 - float(here.isel(query=0, key=0).mean()))
            before = taken
    return Steps(frames=tuple(frames), overviews=overviews, start=_most_telling(frames, looks_away))


def _most_telling(frames: list[Frame], looks_away: list[float]) -> int:
    """The step to open with: a change of action, if there is one, at which most attention goes to others."""
    marked = [index for index, frame in enumerate(frames) if frame.mark] or list(range(len(frames)))
    return max(marked, key=lambda index: looks_away[index])


def _figures(
    recording: Recording,
    episode: int,
    step: int,
    row: int,
    pattern: xr.DataArray | None,
    names: tuple[str, ...],
    label: str,
) -> tuple[Figure, ...]:
    taken = int(recording.actions[row])
    bars = scores(recording.scores[row], names=names, taken=taken, label=label)
    attended = () if pattern is None else (attention(pattern),)
    if not is_drawable(recording):
        return (bars, *attended)
    seed = int(recording.steps["seed"].to_numpy()[row])
    title = f"Seed {seed}, step {step}: the policy takes {names[taken]}"
    ego = None if pattern is None or is_grid(recording) else pattern.isel(query=0)
    return (scene(recording, episode=episode, step=step, pattern=ego, title=title), bars, *attended)


def _group(recording: Recording, episode: int) -> str:
    """An episode in a few words: its seed, its return and how it ended."""
    table: Any = recording.episodes
    row = table[table["episode"] == episode].to_dict("records")[0]
    ending = [name for name in ("crashed", "arrived", "success") if bool(row.get(name, False))]
    return " · ".join([f"seed {row['seed']}", f"return {row['return']:.2f}", *ending])
