"""`rlmech record` and `rlmech view`: episodes, driven and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rlmech.cli.ablations import EXAMPLE, AblationKind, At, conditions, edits, states
from rlmech.cli.opening import open_with_env, refuse_unwritable
from rlmech.cli.options import (
    Config,
    EnvConfig,
    Environment,
    Episodes,
    Extractor,
    Json,
    Policy,
    RecordingPath,
    Reference,
    Seed,
    Statistics,
    WhichBackend,
    Workers,
    Wrapper,
)
from rlmech.cli.selecting import Acting, acting_when
from rlmech.console import kept_on_interrupt, print_result, status
from rlmech.untyped import JsonObject


def record(
    policy: Policy,
    env: Environment = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the recording; one made in the same way is gone on with.")
    ] = Path("recording"),
    names: Annotated[str, typer.Option("--names", help="Hook points to keep, comma-separated; globs.")] = "auto",
    ablate: Annotated[str, typer.Option("--ablate", help="Drive with this ablated, e.g. 'head 3', 'head 0+3'.")] = "",
    sites: At = "auto",
    kind: AblationKind = "mean",
    reference: Reference = None,
    when: Acting = "",
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    wrapper: Wrapper = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    workers: Workers = 1,
    backend: WhichBackend = "processes",
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Record episodes, with the policy's attention.

    With --ablate the policy drives without some of its parts.
    """
    import rlmech as rlm

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
    opened, made, seeds = both.policy, both.env, range(seed, seed + episodes)
    _check_when(when, ablate)
    acting: list[Any] = []
    if ablate:
        chosen = _one_condition(conditions(opened, ablate, sites=sites), ablate)
        seen = None
        if kind == "mean":
            seen = states(opened, made, reference=reference, seeds=seeds, progress=not as_json)
        acting = edits(opened, chosen, kind=kind, observations=seen)
    kept = [block.names["pattern"] for block in opened.attention.values()] if names == "auto" else names.split(",")
    with kept_on_interrupt(out):
        recording = rlm.record(
            opened,
            made,
            seeds=seeds,
            names=[name for name in kept if name],
            edits=acting,
            when=acting_when(when, spec=opened.spec),
            path=out,
            workers=workers,
            backend=backend,
            progress=not as_json,
        )
    table: Any = recording.episodes
    found: JsonObject = {"recording": str(out), "episodes": json.loads(table.to_json(orient="records"))}
    columns = [str(name) for name in table.columns if name != "episode"]
    lines = [f"{len(recording)} episodes, {len(recording.steps)} decisions, at {out}."]
    if acting:
        lines.append(f"At work{f' when {when}' if when else ''}: {'; '.join(map(str, acting))}.")
        found["edits"] = [str(edit) for edit in acting]
    cells = [[one[name] for name in columns] for one in found["episodes"]]
    print_result(found, as_json=as_json, lines=lines, tables=[(columns, cells)])


def _check_when(when: str, ablate: str) -> None:
    from rlmech.errors import ConfigError

    if when and not ablate:
        raise ConfigError(
            "There is nothing that could act at some steps only.",
            given=f"--when {when!r} without --ablate",
            expected="--when beside an ablation; every step is recorded",
            fix="leave --when out, and give it to rlmech ablate, patch or probes, which analyse a recording's steps",
        )


def _one_condition(chosen: JsonObject, ablate: str) -> list[Any]:
    from rlmech.errors import ConfigError

    if len(chosen) > 1:
        raise ConfigError(
            "A recording is of one condition.",
            given=f"--ablate {ablate!r}, which is {len(chosen)}",
            expected="one position, or several joined by plus signs",
            fix=f"{EXAMPLE}; rlmech compare drives several conditions",
        )
    return next(iter(chosen.values()))


def view(
    recording: RecordingPath,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("view.html"),
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes to show, from the first.")] = 20,
    browser: Annotated[bool, typer.Option("--open", help="Also open it in the browser.")] = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Write a page to step through a recording."""
    import rlmech as rlm

    refuse_unwritable(out)
    opened = rlm.Recording.load(recording)
    shown: list[int] = opened.episodes["episode"].tolist()[:episodes]
    with status("drawing the episodes", enabled=not as_json):
        panel = rlm.plot.Panel(
            title="The episodes, step by step",
            meaning="What was seen and done at each step, as far as it was recorded: a road or a grid, scores, "
            "attention (lines from the ego to the vehicles, one colour per head, as wide as the weight). The buttons "
            "jump to the steps at which the action changes.",
            figure=rlm.plot.episodes(opened, only=shown),
            code=f"recording = rlm.Recording.load({str(recording)!r})\nrlm.plot.episodes(recording)",
        )
        title = f"{len(shown)} of {len(opened)} episodes of {opened.manifest['env']['id']}"
        written = rlm.plot.page([rlm.plot.Section(title="Episodes", panels=(panel,))], out, title=title)
    if browser:
        typer.launch(written.resolve().as_uri())
    print_result(
        {"page": str(written), "n_episodes": len(shown), "n_recorded": len(opened)},
        as_json=as_json,
        lines=[f"{title}: the page is at {written}."],
    )
