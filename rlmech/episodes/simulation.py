"""Episodes of several drivers from one seed, each stretch of road simulated once.

An episode follows from its seed and its actions. So as long as drivers do the same, they share one simulation; where
they part, the environment is copied and each group goes on in its own. Bit for bit the same episodes as one after the
other: checked on the first seed that parts drivers, and given up, with the reason, where a copy goes on differently.
Cost: the distinct stretches, a forward pass or two for each driver and step, a millisecond for each copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import torch

from rlmech.episodes import recording as store
from rlmech.episodes.driving import Decision, Drive, Driver, Look
from rlmech.episodes.episode import Step, step_of, summary
from rlmech.episodes.shards import FINAL, Episodes, entity_table, table_of
from rlmech.errors import ConfigError, EnvironmentFitError, RlmechError
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.protocol import Outcome, Simulator, Value
from rlmech.simulators.world import World
from rlmech.untyped import JsonObject, Row

_COLUMNS = (
    *("episode", "seed", "step", "action", "edited", "action_changed", "reward", "terminated", "truncated"),
    *("return", "length", "shard", "start"),
)
"""Columns of a recording's own tables."""


@dataclass(slots=True)
class _Trace:
    """What one driver's episode has left so far."""

    drive: Drive
    simulator: Simulator
    outcomes: Sequence[Outcome]
    beginning: Mapping[str, Value | str]
    steps: list[Step] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    scenes: list[list[tuple[object, ...]]] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)

    def episode(self, number: int) -> Episodes:
        """The finished episode."""
        seed = self.drive.seed
        head = {"episode": number, "seed": seed}
        arrays = _stacked(store.OBSERVATION, [step.observation for step in self.steps])
        arrays |= _stacked(FINAL, [self.steps[-1].next_observation])
        arrays[store.ACTION] = np.stack([np.asarray(step.action) for step in self.steps])
        arrays[store.SCORES] = np.stack([decision.scores for decision in self.decisions])
        for name in self.decisions[0].activations:
            arrays[store.ACTIVATION + name] = np.stack([decision.activations[name] for decision in self.decisions])
        if self.frames:
            arrays[store.FRAMES] = np.stack(self.frames)
        rows = zip(self.steps, self.decisions, self.scenes, strict=False)  # of scenes there is one more
        return Episodes(
            episodes=table_of([head | summary(self.steps, self.outcomes) | dict(self.beginning)]),
            steps=table_of([head | _row(t, *row, self.simulator) for t, row in enumerate(rows)]),
            entities=entity_table(self.scenes, self.simulator.entity_columns, **head),
            arrays=arrays,
        )


@dataclass(slots=True)
class _Branch:
    """Drivers that have done the same so far, and the world in which they did."""

    world: World
    observation: Any
    names: list[str]


