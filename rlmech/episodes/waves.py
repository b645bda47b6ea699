"""A wave of episodes: begun together, decided together, each to its own end.

A lane is a world with the episodes that have done the same in it so far. An episode follows from its seed and its
actions, so drivers of one seed may share a lane until they part; then the world is copied and each group goes on in its
own. What comes of it is kept in columns, a row for each episode and step. Cost: the lanes' steps, and for each step of
the wave a forward pass or two for all of its episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from rlmech.episodes.deciding import SINGLE, Decider, Scenes
from rlmech.episodes.driving import Driver
from rlmech.episodes.episode_tables import Episodes
from rlmech.episodes.traces import Decided, Stepped, Told, episodes_of
from rlmech.errors import ConfigError, EnvironmentFitError
from rlmech.simulators.protocol import Outcome, Simulator, Value
from rlmech.simulators.world import World
from rlmech.untyped import JsonObject, Row, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the episodes of a wave have in common.

    Attributes:
        simulator: The environment's simulator.
        outcomes: What is told of each step.
        asked: Those of them that were asked for, and must be told.
        action_names: Names of the environment's actions.
        frames: Whether to keep a picture of every scene decided in.
    """

    simulator: Simulator
    outcomes: Sequence[Outcome]
    asked: Sequence[Outcome]
    action_names: tuple[str, ...]
    frames: bool


Result = tuple["Lane", tuple[Any, float, bool, bool, JsonObject], dict[str, Value]]
"""A lane, what its step gave, and the outcomes that it told."""


@dataclass(slots=True)
class Lane:
    """A world and the episodes in it.

    Attributes:
        world: The world.
        rows: Their numbers in the wave.
        start: Number of the seed, in the order in which they were given.
        action: What is done next.
    """

    world: World
    rows: list[int]
    start: int
    action: Any = None


