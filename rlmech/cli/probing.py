"""`rlmech probes`: what can be read off a policy's hook points, beside what could have been read without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlmech.cli.figure import write_figure
from rlmech.cli.opening import choose_sites, last_hidden, open_policy, refuse_unwritable
from rlmech.cli.options import Config, EnvConfig, Extractor, Figure, Json, Policy, RecordingPath, Seed, Statistics
from rlmech.cli.selecting import Steps, select_steps
from rlmech.console import plain, print_result

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording
    from rlmech.spec import PolicySpec

MOST_FOLDS = 5


def probes(
    policy: Policy,
    recording: RecordingPath,
    target: Annotated[
        str,
        typer.Option("--target", help="What is read: columns of the steps, or observation[2], comma-separated."),
    ] = "action",
    sites: Annotated[
        str, typer.Option("--sites", help="Hook points, comma-separated or a glob; by default the last hidden one.")
    ] = "",
    later: Annotated[int, typer.Option("--later", min=0, help="Read the target that many steps later.")] = 0,
    method: Annotated[
        Literal["linear", "logistic"], typer.Option("--method", help="logistic: for classes, slower.")
    ] = "linear",
    when: Steps = "",
    seed: Seed = 0,
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Fit probes with their controls.

    Each is scored on episodes that it has not seen, beside the same probe on the observation, on untrained networks and
    on shuffled labels.
    """
    import rlmech as rlm

    refuse_unwritable(figure)
    opened = open_policy(policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config)
    episodes = select_steps(rlm.Recording.load(recording), when, spec=opened.spec)
    wanted = {name: _target(name, episodes, spec=opened.spec) for name in _split(target)}
    found = rlm.probes.fit_probe(
        opened,
        episodes,
        target=wanted,
        sites=choose_sites(opened, sites or last_hidden(opened), ""),
        step_offset=later,
        method=method,
        n_folds=min(MOST_FOLDS, len(episodes)),
        seed=seed,
    )
    table = found.table()
    lines = [
        f"{len(episodes.steps)} states of {len(episodes)} episodes"
        + (f", targets read {later} steps later" if later else "")
        + ". Score: R2 of a number, balanced accuracy of a class, on episodes that no fit has seen; 95 % interval."
    ]
    if figure is not None:
        title = f"Probes of {policy}"
        lines.append(f"The figure is at {write_figure(figure, title, lines[0], rlm.plot.probe_scores(found.scores))}.")
    columns = [str(name) for name in table.columns]
    rows = [[plain(value) for value in row] for row in table.to_numpy().tolist()]
    told = {"probes": [dict(zip(columns, row, strict=True)) for row in rows], **plain(dict(found.scores.attrs))}
    print_result(told, as_json=as_json, lines=lines, tables=[(columns, rows)])


def _split(target: str) -> list[str]:
    """Targets as typed; a comma inside brackets belongs to the target."""
    found, depth = [""], 0
    for letter in target:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [one.strip() for one in found if one.strip()]


def _target(name: str, recording: Recording, *, spec: PolicySpec) -> Any:
    """A column of the steps, or a number of the observation."""
    if not name.startswith("observation["):
        return name
    from rlmech.cli.selecting import observed

    return lambda of: observed(of, name, spec=spec)
