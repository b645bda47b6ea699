"""The part of the page that shows ablations driving: one episode beside itself untouched, and all in a forest plot."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmech.episodes.comparison import BASELINE, seeds_needed
from rlmech.first_look.analysis import FirstLook
from rlmech.first_look.driven import Driven
from rlmech.plot import Panel, Section, comparison, side_by_side
from rlmech.plot.style import MINUS
from rlmech.statistics import FEWEST

UNTOUCHED = "untouched"
_PRECISION = 0.1  # of the baseline's mean return: what the page calls precise


def driven_section(look: FirstLook) -> list[Section]:
    """The section of ablations that drove, where any did."""
    driven = look.driven
    if driven is None:
        return []
    panels = [*_episode(look, driven), _forest(look, driven)]
    return [
        Section(
            title="What it does when a part is taken from it",
            text="Here an ablation is at work at every step of whole episodes, from the same seeds as without: until "
            "an action differs the two are the same to the last bit, and what differs then, the ablation did. A mean "
            f"ablation puts the mean over all recorded states in the place of what the {_part(look)} gives, whatever "
            "the scene.",
            panels=tuple(panels),
        )
    ]


def _part(look: FirstLook) -> str:
    return "head" if look.block is not None else "neuron"


def _episode(look: FirstLook, driven: Driven) -> list[Panel]:
    if driven.edited is None or driven.seed is None:
        return []
    both = {UNTOUCHED: look.recording, f"{driven.condition} ablated": driven.edited}
    return [
        Panel(
            title=f"The same episode twice: untouched, and with {driven.condition} ablated",
            meaning=f"{_what_changed(driven)} {_how_chosen(look, driven)}",
            figure=side_by_side(both, seed=driven.seed),
            code=_conditions_code(look, driven) + _episode_code(look, driven),
        )
    ]


def _what_changed(driven: Driven) -> str:
    """What the ablation did to the episode shown, in words."""
    here = driven.result.sel(seed=driven.seed)
    said: list[str] = []
    for name, digits in (("return", 2), ("length", 0), ("speed", 1)):
        if name in here:
            before, after = (float(here[name].sel(condition=one)) for one in (BASELINE, driven.condition))
            unit = {"length": " decisions", "speed": " m/s"}.get(name, "")
            said.append(f"{name} {before:.{digits}f} → {after:.{digits}f}{unit}".replace("-", MINUS))
    for name in ("crashed", "arrived", "success"):
        if name in here:
            before, after = (
                "yes" if bool(here[name].sel(condition=one)) else "no" for one in (BASELINE, driven.condition)
            )
            said.append(f"{name}: {before}" if before == after else f"{name}: {before} → {after}")
    step = int(here["divergence"].sel(condition=driven.condition))
    return f"Seed {driven.seed}: {', '.join(said)}. They first take different actions at step {step}."


def _how_chosen(look: FirstLook, driven: Driven) -> str:
    result, n = driven.result, driven.result.sizes["seed"]
    among = f"of the {len(driven.sites)} {_part(look)}s driven, " if len(driven.sites) > 1 else ""
    if n == 1:
        return (
            f"It is the only seed driven, which tells nothing of the mean; {among}{driven.condition} changes it most."
        )
    return (
        f"It is not a typical episode: {among}{driven.condition} moves the mean return most, and of {n} seeds "
        f"this one's return changes most. {_mean(driven, driven.condition)} over the {n} seeds"
        f"{_n_unchanged(result, driven.condition)}."
    )


def _mean(driven: Driven, condition: str) -> str:
    one = driven.result.sel(condition=condition)
    mean, low, high = (float(one[f"delta_return{end}"]) for end in ("", "_low", "_high"))
    interval = f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else ""
    return f"The mean difference of return is {mean:+.2f}{interval}".replace("-", MINUS)


def _n_unchanged(result: Any, condition: str) -> str:
    n = int(result["divergence"].sel(condition=condition).isnull().sum())
    return f", in {n} of which it changes no action at all" if n else ""


def _forest(look: FirstLook, driven: Driven) -> Panel:
    result, n = driven.result, driven.result.sizes["seed"]
    one = next(iter(driven.sites))
    n_heads = 0 if look.block is None else look.policy.attention[look.block].n_heads
    chosen = (
        f"The {n_heads} heads"
        if len(driven.sites) == n_heads > 1
        else f"The {len(driven.sites)} {_part(look)}s whose mean ablation changes most actions offline"
        if len(driven.sites) > 1
        else f"{one} of {driven.sites[one].name}, whose mean ablation changes most actions offline"
    )
    each = "each ablated" if len(driven.sites) > 1 else "ablated"
    meaning = f"{chosen}, {each} on seed{'s' * (n > 1)} {_range(result['seed'].values)}. {_precision(driven)}"
    if driven.edited is None:
        meaning += f" In none of these {n} episodes did an ablation change an action."
    code = _FOREST_CODE.format(n=n) + (_PRECISION_CODE if n >= FEWEST else "")
    return Panel(
        title=f"What each ablation does to the episodes of {n} seed{'s' * (n > 1)}",
        meaning=meaning,
        figure=comparison(result),
        code=code if driven.edited is not None else _conditions_code(look, driven) + code,
    )


def _range(seeds: Any) -> str:
    listed = [int(seed) for seed in seeds]
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed))


def _precision(driven: Driven) -> str:
    """How far these seeds are from a precise answer."""
    result, n = driven.result, driven.result.sizes["seed"]
    if n < FEWEST:
        seeds = "One seed tells" if n == 1 else f"{n} seeds tell"
        return f"{seeds} nothing of the mean: intervals begin with {FEWEST} seeds."
    half_width = round(_PRECISION * abs(float(result["mean_return"].sel(condition=BASELINE))), 2)
    if half_width == 0:
        return f"{n} seeds are few: intervals are wide."
    others = [str(name) for name in result["condition"].values if name != BASELINE]
    needed = seeds_needed(result, "return", half_width=half_width).sel(condition=others)
    most = int(np.max(needed.values))
    if most <= n:
        return f"These seeds tell the differences of return within ±{half_width:g}."
    name = others[int(np.argmax(needed.values))]
    return (
        f"{n} seeds are few. To know every difference of return within ±{half_width:g}, a tenth of the baseline's "
        f"mean, takes about {most:,} ({name}, by the spread found here; rlm.episodes.seeds_needed)."
    )


def _conditions_code(look: FirstLook, driven: Driven) -> str:
    names = sorted({site.name for site in driven.sites.values()})
    sites = ",\n".join(f"    {name!r}: rlm.{site!r}" for name, site in driven.sites.items())
    return f"""with torch.no_grad():
    _, reference = policy.run_with_cache(recording.observations, {names})
sites = {{
{sites},
}}
conditions = {{name: [rlm.mean_ablation(site, reference=reference)] for name, site in sites.items()}}
"""


def _episode_code(look: FirstLook, driven: Driven) -> str:
    names = list(look.recording.manifest["activations"])
    return f"""edits = conditions[{driven.condition!r}]
edited = rlm.record(policy, env, seeds=[{driven.seed}], edits=edits, names={names})
both = {{{UNTOUCHED!r}: recording, {f"{driven.condition} ablated"!r}: edited}}
rlm.plot.side_by_side(both, seed={driven.seed})"""


_FOREST_CODE = """seeds = recording.episodes["seed"].to_list()[:{n}]
result = rlm.compare_rollouts(policy, env, conditions=conditions, seeds=seeds)
rlm.plot.comparison(result)
rlm.episodes.comparison_table(result)"""
_PRECISION_CODE = "\nrlm.episodes.seeds_needed(result, half_width=0.5)"
