"""From `--ablate "head 0,1,2+3"` to edits: an axis, and positions along it.

A comma begins another condition, a plus adds a position to the same one; the axis alone stands for each of its
positions in turn, `all` for whole hook points.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmech.cli.options import Kind

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy
    from rlmech.core.site import Site

N_REFERENCE = 20  # episodes driven for the states that means are taken over
EXAMPLE = "e.g. --ablate 'head 0,1', --ablate 'head 0+1', --ablate head for every head"
Which = Annotated[str, typer.Option("--ablate", help="An axis and positions: 'head 0,1', 'head 0+1' (together), head.")]
AblationKind = Annotated[Kind, typer.Option("--kind", help="What is put there.")]
At = Annotated[str, typer.Option("--sites", help='Hook points: a name or a glob; "auto": what each head gives.')]


def conditions(policy: HookedPolicy, ablate: str, *, sites: str) -> dict[str, list[Site]]:
    """The sites that are ablated together, by the name of the condition.

    Args:
        policy: The policy.
        ablate: As typed: an axis with positions, an axis alone, or `all`.
        sites: Hook points as typed; `auto` for the z of the attention.

    Raises:
        ConfigError: It names no position, or there are no heads and no hook point is named.
        SiteError: A hook point that is not there, or lacks the axis or the position.
    """
    import rlmech as rlm
    from rlmech.errors import ConfigError

    names = list(dict.fromkeys(site.name for site in policy.sites(_hook_points(policy, sites))))
    axis, _, positions = ablate.strip().partition(" ")
    if axis == "all" and not positions:
        return {"all": [rlm.Site(name) for name in names]}
    if axis and not positions.strip():
        each = {str(dict(site.selection)[axis]) for site in policy.sites(names, over=(axis,))}
        positions = ",".join(sorted(each, key=lambda one: (len(one), one)))
    chosen: dict[str, list[Site]] = {}
    for together in positions.split(","):
        along = [one.strip() for one in together.split("+")]
        if not all(along):
            raise ConfigError(
                "That does not say what to ablate.",
                given=f"--ablate {ablate!r}",
                expected="an axis and positions along it, separated by commas or plus signs",
                fix=EXAMPLE,
            )
        position: list[int | str] = [int(one) if one.isdecimal() else one for one in along]
        chosen[f"{axis} {'+'.join(along)}"] = [rlm.Site(name, **{axis: position}) for name in names]
    for site in (site for own in chosen.values() for site in own):
        site.positions(policy.point(site.name))  # refused before anything is driven
    return chosen


def states(policy: HookedPolicy, env: Any, *, reference: Path | None, seeds: range, progress: bool) -> Any:
    """The observations that means are taken over: a recording's, or those of unedited episodes driven for them."""
    import rlmech as rlm

    if reference is not None:
        return rlm.Recording.load(reference).observations
    return rlm.record(policy, env, seeds=seeds[:N_REFERENCE], progress=progress).observations


def edits(policy: HookedPolicy, sites: list[Site], *, kind: Kind, observations: Any) -> list[Edit]:
    """Ablations of some sites.

    Args:
        policy: The policy.
        sites: Where.
        kind: `zero`, or `mean` over observations.
        observations: For `mean`.
    """
    import torch

    import rlmech as rlm

    if kind == "zero":
        return [rlm.zero_ablation(site) for site in sites]
    with torch.no_grad():
        _, cache = policy.run_with_cache(observations, [site.name for site in sites])
    return [rlm.mean_ablation(site, reference=cache) for site in sites]


def _hook_points(policy: HookedPolicy, sites: str) -> list[str]:
    from rlmech.errors import ConfigError

    if sites != "auto":
        return [name.strip() for name in sites.split(",")]
    if not policy.attention:
        raise ConfigError(
            "The policy has no attention heads to ablate.",
            given="--sites auto",
            expected="a hook point",
            fix="name one with --sites, and an axis of it with --ablate; rlmech inspect lists them",
        )
    return [block.names["z"] for block in policy.attention.values()]
