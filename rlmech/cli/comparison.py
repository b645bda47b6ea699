"""`rlmech compare`: what ablations do to whole episodes, on the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlmech.cli.ablations import AblationKind, At, Which, conditions, edits, states
from rlmech.cli.figure import write_figure
from rlmech.cli.opening import open_with_env, refuse_unwritable
from rlmech.cli.options import (
    Config,
    EnvConfig,
    Environment,
    Extractor,
    Json,
    Out,
    Policy,
    Reference,
    Seed,
    Statistics,
    WhichBackend,
    Workers,
    Wrapper,
)
from rlmech.cli.selecting import Acting, acting_when
from rlmech.console import kept_on_interrupt, plain, print_result
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    import xarray as xr


def compare(
    policy: Policy,
    env: Environment = None,
    ablate: Which = "head",
    sites: At = "auto",
    kind: AblationKind = "mean",
    reference: Reference = None,
    when: Acting = "",
    seeds: Annotated[int, typer.Option("--seeds", "--episodes", min=2, help="Number of seeds.")] = 100,
    seed: Seed = 0,
    controls: Annotated[str, typer.Option("--controls", help="Also random_site, random_direction, or both.")] = "",
    half_width: Annotated[
        float | None, typer.Option("--half-width", help="Say how many seeds this precision of return needs.")
    ] = None,
    workers: Workers = 1,
    backend: WhichBackend = "processes",
    out: Out = None,
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    wrapper: Wrapper = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Drive the same seeds with and without ablations."""
    import rlmech as rlm

    _check_precision(half_width)
    refuse_unwritable(out)
    both = open_with_env(
        policy,
        env,
        wrappers=wrapper or (),
        config=config,
        extractor=extractor,
        vecnormalize=vecnormalize,
        env_config=env_config,
    )
    opened, made, run = both.policy, both.env, range(seed, seed + seeds)
    chosen, acting = conditions(opened, ablate, sites=sites), acting_when(when, spec=opened.spec)
    folder = None if out is None else out / "recordings"
    seen = None
    with kept_on_interrupt(folder):
        if kind == "mean":
            seen = states(opened, made, reference=reference, seeds=run, progress=not as_json)
        result = rlm.compare_rollouts(
            opened,
            made,
            conditions={name: edits(opened, own, kind=kind, observations=seen) for name, own in chosen.items()},
            seeds=run,
            when=acting,
            controls=[one.strip() for one in controls.split(",") if one.strip()],  # type: ignore[misc]  # checked there
            workers=workers,
            backend=backend,
            path=folder,
            progress=not as_json,
        )
    said = "Each ablated part is at zero" + (f" when {when}." if when else ".")
    if seen is not None:
        n = len(next(iter(seen.values())) if isinstance(seen, dict) else seen)
        said = f"Each ablated part is at its mean over the {n} states of {reference or 'the first episodes, unedited'}"
        said += f" when {when}." if when else "."
    _show(result, said, half_width=half_width, out=out, title=f"{policy}, {kind} ablation", as_json=as_json)


def _check_precision(half_width: float | None) -> None:
    from rlmech.errors import ConfigError

    if half_width is not None and half_width <= 0:
        raise ConfigError(
            "No number of seeds gives that precision.",
            given=f"--half-width {half_width:g}",
            expected="a width above 0, in the unit of the return",
            fix="e.g. --half-width 0.5",
        )


def _show(
    result: xr.Dataset, said: str, *, half_width: float | None, out: Path | None, title: str, as_json: bool
) -> None:
    """Print the table, and write it with the figure."""
    import rlmech as rlm
    from rlmech.first_look.summary import conditions as rows

    attrs = result.attrs
    table = rlm.episodes.comparison_table(result)
    found: JsonObject = {"n_seeds": result.sizes["seed"], "conditions": rows(result), **plain(dict(attrs))}
    lines = [
        f"{result.sizes['seed']} seeds of {attrs['env']}: the baseline's means, and mean differences from it on the "
        f"same seeds, {100 * attrs['confidence']:g} % interval; *: p < 0.05 after Holm's correction. {said}"
    ]
    idle = result["condition"].values[result["never_active"].values].tolist()
    if idle:
        lines.append(f"Never at work: {', '.join(idle)}.")
    if half_width is not None:
        from rlmech.statistics import FEWEST

        if result.sizes["seed"] < FEWEST:
            found["seeds_needed"] = None
            lines.append(f"How many seeds a precision takes is told from {FEWEST} seeds on.")
        else:
            needed = rlm.episodes.seeds_needed(result, "return", half_width=half_width)
            found["seeds_needed"] = {"half_width": half_width, **plain(dict(needed.to_series().items()))}
            each = [f"{name}: {int(n)}" for name, n in needed.to_series().items() if name != "baseline"]
            lines.append(f"Seeds for a difference of return within ±{half_width:g}: {', '.join(each)}.")
    if out is not None:
        found |= {name: str(path) for name, path in _write(result, out, title=title, meaning=lines[0]).items()}
        lines.append(f"The figure is at {found['figure']}, the table at {found['table']}.")
    cells = [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    print_result(
        found,
        as_json=as_json,
        lines=lines,
        tables=[(["condition", *table.columns], cells)],
    )


def _write(result: xr.Dataset, out: Path, *, title: str, meaning: str) -> dict[str, Path]:
    """The figure as a page, and the numbers of every condition as a table."""
    import pandas as pd

    import rlmech as rlm
    from rlmech.first_look.summary import conditions as rows

    figure = write_figure(out / "comparison.html", title, meaning, rlm.plot.comparison(result))
    table = out / "comparison.csv"
    pd.DataFrame(rows(result)).to_csv(table, index=False)
    return {"figure": figure, "table": table}
