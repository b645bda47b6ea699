"""From a program to weights: where each variable stands in the residual stream, and what reads and writes it.

A categorical variable is one-hot in directions of its own, a number is one direction. A head's query is the row of the
score table of its own value, its key the one-hot value: W_Q W_K' is the program's selector, times `SHARPNESS`. The
start token's key scores between what is selected and what is not, or, for counts, as much as what is selected.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlmech.testbed.programs.language import (
    NONE,
    Average,
    Count,
    Gather,
    Head,
    Levels,
    Lookup,
    Match,
    Number,
    Positions,
    Table,
    Tokens,
    Variable,
)
from rlmech.testbed.programs.network import ProgramAttention, ProgramBlock, ProgramNetwork, ProgramTables

SHARPNESS = 100.0
"""What one step of a selector's score is worth: all but exp(-50) of the attention falls on what is selected."""
FAR = 1e4
"""What keeps the start token apart: it sees itself alone, and tables of numbers are off there."""
START = 0
"""The direction of the start token in the residual stream."""
Part = Variable | Number


@dataclass(kw_only=True)
class Layout:
    """Where everything of a program is.

    Attributes:
        directions: By variable or number, its directions of the residual stream; of the tokens without the start.
        heads: By block, its heads in order.
        tables: By block, its tables in order.
        neurons: By table, its neurons in its block.
        d_model: Width of the residual stream; its first direction is the start token's.
    """

    directions: dict[Part, range] = field(default_factory=dict)
    heads: list[list[Head]] = field(default_factory=list)
    tables: list[list[Table]] = field(default_factory=list)
    neurons: dict[Table, range] = field(default_factory=dict)
    d_model: int = 1

    def place(self, part: Part) -> None:
        """Give a variable or a number its directions."""
        size = 1 if isinstance(part, Average | Count) else len(part.values)
        self.directions[part] = range(self.d_model, self.d_model + size)
        self.d_model += size


def reads(part: Part) -> tuple[Part, ...]:
    """What a variable or number is computed from, directly."""
    match part:
        case Gather() | Average():
            return (*_looked_at(part), part.value)
        case Count():
            return _looked_at(part)
        case Lookup():
            return part.reads
        case Levels():
            return (part.number,)
        case _:
            return ()


def _looked_at(head: Head) -> tuple[Variable, ...]:
    return tuple(one for part in head.selector.parts for one in (part.query, part.key) if one is not None)


def plan(tokens: Tokens, positions: Positions, outputs: Sequence[Part]) -> Layout:
    """Put heads and tables into blocks, as early as what they read allows, and variables into the residual stream."""
    layout = Layout()
    depth: dict[Part, float] = {}

    def visit(part: Part) -> None:
        if part in depth:
            return
        for read in reads(part):
            visit(read)
        # a head reads what earlier blocks wrote (x.5 is the tables' half of block x), a table its own block's heads too
        after = max((depth[read] for read in reads(part)), default=-0.5)
        depth[part] = after if isinstance(part, Tokens | Positions) else _next(after, head=_is_head(part))
        layout.place(part)

    for part in (tokens, positions, *outputs):
        visit(part)
    n_blocks = 1 + int(max(depth.values()))
    layout.heads, layout.tables = [[] for _ in range(n_blocks)], [[] for _ in range(n_blocks)]
    for part, when in depth.items():
        if isinstance(part, Gather | Average | Count):
            layout.heads[int(when)].append(part)
        elif isinstance(part, Lookup | Levels):
            here = layout.tables[int(when)]
            start = layout.neurons[here[-1]].stop if here else 0
            layout.neurons[part] = range(start, start + n_entries(part))
            here.append(part)
    return layout


def _is_head(part: Part) -> bool:
    return isinstance(part, Gather | Average | Count)


def _next(after: float, *, head: bool) -> float:
    """The earliest half block: whole numbers are heads, the halves behind them tables."""
    when = after + 0.5
    return when if (when == int(when)) == head else when + 0.5


def n_entries(table: Table) -> int:
    """How many neurons a table takes: one an entry, and for numbers one for the lowest and two for each step."""
    if isinstance(table, Levels):
        return 1 + 2 * (len(table.inputs) - 1)
    size = 1
    for read in table.reads:
        size *= len(read.values)
    return size


def d_head(head: Head) -> int:
    """The size that a head needs: the start token's key and the keys of its parts, or what it gathers."""
    looks = 1 + sum(len(part.key.values) for part in head.selector.parts)
    return max(looks, len(head.values) if isinstance(head, Gather) else 1)


def start_score(head: Head) -> float:
    """What the start token scores as a key: as much as what is selected for counts, else half a step less."""
    return float(head.selector.least) - (0.0 if isinstance(head, Count) else 0.5)


def score_table(part: Match) -> Tensor:
    """Scores of a selector's part, `[query value, key value]`; one row where all positions look for the same."""
    queries = (None,) if part.query is None else part.query.values
    rows = [[float(part.score(query, key)) for key in part.key.values] for query in queries]
    return torch.tensor(rows, dtype=torch.float64)


