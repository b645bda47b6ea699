"""Whole episodes in memory: their tables, and arrays with a row a step, before they are files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from rlmech.simulators.protocol import Column

TABLES = ("episodes", "steps", "entities")
FINAL = "final_observation"
_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "str": pa.string()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Some episodes in memory, in order.

    Attributes:
        episodes: One row each: episode, seed, length, return and what the environment tells of its end.
        steps: One row a decision.
        entities: One row an entity and scene; None where the simulator tells of nobody.
        arrays: By name; the first axis is the step, or the episode for the final observations.
    """

    episodes: pa.Table
    steps: pa.Table
    entities: pa.Table | None
    arrays: Mapping[str, np.ndarray]

    @property
    def tables(self) -> dict[str, pa.Table]:
        """The tables that there are, by name."""
        return {name: table for name in TABLES if (table := getattr(self, name)) is not None}

    @property
    def numbers(self) -> list[int]:
        """The episodes' numbers."""
        return self.episodes["episode"].to_pylist()

    def numbered(self, numbers: Sequence[int]) -> Episodes:
        """The same episodes under other numbers."""
        new_of = dict(zip(self.numbers, numbers, strict=True))
        tables: dict[str, pa.Table] = {}
        for name, table in self.tables.items():
            place = table.column_names.index("episode")
            own = pa.array([new_of[number] for number in table["episode"].to_pylist()], pa.int64())
            tables[name] = table.set_column(place, "episode", own)
        return replace(self, **tables)

    def part(self, first: int, last: int) -> Episodes:
        """Those from one place to and without another."""
        lengths = self.episodes["length"].to_pylist()
        start, stop = sum(lengths[:first]), sum(lengths[:last])
        numbers = self.numbers[first:last]
        entities = self.entities
        if entities is not None:
            entities = entities.filter(pa.array(np.isin(entities["episode"].to_numpy(), numbers)))
        arrays = {
            name: array[first:last] if is_final(name) else array[start:stop] for name, array in self.arrays.items()
        }
        return Episodes(
            episodes=self.episodes.slice(first, last - first),
            steps=self.steps.slice(start, stop - start),
            entities=entities,
            arrays=arrays,
        )


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Some episodes one after the other."""
    tables = {
        name: pa.concat_tables([part.tables[name] for part in parts], promote_options="permissive")
        for name in parts[0].tables
    }
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return Episodes(**{"entities": None, **tables}, arrays=arrays)


def table_of(rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Rows as a table; a value that a row lacks is null."""
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    names = dict.fromkeys(name for row in plain for name in row)  # Arrow by itself takes those of the first row alone
    return pa.table({name: [row.get(name) for row in plain] for name in names})


def entity_table(
    scenes: Sequence[Sequence[tuple[object, ...]]], columns: Mapping[str, Column], *, episode: int, seed: int
) -> pa.Table | None:
    """The entities of an episode's scenes as a table, with the same columns whether there are any or not.

    Args:
        scenes: For each observation, a row of `columns` an entity.
        columns: The simulator's; without any there is no table.
        episode: The episode's number.
        seed: Its seed.
    """
    if not columns:
        return None
    values = list(zip(*(entity for scene in scenes for entity in scene), strict=True)) or [()] * len(columns)
    step = np.repeat(np.arange(len(scenes)), np.array([len(scene) for scene in scenes], dtype=int))
    head = {"episode": np.full(len(step), episode), "seed": np.full(len(step), seed), "step": step}
    own = zip(columns.items(), values, strict=True)
    return pa.table(head | {name: pa.array(given, _ARROW[column.dtype]) for (name, column), given in own})


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def is_final(array: str) -> bool:
    """Whether an array has a row an episode."""
    return array == FINAL or array.startswith(f"{FINAL}/")