class Wave:
    """Episodes of some drivers from some seeds.

    Args:
        setting: What they have in common.
        drivers: By name.
        numbered: Numbers and seeds of the episodes.
        worlds: One for each seed, which its drivers share, or one for each driver and seed, a seed's after another's.
        part: Gives the worlds of groups that part.

    Attributes:
        n_simulated: Environment steps that were simulated.
        seconds_deciding: Time that the policies' passes took, where the number of steps was limited.
        seconds_stepping: Time that the environments' steps took, likewise.
        error: What an episode raised; episodes of the seeds before it are finished all the same.
    """

    def __init__(
        self,
        setting: Setting,
        drivers: Mapping[str, Driver],
        numbered: Sequence[tuple[int, int]],
        worlds: Sequence[World],
        part: Callable[[World, list[list[str]]], list[World]],
    ) -> None:
        self._setting, self._names, self._part = setting, list(drivers), part
        self._numbered = list(numbered)
        n_seeds, n_drivers = len(numbered), len(drivers)
        # rows are numbered driver by driver, so that each driver's are a slice of what is kept
        self._start_of = np.tile(np.arange(n_seeds), n_drivers)
        self._driver_of = np.repeat(np.arange(n_drivers), n_seeds)
        rows = np.arange(n_seeds * n_drivers).reshape(n_drivers, n_seeds).T.tolist()
        if len(worlds) == n_seeds:
            self._lanes = [Lane(world, rows[start], start) for start, world in enumerate(worlds)]
        else:
            flat = [(row, start) for start, own in enumerate(rows) for row in own]
            self._lanes = [Lane(world, [row], start) for world, (row, start) in zip(worlds, flat, strict=True)]
        self._deciders, self._decider_of, self._place = self._made(list(drivers.values()))
        self._measures = bool(setting.simulator.step_values([]))
        self._peopled = bool(setting.simulator.entity_columns)
        self.n_simulated = 0
        self.seconds_deciding = self.seconds_stepping = 0.0
        self._clock: Callable[[], float] = float  # zero: to read the time may cost as much as a decision
        self.error: BaseException | None = None
        self._failed = n_seeds  # the first seed that an error stopped
        self._decided = [Decided() for _ in self._deciders]
        self._stepped, self._told = Stepped(len(self._start_of)), Told(n_seeds, len(self._start_of))

    def run(self, *, most_steps: int | None = None) -> None:
        """Drive all episodes to their ends.

        Args:
            most_steps: Stop after so many steps, with nothing finished, and measure them.
        """
        if most_steps is not None:
            self._clock = time.thread_time
        try:
            seen, step = self._begin(), 0
            while self._lanes and step != most_steps:
                seen = self._advance(seen, step)
                step += 1
        except BaseException as error:
            if self.error is None:  # of no single episode: what is finished is kept
                self.error = error
            if len(self._numbered) == 1 and isinstance(error, Exception):
                error.add_note(f"This happened in the episode of seed {self._numbered[0][1]}.")

    @property
    def bytes_a_step(self) -> float:
        """What is kept of a step of one row, in its arrays."""
        seen = sum(value[0].nbytes / len(value[0]) for value in self._stepped.seen.values())
        found = [one.found[0] for one in self._decided if one.found]
        arrays = [array for one in found for array in (one.scores, one.actions, *one.activations.values())]
        return seen + sum(array.nbytes / len(array) for array in arrays)

    def episodes(self) -> dict[str, Episodes]:
        """The finished episodes of each driver that has some."""
        found: dict[str, Episodes] = {}
        for k, decided in enumerate(self._decided):
            own = np.flatnonzero(self._decider_of == k)  # drivers of this decider
            rows = np.flatnonzero(np.isin(self._driver_of, own) & self._told.finished & (self._start_of < self._failed))
            if len(rows) and len(decided.rows):
                for driver, episodes in episodes_of(
                    rows,
                    decided,
                    self._stepped,
                    self._told,
                    self._setting.simulator,
                    self._setting.outcomes,
                    driver_of=self._driver_of,
                    start_of=self._start_of,
                    numbered=self._numbered,
                ).items():
                    found[self._names[driver]] = episodes
        return {name: found[name] for name in self._names if name in found}

    def _made(self, drivers: list[Driver]) -> tuple[list[Decider], np.ndarray, np.ndarray]:
        """Those who decide, for each driver its number among them, for each row its place among those of its own."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for k, driver in enumerate(drivers):
            groups.setdefault((id(driver.policy), repr(driver.names), driver.deterministic), []).append(k)
        decider_of, place = np.zeros(len(drivers), int), np.zeros(len(self._driver_of), int)
        deciders: list[Decider] = []
        seeds = np.array([seed for _, seed in self._numbered])
        for number, own in enumerate(groups.values()):
            decider_of[own] = number
            rows = np.flatnonzero(np.isin(self._driver_of, own))
            place[rows] = np.arange(len(rows))
            among = np.searchsorted(own, self._driver_of[rows])
            chosen = [drivers[k] for k in own]
            deciders.append(Decider(chosen, among, seeds[self._start_of[rows]], self._setting.action_names))
        return deciders, decider_of, place

    def _begin(self) -> dict[str, np.ndarray]:
        """Begin all episodes: what is observed first, in each lane."""
        observations: list[Any] = []
        for lane in self._lanes:
            try:
                observation = lane.world.reset(seed=self._numbered[lane.start][1])[0]
                self._told.beginnings[lane.start] = self._setting.simulator.episode_values(lane.world)
                _check_finite(observation, "the first observation")
            except Exception as error:
                self._fail(error, lane.start)
                break  # those before it go on, and lanes are in the order of their seeds
            observations.append(observation)
        self._lanes = [lane for lane in self._lanes[: len(observations)] if lane.start < self._failed]
        return stacked(observations[: len(self._lanes)]) if self._lanes else {}

    def _advance(self, seen: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        """One decision and one step of all: what is observed then, in the lanes that go on."""
        began = self._clock()
        lanes, actions = self._lanes, self._decide(seen, step)
        self.seconds_deciding += self._clock() - began
        ahead = self._steered(lanes, actions)
        began = self._clock()
        stepped, after = self._step(ahead, step)
        self.seconds_stepping += self._clock() - began
        done = [result[2] or result[3] for _, result, _ in stepped]
        for place in (place for place, over in enumerate(done) if over):
            self._end(*stepped[place], {key: value[place].copy() for key, value in after.items()})
        going = [k for k, (lane, *_) in enumerate(stepped) if not done[k] and lane.start < self._failed]
        self._lanes = [stepped[k][0] for k in going]
        return {key: value[going] for key, value in after.items()}

    def _decide(self, seen: dict[str, np.ndarray], step: int) -> list[Any]:
        """What each row does, in the order of the lanes."""
        lanes, simulator = self._lanes, self._setting.simulator
        rows = np.array([row for lane in lanes for row in lane.rows])
        of_row = np.repeat(np.arange(len(lanes)), [len(lane.rows) for lane in lanes])
        entities = [lane.world.entities for lane in lanes]
        measured = [simulator.step_values(there) for there in entities] if self._measures else [{}] * len(lanes)
        pictures = [_picture(lane.world.env) for lane in lanes] if self._setting.frames else []
        if self._peopled or self._measures or pictures:
            there = entities if self._peopled else ()
            self._told.scenes_of(rows.tolist(), of_row.tolist(), there, measured, pictures)
        seen_at = self._stepped.see(seen) + of_row
        actions: list[Any] = [None] * len(rows)
        for k, (decider, decided) in enumerate(zip(self._deciders, self._decided, strict=True)):
            own = np.flatnonzero(self._decider_of[self._driver_of[rows]] == k)
            if len(own):
                scenes = Scenes(seen, of_row[own], entities, measured)
                found = decider.decide(step, self._place[rows[own]], scenes)
                decided.add(step, rows[own], seen_at[own], found)
                several = found.actions.ndim > 1  # a copy: the environment may change it
                for place, action in zip(
                    own.tolist(), found.actions if several else found.actions.tolist(), strict=True
                ):
                    actions[place] = action.copy() if several else action
        return actions

    def _steered(self, lanes: Sequence[Lane], actions: list[Any]) -> list[Lane]:
        """The lanes with what is done next in each; where drivers part there are more."""
        ahead: list[Lane] = []
        place = 0
        for lane in lanes:
            own = actions[place : place + len(lane.rows)]
            place += len(lane.rows)
            groups: dict[Any, tuple[list[int], Any]] = {}
            if len(own) > 1 and not (isinstance(own[0], int) and own.count(own[0]) == len(own)):
                for row, action in zip(lane.rows, own, strict=True):
                    key = action if isinstance(action, int) else action.tobytes()
                    groups.setdefault(key, ([], action))[0].append(row)
            if len(groups) < 2:
                lane.action = own[0]
                ahead.append(lane)
                continue
            try:
                parted = [[self._names[self._driver_of[row]] for row in rows] for rows, _ in groups.values()]
                worlds = self._part(lane.world, parted)
            except Exception as error:
                self._fail(error, lane.start)
                continue
            ahead += [Lane(w, rows, lane.start, act) for w, (rows, act) in zip(worlds, groups.values(), strict=True)]
        return ahead

    def _step(self, ahead: Sequence[Lane], step: int) -> tuple[list[Result], dict[str, np.ndarray]]:
        """What came of it, and what is observed then, in the lanes in which nothing was raised."""
        found: list[Result] = []
        outcomes = self._setting.outcomes
        for lane in ahead:
            if lane.start >= self._failed:
                continue
            try:
                after, reward, terminated, truncated, info = lane.world.step(lane.action)
                told = {o.name: value for o in outcomes if (value := o.of(info)) is not None} if outcomes else {}
                result = after, float(reward), bool(terminated), bool(truncated), info
            except Exception as error:
                self._fail(error, lane.start)
                continue
            found.append((lane, result, told))
        self.n_simulated += len(found)
        after = stacked([result[0] for _, result, _ in found]) if found else {}
        if not _all_finite(np.array([result[1] for _, result, _ in found]), *after.values()):
            self._find_infinite(found, step)
        good = [k for k, (lane, *_) in enumerate(found) if lane.start < self._failed]
        if len(good) < len(found):
            found, after = [found[k] for k in good], {key: value[good] for key, value in after.items()}
        self._stepped.add([result for _, result, _ in found], [lane.rows for lane, *_ in found])
        if outcomes:
            for lane, _, told in found:
                self._told.outcomes_of(lane.rows, told)
        return found, after

    def _find_infinite(self, found: Sequence[Result], step: int) -> None:
        for lane, result, _ in found:
            try:
                _check_finite(result[1], f"the reward of step {step}")
                _check_finite(result[0], f"the observation after step {step}")
            except EnvironmentFitError as error:
                self._fail(error, lane.start)

    def _end(self, lane: Lane, result: Row, _: object, final: dict[str, np.ndarray]) -> None:
        """Note that a lane's episodes are over."""
        try:
            _check_told(self._setting.asked, self._told.outcomes.get(lane.rows[0], []), result[4])
        except ConfigError as error:
            self._fail(error, lane.start)
            return
        self._told.end(lane.rows, final, lane.world.entities if self._peopled else None)

    def _fail(self, error: BaseException, start: int) -> None:
        """Stop the episodes of a seed and of those after it; the ones before it go on."""
        if start < self._failed:
            if start < len(self._numbered):
                error.add_note(f"This happened in the episode of seed {self._numbered[start][1]}.")
            self.error, self._failed = error, start


