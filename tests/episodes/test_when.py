"""Conditions on the moment: what they say, how they combine, and that edits act when they hold and only then."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.episodes import record, when
from rlmech.episodes.driving import Condition, Driver
from rlmech.episodes.when import Moment, When, when_of
from rlmech.errors import ConfigError, SiteError
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env


def moment(**changes: Any) -> Moment:
    given: dict[str, Any] = {
        "seed": 0,
        "step": 3,
        "observation": None,
        "scores": np.array([1.0, 4.0, 3.5]),
        "action": 1,
        "previous_action": 0,
        "entities": [],
    }
    return Moment(**(given | changes))


@pytest.mark.parametrize(
    ("condition", "changes"),
    [
        (when.at_steps(1, 3), {"step": 2}),
        (when.from_step(3), {"step": 2}),
        (when.from_step(1, until=4), {"step": 4}),
        (when.action_about_to_change(), {"previous_action": 1}),
        (when.action_about_to_change(), {"previous_action": None}),
        (when.action_is(1), {"action": 2}),
        (when.gap_below(0.6), {"scores": np.array([0.0, 4.0, 1.0])}),
        (~when.vehicle_within(5.0), None),
        (~when.ttc_below(5.0), None),
        (when.at_steps(3) & ~when.action_is(2), {"step": 1}),
        (when.at_steps(9) | when.action_is(1), {"action": 0}),
    ],
    ids=str,
)
def test_a_condition_holds_and_ceases_to(condition: When, changes: dict[str, Any] | None) -> None:
    assert condition(moment())
    if changes is not None:
        assert not condition(moment(**changes))


def test_descriptions_are_read_aloud() -> None:
    both = when.vehicle_within(20.0) & ~when.at_steps(0)
    assert str(both) == "(a vehicle within 20 m and not at steps 0)"


def test_what_a_caller_may_give() -> None:
    assert when_of(None) is None
    assert str(when_of(4)) == "at steps 4"
    assert str(when_of(range(2, 5))) == "from step 2 to step 5"
    assert str(when_of([1, 2])) == "at steps 1, 2"
    chosen = when_of(lambda m: m.step == 3)
    assert chosen is not None
    assert chosen(moment())
    for wrong in ("now", 1.5, True, []):
        with pytest.raises(ConfigError, match="no condition on a moment"):
            when_of(wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def driver() -> rlm.HookedPolicy:
    torch.manual_seed(1)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))


def crossing() -> gym.Env:
    return make_env("intersection-v2", config={"simulation_frequency": 5, "duration": 5})


PUSH = [rlm.steer("hook_q_values", torch.tensor([100.0, 0.0, 0.0]))]


def test_edits_act_while_a_vehicle_is_close_and_only_then(driver: rlm.HookedPolicy) -> None:
    recording = record(driver, crossing(), seeds=[0, 1, 2], edits=PUSH, when=when.vehicle_within(18.0), progress=False)
    steps = recording.steps
    assert 0 < steps["edited"].sum() < len(steps)
    assert np.array_equal(steps["edited"], steps["distance"] < 18.0)
    unedited = driver.predict(recording.observations)[0]
    assert np.array_equal(recording.actions, np.where(steps["edited"], 0, unedited))
    assert np.array_equal(steps["action_changed"], recording.actions != unedited)
    assert recording.manifest["when"] == "a vehicle within 18 m"


def test_a_condition_that_never_held_is_told(driver: rlm.HookedPolicy, capsys: pytest.CaptureFixture[str]) -> None:
    record(driver, crossing(), seeds=[0], edits=PUSH, when=when.vehicle_within(0.01))
    told = " ".join(capsys.readouterr().err.split())
    assert "never at work: in no step of the 1 episodes held: a vehicle within 0.01 m" in told
    record(driver, crossing(), seeds=[0], edits=PUSH)
    assert "never at work" not in capsys.readouterr().err


def test_the_previous_action_is_the_one_that_was_done(driver: rlm.HookedPolicy) -> None:
    seen: list[tuple[int, Any, Any]] = []

    def note(m: Moment) -> bool:
        seen.append((m.step, m.previous_action, m.action))
        return m.step % 2 == 0

    recording = record(driver, crossing(), seeds=[3], edits=PUSH, when=note, progress=False)
    assert [step for step, *_ in seen] == list(recording.steps["step"])
    assert [previous for _, previous, _ in seen] == [None, *recording.actions[:-1]]
    assert [action for *_, action in seen] == list(driver.predict(recording.observations)[0])


def test_what_an_edit_draws_follows_from_the_episodes_seed(driver: rlm.HookedPolicy) -> None:
    _, reference = driver.run_with_cache(torch.rand(50, 15, 7))
    edit = rlm.resample_ablation("attention_layer.hook_z", reference=reference)
    together = record(driver, crossing(), seeds=[5, 6, 7], edits=[edit], progress=False)
    alone = record(driver, crossing(), seeds=[7], edits=[edit], progress=False)
    assert np.array_equal(together.episode(7).scores, alone.scores), "not from the episodes before it"
    first = [together.episode(seed).scores[0] for seed in (5, 6, 7)]
    assert not np.allclose(first[0], first[1]), "but each episode draws its own"


def test_functions_act_like_edits() -> None:
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(2, 4))
    hook = ("1.hook_out", lambda tensor, hook: tensor * 0)
    by_function = record(policy, make_env("CartPole-v1"), seeds=range(3), edits=[hook], progress=False)
    by_edit = record(
        policy, make_env("CartPole-v1"), seeds=range(3), edits=[rlm.zero_ablation("1.hook_out")], progress=False
    )
    assert np.array_equal(by_function.scores, by_edit.scores)


def test_bad_edits_are_told_before_the_first_episode(driver: rlm.HookedPolicy) -> None:
    with pytest.raises(ConfigError, match="That is no edit"):
        record(driver, crossing(), seeds=[0], edits=["hook_z"], progress=False)  # type: ignore[list-item]
    with pytest.raises(SiteError, match="no head 9"):
        record(driver, crossing(), seeds=[0], edits=[rlm.zero_ablation(rlm.Site("attention_layer.hook_z", head=9))])
    with pytest.raises(ConfigError, match="nothing that could act"):
        Driver.of(driver, Condition(when=3))
