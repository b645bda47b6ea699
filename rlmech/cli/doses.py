"""`rlmech dose`: whole episodes with a policy steered a little and a lot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlmech.cli.figure import write_figure
from rlmech.cli.opening import Opened, last_hidden, open_with_env, refuse_unwritable
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
    Workers,
    Wrapper,
)
from rlmech.cli.selecting import Acting, acting_when, select_steps
from rlmech.console import kept_on_interrupt, plain, print_result
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    import torch
    import xarray as xr

N_REFERENCE = 20  # episodes driven for the states that the direction is taken from
DOSES = "-2,-1,-0.5,0.5,1,2"


def dose(
    policy: Policy,
    toward: Annotated[
        str,
        typer.Option("--toward", help="Steps that the policy is steered toward, e.g. 'action == 0' or 'ttc < 2'."),
    ],
    env: Environment = None,
    site: Annotated[str, typer.Option("--site", help="Hook point; by default the last hidden activation.")] = "",
    doses: Annotated[
        str, typer.Option("--doses", help="Factors of the direction, comma-separated; 0 is the baseline.")
    ] = DOSES,
    reference: Reference = None,
    when: Acting = "",
    seeds: Annotated[int, typer.Option("--seeds", "--episodes", min=2, help="Number of seeds.")] = 20,
    seed: Seed = 0,
    workers: Workers = 1,
    out: Out = None,
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    wrapper: Wrapper = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Steer a little and a lot: the dose-response.

    The direction is the difference of the means at the site: the steps that --toward names, minus all others. A dose of
    1 adds it once.
    """
    import rlmech as rlm

    refuse_unwritable(out)
    factors = _factors(doses)
    opened = open_with_env(
        policy,
        env,
        wrappers=wrapper or (),
        config=config,
        extractor=extractor,
        vecnormalize=vecnormalize,
        env_config=env_config,
    )
    acting = acting_when(when, spec=opened.policy.spec)
    where, run = site or last_hidden(opened.policy), range(seed, seed + seeds)
    direction, n_toward, n_states = _direction(
        opened, toward, where, reference=reference, seeds=run[:N_REFERENCE], progress=not as_json
    )
    folder = None if out is None else out / "recordings"
    with kept_on_interrupt(folder):
        result = rlm.episodes.dose_response(
            opened.policy,
            opened.env,
            site=where,
            vector=direction,
            coefficients=factors,
            seeds=run,
            when=acting,
            workers=workers,
            path=folder,
            progress=not as_json,
        )
    said = (
        f"Steered at {where} by the mean of the {n_toward} states in which {toward}, minus that of the "
        f"{n_states - n_toward} others."
    )
    _show(result, said, title=f"Dose-response of {policy}", out=out, as_json=as_json)


def _factors(doses: str) -> list[float]:
    from rlmech.errors import ConfigError

    try:
        return [float(one) for one in doses.split(",")]
    except ValueError:
        raise ConfigError(
            "Doses are numbers.",
            given=f"--doses {doses!r}",
            expected="numbers, separated by commas",
            fix=f"--doses={DOSES}",
        ) from None


def _direction(
    opened: Opened, toward: str, site: str, *, reference: Path | None, seeds: range, progress: bool
) -> tuple[torch.Tensor, int, int]:
    """The difference of means, how many states it is toward, and how many states there are."""
    import torch

    import rlmech as rlm
    from rlmech.errors import ConfigError

    if reference is None:
        seen = rlm.record(opened.policy, opened.env, seeds=seeds, progress=progress)
    else:
        seen = rlm.Recording.load(reference)
    spec = opened.policy.spec
    positive = select_steps(seen, toward, spec=spec, option="--toward")
    if len(positive.steps) == len(seen.steps):
        raise ConfigError(
            "Every state is one that is steered toward, so that there is no direction.",
            given=f"--toward {toward!r}, met in all {len(seen.steps)} states",
            expected="a condition that some states meet and others do not",
            fix="choose a narrower condition",
        )
    negative = select_steps(seen, f"not ({toward})", spec=spec, option="--toward")
    concept = rlm.probes.concept_direction(
        opened.policy, positive=positive.observations, negative=negative.observations, site=site, name=toward
    )
    difference = torch.as_tensor(concept.slope).reshape(concept.shape)
    return difference, len(positive.steps), len(seen.steps)


def _show(result: xr.Dataset, said: str, *, title: str, out: Path | None, as_json: bool) -> None:
    import rlmech as rlm
    from rlmech.first_look.summary import conditions

    table = rlm.episodes.comparison_table(result)
    lines = [
        f"{result.sizes['seed']} seeds of {result.attrs['env']}: the baseline's means, and mean differences from it on "
        f"the same seeds. {said}"
    ]
    rows = conditions(result)
    factors = dict(zip(result["condition"].values.tolist(), result["coefficient"].values.tolist(), strict=True))
    found: JsonObject = {"doses": [{**row, "dose": factors[row["condition"]]} for row in rows]}
    if out is not None:
        figure = write_figure(out / "doses.html", title, lines[0], rlm.plot.dose_response(result))
        found["figure"] = str(figure)
        lines.append(f"The figure is at {figure}.")
    cells = [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    print_result(
        {**plain(found), **plain(dict(result.attrs))},
        as_json=as_json,
        lines=lines,
        tables=[(["dose", *table.columns], cells)],
    )