def value_table(head: Head) -> tuple[Tensor, Tensor]:
    """What a head reads: of each value of its variable, `[value, d]`, and of the start token, `[d]`."""
    match head:
        case Gather():
            own, n = head.value.values, len(head.values)
            rows, start = torch.zeros(len(own), n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
            for row, value in enumerate(own):
                rows[row, head.values.index(value)] = 1
            start[head.values.index(NONE)] = float(not isinstance(head.value, Gather))  # which is none at the start
            return rows, start
        case Average():
            weights = [[float(head.weights.get(value, 0.0))] for value in head.value.values]
            return torch.tensor(weights, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        case Count():
            return torch.zeros(0, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)


def steps(table: Levels) -> tuple[list[float], float]:
    """Midpoints between what a number can be, and how steep the steps there are, so that all of them are 0 or 1."""
    pairs = list(zip(table.inputs, table.inputs[1:], strict=False))
    steep = 2 ** (1 + max((int(1 / (b - a)) for a, b in pairs), default=1).bit_length())
    return [(a + b) / 2 for a, b in pairs], float(steep)


def output_table(table: Table) -> Tensor:
    """What each neuron of a table writes, `[neuron, value]`."""
    found = torch.zeros(n_entries(table), len(table.values), dtype=torch.float64)
    if isinstance(table, Lookup):
        for neuron, given in enumerate(entries(table)):
            found[neuron, table.values.index(table.function(*given))] = 1
        return found
    columns = [table.values.index(table.function(one)) for one in table.inputs]
    found[0, columns[0]] = 1
    for step, (before, after) in enumerate(itertools.pairwise(columns)):
        for neuron, sign in ((1 + 2 * step, 1.0), (2 + 2 * step, -1.0)):
            found[neuron, after] += sign
            found[neuron, before] -= sign
    return found


def entries(table: Lookup) -> list[tuple[object, ...]]:
    """The entries of a table, in the order of its neurons."""
    found: list[tuple[object, ...]] = [()]
    for read in table.reads:
        found = [(*given, value) for given in found for value in read.values]
    return found


def compile_program(
    layout: Layout, tokens: Tokens, positions: Positions, output: Variable, *, asked: int
) -> ProgramNetwork:
    """The network with its weights written."""
    blocks = [
        ProgramBlock(
            layout.d_model,
            n_heads=len(heads),
            d_head=max(map(d_head, heads), default=0),
            n_neurons=sum(map(n_entries, tables)),
        )
        for heads, tables in zip(layout.heads, layout.tables, strict=True)
    ]
    n_tokens, n_entities = 1 + len(tokens.values), 1 + len(positions.values)
    network = ProgramNetwork(n_tokens, n_entities, layout.d_model, len(output.values), asked=asked, blocks=blocks)
    with torch.no_grad():
        network.embed.weight[START, 0] = 1
        for column, direction in enumerate(layout.directions[tokens]):
            network.embed.weight[direction, 1 + column] = 1
        for row, direction in enumerate(layout.directions[positions]):
            network.positions[1 + row, direction] = 1
        for column, direction in enumerate(layout.directions[output]):
            network.unembed.weight[column, direction] = 1
        for block, heads, tables in zip(blocks, layout.heads, layout.tables, strict=True):
            if block.attention is not None:
                for number, head in enumerate(heads):
                    _write_head(block.attention, layout, head, number)
            if block.tables is not None:
                for table in tables:
                    _write_table(block.tables, layout, table)
    return network


def _write_head(attention: ProgramAttention, layout: Layout, head: Head, number: int) -> None:
    size = attention.query.out_features // attention.n_heads
    first = number * size
    query, key, value = attention.query, attention.key, attention.value
    query.bias[first] = SHARPNESS * start_score(head)
    query.weight[first, START] = FAR  # the start token sees itself alone
    key.weight[first, START] = 1
    place = first + 1
    for part in head.selector.parts:
        table = SHARPNESS * score_table(part)
        rows = slice(place, place + table.shape[1])
        if part.query is None:
            query.bias[rows] = table[0]
        else:
            query.weight[rows, _slice(layout, part.query)] = table.T
        key.weight[rows, _slice(layout, part.key)] = torch.eye(table.shape[1], dtype=torch.float64)
        place += table.shape[1]
    read, start = value_table(head)
    own = slice(first, first + len(start))
    value.weight[own, START] = start
    if not isinstance(head, Count):
        value.weight[own, _slice(layout, head.value)] = read.T
    attention.output.weight[_slice(layout, head), own] = torch.eye(len(start), dtype=torch.float64)


def _write_table(tables: ProgramTables, layout: Layout, table: Table) -> None:
    neurons, weight, bias = layout.neurons[table], tables.entries.weight, tables.entries.bias
    if isinstance(table, Lookup):
        for neuron, given in zip(neurons, entries(table), strict=True):
            for read, value in zip(table.reads, given, strict=True):
                weight[neuron, layout.directions[read][read.values.index(value)]] += 1
            bias[neuron] = 1 - len(table.reads)
    else:
        number = layout.directions[table.number][0]
        bias[neurons[0]], weight[neurons[0], START] = 1, -1
        middles, steep = steps(table)
        for step, middle in enumerate(middles):
            for neuron, half in ((neurons[1 + 2 * step], 0.5), (neurons[2 + 2 * step], -0.5)):
                weight[neuron, number], weight[neuron, START] = steep, -FAR
                bias[neuron] = half - steep * middle
    tables.output.weight[_slice(layout, table), neurons.start : neurons.stop] = output_table(table).T


def _slice(layout: Layout, part: Part) -> slice:
    directions = layout.directions[part]
    return slice(directions.start, directions.stop)
