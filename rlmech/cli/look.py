"""`rlmech demo` and `rlmech report`: the main job on a policy, and a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlmech.cli.opening import open_policy, refuse_unwritable
from rlmech.cli.options import (
    Config,
    EnvConfig,
    Environment,
    Episodes,
    Extractor,
    Json,
    Policy,
    Seed,
    Statistics,
    Workers,
    Wrapper,
)
from rlmech.console import look_lines, look_tables, plain, print_result

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy

Driven = Annotated[int, typer.Option("--driven", min=0, help="On how many of them ablations drive; 0: none do.")]
ZOO_POLICY = "zoo:intersection-ego-attention"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = Path("report"),
    episodes: Episodes = 20,
    seed: Seed = 0,
    driven: Driven = 8,
    workers: Workers = 1,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Do it all on the shipped policy and write a page."""
    _look(
        ZOO_POLICY, open_policy(ZOO_POLICY), None, out, range(seed, seed + episodes), driven, workers, as_json=as_json
    )


def report(
    policy: Policy,
    env: Environment = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = Path("report"),
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    wrapper: Wrapper = None,
    episodes: Episodes = 20,
    seed: Seed = 0,
    driven: Driven = 8,
    workers: Workers = 1,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Do what demo does for any policy and environment."""
    opened = open_policy(
        policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config, env=env
    )
    seeds = range(seed, seed + episodes)
    _look(policy, opened, env, out, seeds, driven, workers, as_json=as_json, wrappers=tuple(wrapper or ()))


def _look(
    source: str,
    policy: HookedPolicy,
    env: str | None,
    out: Path,
    seeds: range,
    driven: int,
    workers: int,
    *,
    as_json: bool,
    wrappers: tuple[str, ...] = (),
) -> None:
    """Record, analyse, write the page, print the summary."""
    from rlmech.first_look import first_look, summary, with_pictures, write_page
    from rlmech.simulators.training_env import wrapped

    refuse_unwritable(out)

    def say(what: str) -> None:
        if not as_json:
            typer.echo(f"{what} …", err=True)

    started = time.perf_counter()
    made = wrapped(with_pictures(policy, env), wrappers)
    look = first_look(policy, made, seeds=seeds, n_driven=driven, workers=workers, progress=not as_json, say=say)
    say("drawing the page")
    page = write_page(look, out / "index.html", source=source)
    seconds = time.perf_counter() - started
    found = {"policy": source, "page": str(page), "seconds": round(seconds, 1), **plain(summary(look))}
    print_result(found, as_json=as_json, lines=look_lines(found), tables=look_tables(found))
    if not as_json:
        typer.echo(f"The page is at {page}, made in {seconds:.0f} s. It opens in any browser, with no network.")
