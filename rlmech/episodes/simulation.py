"""Episodes of several drivers, in the way that costs least; whichever it is, the same episodes bit for bit.

    a seed at a time    in the environment that was given: for those whose steps cost more than forward passes
    many at once        every seed in an environment of its own, one forward pass for all: for cheap ones

Either way drivers share the simulation of each stretch in which they do the same, where copies of the environment are
not dearer than that: an episode follows from its seed and its actions, and a decision does not depend on what is
decided beside it. What is cheap is measured on the first steps. Copies are checked: of shared simulations on the first
seed that parts drivers, of environments on the first and the last episode of the first wave; where one differs, that is
given up, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import torch

from rlmech.episodes.driving import Driver
from rlmech.episodes.episode_tables import Episodes
from rlmech.episodes.sending import made, sent
from rlmech.episodes.waves import Setting, Wave
from rlmech.errors import ConfigError, CopyError, RlmechError
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.protocol import Outcome, Simulator
from rlmech.simulators.world import World

COLUMNS = (
    *("episode", "seed", "step", "action", "edited", "action_changed", "reward", "terminated", "truncated"),
    *("return", "length", "shard", "start"),
)
"""Columns of a recording's own tables."""
PROBED = 24
"""Steps on which the ways are measured."""
CHEAP = 2.0
"""A step that costs less than so many forward passes of a single row is cheap."""
FORK = 40.0
"""A copy that costs less than so many steps pays: few drivers part earlier."""
FEWEST, MOST = 4, 4096
"""Episodes of a wave: with fewer, copies do not pay; with more, passes get no cheaper."""
MOST_BYTES = 2**28
MOST_SECONDS = 30.0
"""Of a wave, if its episodes last as long as they may: what a kill loses."""
LENGTH = 1000
"""Steps that an episode is taken to last where the environment sets no limit."""
Numbered = tuple[int, int]
"""An episode's number and seed."""


