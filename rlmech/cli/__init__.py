"""`rlmech` on the command line: each command is a few lines over what `import rlmech` shows.

Results go to the standard output, as a table or with `--json` as JSON; progress and errors go to the standard error. An
error is one line that says what was given, what was expected and how to mend it; the exit code is then 2. Nothing heavy
is imported before a command runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlmech.console import fail, look_lines, look_tables, plain, print_result, status

if TYPE_CHECKING:
    import xarray as xr

    from rlmech.core.edit import Site
    from rlmech.core.policy import HookedPolicy

MOST_ROWS = 40
ZOO_POLICY = "zoo:intersection-ego-attention"
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Open a trained reinforcement-learning policy: see, change and measure what it computes.",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Policy = Annotated[str, typer.Argument(help="SB3 .zip, rl-agents .tar, a saved policy, or zoo:NAME.")]
Config = Annotated[Path | None, typer.Option("--config", help="JSON configuration of an rl-agents checkpoint.")]
EnvConfig = Annotated[Path | None, typer.Option("--env-config", help="JSON configuration of the environment.")]
RecordingPath = Annotated[Path, typer.Argument(help="A directory that `rlmech record` wrote.")]
Figure = Annotated[Path | None, typer.Option("--figure", help="Also write a page with the figure, e.g. heads.html.")]
Sites = Annotated[str, typer.Option("--sites", help='Hook points: a name or a glob, or "auto".')]
Over = Annotated[str, typer.Option("--over", help="Axes to run through, e.g. head or head,entity.")]
Episodes = Annotated[int, typer.Option("--episodes", min=1, help="Number of episodes.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the first episode; the others count up.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes to record in.")]


def _version(show: bool) -> None:  # noqa: FBT001  # typer's callback
    if show:
        from importlib.metadata import version

        typer.echo(f"rlmech {version('rlmech')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Open a trained reinforcement-learning policy: see, change and measure what it computes."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = Path("report"),
    episodes: Episodes = 20,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Do it all on the shipped policy and write a page."""
    _look(ZOO_POLICY, _open(ZOO_POLICY), None, out, range(seed, seed + episodes), workers, as_json=as_json)


