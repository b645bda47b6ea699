"""`rlmech certify`: how far recorded states may move before the action can change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlmech.cli.opening import open_policy
from rlmech.cli.options import Config, EnvConfig, Extractor, Json, Policy, RecordingPath, Statistics
from rlmech.cli.selecting import Steps, select_steps
from rlmech.console import plain, print_result, status
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    from rlmech.certify import Move


def certify(
    policy: Policy,
    recording: RecordingPath,
    features: Annotated[
        str, typer.Option("--features", help="What moves, e.g. x,y or x=1.5,vx=1; by default all but presence.")
    ] = "",
    entities: Annotated[str, typer.Option("--entities", help="Whose, e.g. vehicle_1,vehicle_2; all by default.")] = "",
    norm: Annotated[
        Literal["inf", "2", "1"], typer.Option("--norm", help="inf: each number moves by itself; 2, 1: they share.")
    ] = "inf",
    over: Annotated[
        str, typer.Option("--over", help="Ask about each alone, along entity, feature or entity,feature.")
    ] = "",
    limit: Annotated[
        float | None,
        typer.Option("--limit", help="The radius up to which is looked; needed where nothing has a range."),
    ] = None,
    states: Annotated[int, typer.Option("--states", min=1, help="States, evenly spread over the recorded ones.")] = 10,
    boxes: Annotated[int, typer.Option("--boxes", min=0, help="Boxes that each question is cut into, at most.")] = 32,
    when: Steps = "",
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Prove how far states may move until the action can change.

    No state nearer than `certified` changes it; the one at `attacked` was found and does.
    """
    import numpy as np

    import rlmech as rlm
    from rlmech.core.many_rows import rows_of

    opened = open_policy(policy, config=config, extractor=extractor, vecnormalize=vecnormalize, env_config=env_config)
    chosen = select_steps(rlm.Recording.load(recording), when, spec=opened.spec)
    rows = np.unique(np.linspace(0, len(chosen.steps) - 1, states).astype(int))
    observations = rows_of(chosen.observations, rows)
    move = _move(features, entities, norm)
    with status("bounding", enabled=not as_json):
        result = rlm.certify.certified_radius(
            opened, observations, move=move, over=[one for one in over.split(",") if one], limit=limit, n_boxes=boxes
        )
    unit = str(result["certified"].attrs["units"])
    axes = [str(dim) for dim in result["certified"].dims if dim != "batch"]
    table: list[JsonObject] = []
    names = opened.spec.actions
    for place in np.ndindex(*result["certified"].shape):
        at = dict(zip(result["certified"].dims, place, strict=True))
        one, step = result.isel(at), chosen.steps.iloc[int(rows[place[0]])]
        if np.isnan(float(one["certified"])):
            continue  # what does not move, such as a vehicle that is not there
        row: JsonObject = {"seed": int(step["seed"]), "step": int(step["step"])}
        row |= {axis: plain(one[axis].values) if axis in one.coords else int(at[axis]) for axis in axes}
        row |= {"action": _action(int(one["action"]), names), "certified": float(one["certified"])}
        row |= {"attacked": float(one["attacked"]), "becomes": _action(int(one["counter_action"]), names)}
        table.append(row)
    certified = [row["certified"] for row in table]
    lines = [
        f"{len(rows)} states; radii are {_measured(unit)}"
        + (
            f", half of the certified ones above {np.median(certified):.3g}." if certified else ": nothing moves there."
        ),
    ]
    columns = list(table[0]) if table else []
    print_result(
        {"unit": unit, "radii": plain(table), **plain(dict(result.attrs))},
        as_json=as_json,
        lines=lines,
        tables=[(columns, [list(row.values()) for row in table])] if table else [],
    )


def _measured(unit: str) -> str:
    """What a radius is measured in."""
    if unit == "1":
        return "multiples of the move"
    return unit if unit.startswith("as ") else f"in {unit}"


def _action(number: int, names: tuple[str, ...]) -> str | int | None:
    if number < 0:
        return None
    return names[number] if names else number


def _move(features: str, entities: str, norm: Literal["inf", "2", "1"]) -> Move:
    import rlmech as rlm
    from rlmech.errors import ConfigError

    amounts: dict[str | int, float] = {}
    for one in features.split(",") if features else []:
        name, _, amount = one.partition("=")
        try:
            amounts[_name(name)] = float(amount or 1.0)
        except ValueError:
            raise ConfigError(
                "How far a feature moves is a number.",
                given=f"--features {features!r}",
                expected="names, or names with numbers, separated by commas",
                fix="e.g. --features x,y or --features x=1.5,vx=1",
            ) from None
    whose = [_name(one) for one in entities.split(",")] if entities else None
    return rlm.certify.Move(features=amounts or None, entities=whose, norm=norm, clipped=True)


def _name(typed: str) -> str | int:
    typed = typed.strip()
    return int(typed) if typed.isdecimal() else typed