class Runner:
    """Runs the episodes of several drivers.

    Args:
        env: The environment.
        drivers: By name.
        frames: Whether to keep a picture of every scene decided in; drivers then share nothing.
        outcomes: What to tell of each episode beside what the simulator tells.

    Raises:
        ConfigError: An outcome has the name of another, or of a column.

    Attributes:
        sharing: Why drivers share no simulation, or `yes`; `unknown` until they first part.
        n_simulated: Environment steps that were simulated.
    """

    def __init__(
        self, env: gym.Env, drivers: Mapping[str, Driver], *, frames: bool = False, outcomes: Sequence[Outcome] = ()
    ) -> None:
        self.simulator = simulator_of(env)
        self._asked = checked_outcomes(self.simulator, outcomes)
        self.outcomes = (*self.simulator.outcomes, *self._asked)
        self._action_names = self.simulator.spec(env).actions
        self.world, self.drivers, self.frames = self.simulator.world(env), dict(drivers), frames
        self.sharing = "no: frames are drawn" if frames else "unknown"
        self.n_simulated = 0
        self._parted: tuple[str, ...] = ()

    def run(self, number: int, seed: int) -> dict[str, Episodes]:
        """The episode of one seed for every driver."""
        try:
            with torch.no_grad():
                if self.sharing.startswith("no"):
                    return self._apart(number, seed)
                return self._checked(number, seed) if self.sharing == "unknown" else self._together(number, seed)
        except Exception as error:
            error.add_note(f"This happened in the episode of seed {seed}.")
            raise

    def _apart(self, number: int, seed: int) -> dict[str, Episodes]:
        return {name: self._traces(seed, [name])[name].episode(number) for name in self.drivers}

    def _together(self, number: int, seed: int) -> dict[str, Episodes]:
        return {name: trace.episode(number) for name, trace in self._traces(seed, list(self.drivers)).items()}

    def _checked(self, number: int, seed: int) -> dict[str, Episodes]:
        """Share, and where drivers part for the first time run two that parted once more, each by itself."""
        try:
            shared = self._together(number, seed)
        except Exception as error:
            if self.sharing != "copying":
                raise  # what is raised while copying for another reason is raised again, apart
            said = f"{error.problem} {error.given}" if isinstance(error, RlmechError) else f"{error}"
            self.sharing = f"no: {type(error).__name__}: {said}"
            return self._apart(number, seed)
        if self.sharing == "unknown":  # nobody parted yet
            return shared
        alone = {name: self._traces(seed, [name])[name].episode(number) for name in self._parted}
        if not all(_equal(shared[name], episode) for name, episode in alone.items()):
            self.sharing = "no: a copy of the environment goes on differently"
            return self._apart(number, seed)
        self.sharing = "yes"
        return shared

    def _traces(self, seed: int, names: list[str]) -> dict[str, _Trace]:
        drives = {
            name: Drive(self.drivers[name], seed, self._action_names, self.simulator.step_values) for name in names
        }
        observation, _ = self.world.reset(seed=seed)
        told = (self.simulator, self.outcomes, self.simulator.episode_values(self.world))
        traces = {name: _Trace(drive, *told) for name, drive in drives.items()}
        _check_finite(observation, "the first observation")
        branches = [_Branch(self.world, _kept(observation), names)]
        while branches:
            branches += self._advance(branches.pop(), traces)
        return {name: traces[name] for name in names}

    def _advance(self, branch: _Branch, traces: Mapping[str, _Trace]) -> list[_Branch]:
        """One decision of all drivers of a branch: the branches that it goes on in."""
        picture = [_picture(branch.world.env)] if self.frames else []
        looks: dict[tuple[object, ...], Look] = {}
        groups: dict[bytes, list[str]] = {}
        for name in branch.names:
            trace, driver = traces[name], self.drivers[name]
            asked = id(driver.policy), repr(driver.unedited_names), *trace.drive.told
            if asked not in looks:
                looks[asked] = trace.drive.look(branch.observation, driver.unedited_names)
            decision = trace.drive.decide(branch.observation, branch.world.entities, looks[asked])
            trace.decisions.append(decision)
            trace.scenes.append(branch.world.entities)
            trace.frames += picture
            groups.setdefault(np.asarray(decision.action).tobytes(), []).append(name)
        worlds = self._worlds(branch.world, list(groups.values()))
        ahead = [
            self._step(world, branch.observation, names, traces)
            for world, names in zip(worlds, groups.values(), strict=True)
        ]
        return [after for after in ahead if after is not None]

    def _worlds(self, world: World, groups: list[list[str]]) -> list[World]:
        """A world for each group; all but the first are copies."""
        if len(groups) == 1:
            return [world]
        if self.sharing == "unknown":
            self.sharing, self._parted = "copying", (groups[0][0], groups[-1][0])
        return [world, *(world.fork() for _ in groups[1:])]

    def _step(self, world: World, observation: Any, names: list[str], traces: Mapping[str, _Trace]) -> _Branch | None:
        action = traces[names[0]].decisions[-1].action
        after, *told, info = world.step(action)
        result: Any = (_kept(after), *told, info)
        step = step_of(observation, action, result, self.outcomes)
        self.n_simulated += 1
        done = step.terminated or step.truncated
        place = f"step {len(traces[names[0]].steps)}"
        _check_finite(step.reward, f"the reward of {place}")
        _check_finite(step.next_observation, f"the observation after {place}")
        if done:
            _check_told(self._asked, [*traces[names[0]].steps, step], info)
        for name in names:
            traces[name].steps.append(step)
            if done:
                traces[name].scenes.append(world.entities)
        return None if done else _Branch(world, step.next_observation, names)