def stacked(observations: Sequence[Any]) -> dict[str, np.ndarray]:
    """Observations by key, a row each, as copies: many environments write every observation into the same array.

    Raises:
        EnvironmentFitError: They differ in shape.
    """
    first = observations[0]
    if isinstance(first, dict):
        return {key: _stack([one[key] for one in observations]) for key in first}
    return {SINGLE: _stack(observations)}


def _stack(values: Sequence[Any]) -> np.ndarray:
    arrays = [value if isinstance(value, np.ndarray) else np.asarray(value) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise EnvironmentFitError(
            "The environment's observations change their shape.",
            given=f"shapes {', '.join(map(str, sorted(shapes)))}",
            expected="observations of one shape",
            fix="mend the environment, or wrap it so that each observation has the shape of its space",
        )
    (shape,) = shapes
    return np.concatenate([array.reshape(-1) for array in arrays]).reshape(len(arrays), *shape)


def _all_finite(*arrays: np.ndarray) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays if array.dtype.kind == "f")


def _check_told(asked: Sequence[Outcome], told: Sequence[Mapping[str, Value]], info: Settings) -> None:
    """Check that an environment told what was asked for: a share at the last step, a mean at one step at least."""
    for outcome in asked:
        where = told[-1:] if outcome.kind == "share" else told
        if not any(outcome.name in step for step in where):
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


def _picture(env: gym.Env) -> np.ndarray:
    picture = np.array(env.render())  # a copy, as of the observations
    if hasattr(env.unwrapped, "enable_auto_render"):  # else highway-env draws every frame in between, too
        setattr(env.unwrapped, "enable_auto_render", False)  # noqa: B010
    return picture
