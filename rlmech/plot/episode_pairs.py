"""The same seed driven twice, side by side under one control: the road, the scores, and where the two part.

Both roads are drawn in the same window. An episode that is over stands still at its last scene. Nothing is computed
here but what has been returned so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.actions_taken import Taken, taken
from rlmech.plot.attention_heads import recorded_pattern, recorded_patterns
from rlmech.plot.drawn_scene import is_drawable, is_grid, scene
from rlmech.plot.episode import SCORES, scores
from rlmech.plot.report_page import Frame, Steps
from rlmech.plot.road import PIXELS, ego_way
from rlmech.plot.saving import PlotFigure
from rlmech.plot.style import CRASHED, FONT, INK, MINUS, MUTED, POSITIVE, TEMPLATE, action_colour
from rlmech.plot.svg import SvgFigure, tag, text

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording

_GAP = 40.0  # pixels between the two
_FEW_STEPS = 60  # whose markers are large
_BARS = 1.55  # how much larger than by themselves the bars are drawn
_LINE = ("#52606d", POSITIVE)  # of the first episode, and of the second


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two episodes."""

    name: str
    recording: Recording
    episode: int
    actions: np.ndarray
    done: Taken
    rewards: np.ndarray
    pattern: xr.DataArray | None

    def __len__(self) -> int:
        return len(self.actions)

    def action(self, step: int) -> str:
        return self.done.words[step] if step < len(self) else "over"


@explain_misuse
def side_by_side(recordings: Mapping[str, Recording], *, seed: int) -> Steps:
    """Lay the same seed's episode of two recordings out side by side, step by step.

    Args:
        recordings: Two, by name: say, of a policy untouched and with a head ablated.
        seed: The episode's seed.

    Returns:
        For each step both roads, with attention where it was recorded, both scores, and what has come of it so far,
        then how both end; for the whole what has been returned so far, over steps. It opens at the first step at which
        another action was taken, which is marked, as are the ends.

    Raises:
        ConfigError: Not two recordings.
        RecordingError: One has no episode of that seed.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy, env = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4)), rlm.make_env("CartPole-v1")
        >>> push = rlm.steer("hook_q_values", torch.tensor([1.0, 0.0]), 100.0)
        >>> drives = {"untouched": [], "pushed": [push]}
        >>> both = {
        ...     name: rlm.record(policy, env, seeds=[7], edits=edits, progress=False) for name, edits in drives.items()
        ... }
        >>> len(rlm.plot.side_by_side(both, seed=7).frames) == 1 + max(len(one.steps) for one in both.values())
        True
    """
    if len(recordings) != 2:
        raise ConfigError(
            "Two episodes stand side by side.",
            given=f"recordings named {list(recordings)}",
            expected="two recordings",
            fix="e.g. {'untouched': recording, 'head 3 ablated': edited}",
        )
    first, second = (_side(name, recording.episode(seed)) for name, recording in recordings.items())
    parted = _first_difference(first.actions, second.actions)
    marks = _marks(first, second, parted)
    n = max(len(first), len(second))
    group = f"seed {seed}: {first.name} | {second.name}"
    frames = tuple(
        Frame(
            group=group,
            label="the end" if step == n else f"step {step}: {first.action(step)} | {second.action(step)}",
            mark=marks.get(step, ""),
            position=step,
            figures=(_both(first, second, step),),
        )
        for step in range(n + 1)
    )
    return Steps(frames=frames, overviews={group: _returned(first, second, parted)}, start=parted or 0)


def _side(name: str, recording: Recording) -> _Side:
    patterns = recorded_patterns(recording)
    return _Side(
        name=name,
        recording=recording,
        episode=int(recording.episodes["episode"].iloc[0]),
        actions=np.asarray(recording.actions),
        done=taken(recording),
        rewards=recording.steps["reward"].to_numpy(dtype=float),
        pattern=recorded_pattern(recording) if len(patterns) == 1 else None,
    )


def _first_difference(ours: np.ndarray, theirs: np.ndarray) -> int | None:
    n = min(len(ours), len(theirs))
    differ = np.flatnonzero((ours[:n] != theirs[:n]).reshape(n, -1).any(axis=1))
    return int(differ[0]) if len(differ) else None


def _marks(first: _Side, second: _Side, parted: int | None) -> dict[int, str]:
    """Why one would jump to a step: they part, or one of them ends."""
    said: dict[int, list[str]] = {}
    if parted is not None:
        said[parted] = [f"first difference, {first.action(parted)} | {second.action(parted)}"]
    for side in (first, second):
        said.setdefault(len(side) - 1, []).append(f"{side.name} ends ({_ending(side)})")
    return {step: f"step {step}: {'; '.join(parts)}" for step, parts in sorted(said.items())}


def _ending(side: _Side) -> str:
    row: Any = side.recording.episodes.to_dict("records")[0]
    how = [name for name in ("crashed", "arrived", "success") if bool(row.get(name, False))]
    if not how:
        how = ["time was up" if bool(side.recording.steps["truncated"].iloc[-1]) else "terminated"]
    return f"{' and '.join(how)}, return {_number(row['return'])}"


def _number(value: Any) -> str:
    return f"{float(value):.2f}".replace("-", MINUS)