def checked_outcomes(simulator: Simulator, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """What a user wants to be told of episodes.

    Raises:
        ConfigError: It is no outcome, or has the name of another, or of a column.
    """
    taken = {*_COLUMNS, *simulator.step_values([]), *(outcome.name for outcome in simulator.outcomes)}
    given: Any = [outcomes] if isinstance(outcomes, Outcome | str) else outcomes
    for outcome in given:
        called = outcome if isinstance(outcome, str) else "is_success"
        if not isinstance(outcome, Outcome):
            raise ConfigError(
                "That is no outcome.",
                given=repr(outcome),
                expected="an Outcome: its name in the steps' info, and its kind",
                fix=f"rlm.simulators.Outcome(name={called!r}, kind='share')",
            )
        if outcome.name in taken:
            raise ConfigError(
                f"There is a column {outcome.name!r} already.",
                given=f"outcomes named {[one.name for one in given if isinstance(one, Outcome)]}",
                expected="names of their own",
                fix=f"Outcome(name='own_{outcome.name}', read=lambda info: info.get({outcome.name!r}), ...)",
            )
        taken.add(outcome.name)
    return tuple(given)


def _check_told(asked: Sequence[Outcome], steps: Sequence[Step], info: Mapping[str, object]) -> None:
    """Check that an environment told what was asked for: a share at the last step, a mean at one step at least."""
    for outcome in asked:
        where = steps[-1:] if outcome.kind == "share" else steps
        if not any(outcome.name in step.outcome for step in where):
            raise ConfigError(
                f"The environment does not tell the outcome {outcome.name!r}.",
                given=f"an info with {sorted(map(str, info)) or 'nothing'} at the episode's last step",
                expected="a value there" if outcome.kind == "share" else "a value at one step of the episode, or more",
                fix="check the name, or say what stands for nothing told: "
                f"read=lambda info: info.get({outcome.name!r}, False)",
            )


def _check_finite(value: object, what: str) -> None:
    """Check that an environment gives numbers.

    Raises:
        EnvironmentFitError: One is infinite or not a number; whatever is made of it would be neither.
    """
    for key, part in value.items() if isinstance(value, dict) else (("", value),):
        array = np.asarray(part)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0].tolist()
            where = "".join([f" of {key!r}" if key else "", f" at {place}" if place else ""])
            raise EnvironmentFitError(
                f"The environment gave {'NaN' if np.isnan(array).any() else 'an infinite number'}.",
                given=f"{array[tuple(place)]}{where} in {what}",
                expected="finite rewards and observations",
                fix="mend the environment, or wrap it: gymnasium.wrappers.TransformObservation or TransformReward",
            )


def _row(t: int, step: Step, decision: Decision, scene: list[Row], simulator: Simulator) -> JsonObject:
    action = {"action": int(step.action)} if np.ndim(step.action) == 0 else {}
    return {
        "step": t,
        **action,
        "edited": decision.edited,
        "action_changed": decision.action_changed,
        **simulator.step_values(scene),
        "reward": step.reward,
        "terminated": step.terminated,
        "truncated": step.truncated,
        **step.outcome,
    }


def _kept(observation: object) -> object:
    """A copy: many environments write every observation into the same array."""
    if isinstance(observation, dict):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)


def _stacked(name: str, observations: list[Any]) -> dict[str, np.ndarray]:
    if isinstance(observations[0], dict):
        return {f"{name}/{key}": np.stack([o[key] for o in observations]) for key in observations[0]}
    return {name: np.stack([np.asarray(o) for o in observations])}


def _equal(ours: Episodes, theirs: Episodes) -> bool:
    tables: list[tuple[pa.Table, pa.Table]] = [(ours.steps, theirs.steps)]
    if ours.entities is not None and theirs.entities is not None:
        tables.append((ours.entities, theirs.entities))
    return (
        all(a.to_pandas().equals(b.to_pandas()) for a, b in tables)  # NaN equals NaN there
        and ours.arrays.keys() == theirs.arrays.keys()
        and all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
    )


def _picture(env: gym.Env) -> np.ndarray:
    picture = np.array(env.render())  # a copy, as of the observations
    if hasattr(env.unwrapped, "enable_auto_render"):  # else highway-env draws every frame in between, too
        setattr(env.unwrapped, "enable_auto_render", False)  # noqa: B010
    return picture