@app.command()
def report(
    policy: Policy,
    env: Annotated[str | None, typer.Argument(help="Gymnasium id; by default the policy's own.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = Path("report"),
    config: Config = None,
    env_config: EnvConfig = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Do what demo does for any policy and environment."""
    opened = _open(policy, config=config, env_config=env_config, env=env)
    _look(policy, opened, env, out, range(seed, seed + episodes), workers, as_json=as_json)


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="A TOML file, e.g. experiments/00_train_the_zoo/highway_dqn_mlp.toml.")
    ],
    run: Annotated[Path | None, typer.Option("--run", help="The run's folder; runs/NAME by default.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Train, evaluate and write a card; resumes a run."""
    from rlmech.training import train as run_training

    written = run_training(config, run, progress=not as_json)
    card = json.loads((written / "card.json").read_text(encoding="utf-8"))
    lines = [card["about"], f"The run is at {written}, its card at {written / 'card.json'}."]
    print_result({"run": str(written), "card": card}, as_json=as_json, lines=lines)


@app.command()
def inspect(
    policy: Policy,
    config: Config = None,
    env_config: EnvConfig = None,
    env: Annotated[str | None, typer.Option("--env", help="Gymnasium id, for names and shapes.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """List a policy's hook points, axes and attention."""
    opened = _open(policy, config=config, env_config=env_config, env=env)
    points: list[dict[str, Any]] = [
        {"name": name, "kind": point.kind, "axes": list(point.axes), "shape": list(point.shape)}
        for name, point in opened.hook_dict.items()
    ]
    found: dict[str, Any] = {
        "policy": policy,
        "fingerprint": opened.fingerprint,
        "engine": opened.engine,
        "output_kind": opened.output_kind,
        "n_parameters": sum(parameter.numel() for parameter in opened.module.parameters()),
        "spec": opened.spec.to_json(),
        "attention": {
            path: {"n_heads": block.n_heads, "d_head": block.d_head, "d_model": block.d_model}
            for path, block in opened.attention.items()
        },
        "hook_points": points,
    }
    heads = [f"{path or 'root'}: {one['n_heads']} heads x {one['d_head']}" for path, one in found["attention"].items()]
    print_result(
        found,
        as_json=as_json,
        lines=[
            f"{policy}: {found['n_parameters']:,} parameters, gives {opened.output_kind}, engine {opened.engine}",
            f"actions: {', '.join(opened.spec.actions) or 'not named'}",
            f"attention: {'; '.join(heads) or 'none'}",
        ],
        tables=[
            (
                ("hook point", "kind", "axes", "shape"),
                [
                    (one["name"], one["kind"], " ".join(one["axes"]), " ".join(str(n or "·") for n in one["shape"]))
                    for one in points
                ],
            )
        ],
    )


@app.command()
def record(
    policy: Policy,
    env: Annotated[str | None, typer.Argument(help="Gymnasium id; by default the policy's own.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the recording; it must not exist.")] = Path("recording"),
    names: Annotated[str, typer.Option("--names", help="Hook points to keep, comma-separated; globs.")] = "auto",
    config: Config = None,
    env_config: EnvConfig = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Record episodes, with the policy's attention."""
    import rlmech as rlm

    opened = _open(policy, config=config, env_config=env_config, env=env)
    kept = [block.names["pattern"] for block in opened.attention.values()] if names == "auto" else names.split(",")
    recording = rlm.record(
        opened,
        _make_env(opened, env),
        seeds=range(seed, seed + episodes),
        names=[name for name in kept if name],
        path=out,
        workers=workers,
        progress=not as_json,
    )
    table: Any = recording.episodes
    found: dict[str, Any] = {"recording": str(out), "episodes": json.loads(table.to_json(orient="records"))}
    columns = [str(name) for name in table.columns if name != "episode"]
    lines = [f"{len(recording)} episodes, {len(recording.steps)} decisions, at {out}."]
    cells = [[one[name] for name in columns] for one in found["episodes"]]
    print_result(found, as_json=as_json, lines=lines, tables=[(columns, cells)])


@app.command()
def patch(
    policy: Policy,
    recording: RecordingPath,
    sites: Sites = "auto",
    over: Over = "",
    direction: Annotated[
        Literal["denoise", "noise"], typer.Option("--direction", help="denoise: is it enough? noise: is it needed?")
    ] = "denoise",
    config: Config = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Take away the most attended vehicle, patch sites."""
    import rlmech as rlm
    from rlmech.first_look import take_away

    opened, episodes = _open(policy, config=config, env_config=env_config), rlm.Recording.load(recording)
    pairs = take_away(opened, episodes)
    chosen = _sites(opened, sites, over)
    result = rlm.activation_patching(
        opened, clean=pairs.clean, corrupt=pairs.corrupt, sites=chosen, direction=direction, progress=not as_json
    )
    lines = [
        f"{len(pairs.rows)} pairs of {pairs.n_states} states; taking the vehicle away ({pairs.chosen_by}) changes the "
        f"action in {pairs.n_flips}.",
        f"effect: {result.attrs['method']}; {result.attrs['sign']}.",
    ]
    _show_sweep(result, lines, title=f"Patching {policy}", figure=figure, as_json=as_json)


@app.command()
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
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Ablate sites: how often does the action change?"""
    import rlmech as rlm

    opened, episodes = _open(policy, config=config, env_config=env_config), rlm.Recording.load(recording)
    chosen = _sites(opened, sites, over)
    measure = rlm.action_flip() if metric == "flip" else rlm.action_gap()
    result = rlm.ablation_sweep(
        opened, episodes.observations, sites=chosen, kind=kind, metric=measure, progress=not as_json
    )
    lines = [f"{len(episodes.steps)} states; effect: {result['effect'].attrs['long_name']} by {kind} ablation."]
    _show_sweep(result, lines, title=f"Ablating {policy}", figure=figure, as_json=as_json)


@app.command()
def circuits(
    policy: Policy,
    recording: Annotated[Path | None, typer.Argument(help="States whose gates are taken; none: embeddings.")] = None,
    kind: Annotated[Literal["qk", "ov"], typer.Option("--kind", help="What it looks for, or what it says.")] = "qk",
    entity: Annotated[str | None, typer.Option("--entity", help="Whose circuit, e.g. vehicle_1.")] = None,
    block: Annotated[
        str | None, typer.Option("--block", help="Path of the attention, where there are several.")
    ] = None,
    config: Config = None,
    env_config: EnvConfig = None,
    figure: Figure = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Read each head's QK or OV circuit.

    Between features, through the gates of a recording's states; without a recording between embeddings.
    """
    import rlmech as rlm

    opened = _open(policy, config=config, env_config=env_config)
    read = rlm.qk_circuit if kind == "qk" else rlm.ov_circuit
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
        _write_figure(figure, f"{kind.upper()} circuit of {policy}", "One panel per head.", rlm.plot.circuit(array))
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


@app.command()
def view(
    recording: RecordingPath,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("view.html"),
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes to show, from the first.")] = 20,
    browser: Annotated[bool, typer.Option("--open", help="Also open it in the browser.")] = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Write a page to step through a recording."""
    import rlmech as rlm

    opened = rlm.Recording.load(recording)
    shown: list[int] = opened.episodes["episode"].tolist()[:episodes]
    with status("drawing the episodes", enabled=not as_json):
        panel = rlm.plot.Panel(
            title="The road, the scores and the attention, step by step",
            meaning="Lines run from the ego to the vehicles that it attends to, one colour per head, as wide as the "
            "weight. The buttons jump to the steps at which the action changes.",
            figure=rlm.plot.episodes(opened, only=shown),
            code=f"recording = rlm.Recording.load({str(recording)!r})\nrlm.plot.episodes(recording)",
        )
        title = f"{len(shown)} of {len(opened)} episodes of {opened.manifest['env']['id']}"
        written = rlm.report([rlm.plot.Section(title="Episodes", panels=(panel,))], out, title=title)
    if browser:
        typer.launch(written.resolve().as_uri())
    print_result(
        {"page": str(written), "n_episodes": len(shown), "n_recorded": len(opened)},
        as_json=as_json,
        lines=[f"{title}: the page is at {written}."],
    )


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="rlmech", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped.", code=130)
    except Exception as error:
        fail(_one_line(error))
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str:
    """An error of ours, of the command line's parser or of the disk, in one line; any other is a bug and goes on."""
    from rlmech.errors import RlmechError

    if isinstance(error, RlmechError):
        return f"{error.problem} given: {error.given}; expected: {error.expected}; fix: {error.fix}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}. given: {error.filename}; expected: a path that can be used so; fix: check the path"
    message: Any = getattr(error, "format_message", None)
    if message is None:
        raise error
    context = getattr(error, "ctx", None)  # a ClickException, of whichever click typer stands on
    path = "rlmech" if context is None else context.command_path
    usage = path if context is None else context.get_usage().removeprefix("Usage: ")
    given = " ".join(sys.argv[1:]) or "nothing"
    return f"{message()} given: {given}; expected: {usage}; fix: {path} --help lists what there is"


def _look(
    source: str, policy: HookedPolicy, env: str | None, out: Path, seeds: range, workers: int, *, as_json: bool
) -> None:
    """Record, analyse, write the page, print the summary."""
    from rlmech.first_look import first_look, summary, write_page

    def say(what: str) -> None:
        if not as_json:
            typer.echo(f"{what} …", err=True)

    started = time.perf_counter()
    made = _make_env(policy, env)
    look = first_look(policy, made, seeds=seeds, workers=workers, progress=not as_json, say=say)
    say("drawing the page")
    page = write_page(look, out / "index.html", source=source)
    seconds = time.perf_counter() - started
    found = {"policy": source, "page": str(page), "seconds": round(seconds, 1), **plain(summary(look))}
    print_result(found, as_json=as_json, lines=look_lines(found), tables=look_tables(found))
    if not as_json:
        typer.echo(f"The page is at {page}, made in {seconds:.0f} s. It opens in any browser, with no network.")


def _open(
    policy: str, *, config: Path | None = None, env_config: Path | None = None, env: str | None = None
) -> HookedPolicy:
    """Open a policy; an environment given by name tells what the numbers mean where the policy itself does not."""
    import rlmech as rlm
    from rlmech.errors import ConfigError

    if env is None or env_config is not None:
        return rlm.load(policy, config=config, env_config=env_config)
    try:
        opened = rlm.load(policy, config=config)
    except ConfigError:  # its file does not tell the shapes; the environment may
        return rlm.load(policy, config=config, env=rlm.make_env(env))
    return opened if opened.spec.env_id is not None else rlm.load(policy, config=config, env=rlm.make_env(env))


def _make_env(policy: HookedPolicy, env: str | None) -> Any:
    """The environment named, seen and driven as the policy was trained to; by default the one it was trained in."""
    import rlmech as rlm
    from rlmech.errors import ConfigError

    spec = policy.spec
    if env is None and spec.env_id is None:
        raise ConfigError(
            "The policy does not say which environment it is for.",
            given="no environment",
            expected="a Gymnasium id, e.g. intersection-v2",
            fix="name it after the policy",
        )
    name = env or str(spec.env_id)
    if name == spec.env_id:
        return rlm.make_env(name, config=spec.env_config or None)
    kept = {key: value for key, value in spec.env_config.items() if key in ("observation", "action")}
    try:
        return rlm.make_env(name, config=kept or None)
    except ConfigError:
        return rlm.make_env(name)  # no environment of highway-env's, or none at all


def _sites(policy: HookedPolicy, names: str, over: str) -> str | list[Site]:
    if names == "auto" and not over:
        return "auto"
    axes = tuple(axis.strip() for axis in over.split(",") if axis.strip())
    chosen = None if names == "auto" else [name.strip() for name in names.split(",")]
    return policy.sites(chosen, over=axes)


def _show_sweep(result: xr.Dataset, lines: list[str], *, title: str, figure: Path | None, as_json: bool) -> None:
    from rlmech.first_look.summary import rows

    if figure is not None:
        import rlmech as rlm

        lines.append(f"The figure is at {_write_figure(figure, title, ' '.join(lines), rlm.plot.sweep(result))}.")
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


def _write_figure(path: Path, title: str, meaning: str, figure: Any) -> Path:
    import rlmech as rlm

    panel = rlm.plot.Panel(title=title, meaning=meaning, figure=figure)
    return rlm.report([rlm.plot.Section(title=title, panels=(panel,))], path, title=title)


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


if __name__ == "__main__":
    main()
