"""What the episodes of a wave leave, in columns as they come, and the episodes made of it.

At each step what all episodes saw, decided and got is an array each; at the end they are put in the order of the
episodes once. Cost: a copy of everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rlmech.episodes import recording as store
from rlmech.episodes.deciding import SINGLE, Decisions
from rlmech.episodes.episode import summary_of
from rlmech.episodes.episode_tables import FINAL, Episodes, entity_table, table_of
from rlmech.simulators.protocol import Outcome, Simulator, Value
from rlmech.untyped import JsonObject, Row, Settings


@dataclass(slots=True)
class Decided:
    """What the drivers of one policy decided, an array for each step."""

    steps: list[int] = field(default_factory=list[int])
    rows: list[np.ndarray] = field(default_factory=list[np.ndarray])
    seen_at: list[np.ndarray] = field(default_factory=list[np.ndarray])
    found: list[Decisions] = field(default_factory=list[Decisions])

    def add(self, step: int, rows: np.ndarray, seen_at: np.ndarray, found: Decisions) -> None:
        """Note the decisions of some rows.

        Args:
            step: The step that they are at.
            rows: Their numbers in the wave.
            seen_at: For each, the place of what it saw among all that was seen.
            found: What was decided.
        """
        self.steps.append(step)
        self.rows.append(rows)
        self.seen_at.append(seen_at)
        self.found.append(found)


class Stepped:
    """What was seen and what came of it, an array for each step.

    Args:
        n_rows: Rows of the wave.
    """

    def __init__(self, n_rows: int) -> None:
        self.seen: dict[str, list[np.ndarray]] = {}
        self.rewards: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []  # terminated and truncated
        self._at: list[np.ndarray] = []
        self._n_rows, self._n_seen, self._n_stepped = n_rows, 0, 0

    def see(self, seen: Mapping[str, np.ndarray]) -> int:
        """Note what is observed in all lanes: the place of the first among all that was seen."""
        before = self._n_seen
        for key, value in seen.items():
            self.seen.setdefault(key, []).append(value)
        self._n_seen += len(next(iter(seen.values())))
        return before

    def add(self, results: Sequence[Row], rows: Sequence[Sequence[int]]) -> None:
        """Note what the step gave in each lane, and whose lanes they are."""
        self.rewards.append(np.array([result[1] for result in results], float))
        self.ends.append(np.array([result[2:4] for result in results], bool).reshape(-1, 2))
        at = np.full(self._n_rows, -1)
        lengths = [len(own) for own in rows]
        at[np.array([row for own in rows for row in own], int)] = self._n_stepped + np.repeat(
            np.arange(len(rows)), lengths
        )
        self._at.append(at)
        self._n_stepped += len(rows)

    def places(self, step: int) -> np.ndarray:
        """For each row, the place of what came of its step among all that came; -1 where nothing did."""
        return self._at[step] if step < len(self._at) else np.full(self._n_rows, -1)


class Told:
    """What is told of single episodes, which is not numbers alone.

    Args:
        n_seeds: Seeds of the wave.
        n_rows: Rows of the wave.

    Attributes:
        beginnings: Of each seed, what its beginning tells.
        finished: Of each row, whether its episode is over.
        outcomes: By row, what each step told; of nobody where no outcomes are known.
    """

    def __init__(self, n_seeds: int, n_rows: int) -> None:
        self.beginnings: list[Mapping[str, Value | str]] = [{}] * n_seeds
        self.finished = np.zeros(n_rows, bool)
        self.outcomes: dict[int, list[Mapping[str, Value]]] = {}
        self.scenes: dict[int, list[list[Row]]] = {}
        self.measured: dict[int, list[Mapping[str, Value | str]]] = {}
        self.frames: dict[int, list[np.ndarray]] = {}
        self.finals: dict[int, dict[str, np.ndarray]] = {}

    def scenes_of(
        self,
        rows: Sequence[int],
        lanes: Sequence[int],
        entities: Sequence[list[Row]],
        measured: Sequence[Mapping[str, Value | str]],
        frames: Sequence[np.ndarray],
    ) -> None:
        """Note the scenes in which some rows decide: who is there, what is measured, how it looks; empty for none."""
        if entities:
            for row, lane in zip(rows, lanes, strict=True):
                self.scenes.setdefault(row, []).append(entities[lane])
        if measured and measured[0]:
            for row, lane in zip(rows, lanes, strict=True):
                self.measured.setdefault(row, []).append(measured[lane])
        if frames:
            for row, lane in zip(rows, lanes, strict=True):
                self.frames.setdefault(row, []).append(frames[lane])

    def outcomes_of(self, rows: Sequence[int], told: Mapping[str, Value]) -> None:
        """Note what a step told to some rows."""
        for row in rows:
            self.outcomes.setdefault(row, []).append(told)

    def end(self, rows: Sequence[int], final: dict[str, np.ndarray], entities: list[Row] | None) -> None:
        """Note the end of some rows' episodes: what is observed and who is there after the last action."""
        for row in rows:
            self.finished[row], self.finals[row] = True, final
            if entities is not None:
                self.scenes.setdefault(row, []).append(entities)


