"""Driving on from a scene: what a policy does there, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import pandas as pd
from torch import Tensor

from rlmech.core.hook_point import at_step
from rlmech.core.observation import batch_of_one
from rlmech.errors import SceneError
from rlmech.scenes.decision import Decision
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.staging import Staging
from rlmech.untyped import JsonObject, Settings

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy


class DrivenScene(Protocol):
    """A scene that is decided in and driven on from; a `Scene` is one."""

    @property
    def stage(self) -> Any:
        """The copied simulator."""
        ...

    @property
    def staging(self) -> Staging:
        """What can be done in it."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the episode was over here."""
        ...

    @property
    def past(self) -> Sequence[Any] | None:
        """What was observed before; None where it is not known."""
        ...

    def decide(self, policy: HookedPolicy, *, edits: Sequence[Edit], state: Settings | None) -> Decision:
        """What a policy would do here."""
        ...

    def advance(self, action: Any) -> tuple[Self, float, Settings]:
        """The scene after an action, the reward, and the info."""
        ...


S = TypeVar("S", bound=DrivenScene)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll(Generic[S]):
    """What happened after a scene.

    Attributes:
        steps: A line for each step: `step` from 0, `action`, `name`, `reward`, and where the agent was in the state
            that was decided in: on a road the ego's `x` and `y` in m, `heading` in rad and `speed` in m/s, in a grid
            its cell `x` and `y`, its `direction` and what it is `carrying`.
        total_reward: The sum of rewards from here on.
        outcomes: What the simulator tells of the last step, by name: `crashed`, `success`...
        ended: Whether the episode was over, rather than the number of steps.
        last: The scene at the end.
        state: Of a recurrent policy, its state there; else empty.

    Example:
        >>> import rlmech as rlm
        >>> scene = rlm.Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> len(scene.roll(rlm.load("zoo:highway-dqn-mlp"), n_steps=2).steps)
        2
    """

    steps: pd.DataFrame
    total_reward: float
    outcomes: Settings
    ended: bool
    last: S = field(repr=False)
    state: Settings = field(default_factory=JsonObject, repr=False)

    @property
    def crashed(self) -> bool | None:
        """Whether the ego crashed; None where the environment does not say."""
        return self.outcomes.get("crashed")

    @property
    def arrived(self) -> bool | None:
        """Whether it reached its goal; None where there is none."""
        return self.outcomes.get("arrived")


def remembered(policy: HookedPolicy, past: Sequence[Any] | None) -> Settings:
    """The state of a recurrent policy after some observations.

    Raises:
        SceneError: They are not known.
    """
    if past is None:
        raise SceneError(
            "What a policy with a memory does here follows from what it has seen before, which is not known.",
            given="a scene captured from an environment",
            expected="Scene.replay(env, seed=..., actions=...), which observes the episode from its beginning",
            fix="or give its state: scene.decide(policy, state=...), at the beginning policy.initial_state()",
        )
    state: Settings = policy.initial_state()
    for seen in past:
        _, state = decided(policy, seen, state)
    return state


def decided(policy: HookedPolicy, observation: Any, state: Settings | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores `[1 action]` and the state afterwards, of one observation: the numbers that a recording has of it."""
    one = batch_of_one(observation)
    own = policy.fitting(one)
    return own.run_rows(own.with_state(one, state), own.state_names)


def roll(
    scene: S,
    policy: HookedPolicy,
    *,
    n_steps: int | None,
    edits: Sequence[Edit],
    state: Settings | None,
) -> Roll[S]:
    """Let a policy drive on from a scene; see `Scene.roll`."""
    if scene.ended or (n_steps is not None and n_steps < 1):
        raise SceneError(
            "There is nothing to drive: the episode is over." if scene.ended else "A roll takes at least one step.",
            given=f"n_steps={n_steps}",
            expected="a scene before the end, and steps of 1 or more",
            fix="go on from an earlier scene" if scene.ended else "leave n_steps out to drive to the end",
        )
    lines: list[JsonObject] = []
    info: Settings = {}
    here = scene
    carried = remembered(policy, scene.past) if policy.is_recurrent and state is None else state
    while not here.ended and (n_steps is None or len(lines) < n_steps):
        with at_step(len(lines)):
            decision = here.decide(policy, edits=_of_step(edits, len(lines)), state=carried)
        carried = decision.state if policy.is_recurrent else carried
        line = {"step": len(lines), "action": decision.action, "name": decision.name}
        line |= here.staging.situation(here.stage)
        here, reward, info = here.advance(decision.action)
        lines.append(line | {"reward": reward})
    told = {one.name: one.of(info) for one in simulator_of(scene.stage.env).outcomes}
    return Roll(
        steps=pd.DataFrame(lines),
        total_reward=float(sum(line["reward"] for line in lines)),
        outcomes={name: value for name, value in told.items() if value is not None},
        ended=here.ended,
        last=here,
        state=carried or {},
    )


def _of_step(edits: Sequence[Edit], step: int) -> list[Edit]:
    """The edits that act at a step: all but those whose site selects others."""
    chosen: list[Edit] = []
    for edit in edits:
        steps = dict(edit.site.selection).get("step")
        if steps is None or step in (steps if isinstance(steps, tuple) else (steps,)):
            chosen.append(edit)
    return chosen
