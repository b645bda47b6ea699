from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rlmech.episodes import Recording
from rlmech.errors import ConfigError, RecordingError
from rlmech.plot import Steps, episodes, q_values, scores
from rlmech.spec import PolicySpec


def stand_in(actions: list[int], *, crashed: bool = False) -> Any:
    """What the drawing reads of a recording: one episode of two actions, numbered 4."""
    n = len(actions)
    return SimpleNamespace(
        steps=pd.DataFrame(
            {"episode": [4] * n, "step": range(n), "crashed": [False] * (n - 1) + [crashed], "seed": [9] * n}
        ),
        scores=np.stack([np.arange(n, dtype=float), -np.arange(n, dtype=float)], axis=1),
        actions=np.array(actions),
        spec=PolicySpec(actions=("WAIT", "GO")),
    )


def test_each_action_has_its_line_over_the_steps():
    figure = q_values(stand_in([0, 0, 1]), episode=4)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [trace.name for trace in lines] == ["WAIT", "GO"]
    assert list(lines[1].y) == [0, -1, -2]


def test_a_marker_stands_on_the_action_taken():
    markers = [trace for trace in q_values(stand_in([0, 0, 1]), episode=4).data if trace.mode == "markers"]
    assert [(list(trace.x), list(trace.y)) for trace in markers] == [([0, 1], [0.0, 1.0]), ([2], [-2.0])]


def test_a_line_stands_where_the_action_changes_and_nowhere_else():
    figure = q_values(stand_in([0, 0, 1, 1, 0]), episode=4)
    assert [shape.x0 for shape in figure.layout.shapes] == [2, 4]


def test_a_crash_is_marked():
    figure = q_values(stand_in([0, 0], crashed=True), episode=4)
    assert [a.text for a in figure.layout.annotations] == ["crash "]


def test_the_axis_says_what_the_scores_are():
    assert q_values(stand_in([0]), episode=4).layout.yaxis.title.text == "Q-value [return]"
    assert q_values(stand_in([0]), episode=4, output_kind="logits").layout.yaxis.title.text == "logit [nat]"


def test_an_episode_that_is_not_there_is_refused():
    with pytest.raises(RecordingError, match="no episode 0") as error:
        q_values(stand_in([0]), episode=0)
    assert error.value.expected == "one of [4]"


def test_bars_name_each_action_and_mark_the_one_taken():
    svg = scores(np.array([1.5, -0.5]), names=("WAIT", "GO"), taken=1).svg
    assert "WAIT<" in svg
    assert "GO  ◀ taken" in svg
    assert "1.50" in svg


def test_the_viewer_has_every_step_and_marks_those_where_the_action_changes(recording: Recording):
    steps = episodes(recording)
    assert len(steps.frames) == len(recording.steps)
    assert len(steps.overviews) == len(recording)
    numbers, actions = recording.steps["episode"].to_numpy(), recording.actions
    changed = [i > 0 and numbers[i] == numbers[i - 1] and actions[i] != actions[i - 1] for i in range(len(actions))]
    assert [bool(frame.mark) for frame in steps.frames] == changed
    assert any(changed)


def test_a_frame_has_the_road_the_scores_and_the_attention(recording: Recording):
    assert [type(figure).__name__ for figure in episodes(recording, only=[0]).frames[0].figures] == [
        "SvgFigure",
        "SvgFigure",
        "AttentionFigure",
    ]


def test_a_group_says_the_seed_and_the_return(recording: Recording):
    groups = {frame.group for frame in episodes(recording).frames}
    assert all(group.startswith(("seed 0 · return", "seed 1 · return")) for group in groups)


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="no steps"):
        Steps(frames=())
