"""`rlmech patch`, `ablate` and `circuits`: analyses of recorded states."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlmech.cli.figure import write_figure
from rlmech.cli.opening import choose_sites, open_policy, refuse_unwritable
from rlmech.cli.options import (
    Config,
    EnvConfig,
    Extractor,
    Figure,
    Json,
    Over,
    Policy,
    RecordingPath,
    Seed,
    Sites,
    Statistics,
)
from rlmech.cli.selecting import Steps, select_steps
from rlmech.console import plain, print_result

if TYPE_CHECKING:
    import xarray as xr

    from rlmech.core.policy import HookedPolicy
    from rlmech.episodes.recording import Recording

MOST_ROWS = 40
MOST_PAIRS = 64


def patch(
    policy: Policy,
    recording: RecordingPath,
    sites: Sites = "auto",
    over: Over = "",
    direction: Annotated[
        Literal["denoise", "noise"], typer.Option("--direction", help="denoise: is it enough? noise: is it needed?")
    ] = "denoise",
    when: Steps = "",
    seed: Seed = 0,
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Patch sites between pairs of recorded states.

    On a road, the same state without the most attended vehicle; else another state in which the policy does something
    else (drawn by --seed).
    """
    import rlmech as rlm

    refuse_unwritable(figure)
    opened = open_policy(policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config)
    episodes = select_steps(rlm.Recording.load(recording), when, spec=opened.spec)
    pairs, said = _pairs(opened, episodes, seed=seed)
    chosen = choose_sites(opened, sites, over)
    result = rlm.activation_patching(opened, **pairs, sites=chosen, direction=direction, progress=not as_json)
    lines = [said, f"effect: {result.attrs['method']}; {result.attrs['sign']}."]
    _show_sweep(result, lines, title=f"Patching {policy}", figure=figure, as_json=as_json)


def ablate(
    policy: Policy,
    recording: RecordingPath,
    sites: Sites = "auto",
    over: Over = "",
    kind: Annotated[Literal["zero", "mean", "resample"], typer.Option("--kind", help="What is put there.")] = "mean",
    metric: Annotated[
        Literal["auto", "flip", "gap", "shift"],
        typer.Option("--metric", help="Action flips, the action gap, or how far a continuous action moves."),
    ] = "auto",
    when: Steps = "",
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Ablate sites: does the action change?"""
    import rlmech as rlm
    from rlmech.first_look.analysis import clusters
    from rlmech.first_look.neurons import decision_change

    refuse_unwritable(figure)
    opened = open_policy(policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config)
    episodes = select_steps(rlm.Recording.load(recording), when, spec=opened.spec)
    chosen = choose_sites(opened, sites, over)
    measures = {"flip": rlm.metrics.action_flip, "gap": rlm.metrics.action_gap, "shift": rlm.metrics.action_shift}
    result = rlm.ablation_sweep(
        opened,
        episodes.observations,
        sites=chosen,
        kind=kind,
        metric=decision_change(opened) if metric == "auto" else measures[metric](),
        clusters=clusters(episodes),
        progress=not as_json,
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
    when: Steps = "",
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Read each head's QK or OV circuit.

    Between features, through the gates of a recording's states; without a recording between embeddings.
    """
    import rlmech as rlm

    refuse_unwritable(figure)
    opened = open_policy(policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config)
    _check_heads(opened, when=when, recording=recording)
    read = rlm.circuits.qk_circuit if kind == "qk" else rlm.circuits.ov_circuit
    if recording is None:
        result = read(opened, block, space="model")
        array = result["circuit"]
    else:
        import torch

        chosen = select_steps(rlm.Recording.load(recording), when, spec=opened.spec)
        states = torch.as_tensor(chosen.observations)
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


def _pairs(policy: HookedPolicy, recording: Recording, *, seed: int) -> tuple[dict[str, Any], str]:
    """Clean and corrupt observations with the episode of each pair, and what they are."""
    import numpy as np

    from rlmech.errors import ObservationError
    from rlmech.first_look import take_away
    from rlmech.first_look.analysis import clusters

    if policy.spec.presence is not None:
        taken = take_away(policy, recording)
        found = {"clean": taken.clean, "corrupt": taken.corrupt, "clusters": clusters(recording, taken.rows)}
        return found, (
            f"{len(taken.rows)} pairs of {taken.n_states} states; taking the vehicle away ({taken.chosen_by}) changes "
            f"the action in {taken.n_flips}."
        )
    observations, generator = recording.observations, np.random.default_rng(seed)
    n_states = len(recording.steps)
    rows = np.sort(generator.permutation(n_states)[:MOST_PAIRS])
    continuous = policy.output_kind == "mean_action"
    done = np.arange(n_states) if continuous else recording.scores.argmax(-1).reshape(n_states, -1)[:, 0]
    others = [np.flatnonzero(done != done[row]) for row in rows]
    if not all(map(len, others)):
        raise ObservationError(
            "The policy does the same in all of these states, so that there are no pairs.",
            given=f"{n_states} states",
            expected="states in which it acts differently",
            fix="record more episodes, or leave --when out",
        )
    partners = np.array([generator.choice(other) for other in others])

    def at(places: Any) -> Any:
        if isinstance(observations, dict):
            return {name: values[places] for name, values in observations.items()}
        return observations[places]

    what = "another state" if continuous else "a state in which the policy does something else"
    found = {"clean": at(rows), "corrupt": at(partners), "clusters": clusters(recording, rows)}
    return found, f"{len(rows)} of {n_states} states, each paired with {what}."


def _check_heads(policy: HookedPolicy, *, when: str, recording: Path | None) -> None:
    from rlmech.errors import ConfigError

    if not policy.attention:
        raise ConfigError(
            "The policy has no attention heads, whose circuits these are.",
            given=f"{len(policy.hook_dict)} hook points without attention",
            expected="a policy with attention",
            fix="rlmech ablate and rlmech patch find what matters in any policy; rlm.attribution.local_affine reads "
            "the map of a network without heads",
        )
    if when and recording is None:
        raise ConfigError(
            "There are no steps to choose from.",
            given=f"--when {when!r} without a recording",
            expected="a recording behind the policy",
            fix="give one, or leave --when out",
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
