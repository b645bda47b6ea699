"""The atlas over a folder of agents: a row a policy, written as soon as it is done, gone on with where it was stopped.

Rows lie as JSON in `rows/TABLE/NAME.json`, with the sizes and the file that they are of; a row of other sizes or of
another file is made again. `TABLE.csv` and `TABLE.parquet` are written from them after each agent.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from rlmech.arguments import explain_misuse
from rlmech.atlas.agents import Agent, find_zips, name_of, open_agent
from rlmech.atlas.closed_loops import loop_row
from rlmech.atlas.identity import identity_row
from rlmech.atlas.methods import method_row
from rlmech.atlas.pairs import pair_rows
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import States, states_of
from rlmech.atlas.units import unit_row
from rlmech.errors import ConfigError, RlmechError
from rlmech.files import moved_into_place
from rlmech.progress import remark
from rlmech.untyped import JsonObject

Table = Literal["identity", "units", "loops", "methods", "pairs"]
TABLES: tuple[Table, ...] = get_args(Table)
_MAKERS: Mapping[str, Callable[[Agent, States, Sizes], JsonObject]] = {
    "units": unit_row,
    "loops": loop_row,
    "methods": method_row,
}
FORMAT = 1


@explain_misuse
def map_policies(
    folder: str | Path,
    out: str | Path,
    *,
    tables: Sequence[Table] = TABLES,
    sizes: Sizes | None = None,
    only: str = "",
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Ask every agent of a folder the same questions.

    Args:
        folder: Zips of Stable-Baselines3, at any depth, with what RL Zoo puts beside them: `config.yml`,
            `vecnormalize.pkl`, `evaluations.npz`.
        out: Where rows and tables are written; an interrupted call goes on from what is there.
        tables: `identity` (A), `units` (B), `loops` (C, closed loops), `pairs` (F) and `methods` (G). The first is
            always made: it says who runs.
        sizes: How many states and seeds; None for those of the published tables.
        only: Take agents whose name has this in it.
        progress: Whether to say on the standard error what is being done.

    Returns:
        By name the tables, each with a row a policy (`pairs`: a pair), and `neurons`, a row a unit. Agents that do not
        open, have no environment here or do not return what was published are in `identity` alone, with the problem.
        Columns that end in `_untrained` are means over networks of the same shape with fresh weights, in the agent's
        states.

    Raises:
        ConfigError: No zips there, or no such table.

    Example:
        >>> import rlmech as rlm
        >>> try:
        ...     rlm.atlas.map_policies("no_such_folder", "out")
        ... except rlm.RlmechError as error:
        ...     print(error.problem)
        There are no agents to ask.
    """
    folder, out, sizes = Path(folder), Path(out), sizes or Sizes()
    paths = [path for path in find_zips(folder) if only.lower() in name_of(path, folder)[0].lower()]
    unknown = [table for table in tables if table not in TABLES]
    if not paths or unknown:
        raise ConfigError(
            f"There is no table {unknown[0]!r}." if unknown else "There are no agents to ask.",
            given=", ".join(tables) if unknown else f"{folder}, without a zip{f' of {only!r}' if only else ''}",
            expected=f"some of {', '.join(TABLES)}" if unknown else "a folder with zips of Stable-Baselines3",
            fix="leave tables out for all of them" if unknown else "name the folder that holds the agents",
        )
    groups: dict[str, list[tuple[Agent, States]]] = {}
    for path in paths:
        _ask(path, folder, _Rows(out, sizes), tables, groups, progress=progress)
        write_tables(out)
    if "pairs" in tables:
        rows = _Rows(out, sizes)
        for task, agents in groups.items():
            several = agents if len(agents) > 1 else []
            key = " ".join(agent.policy.fingerprint for agent, _ in several)
            rows.make("pairs", task, key, lambda own=several: {"pairs": pair_rows(own, sizes) if own else []})
    return write_tables(out)


