"""`rlmech train` and `rlmech inspect`: a policy, made and described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlmech.cli.opening import make_env, open_policy, refuse_unwritable
from rlmech.cli.options import Config, EnvConfig, Extractor, Json, Policy, Statistics, Wrapper
from rlmech.console import INTERRUPTED, fail, print_result
from rlmech.untyped import JsonObject


def train(
    config: Annotated[
        Path, typer.Argument(help="A TOML file, e.g. experiments/00_train_the_zoo/highway_dqn_mlp.toml.")
    ],
    run: Annotated[Path | None, typer.Option("--run", help="The run's folder; runs/NAME by default.")] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Train, evaluate and write a card; resumes a run."""
    from rlmech.training import train as run_training

    refuse_unwritable(run)
    try:
        written = run_training(config, run, progress=not as_json)
    except KeyboardInterrupt:
        where = "the run's folder" if run is None else str(run)
        fail(f"stopped; {where} keeps the last checkpoint. The same command goes on from there.", code=INTERRUPTED)
    card = json.loads((written / "card.json").read_text(encoding="utf-8"))
    lines = [card["about"], f"The run is at {written}, its card at {written / 'card.json'}."]
    print_result({"run": str(written), "card": card}, as_json=as_json, lines=lines)


def inspect(
    policy: Policy,
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    env: Annotated[
        str | None, typer.Option("--env", help="Gymnasium id, for names and shapes; one that does not fit is refused.")
    ] = None,
    wrapper: Wrapper = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """List a policy's hook points, axes and attention."""
    opened = open_policy(
        policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config, env=env
    )
    if env is not None or wrapper:
        from rlmech.simulators import check_fit

        check_fit(opened, make_env(opened, env, wrappers=wrapper or ()))
    points: list[JsonObject] = [
        {"name": name, "kind": point.kind, "axes": list(point.axes), "shape": list(point.shape)}
        for name, point in opened.hook_dict.items()
    ]
    found: JsonObject = {
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
