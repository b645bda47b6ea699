"""The equations of a program's units: queries, keys, values and outputs of heads, tables, and the scores.

    q = table of the query's value     k = value of the key     z = softmax(q k') v     hidden = ReLU(entries)

Written from the program, not read off the weights: no residual stream, a variable is what its unit says. Positions and
the start token are the same in every run and no units, so that what only they feed is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlmech.core.site import Site
from rlmech.testbed.known import Edge, Equation
from rlmech.testbed.programs.compiler import (
    FAR,
    SHARPNESS,
    Layout,
    Part,
    d_head,
    output_table,
    score_table,
    start_score,
    steps,
    value_table,
)
from rlmech.testbed.programs.language import (
    Count,
    Gather,
    Head,
    Levels,
    Lookup,
    Number,
    Positions,
    Table,
    Tokens,
    Variable,
)

Given = Mapping[Site, Tensor]
"""Values of units, `[pair entity d]`."""
Formula = Callable[[Given], Tensor]
"""A value from those of the units read; without the axis `pair` where none is."""
OBSERVATION, SCORES = Site("hook_obs"), Site("hook_q_values")


class Units:
    """The units of a program and their equations.

    Args:
        layout: Which block each part is in.
        positions: The positions, for the number of entities.
    """

    def __init__(self, layout: Layout, positions: Positions) -> None:
        self.layout, self.n_entities = layout, 1 + len(positions.values)
        self.start = torch.zeros(self.n_entities, 1, dtype=torch.float64)
        self.start[0] = 1
        self.equations = [Equation(unit=OBSERVATION)]
        self.sites: dict[Part, Site | None] = {}
        for part in layout.directions:
            self.sites[part] = OBSERVATION if isinstance(part, Tokens) else None
        for number, (heads, tables) in enumerate(zip(layout.heads, layout.tables, strict=True)):
            size = max(map(d_head, heads), default=0)
            for place, head in enumerate(heads):
                self._add_head(f"blocks.{number}.attention", head, place=place, size=size)
            for table in tables:
                self._add_table(f"blocks.{number}.tables.relu.hook_out", table)

    def add_scores(self, output: Variable, *, asked: int) -> None:
        """The scores, 1 for the value of the output at one position."""
        self._add(SCORES, (output,), lambda given: self.one_hot(output, given)[..., asked, :])

    def circuit(self) -> frozenset[Edge]:
        """The edges on a way from the observation to the scores."""
        hears, needed = {OBSERVATION}, {SCORES}
        for equation in self.equations:
            if hears & set(equation.reads):
                hears.add(equation.unit)
        for equation in reversed(self.equations):
            if equation.unit in needed:
                needed |= set(equation.reads)
        return frozenset(edge for one in self.equations for edge in one.edges if edge[0] in hears and edge[1] in needed)

    def one_hot(self, part: Variable, given: Given) -> Tensor:
        """A variable, one-hot, `[pair entity value]`."""
        site = self.sites[part]
        match part:
            case Positions():
                return torch.eye(self.n_entities, dtype=torch.float64)[:, 1:]
            case Tokens():
                return given[OBSERVATION][..., 1:]
            case Gather():
                return given[_known(site)][..., : len(part.values)]
            case Lookup() | Levels():
                return given[_known(site)] @ output_table(part)

    def number(self, part: Number, given: Given) -> Tensor:
        """A number, `[pair entity 1]`."""
        return given[_known(self.sites[part])][..., :1]

    def _add(self, unit: Site, parts: tuple[Part, ...], formula: Formula) -> None:
        sites = tuple(dict.fromkeys(site for part in parts if (site := self.sites[part]) is not None))
        self.equations.append(
            Equation(
                unit=unit, reads=sites, rule=lambda *values: formula(dict(zip(sites, values, strict=True))).clone()
            )
        )

    def _add_head(self, path: str, head: Head, *, place: int, size: int) -> None:
        q, k, v, z = (Site(f"{path}.hook_{role}", head=place) for role in "qkvz")
        parts = head.selector.parts
        queries = tuple(part.query for part in parts if part.query is not None)

        def query(given: Given) -> Tensor:
            found = [SHARPNESS * start_score(head) + FAR * self.start]
            for part in parts:
                table = SHARPNESS * score_table(part)
                found.append(table if part.query is None else self.one_hot(part.query, given) @ table)
            return self._joined(found, size)

        def key(given: Given) -> Tensor:
            return self._joined([self.start, *(self.one_hot(part.key, given) for part in parts)], size)

        def value(given: Given) -> Tensor:
            table, start = value_table(head)
            of_start = self.start * start
            return self._joined(
                [of_start if isinstance(head, Count) else self.one_hot(head.value, given) @ table + of_start], size
            )

        self._add(q, queries, query)
        self._add(k, tuple(part.key for part in parts), key)
        self._add(v, () if isinstance(head, Count) else (head.value,), value)
        self.equations.append(
            Equation(unit=z, reads=(q, k, v), rule=lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v)
        )
        self.sites[head] = z

    def _add_table(self, name: str, table: Table) -> None:
        neurons = self.layout.neurons[table]
        site = Site(name, neuron=list(neurons))

        def looked_up(given: Given) -> Tensor:
            first, *rest = (self.one_hot(read, given) for read in table.reads)  # type: ignore[union-attr]
            if rest:
                first = (first[..., :, None] + rest[0][..., None, :] - 1).flatten(-2)
            return first.clamp(min=0)

        def of_number(given: Given) -> Tensor:
            middles, steep = steps(table)  # type: ignore[arg-type]
            number = self.number(table.number, given)  # type: ignore[union-attr]
            found = [(1 - self.start).expand(number.shape)]
            for middle in middles:
                rising = steep * (number - middle) - FAR * self.start
                found += [(rising + 0.5).clamp(min=0), (rising - 0.5).clamp(min=0)]
            return torch.cat(found, dim=-1)

        if isinstance(table, Lookup):
            self._add(site, table.reads, looked_up)
        else:
            self._add(site, (table.number,), of_number)
        self.sites[table] = site

    def _joined(self, parts: list[Tensor], size: int) -> Tensor:
        """Parts side by side, each for all entities and pairs, and zeros up to a head's size."""
        pairs = max((part.shape[:-2] for part in parts if part.ndim > 2), default=torch.Size())
        wide = [part.expand(*pairs, self.n_entities, part.shape[-1]) for part in parts]
        missing = size - sum(part.shape[-1] for part in wide)
        return torch.cat([*wide, torch.zeros(*pairs, self.n_entities, missing, dtype=torch.float64)], dim=-1)


def _known(site: Site | None) -> Site:
    if site is None:
        raise LookupError("a part is read before it is computed")
    return site
