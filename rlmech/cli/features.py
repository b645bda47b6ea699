"""`rlmech features`: whether a dictionary is worth it in a policy, its features, and how it drives without them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rlmech.cli.opening import last_hidden, open_with_env, refuse_unwritable
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
    Wrapper,
)
from rlmech.console import plain, print_result
from rlmech.untyped import JsonObject

Driven = Annotated[int, typer.Option("--driven", min=0, help="Episodes to drive with each reconstruction; 0: none.")]
N_DRIVEN_FEATURES = 3
_STATES_A_FEATURE = 5
"""States that there are for each feature, at least, where nobody says how many features there are."""


def features(
    policy: Policy,
    env: Environment = None,
    site: Annotated[str, typer.Option("--site", help="Hook point; by default the last hidden activation.")] = "",
    n_features: Annotated[int, typer.Option("--n-features", min=0, help="Features; 0: as many as states allow.")] = 0,
    k: Annotated[int, typer.Option("--active", min=1, help="Features that are active at a time.")] = 4,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of training.")] = 1000,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("features.html"),
    config: Config = None,
    extractor: Extractor = None,
    vecnormalize: Statistics = None,
    env_config: EnvConfig = None,
    wrapper: Wrapper = None,
    episodes: Episodes = 50,
    seed: Seed = 0,
    driven: Driven = 20,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Write a page of a dictionary's features.

    Whether a dictionary is worth it, its features, and how the policy drives without them.
    """
    import rlmech as rlm

    refuse_unwritable(out)

    def say(what: str) -> None:
        if not as_json:
            typer.echo(f"{what} …", err=True)

    started = time.perf_counter()
    both = open_with_env(
        policy,
        env,
        wrappers=wrapper or (),
        config=config,
        extractor=extractor,
        vecnormalize=vecnormalize,
        env_config=env_config,
    )
    opened, made = both.policy, both.env
    where = site or last_hidden(opened)
    recording = rlm.record(opened, made, seeds=range(seed, seed + episodes), progress=not as_json)
    width = int(rlm.Site(where).mask(opened.point(where)).sum())
    number = n_features or max(k + 1, min(8 * width, len(recording.steps) // _STATES_A_FEATURE))
    options: JsonObject = {"n_features": number, "k": k, "n_steps": steps, "seed": seed}
    fresh = range(seed + episodes, seed + episodes + driven)
    if driven:
        options |= {"env": made, "seeds": fresh}
    say("fitting dictionaries")
    found = rlm.features.compare_dictionaries(opened, recording, site=where, n_fits=2, **options)
    dictionary = found.dictionaries["topk"]
    say("taking features out")
    effects = rlm.features.feature_effects(opened, dictionary, recording)
    strength = abs(effects["effect"]).max("action").values
    strongest = [int(place) for place in (-strength).argsort()[:N_DRIVEN_FEATURES]]
    parts = _sections(recording, found, effects)
    if driven:
        say("driving without them")
        alone = rlm.features.drive_features(
            opened, made, dictionary, features=strongest, seeds=fresh, n_controls=1, progress=not as_json
        )
        parts.append(_driven(found.driven, alone))
    say("drawing the page")
    page = rlm.plot.page(
        parts,
        out,
        title=f"Features of {policy} at {where}",
        subtitle=f"{found.says['topk'][:1].upper()}{found.says['topk'][1:]}.",
        facts=_facts(recording, found),
        setup=f"policy = rlm.load({policy!r})",
    )
    seconds = round(time.perf_counter() - started, 1)
    told: JsonObject = {"policy": policy, "site": where, "n_features": number, "k": k, "says": found.says["topk"]}
    told |= {"page": str(page), "seconds": seconds, "strongest": strongest}
    rows = [
        [str(name), *(round(float(found.result[v].sel({"dictionary": name, **_at(v)})), 3) for v in _SHOWN)]
        for name in found.result["dictionary"].values
    ]
    told["dictionaries"] = [dict(zip(("dictionary", *_SHOWN), row, strict=True)) for row in rows]
    lines = [f"{where}, {number} features, {k} at a time: {found.says['topk']}.", f"The page is at {page}."]
    print_result(plain(told), as_json=as_json, lines=lines, tables=[(("dictionary", *_SHOWN), rows)])


_SHOWN = ("agreement", "kept", "explained", "stability")


def _at(variable: str) -> dict[str, str]:
    return {"splice": "reconstruction"} if variable == "agreement" else {}


def _facts(recording: Any, found: Any) -> list[tuple[str, str]]:
    one = found.result.sel(dictionary="topk")
    return [
        ("episodes, states", f"{len(recording)}, {len(recording.steps)}"),
        ("features", f"{int(one['n_features'])}, of which {float(one['dead']):.0%} never active"),
        ("decisions kept", f"{float(one['agreement'].sel(splice='reconstruction')):.1%}"),
        ("found again", f"{float(one['stability']):.0%}"),
    ]


def _sections(recording: Any, found: Any, effects: Any) -> list[Any]:
    import rlmech as rlm

    best = found.result.attrs["best_base"]
    scores = rlm.plot.Panel(
        title="What each dictionary keeps",
        meaning="Each one's reconstruction stands in the value's place, on episodes that fitted nothing, with as many "
        f"active units each. The best of the others is {best}; 'nothing' is the mean value. Found again: the mean "
        "cosine of its directions with those of a fit from another beginning.",
        figure=rlm.plot.dictionary_scores(found.result),
        code="found = rlm.features.compare_dictionaries(policy, recording, site=site)\n"
        "rlm.plot.dictionary_scores(found.result)",
    )
    table = rlm.plot.Panel(
        title="All features, to be sorted",
        meaning="Each feature is taken out of each state in which it is active, all else and what the dictionary does "
        "not explain stays, and the network runs. Scores are centred over the actions; blue and red where the interval "
        "of the mean over all states leaves zero out, each feature by itself.",
        figure=rlm.plot.feature_table(effects),
        code='effects = rlm.features.feature_effects(policy, found.dictionaries["topk"], recording)\n'
        "rlm.plot.feature_table(effects)",
    )
    scenes = rlm.plot.Panel(
        title="Where each feature is strongest",
        meaning="The states with the largest codes, of the twelve features with the largest mean effect. They show "
        "what the feature is seldom without, not what it means: look at the table, and at how it drives.",
        figure=rlm.plot.feature_scenes(recording, effects),
        code="rlm.plot.feature_scenes(recording, effects)",
    )
    return [
        rlm.plot.Section(title="Is a dictionary worth it here?", panels=(scores,)),
        rlm.plot.Section(title="Its features", panels=(table, scenes)),
    ]


def _driven(whole: Any, alone: Any) -> Any:
    import rlmech as rlm

    replaced = rlm.plot.Panel(
        title="With each reconstruction in the value's place",
        meaning="Whole episodes on seeds that fitted nothing, paired with the untouched policy.",
        figure=rlm.plot.comparison(whole),
        code="found = rlm.features.compare_dictionaries(policy, recording, site=site, env=env, seeds=seeds)\n"
        "rlm.plot.comparison(found.driven)",
    )
    without = rlm.plot.Panel(
        title="Without a feature",
        meaning="The three features with the largest mean effect, each taken out at every step; grey: the same change, "
        "at the same moments, in a random direction.",
        figure=rlm.plot.comparison(alone),
        code="driven = rlm.features.drive_features(policy, env, dictionary, features=strongest, seeds=seeds)\n"
        "rlm.plot.comparison(driven)",
    )
    return rlm.plot.Section(title="How it drives", panels=(replaced, without))
