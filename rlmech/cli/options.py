"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Backend = Literal["processes", "ray", "dask"]
Kind = Literal["mean", "zero"]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Policy = Annotated[str, typer.Argument(help="SB3 .zip, rl-agents .tar, a saved policy, or zoo:NAME.")]
Config = Annotated[Path | None, typer.Option("--config", help="JSON configuration of an rl-agents checkpoint.")]
EnvConfig = Annotated[Path | None, typer.Option("--env-config", help="JSON configuration of the environment.")]
Extractor = Annotated[
    str | None,
    typer.Option(
        "--features-extractor-class", help="Class of an SB3 zip's own extractor, module:Class or file.py:Class."
    ),
]
Statistics = Annotated[
    Path | None,
    typer.Option("--vecnormalize", help="Statistics of VecNormalize: a .pkl or .npz; by default those beside the zip."),
]
Wrapper = Annotated[
    list[str] | None,
    typer.Option(
        "--wrapper", help="Wrapper around the environment, e.g. gymnasium.wrappers.FlattenObservation; innermost first."
    ),
]
Environment = Annotated[str | None, typer.Argument(help="Gymnasium id; by default the policy's own.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of figure, table and recordings; an interrupted run goes on.")
]
RecordingPath = Annotated[Path, typer.Argument(help="A directory that `rlmech record` wrote.")]
Figure = Annotated[Path | None, typer.Option("--figure", help="Also write a page with the figure, e.g. heads.html.")]
Sites = Annotated[str, typer.Option("--sites", help='Hook points: a name or a glob, or "auto".')]
Over = Annotated[str, typer.Option("--over", help="Axes to run through, e.g. head or head,entity.")]
Episodes = Annotated[int, typer.Option("--episodes", min=1, help="Number of episodes.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the first episode; the others count up.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes to record in.")]
WhichBackend = Annotated[Backend, typer.Option("--backend", help="Where they run: here, or on a cluster.")]
Reference = Annotated[
    Path | None, typer.Option("--reference", help="Recording whose states a mean is taken over; none: drives first.")
]