def _both(first: _Side, second: _Side, step: int) -> SvgFigure:
    """Both roads in the same window, both scores below them."""
    drawn = [_half(side, _window(first, second), step) for side in (first, second)]
    width, height = 2 * PIXELS + _GAP, max(height for _, height in drawn)
    placed = "".join(
        tag("g", content, transform=f"translate({place * (PIXELS + _GAP):.0f} 0)")
        for place, (content, _) in enumerate(drawn)
    )
    return SvgFigure(
        svg=tag(
            "svg",
            placed,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:.0f} {height:.0f}",
            width=width,
            height=height,
            font_family=FONT,
            role="img",
            aria_label=f"step {step}: {first.name} and {second.name}",
        )
    )


def _window(first: _Side, second: _Side) -> np.ndarray | None:
    """The ways of both egos, `[point, xy]`."""
    if len(first.recording.vehicles) == 0 or len(second.recording.vehicles) == 0:
        return None
    return np.concatenate([ego_way(side.recording, side.episode) for side in (first, second)])


def _half(side: _Side, way: np.ndarray | None, step: int) -> tuple[str, float]:
    """One of the episodes at a step, and how tall it is drawn."""
    over = step >= len(side)
    content, top = text(_headline(side, step), x=0, y=26, font_size=22, font_weight="600", fill=INK), 44.0
    if is_drawable(side.recording):
        attended = side.pattern is not None and not over and not is_grid(side.recording)
        pattern = side.pattern.isel(step=step, query=0) if attended and side.pattern is not None else None
        road = scene(side.recording, episode=side.episode, step=_scene_at(side, step), pattern=pattern, way=way)
        content += tag("g", road.svg, transform=f"translate(0 {top:.0f})")
        top += _height(road) + 24
    if not over and side.recording.scores.ndim == 2:
        kind = side.recording.manifest["policy"]["output_kind"]
        number, label = side.done.number(step), SCORES.get(kind, "score")
        bars = scores(side.recording.scores[step], names=side.done.names, taken=number, label=label)
        content += tag("g", bars.svg, transform=f"translate(0 {top:.0f}) scale({_BARS})")
    for line, said in enumerate(_so_far(side, _scene_at(side, step))):
        content += text(said, x=PIXELS * 0.62, y=top + 54 + 30 * line, font_size=19, fill=MUTED)
    return content, top + _BARS * (34 + 44 * len(side.done.names))


def _scene_at(side: _Side, step: int) -> int:
    """The scene of a step; of an episode that is over, its last."""
    table = side.recording.entities
    return min(step, int(table["step"].max()) if len(table) else len(side))


def _height(drawing: SvgFigure) -> float:
    return float(drawing.svg.split('viewBox="', 1)[1].split('"', 1)[0].split()[3])


def _headline(side: _Side, step: int) -> str:
    if step >= len(side):
        return f"{side.name}: over after {len(side)} decisions: {_ending(side)}"
    return f"{side.name}: takes {side.action(step)}"


def _so_far(side: _Side, step: int) -> list[str]:
    """What has come of it before a step's action."""
    said = [f"return so far  {_number(side.rewards[:step].sum())}"]
    table: Any = side.recording.vehicles
    if len(table):
        ego = table[(table["step"] == step) & (table["row"] == 0)].to_dict("records")[0]
        said.append(f"speed  {float(ego['speed']):.1f} m/s")
    distance = side.recording.steps.get("distance")
    if distance is not None and step < len(side) and np.isfinite(distance.iloc[step]):
        said.append(f"nearest vehicle  {float(distance.iloc[step]):.1f} m")
    return said


def _returned(first: _Side, second: _Side, parted: int | None) -> PlotFigure:
    """What has been returned by the end of each step, in both."""
    figure = PlotFigure()
    for side, colour, dash in zip((first, second), _LINE, ("solid", "dash"), strict=True):
        steps, total = np.arange(len(side)), np.cumsum(side.rewards)
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=total,
                mode="lines+markers",
                name=side.name,
                line={"color": colour, "width": 2, "dash": dash},
                marker={
                    "color": colour
                    if side.done.numbers is None
                    else [action_colour(int(action)) for action in side.done.numbers],
                    "size": 11 if len(side) <= _FEW_STEPS else 3,
                    "line": {"color": "#ffffff", "width": 2 if len(side) <= _FEW_STEPS else 0},
                },
                text=[side.action(step) for step in range(len(side))],
                hovertemplate="%{text}: %{y:.2f}<extra>" + side.name + "</extra>",
            )
        )
        if bool(side.recording.episodes.to_dict("records")[0].get("crashed", False)):
            figure.add_annotation(
                x=int(steps[-1]), y=float(total[-1]), text="crash", showarrow=False, yshift=16, font={"color": CRASHED}
            )
    if parted is not None:
        figure.add_vline(x=parted - 0.5, line={"color": MUTED, "width": 1, "dash": "dot"})  # type: ignore[arg-type]
        figure.add_annotation(
            x=parted - 0.5, y=0, yref="paper", yanchor="bottom", xanchor="left", showarrow=False,
            text=" they part here", font={"size": 11, "color": MUTED},
        )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, height=260, hovermode="x unified", margin={"t": 40, "b": 48, "l": 56, "r": 16}
    )
    figure.update_xaxes(
        title_text="step" if first.done.numbers is None else "step (colour of a marker: the action taken)",
        range=[-0.6, max(len(first), len(second)) + 0.4],
    )
    figure.update_yaxes(title_text="return so far", zeroline=False)
    return figure