def episodes_of(
    rows: np.ndarray,
    decided: Decided,
    stepped: Stepped,
    told: Told,
    simulator: Simulator,
    outcomes: Sequence[Outcome],
    *,
    driver_of: np.ndarray,
    start_of: np.ndarray,
    numbered: Sequence[tuple[int, int]],
) -> dict[int, Episodes]:
    """The episodes of some rows, by driver.

    Args:
        rows: Finished ones, in order.
        decided: What they decided.
        stepped: What they saw and got.
        told: What is told of them.
        simulator: The environment's.
        outcomes: What is told of each step.
        driver_of: For each row of the wave, its driver's number.
        start_of: For each row of the wave, its seed's place in `numbered`.
        numbered: Numbers and seeds of the episodes.
    """
    every = np.concatenate(decided.rows)
    step_of = np.repeat(decided.steps, [len(own) for own in decided.rows])
    chosen = np.zeros(len(driver_of), bool)
    chosen[rows] = True
    kept = np.flatnonzero(chosen[every])
    order = kept[np.argsort(every[kept], kind="stable")]
    row = every[order]
    at = np.concatenate([stepped.places(step)[own] for step, own in zip(decided.steps, decided.rows, strict=True)])[
        order
    ]
    seen_at = np.concatenate(decided.seen_at)[order]
    arrays = {_name(store.OBSERVATION, key): np.concatenate(values)[seen_at] for key, values in stepped.seen.items()}
    found = decided.found
    arrays[store.ACTION] = np.concatenate([one.actions for one in found])[order]
    arrays[store.SCORES] = np.concatenate([one.scores for one in found])[order]
    for name in found[0].activations:
        arrays[store.ACTIVATION + name] = np.concatenate([one.activations[name] for one in found])[order]
    ends = np.concatenate(stepped.ends)[at]
    columns = {
        "step": step_of[order],
        "edited": np.concatenate([one.edited for one in found])[order],
        "action_changed": np.concatenate([one.changed for one in found])[order],
        "reward": np.concatenate(stepped.rewards)[at],
        "terminated": ends[:, 0],
        "truncated": ends[:, 1],
    }
    made: dict[int, Episodes] = {}
    for driver in dict.fromkeys(driver_of[rows].tolist()):
        own = rows[driver_of[rows] == driver]
        begin, end = np.searchsorted(row, [own[0], own[-1] + 1]).tolist()
        part = slice(begin, end)
        lengths = np.bincount(np.searchsorted(own, row[part]), minlength=len(own))
        heads = [numbered[int(start_of[k])] for k in own.tolist()]
        made[driver] = _episodes(
            own.tolist(),
            lengths,
            heads,
            {name: value[part] for name, value in columns.items()},
            {name: value[part] for name, value in arrays.items()},
            told,
            [told.beginnings[int(start_of[k])] for k in own.tolist()],
            simulator,
            outcomes,
        )
    return made


def _episodes(
    rows: list[int],
    lengths: np.ndarray,
    heads: list[tuple[int, int]],
    columns: Mapping[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    told: Told,
    beginnings: list[Mapping[str, Value | str]],
    simulator: Simulator,
    outcomes: Sequence[Outcome],
) -> Episodes:
    """The episodes of one driver."""
    keys = told.finals[rows[0]]
    arrays |= {_name(FINAL, key): np.stack([told.finals[row][key] for row in rows]) for key in keys}
    if told.frames:
        arrays[store.FRAMES] = np.stack([frame for row in rows for frame in told.frames[row]])
    numbers, seeds = (np.repeat(np.array(each, np.int64), lengths) for each in zip(*heads, strict=True))
    action = arrays[store.ACTION]
    steps: JsonObject = {"episode": numbers, "seed": seeds, "step": columns["step"]}
    steps |= {"action": action} if action.ndim == 1 else {}
    steps |= {name: columns[name] for name in ("edited", "action_changed")}
    steps |= _listed([one for row in rows for one in told.measured.get(row, ())])
    steps |= {name: columns[name] for name in ("reward", "terminated", "truncated")}
    steps |= _listed([one for row in rows for one in told.outcomes.get(row, ())])
    rewards = np.split(columns["reward"], np.cumsum(lengths)[:-1])
    summaries = [
        {"episode": number, "seed": seed}
        | summary_of(got.tolist(), told.outcomes.get(row, []), outcomes)
        | dict(beginning)
        for row, (number, seed), got, beginning in zip(rows, heads, rewards, beginnings, strict=True)
    ]
    entities = [
        table
        for row, (number, seed) in zip(rows, heads, strict=True)
        if (table := entity_table(told.scenes.get(row, []), simulator.entity_columns, episode=number, seed=seed))
        is not None
    ]
    return Episodes(
        episodes=table_of(summaries),
        steps=pa.table(steps),
        entities=pa.concat_tables(entities) if entities else None,
        arrays=arrays,
    )


def _listed(told: Sequence[Settings]) -> dict[str, pa.ChunkedArray]:
    """Columns of what was told step by step; a value that a step lacks is null."""
    table = table_of(told)
    return dict(zip(table.column_names, table.columns, strict=True))


def _name(array: str, key: str) -> str:
    return array if key == SINGLE else f"{array}/{key}"
