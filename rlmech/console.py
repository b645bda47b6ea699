"""What the command line prints: tables or JSON on the standard output, progress and errors on the standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from rlmech.untyped import Settings

INTERRUPTED = 130
"""The exit code after Ctrl-C."""
WIDTH = 160  # of what is written to a file or a pipe
Table = tuple[Sequence[str], Sequence[Sequence[object]]]


def print_result(
    found: Mapping[str, object], *, as_json: bool, lines: Sequence[str] = (), tables: Sequence[Table] = ()
) -> None:
    """Print a result: all of it as JSON, or its lines and tables.

    Args:
        found: The result, of plain values.
        as_json: Whether to print it as JSON, and nothing else.
        lines: Sentences for a person, before the tables.
        tables: Column names and rows; the cells of numbers are written to the right.
    """
    if as_json:
        with _open_output():
            sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
        return
    with _open_output():
        _print_tables(lines, tables)


@contextmanager
def _open_output() -> Generator[None]:
    """Say in words that whoever read the output closed it, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says it again when it leaves
        fail("the output was closed before all of it was written.", code=1)


def _print_tables(lines: Sequence[str], tables: Sequence[Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # instead of leaving without a word

    console = Output()
    if not console.is_terminal:
        console = Output(width=WIDTH)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for columns, rows in tables:
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(columns):
            numeric = bool(rows) and all(_is_number(row[place]) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*[written(cell) for cell in row])
        console.print(table)


def look_lines(found: Settings) -> list[str]:
    """The summary of a first look in sentences."""
    lines = [
        f"{found['policy']} on {found['environment']}: {found['n_episodes']} episodes, {found['n_steps']} decisions"
    ]
    if "pairs" in found:
        pairs = found["pairs"]
        lines.append(
            f"taking away one vehicle ({pairs['vehicle']}) changes the action in {pairs['n_flips']} of "
            f"{pairs['n_states']} states; {pairs['n_pairs']} pairs are used below"
        )
    return lines


def look_tables(found: Settings) -> list[Table]:
    """The summary of a first look in tables: episode means, each sweep's five largest effects, ablations that drove."""
    means = [
        (name, found[name]["mean"], found[name]["se"])
        for name in found
        if isinstance(found[name], Mapping) and "se" in found[name]
    ]
    effects: list[Sequence[object]] = []
    for label, sweeps in (
        ("patching", found["patching"]),
        ("ablation", found["ablation"]),
        ("neurons", found.get("neurons", {})),
    ):
        for name, rows in sweeps.items():
            for row in sorted(rows, key=lambda row: -abs(row["effect"] or 0.0))[:5]:
                where = ", ".join(
                    f"{axis} {value}" if axis != "entity" else str(value)
                    for axis, value in row.items()
                    if axis != "hook" and not axis.startswith("effect")
                )
                interval = f"{written(row['effect_low'])} … {written(row['effect_high'])}"
                effects.append((f"{label}: {name}", row["hook"], where, row["effect"], interval))
    tables: list[Table] = [(("per episode", "mean", "s.e."), means)]
    if effects:
        tables.append((("sweep", "hook point", "where", "effect", "95 % interval"), effects))
    if "driven" in found:
        tables.append(_driven(found["driven"]))
    return tables


def _driven(driven: Settings) -> Table:
    """Differences of whole episodes under each ablation."""
    outcomes = [
        name for name in ("return", "crashed", "success", "length") if f"delta_{name}" in driven["conditions"][0]
    ]
    cells: list[Sequence[object]] = []
    for row in driven["conditions"]:
        if row["condition"] != "baseline":
            cells.append((row["condition"], *(_difference(row, f"delta_{name}") for name in outcomes)))
    return (f"ablated on {driven['n_seeds']} seeds", *(f"Δ {name}" for name in outcomes)), cells


def _difference(row: Mapping[str, object], name: str) -> str:
    """A difference with its interval, which one seed has none of."""
    value, low, high = (written(row[name + end]) for end in ("", "_low", "_high"))
    return f"{value} ({low} … {high})" if low else value


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Print an error in one line and leave."""
    typer.echo(f"rlmech: {' '.join(message.split())}", err=True)
    sys.exit(code)


@contextmanager
def kept_on_interrupt(folder: Path | None) -> Generator[None]:
    """Say, where Ctrl-C stops what is inside, which episodes are kept and what goes on with them."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None:
            fail("stopped; no episode is kept. --out FOLDER keeps each as it is finished.", code=INTERRUPTED)
        n = _n_episodes(folder)
        fail(
            f"stopped; {n} finished episodes are kept in {folder}. The same command goes on from there.",
            code=INTERRUPTED,
        )


def _n_episodes(folder: Path) -> int:
    """The episodes of a recording, or of all recordings in a folder."""
    from rlmech.episodes.recording import Recording
    from rlmech.errors import RlmechError

    total = 0
    for one in (folder, *(sub for sub in folder.glob("*") if sub.is_dir())):
        try:
            total += len(Recording.load(one))
        except RlmechError:  # no recording, or one that has no episode yet
            continue
    return total


@contextmanager
def status(what: str, *, enabled: bool) -> Generator[Callable[[str], None]]:
    """A spinner on the standard error; call what it gives to change its text."""
    if not enabled:
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as spinner:
        yield lambda text: spinner.update(text)


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of numpy as Python's, NaN and infinities as None, all else as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def written(value: object) -> str:
    """A cell of a table: numbers with three decimals, truth values as yes and no, nothing for None."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return "n/a" if not math.isfinite(value) else f"{value:z.3f}"
        case _:
            return str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
