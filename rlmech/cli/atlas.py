"""`rlmech atlas`: the same questions to every agent of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmech.cli.opening import refuse_unwritable
from rlmech.cli.options import Json
from rlmech.console import INTERRUPTED, fail, plain, print_result

if TYPE_CHECKING:
    import pandas as pd

Tables = Annotated[
    str, typer.Option("--tables", help="Some of identity, units, loops, methods, pairs; with commas. Default: all.")
]


def atlas(
    zips: Annotated[Path, typer.Option("--zips", help="Folder of Stable-Baselines3 zips, as RL Zoo lays them out.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of rows and tables; an interrupted run goes on.")] = Path(
        "report/atlas"
    ),
    tables: Tables = "",
    only: Annotated[str, typer.Option("--only", help="Take agents whose name has this in it.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Few states and seeds: does it run?")] = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Ask every agent of a folder the same questions; tables, a row a policy."""
    import rlmech as rlm

    refuse_unwritable(out)
    chosen = [one.strip() for one in tables.split(",") if one.strip()]
    given = {"tables": chosen} if chosen else {}
    try:
        found = rlm.atlas.map_policies(
            zips,
            out,
            only=only,
            sizes=rlm.atlas.Sizes.quick() if quick else None,
            progress=not as_json,
            **given,  # type: ignore[arg-type]  # checked there
        )
    except KeyboardInterrupt:
        fail(f"stopped; the finished rows are kept in {out}. The same command goes on from there.", code=INTERRUPTED)
    told = rlm.atlas.answers(out)
    told.to_csv(out / "answers.csv", index=False, float_format="%.6g")
    agents = found["identity"]
    ran = int(agents["return"].notna().sum()) if "return" in agents else 0
    shown = told[told["algorithm"] == "all"] if len(told) else told
    rows = [[_cell(value) for value in row] for row in shown.drop(columns="algorithm", errors="ignore").to_numpy()]
    columns = [name for name in shown.columns if name != "algorithm"]
    print_result(
        {"out": str(out), "n_agents": len(agents), "n_ran": ran, "answers": plain(_records(told))},
        as_json=as_json,
        lines=[f"{ran} of {len(agents)} agents ran; tables are in {out}, intervals are over policies."],
        tables=[(columns, rows)] if rows else [],
    )


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    clean = table.astype(object).where(table.notna(), None)
    return clean.to_dict("records")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"  # NaN
    return "" if value is None else str(value)
