"""What programs are made of: variables with one value at each position, and heads that gather them from others.

    Tokens, Positions       what is given
    Gather, Average, Count  one attention head each: what stands at the positions with the highest score
    Lookup, Levels          one group of hidden neurons each: a table of one or two variables, or of a number

Every sequence begins with a start token, which heads turn to where they select nothing. Source: Weiss et al. 2021,
*Thinking Like Transformers*, arXiv 2106.06981 (RASP); Lindner et al. 2023, arXiv 2301.05062 (Tracr).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = str | int
"""What a variable can be at a position."""
NONE = "none"
"""What `Gather` gives where it selects nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """The token at each position."""

    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """The number of each position, from 1; the same in every run."""

    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """A part of a selector: how well a key's value fits a query's, in whole numbers.

    Attributes:
        query: The variable at the position that looks; None where all positions look for the same.
        key: The variable at the position that is looked at.
        score: (query's value or None, key's value) -> a whole number; the scores of all parts are added.
    """

    query: Variable | None
    key: Variable
    score: Callable[[Any, Any], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selector:
    """The positions with the highest sum of scores, where it reaches `least`; else the start token.

    Attributes:
        parts: What is added up.
        least: The sum from which on a position is selected.
    """

    parts: tuple[Match, ...]
    least: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Gather:
    """The value of a variable at the selected position; `none` where there is none."""

    selector: Selector
    value: Variable
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Average:
    """The mean weight over the selected positions, a number; 0 where there is none.

    Attributes:
        selector: Which positions.
        value: The variable that is weighed.
        weights: By its values; 0 for those not named.
    """

    selector: Selector
    value: Variable
    weights: Mapping[Value, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Count:
    """1 / (1 + the number of selected positions), which attention can give: the weight of the start token.

    Selected are the positions whose score is exactly `least`, the highest that there is.
    """

    selector: Selector


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup:
    """A table of one or two variables."""

    reads: tuple[Variable, ...]
    function: Callable[..., Value]
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """A table of a number, one of finitely many.

    Attributes:
        number: What is looked up.
        inputs: All that the number can be, rising.
        function: From one of them to a value.
        values: What it gives.
    """

    number: Number
    inputs: tuple[float, ...]
    function: Callable[[float], Value]
    values: tuple[Value, ...]


Variable = Tokens | Positions | Gather | Lookup | Levels
Number = Average | Count
Head = Gather | Average | Count
Table = Lookup | Levels


def same(query: Value, key: Value) -> int:
    """1 where both are the same."""
    return int(query == key)


def gather(selector: Selector, value: Variable) -> Gather:
    """What stands at the selected position."""
    return Gather(selector=selector, value=value, values=tuple(dict.fromkeys((*value.values, NONE))))


def lookup(function: Callable[..., Value], *reads: Variable) -> Lookup:
    """A table of one or two variables, with the values that it can have."""
    found = [function(*given) for given in itertools.product(*(one.values for one in reads))]
    return Lookup(reads=reads, function=function, values=tuple(dict.fromkeys(found)))


def count(selector: Selector, *, most: int, function: Callable[[int], Value]) -> Levels:
    """A table of how many positions are selected, from 0 to `most`."""
    inputs = {1 / (1 + n): n for n in range(most, -1, -1)}
    return levels(Count(selector=selector), inputs=tuple(inputs), function=lambda one: function(inputs[one]))


def levels(number: Number, *, inputs: tuple[float, ...], function: Callable[[float], Value]) -> Levels:
    """A table of a number, with the values that it can have."""
    rising = tuple(sorted(set(inputs)))
    values = tuple(dict.fromkeys(function(one) for one in rising))
    return Levels(number=number, inputs=rising, function=function, values=values)