def _ask(
    path: Path,
    folder: Path,
    rows: _Rows,
    tables: Sequence[Table],
    groups: dict[str, list[tuple[Agent, States]]],
    *,
    progress: bool,
) -> None:
    """Make the rows of one agent that are not there yet."""
    name, algorithm = name_of(path, folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = rows.read("identity", name, digest)
    wanted = [table for table in _MAKERS if table in tables and rows.read(table, name, digest) is None]
    paired = "pairs" in tables and bool(known is None or known.get("is_of_d16"))
    runs = known is None or (known.get("problem") is None and known.get("fits") is not False)
    if not runs or (known is not None and not wanted and not paired):
        return
    who = {"policy": name, "algorithm": algorithm}
    started = time.process_time()
    try:
        agent = open_agent(path, folder)
        states = states_of(agent, rows.sizes)
        known = rows.make("identity", name, digest, lambda: who | identity_row(agent, states, rows.sizes))
    except RlmechError as error:
        problem = who | _problem(error)
        rows.make("identity", name, digest, lambda: problem)
        return
    if known.get("fits") is False:
        return
    about = who | {"task": agent.task, "is_of_d16": agent.is_of_d16, "scores": agent.policy.output_kind}
    about["activation"] = known["activation"]
    for table in wanted:
        remark(f"{name}: {table}", enabled=progress)
        try:
            rows.make(table, name, digest, lambda own=_MAKERS[table]: about | own(agent, states, rows.sizes))
        except RlmechError as error:  # a question that does not fit this agent; the others go on
            problem = about | _problem(error)
            rows.make(table, name, digest, lambda own=problem: own)
    remark(f"{name}: {time.process_time() - started:.0f} s of CPU", enabled=progress)
    if agent.is_of_d16:
        groups.setdefault(agent.task, []).append((agent, states))


def _problem(error: RlmechError) -> JsonObject:
    return {"problem": error.problem, "given": error.given[:300]}


class _Rows:
    """The rows that are there.

    Args:
        out: The folder of the atlas.
        sizes: What rows have to be of.
    """

    def __init__(self, out: Path, sizes: Sizes) -> None:
        self._out, self.sizes = out, sizes

    def read(self, table: str, name: str, key: str) -> JsonObject | None:
        """A row; None where there is none of this file and these sizes."""
        path = _path(self._out, table, name)
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return read["row"] if read.get("made_of") == self._made_of(key) else None

    def make(self, table: str, name: str, key: str, maker: Callable[[], JsonObject]) -> JsonObject:
        """A row, read or made and written."""
        row = self.read(table, name, key)
        if row is None:
            started = time.process_time()
            row = maker()
            row["seconds"] = round(time.process_time() - started, 1)
            path = _path(self._out, table, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"made_of": self._made_of(key), "row": row}, default=_plain)
            with moved_into_place(path) as partial:
                partial.write_text(text, encoding="utf-8")
            row = json.loads(text)["row"]
        return row

    def _made_of(self, key: str) -> JsonObject:
        return {"format": FORMAT, "file": key, "sizes": asdict(self.sizes)}


def write_tables(out: str | Path) -> dict[str, pd.DataFrame]:
    """Write the tables from the rows that are there; by name.

    Args:
        out: The folder of an atlas.
    """
    out = Path(out)
    found: dict[str, list[JsonObject]] = {table: [] for table in TABLES}
    neurons: dict[tuple[Any, ...], JsonObject] = {}
    for table in TABLES:
        for path in sorted((out / "rows" / table).glob("*.json")):
            row = json.loads(path.read_text(encoding="utf-8"))["row"]
            if table == "pairs":
                found[table] += row["pairs"]
                continue
            for unit in row.pop("units", []):
                key = (row["policy"], unit["layer"], unit["unit"])
                neurons.setdefault(key, {"policy": row["policy"]}).update(unit)
            found[table].append(row)
    tables = {name: pd.DataFrame(rows) for name, rows in found.items()} | {"neurons": pd.DataFrame([*neurons.values()])}
    for name, table in tables.items():
        if len(table):
            with moved_into_place(out / f"{name}.csv") as partial:
                table.to_csv(partial, index=False, float_format="%.6g")
            with moved_into_place(out / f"{name}.parquet") as partial:
                table.to_parquet(partial, index=False)
    return tables


def _path(out: Path, table: str, name: str) -> Path:
    return out / "rows" / table / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}.json"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
