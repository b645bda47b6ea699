from __future__ import annotations

import re

import numpy as np
import pytest

import rlmech as rlm
from rlmech.episodes import Recording, record
from rlmech.errors import ConfigError, RecordingError
from rlmech.plot import Steps, scene, side_by_side
from rlmech.plot.road import ego_way
from rlmech.simulators import make_env


@pytest.fixture(scope="module")
def edited(policy: rlm.HookedPolicy) -> Recording:
    """Seed 1 with all actions scored alike from the third step on, so that the first of them is taken."""
    edits = [rlm.zero_ablation("hook_q_values")]
    env = make_env("intersection-v2")
    return record(policy, env, seeds=[1], edits=edits, when=range(2, 99), names=["*hook_pattern"], progress=False)


@pytest.fixture(scope="module")
def steps(recording: Recording, edited: Recording) -> Steps:
    return side_by_side({"untouched": recording, "ablated": edited}, seed=1)


def parted(recording: Recording, edited: Recording) -> int:
    ours, theirs = recording.episode(1).actions, edited.actions
    n = min(len(ours), len(theirs))
    return int(np.flatnonzero(ours[:n] != theirs[:n])[0])


def test_it_goes_on_to_the_end_of_the_longer_episode(steps: Steps, recording: Recording, edited: Recording):
    assert len(steps.frames) == max(len(recording.episode(1).steps), len(edited.steps)) + 1
    last = steps.frames[-1]
    assert last.label == "the end"
    assert last.figures[0].svg.count("over after") == 2


def test_it_opens_at_the_first_difference_which_is_marked(steps: Steps, recording: Recording, edited: Recording):
    step = parted(recording, edited)
    assert steps.start == step >= 2
    assert "first difference" in steps.frames[step].mark
    assert all("first difference" not in frame.mark for place, frame in enumerate(steps.frames) if place != step)


def test_each_label_says_what_both_did(steps: Steps, recording: Recording, edited: Recording):
    step, names = parted(recording, edited), recording.spec.actions
    ours, theirs = names[recording.episode(1).actions[step]], names[edited.actions[step]]
    assert steps.frames[step].label == f"step {step}: {ours} | {theirs}"


def test_both_ends_are_marked_with_how_they_ended(steps: Steps, recording: Recording, edited: Recording):
    for name, one in (("untouched", recording.episode(1)), ("ablated", edited)):
        episode = one.episodes.iloc[0]
        mark = steps.frames[int(episode["length"]) - 1].mark
        assert f"{name} ends" in mark
        assert ("crashed" in mark) >= bool(episode["crashed"])


def test_an_episode_that_is_over_says_so_and_shows_no_more_scores(recording: Recording, edited: Recording):
    short, long = sorted((recording.episode(1), edited), key=lambda one: len(one.steps))
    if len(short.steps) == len(long.steps):
        short = short.where(step_below=len(long.steps) - 1)
    shown = side_by_side({"short": short, "long": long}, seed=1).frames[-2].figures[0].svg
    assert "short: over after" in shown
    assert shown.count("◀ taken") == 1


def test_two_episodes_alike_open_at_the_start_and_mark_no_difference(recording: Recording):
    steps = side_by_side({"one": recording, "other": recording}, seed=0)
    assert steps.start == 0
    assert not any("first difference" in frame.mark for frame in steps.frames)


def test_what_was_returned_so_far_adds_up_to_the_return(steps: Steps, recording: Recording, edited: Recording):
    (figure,) = steps.overviews.values()
    for trace, one in zip(figure.data, (recording.episode(1), edited), strict=True):
        assert float(trace.y[-1]) == pytest.approx(float(one.episodes["return"].iloc[0]))


def test_both_roads_are_drawn_in_one_window(steps: Steps):
    svg = steps.frames[0].figures[0].svg
    windows = [box for box in re.findall(r'viewBox="([^"]+)"', svg) if not box.startswith("0 0")]
    assert len(windows) == 2
    assert windows[0] == windows[1]


def test_a_window_around_another_way_is_another_window(recording: Recording):
    way = ego_way(recording, 0)
    own = scene(recording, episode=0, step=0)
    assert scene(recording, episode=0, step=0, way=way) == own
    assert scene(recording, episode=0, step=0, way=way[:1]) != own


def test_one_recording_is_refused(recording: Recording):
    with pytest.raises(ConfigError, match="Two episodes"):
        side_by_side({"untouched": recording}, seed=1)


def test_a_seed_that_is_not_there_is_refused(recording: Recording, edited: Recording):
    with pytest.raises(RecordingError, match="no episode of seed 0"):
        side_by_side({"untouched": recording, "ablated": edited}, seed=0)
