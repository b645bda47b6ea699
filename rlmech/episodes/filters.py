"""Conditions on the rows of a recording's step table, from keywords to Arrow expressions.

`crashed=True`, `action=[0, 2]`, `ttc_below=2.0`, `speed_above=8.0`. A null or NaN meets no condition. Cost: the columns
named are read once for each shard.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlmech.episodes.shards import Shard
from rlmech.errors import RecordingError, nearest

_COMPARISONS = {"_below": operator.lt, "_above": operator.gt}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A condition on steps.

    Attributes:
        expression: As Arrow evaluates it.
        columns: The columns that it reads; None for all.
        schema: All columns of the step table; a shard may lack some.
    """

    expression: pc.Expression
    columns: tuple[str, ...] | None
    schema: pa.Schema

    def __str__(self) -> str:
        return str(self.expression)

    def rows(self, shard: Shard) -> np.ndarray:
        """The rows of a shard's step table that meet it, in order."""
        table = shard.table("steps", None if self.columns is None else ["step", *self.columns])
        for column in self.schema:
            if column.name not in table.column_names and (self.columns is None or column.name in self.columns):
                table = table.append_column(column, pa.nulls(len(table), column.type))
        return _rows_of(table, self.expression)


def filter_of(
    expression: pc.Expression | None, conditions: Mapping[str, object], *, schema: pa.Schema, earlier: Filter | None
) -> Filter:
    """The conditions of `Recording.where` and those of an earlier one as a single condition.

    Raises:
        RecordingError: There is no such column.
    """
    columns, parts = schema.names, [] if earlier is None else [earlier.expression]
    read = set[str]() if earlier is None else set(earlier.columns or ())
    read_all = expression is not None or (earlier is not None and earlier.columns is None)
    if expression is not None:
        parts.append(expression)
    for name, value in conditions.items():
        column, condition = _condition(name, value, columns)
        parts.append(condition)
        read.add(column)
    if not parts:
        raise RecordingError(
            "A selection of steps needs a condition.",
            given="where()",
            expected=f"a condition on one of {columns}",
            fix="e.g. recording.where(crashed=True, ttc_below=2.0)",
        )
    return Filter(
        expression=functools.reduce(operator.and_, parts),
        columns=None if read_all else tuple(sorted(read - {"step"})),
        schema=schema,
    )


def _condition(name: str, value: Any, columns: list[str]) -> tuple[str, pc.Expression]:
    if name in columns:
        field = pc.field(name)
        several = isinstance(value, Sequence | np.ndarray | range | set) and not isinstance(value, str)
        return name, field.isin(pa.array(list(value))) if several else field == value
    for ending, compare in _COMPARISONS.items():
        if name.endswith(ending) and name.removesuffix(ending) in columns:
            return name.removesuffix(ending), compare(pc.field(name.removesuffix(ending)), value)
    stem = name
    for ending in _COMPARISONS:
        stem = stem.removesuffix(ending)
    close = nearest(stem, columns)
    raise RecordingError(
        f"The recording's steps have no column {stem!r}.",
        given=f"{name}={value!r}",
        expected=f"one of {columns}, alone or followed by _below or _above",
        fix=f"did you mean {close[0] + name.removeprefix(stem)!r}?" if close else "recording.steps shows them",
    )


def _rows_of(table: pa.Table, expression: pc.Expression) -> np.ndarray:
    numbered = table.append_column("__row__", pa.array(np.arange(len(table))))
    try:
        return numbered.filter(expression)["__row__"].to_numpy()
    except (pa.ArrowInvalid, pa.ArrowTypeError, NotImplementedError) as error:
        raise RecordingError(
            "The steps cannot be selected so.",
            given=f"{expression}: {error}",
            expected=f"a condition that fits the columns: { {f.name: str(f.type) for f in table.schema} }",
            fix="compare a column with values of its own type, e.g. crashed=True, action=1, ttc_below=2.0",
        ) from error
