"""`rlmech patch`, `ablate` and `circuits`: analyses of recorded states."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlmech.cli.figure import write_figure
from rlmech.cli.opening import choose_sites, open_policy
from rlmech.cli.options import Config, EnvConfig, Extractor, Figure, Json, Over, Policy, RecordingPath, Sites
from rlmech.console import plain, print_result

if TYPE_CHECKING:
    import xarray as xr

MOST_ROWS = 40


def patch(
    policy: Policy,
    recording: RecordingPath,
    sites: Sites = "auto",
    over: Over = "",
    direction: Annotated[
        Literal["denoise", "noise"], typer.Option("--direction", help="denoise: is it enough? noise: is it needed?")
    ] = "denoise",
    config: Config = None,
    extractor: Extractor = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Take away the most attended vehicle, patch sites."""
    import rlmech as rlm
    from rlmech.first_look import take_away

    opened, episodes = (
        open_policy(policy, config=config, extractor=extractor, env_config=env_config),
        rlm.Recording.load(recording),
    )
    pairs = take_away(opened, episodes)
    chosen = choose_sites(opened, sites, over)
    result = rlm.activation_patching(
        opened, clean=pairs.clean, corrupt=pairs.corrupt, sites=chosen, direction=direction, progress=not as_json
    )
    lines = [
        f"{len(pairs.rows)} pairs of {pairs.n_states} states; taking the vehicle away ({pairs.chosen_by}) changes the "
        f"action in {pairs.n_flips}.",
        f"effect: {result.attrs['method']}; {result.attrs['sign']}.",
    ]
    _show_sweep(result, lines, title=f"Patching {policy}", figure=figure, as_json=as_json)


def ablate(
    policy: Policy,
    recording: RecordingPath,
    sites: Sites = "auto",
    over: Over = "",
    kind: Annotated[Literal["zero", "mean", "resample"], typer.Option("--kind", help="What is put there.")] = "mean",
    metric: Annotated[
        Literal["flip", "gap"], typer.Option("--metric", help="Action flips, or the action gap.")
    ] = "flip",
    config: Config = None,
    extractor: Extractor = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Ablate sites: how often does the action change?"""
    import rlmech as rlm

    opened, episodes = (
        open_policy(policy, config=config, extractor=extractor, env_config=env_config),
        rlm.Recording.load(recording),
    )
    chosen = choose_sites(opened, sites, over)
    measure = rlm.metrics.action_flip() if metric == "flip" else rlm.metrics.action_gap()
    result = rlm.ablation_sweep(
        opened, episodes.observations, sites=chosen, kind=kind, metric=measure, progress=not as_json
    )
    lines = [f"{len(episodes.steps)} states; effect: {result['effect'].attrs['long_name']} by {kind} ablation."]
    _show_sweep(result, lines, title=f"Ablating {policy}", figure=figure, as_json=as_json)


def circuits(
    policy: Policy,
    recording: Annotated[Path | None, typer.Argument(help="States whose gates are taken; none: embeddings.")] = None,
    kind: Annotated[Literal["qk", "ov"], typer.Option("--kind", help="What it looks for, or what it says.")] = "qk",
    entity: Annotated[str | None, typer.Option("--entity", help="Whose circuit, e.g. vehicle_1.")] = None,
    block: Annotated[
        str | None, typer.Option("--block", help="Path of the attention, where there are several.")
    ] = None,
    config: Config = None,
    extractor: Extractor = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Read each head's QK or OV circuit.

    Between features, through the gates of a recording's states; without a recording between embeddings.
    """
    import rlmech as rlm

    opened = open_policy(policy, config=config, extractor=extractor, env_config=env_config)
    read = rlm.circuits.qk_circuit if kind == "qk" else rlm.circuits.ov_circuit
    if recording is None:
        result = read(opened, block, space="model")
        array = result["circuit"]
    else:
        import torch

        states = torch.as_tensor(rlm.Recording.load(recording).observations)
        result = read(opened, block, space="feature", obs=states)
        names = opened.spec.entities
        result = result.sel(entity=entity or (names[1] if len(names) > 1 else result.coords["entity"].values[-1]))
        array = result["circuit"].isel(query=0, drop=True)
    if figure is not None:
        write_figure(figure, f"{kind.upper()} circuit of {policy}", "One panel per head.", rlm.plot.circuit(array))
    strongest = _strongest(array)
    found = {"kind": kind, **plain(dict(result.attrs)), "circuit": plain(array.to_dict())}
    print_result(
        found,
        as_json=as_json,
        lines=[
            f"{kind.upper()} circuit, {' x '.join(f'{size} {dim}' for dim, size in array.sizes.items())}; "
            "the strongest entries:"
        ],
        tables=[((*[str(dim) for dim in array.dims], "value"), strongest)],
    )


def _show_sweep(result: xr.Dataset, lines: list[str], *, title: str, figure: Path | None, as_json: bool) -> None:
    from rlmech.first_look.summary import rows

    if figure is not None:
        import rlmech as rlm

        lines.append(f"The figure is at {write_figure(figure, title, ' '.join(lines), rlm.plot.sweep(result))}.")
    table = sorted(rows(result), key=lambda row: -abs(row["effect"] or 0.0))
    columns = list(dict.fromkeys(key for row in table for key in row))
    cells = [[row.get(column) for column in columns] for row in table[:MOST_ROWS]]
    if len(table) > MOST_ROWS:
        lines.append(f"The {MOST_ROWS} largest of {len(table)} effects; --json prints all.")
    print_result(
        {"sites": plain(rows(result)), **plain(dict(result.attrs))},
        as_json=as_json,
        lines=lines,
        tables=[(columns, cells)],
    )


def _strongest(array: xr.DataArray) -> list[list[object]]:
    """The largest entries of an array, each with its names."""
    import numpy as np

    values = np.asarray(array.values, dtype=float)
    table: list[list[object]] = []
    for flat in np.argsort(-np.abs(values), axis=None)[:MOST_ROWS]:
        place = np.unravel_index(int(flat), values.shape)
        names = [plain(array.coords[dim].values[i]) for dim, i in zip(array.dims, place, strict=True)]
        table.append([*names, float(values[place])])
    return table