class Runner:
    """Runs the episodes of several drivers.

    Args:
        env: The environment.
        drivers: By name.
        frames: Whether to keep a picture of every scene decided in; drivers then share nothing.
        outcomes: What to tell of each episode beside what the simulator tells.
        identity: The environment's, where it is known.

    Raises:
        ConfigError: An outcome has the name of another, or of a column.

    Attributes:
        sharing: Why drivers share no simulation, or `yes`; `unknown` until they first part.
        n_simulated: Environment steps that were simulated.
    """

    def __init__(
        self,
        env: gym.Env,
        drivers: Mapping[str, Driver],
        *,
        frames: bool = False,
        outcomes: Sequence[Outcome] = (),
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.simulator = simulator_of(env)
        asked = checked_outcomes(self.simulator, outcomes)
        self._setting = Setting(
            simulator=self.simulator,
            outcomes=(*self.simulator.outcomes, *asked),
            asked=asked,
            action_names=self.simulator.spec(env).actions,
            frames=frames,
        )
        self.world, self.drivers = self.simulator.world(env), dict(drivers)
        self.sharing = "no: frames are drawn" if frames else "unknown"
        self.n_simulated = 0
        self._identity = identity
        self._parted: tuple[str, ...] = ()
        # many at once only what acts alike in any order, in environments that leave one another alone
        calm = self.simulator.side_by_side and not frames and env.render_mode != "human"
        mixable = calm and all(driver.is_told for driver in drivers.values())
        self._at_once: bool | None = None if mixable else False
        self._shares, self._proved = False, False
        self._apart_because = "no: a copy of the environment costs more than what it spares"
        self._sent = b""
        self._worlds: list[World] = []
        self._most = MOST

    def run(self, numbered: Sequence[Numbered]) -> Iterator[dict[str, Episodes]]:
        """The episodes of some seeds for every driver, some seeds after the other.

        Args:
            numbered: Their numbers and seeds.
        """
        left = list(numbered)
        while left:
            if self._at_once is None and len(left) * len(self.drivers) >= FEWEST:
                self._choose(left[0])
            now = left[: max(1, self._most // len(self.drivers)) if self._at_once else 1]
            if self._at_once and len(now) * len(self.drivers) >= FEWEST:
                wave = self._many(now)
                if wave is None:
                    continue  # the environments are no copies: a seed at a time, then
                if finished := wave.episodes():
                    yield finished
                if wave.error is not None:
                    raise wave.error
            else:
                now = now[:1]
                yield self._one(*now[0])
            del left[: len(now)]

    # ---- many at once

    def _choose(self, first: Numbered) -> None:
        """Measure on the first steps which way costs less."""
        driver = dict([next(iter(self.drivers.items()))])
        for most_steps in (2, PROBED):  # what is only done once goes first
            probe = Wave(self._setting, driver, [first], [self.world], _forked)
            with torch.no_grad():
                probe.run(most_steps=most_steps)
            if probe.error is not None:
                self._at_once = False  # it is raised again, in its order
                return
        self._at_once = probe.seconds_stepping <= CHEAP * probe.seconds_deciding
        if self._at_once:
            self._most = self._most_rows(probe)
            self._shares = len(self.drivers) > 1 and self._forks_within(FORK * probe.seconds_stepping / PROBED)
            try:
                identity = self._identity or self.simulator.identity(self.world.env)
                self._sent = sent(self.world.env, identity)
            except RlmechError:  # it cannot be sent
                self._at_once = False

    def _most_rows(self, probe: Wave) -> int:
        spec = self.world.env.spec
        length = (None if spec is None else spec.max_episode_steps) or LENGTH
        by_bytes = MOST_BYTES / (length * max(1.0, probe.bytes_a_step))
        by_time = MOST_SECONDS / (length * max(1e-6, probe.seconds_stepping / max(1, probe.n_simulated)))
        return int(max(FEWEST, min(MOST, by_bytes, by_time)))

    def _forks_within(self, seconds: float) -> bool:
        """Whether the environment is copied in the middle of an episode, and in that time."""
        try:
            self.world.fork()  # proves that a copy goes on alike
            began = time.thread_time()
            self.world.fork()
        except RlmechError as error:
            self._apart_because = _no(error)
            return False
        return time.thread_time() - began <= seconds

    def _many(self, now: Sequence[Numbered]) -> Wave | None:
        """The episodes of some seeds, each in an environment of its own; None where they turned out to be others."""
        n_worlds = len(now) * (1 if self._shares else len(self.drivers))
        while len(self._worlds) < n_worlds:
            self._worlds.append(self.simulator.world(made(self._sent)))
        wave = Wave(self._setting, self.drivers, now, self._worlds[:n_worlds], _forked)
        with torch.no_grad():
            wave.run()
        self._proved = self._proved or self._is_alike(now, wave.episodes())
        if self._shares and (not self._proved or isinstance(wave.error, CopyError)):
            self._shares = False  # once more without
            if isinstance(wave.error, CopyError):
                self._apart_because = _no(wave.error)
            return None
        if not self._proved:
            self._at_once, self._worlds = False, []
            return None
        self.n_simulated += wave.n_simulated
        self.sharing = "yes" if self._shares else self._apart_because
        return wave

    def _is_alike(self, now: Sequence[Numbered], found: Mapping[str, Episodes]) -> bool:
        """Whether the first and the last episode are those of the environment itself, driven alone."""
        names = list(self.drivers)
        for name, (number, seed) in ((names[0], now[0]), (names[-1], now[-1])):
            alone = self._wave(number, seed, [name])
            with torch.no_grad():
                alone.run()
            if alone.error is not None:
                continue  # of the episode, which the wave met too
            own = alone.episodes()[name]
            if name not in found or number not in found[name].numbers:
                return False
            at = found[name].numbers.index(number)
            if not _equal(own, found[name].part(at, at + 1)):
                return False
        return True

    # ---- a seed at a time

    def _one(self, number: int, seed: int) -> dict[str, Episodes]:
        """The episode of one seed for every driver."""
        if self.sharing.startswith("no"):
            return self._apart(number, seed)
        return self._checked(number, seed) if self.sharing == "unknown" else self._together(number, seed)

    def _apart(self, number: int, seed: int) -> dict[str, Episodes]:
        return {name: self._driven(number, seed, [name])[name] for name in self.drivers}

    def _together(self, number: int, seed: int) -> dict[str, Episodes]:
        return self._driven(number, seed, list(self.drivers))

    def _checked(self, number: int, seed: int) -> dict[str, Episodes]:
        """Share, and where drivers part for the first time run two that parted once more, each by itself."""
        try:
            shared = self._together(number, seed)
        except Exception as error:
            if self.sharing != "copying":
                raise  # what is raised while copying for another reason is raised again, apart
            self.sharing = _no(error)
            return self._apart(number, seed)
        if self.sharing == "unknown":  # nobody parted yet
            return shared
        alone = {name: self._driven(number, seed, [name])[name] for name in self._parted}
        if not all(_equal(shared[name], episode) for name, episode in alone.items()):
            self.sharing = "no: a copy of the environment goes on differently"
            return self._apart(number, seed)
        self.sharing = "yes"
        return shared

    def _wave(self, number: int, seed: int, names: Sequence[str]) -> Wave:
        drivers = {name: self.drivers[name] for name in names}
        return Wave(self._setting, drivers, [(number, seed)], [self.world], self._part)

    def _part(self, world: World, groups: list[list[str]]) -> list[World]:
        if self.sharing == "unknown":
            self.sharing, self._parted = "copying", (groups[0][0], groups[-1][0])
        return _forked(world, groups)

    def _driven(self, number: int, seed: int, names: Sequence[str]) -> dict[str, Episodes]:
        wave = self._wave(number, seed, names)
        with torch.no_grad():
            wave.run()
        self.n_simulated += wave.n_simulated
        if wave.error is not None:
            raise wave.error
        return wave.episodes()


def _no(error: Exception) -> str:
    """Why nothing is shared, where copying raised something."""
    said = f"{error.problem} {error.given}" if isinstance(error, RlmechError) else f"{error}"
    return f"no: {type(error).__name__}: {said}"


def _forked(world: World, groups: list[list[str]]) -> list[World]:
    """A world for each group; all but the first are copies."""
    return [world, *(world.fork() for _ in groups[1:])]


def checked_outcomes(simulator: Simulator, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """What a user wants to be told of episodes.

    Raises:
        ConfigError: It is no outcome, or has the name of another, or of a column.
    """
    taken = {*COLUMNS, *simulator.step_values([]), *(outcome.name for outcome in simulator.outcomes)}
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


def _equal(ours: Episodes, theirs: Episodes) -> bool:
    tables: list[tuple[pa.Table, pa.Table]] = [(ours.steps, theirs.steps)]
    if ours.entities is not None and theirs.entities is not None:
        tables.append((ours.entities, theirs.entities))
    return (
        all(a.to_pandas().equals(b.to_pandas()) for a, b in tables)  # NaN equals NaN there
        and ours.arrays.keys() == theirs.arrays.keys()
        and all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
    )
