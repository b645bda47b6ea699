"""Which head avoids crashes? Offline flip rates against what happens on the road.

    python experiments/05_which_head_avoids_crashes/run.py [--smoke] [--seeds N] [--workers W] [--out FOLDER]

Writes a page with the figures and `numbers.json` with what the README quotes. Episodes are kept under `runs/` and a run
that was stopped goes on; 500 seeds take about an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import figures
import numpy as np
import xarray as xr
from analysis import CLOSE, decisions, felt_before, mean, rank_correlation, share
from drive import POLICY, driven

import rlmech as rlm

N_SHOWN = 2  # episodes of each condition that disagrees
DELTAS = ("return", "crashed", "arrived", "length", "speed")


def main() -> None:
    """Drive, look at the decisions, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("report/which_head_avoids_crashes"))
    parser.add_argument("--recordings", type=Path, default=Path("runs/05_which_head_avoids_crashes"))
    parser.add_argument("--smoke", action="store_true", help="three seeds: does it run?")
    given = parser.parse_args()
    policy = rlm.load(POLICY)
    sizes = (3, 3) if given.smoke else (given.seeds, 100)
    where = given.recordings / "smoke" if given.smoke else given.recordings
    result, edits = driven(policy, n_seeds=sizes[0], n_reference=sizes[1], path=where, workers=given.workers)
    baseline = recorded(where, "baseline", result)
    rows = [described(policy, result, name, own, baseline, where) for name, own in edits.items()]
    numbers: dict[str, Any] = {
        "baseline": {name: measured(result, "baseline", f"mean_{name}") for name in DELTAS},
        "n_seeds": result.sizes["seed"],
        "conditions": rows,
        "rank_correlations": correlations(rows),
        "interactions": interactions(result),
        "seeds_for_0.05_crash_rate": needed(result),
    }
    chosen = disagreeing(rows)
    numbers["episodes"] = [looked_at(policy, result, name, edits[name], where) for name in chosen]
    page = rlm.plot.page(
        [shown(result, rows), scenes(policy, result, edits, where, chosen)],
        given.out / "index.html",
        title="Which head avoids crashes?",
        facts=[("policy", POLICY), ("seeds", str(result.sizes["seed"])), ("conditions", str(len(rows)))],
    )
    (given.out / "numbers.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(rlm.episodes.comparison_table(result).to_string())
    print(f"the page is at {page}")


def recorded(where: Path, name: str, result: xr.Dataset) -> rlm.Recording:
    """A condition's episodes."""
    folder = where / "driven" / name.replace(" ", "_")
    return rlm.Recording.load(folder).of_seeds(result["seed"].values.tolist())


def measured(result: xr.Dataset, condition: str, name: str) -> list[float]:
    """A number with its interval."""
    one = result.sel(condition=condition)
    return [round(float(one[name + end]), 4) for end in ("", "_low", "_high")]


def described(
    policy: rlm.HookedPolicy,
    result: xr.Dataset,
    name: str,
    edits: list[rlm.Edit],
    baseline: rlm.Recording,
    where: Path,
) -> dict[str, Any]:
    """A condition: its flips in the unedited policy's states, and what it does on the road."""
    offline = decisions(policy, baseline, edits)
    road = decisions(policy, recorded(where, name, result), edits)
    heads = name.split(" ", 1)[1].rsplit(" ", 1)[0]
    net = offline.assign(net=offline["bolder"].astype(float) - offline["timid"].astype(float))
    own = result.sel(condition=name)
    return {
        "condition": name,
        "heads": heads.replace(" + ", "+"),
        "kind": "pair" if "+" in heads else name.rsplit(" ", 1)[1],
        **{f"offline_{column}": share(offline, column).to_json() for column in ("flip", "felt")},
        **{column: share(offline, column).to_json() for column in ("bolder", "timid")},
        "net_bolder": share(net, "net").to_json(),
        "offline_felt_when_close": share(offline[offline["ttc"] < CLOSE], "felt").to_json(),
        "on_the_road_flip": share(road, "flip").to_json(),
        "on_the_road_felt": share(road, "felt").to_json(),
        **{f"delta_{name}": measured(result, name_of(own), f"delta_{name}") for name in DELTAS},
        "p_holm": {name: round(float(own[f"delta_{name}_p_holm"]), 5) for name in ("return", "crashed")},
        "never_diverged": round(float(own["divergence"].isnull().mean()), 3),
    }


def name_of(one: xr.Dataset) -> str:
    """The condition of a single one's results."""
    return str(one["condition"].values)


def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How well offline shares order the conditions by what they do on the road."""
    found: dict[str, float] = {}
    for offline in ("offline_flip", "offline_felt", "net_bolder"):
        for delta in ("delta_return", "delta_crashed"):
            x, y = (np.array([row[name][0] for row in rows]) for name in (offline, delta))
            found[f"{offline} with {delta}"] = round(rank_correlation(x, y), 3)
            found[f"{offline} with size of {delta}"] = round(rank_correlation(x, np.abs(y)), 3)
    return found


def interactions(result: xr.Dataset) -> dict[str, dict[str, list[float]]]:
    """What a pair of heads does beyond the sum of both alone, paired by seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in result["condition"].values.tolist():
        if not name.startswith("heads"):
            continue
        a, b = name.removeprefix("heads ").removesuffix(" mean").split(" + ")
        found[name] = {}
        for outcome in ("return", "crashed"):
            pair, first, second, base = (
                result[outcome].sel(condition=c).values for c in (name, f"head {a} mean", f"head {b} mean", "baseline")
            )
            found[name][outcome] = mean(pair - first - second + base).to_json()
    return found


def needed(result: xr.Dataset) -> dict[str, int]:
    """Seeds for a crash rate known to 0.05; nothing where fewer than four seeds tell no spread, as in the smoke run."""
    if result.sizes["seed"] < 4:
        return {}
    seeds = rlm.episodes.seeds_needed(result, "crashed", half_width=0.05)
    return {str(name): int(n) for name, n in zip(seeds["condition"].values, seeds.values, strict=True) if n > 2}


def disagreeing(rows: list[dict[str, Any]]) -> list[str]:
    """The condition that flips most for how little it crashes, and the other way round."""
    flips, crashes = (np.argsort(np.argsort([row[n][0] for row in rows])) for n in ("offline_flip", "delta_crashed"))
    order = np.argsort(flips - crashes)
    return [rows[order[-1]]["condition"], rows[order[0]]["condition"]]


def looked_at(
    policy: rlm.HookedPolicy, result: xr.Dataset, name: str, edits: list[rlm.Edit], where: Path
) -> dict[str, Any]:
    """The episodes in which a condition crashes and the baseline does not, and the other way round."""
    road = decisions(policy, recorded(where, name, result), edits)
    crashed, base = (result["crashed"].sel(condition=c).values > 0 for c in (name, "baseline"))
    seeds = result["seed"].values
    added, avoided = set(seeds[crashed & ~base].tolist()), set(seeds[base & ~crashed].tolist())
    last = felt_before(road, added)
    reached = result["arrived"].sel(condition=name).values > 0
    return {
        "condition": name,
        "crashes_added": len(added),
        "crashes_avoided": len(avoided),
        "avoided_and_arrived": int((base & ~crashed & reached).sum()),
        "added_after_a_bolder_command": int(last["bolder"].sum()),
        "added_after_a_more_timid_command": int(last["timid"].sum()),
        "added_without_a_felt_change": len(added) - len(last),
        "steps_from_it_to_the_crash": [
            round(float(q), 1) for q in np.nanquantile(last["steps_before"], [0.25, 0.5, 0.75])
        ]
        if len(last)
        else [],
        "flips": {
            f"{a} to {b}": int(n)
            for (a, b), n in road[road["flip"]].groupby(["plain", "edited"]).size().items()  # type: ignore[misc]
        },
    }


def shown(result: xr.Dataset, rows: list[dict[str, Any]]) -> rlm.plot.Section:
    """The effects, and what they have to do with flips."""
    return rlm.plot.Section(
        title="Flips and crashes",
        panels=(
            rlm.plot.Panel(
                title="On the road",
                meaning="Difference from the unedited policy on the same seeds.",
                figure=rlm.plot.comparison(result, variables=("return", "crashed", "speed")),
            ),
            rlm.plot.Panel(
                title="Offline shares against closed-loop effects",
                meaning="A point a condition, labelled by its heads; bars are 95 % intervals.",
                figure=figures.against(rows),
            ),
            rlm.plot.Panel(
                title="What of a flip the car can feel",
                meaning="At full speed FASTER and IDLE command the same, at a standstill SLOWER and IDLE.",
                figure=figures.felt(rows),
            ),
        ),
    )


def scenes(
    policy: rlm.HookedPolicy,
    result: xr.Dataset,
    edits: dict[str, list[rlm.Edit]],
    where: Path,
    chosen: list[str],
) -> rlm.plot.Section:
    """Where two drives of a seed part for the car, and what came of it, for the conditions that disagree most."""
    panels: list[rlm.plot.Panel] = []
    actions = policy.spec.actions
    for name in chosen:
        ours, theirs = recorded(where, name, result), recorded(where, "baseline", result)
        crashed = {c: result["crashed"].sel(condition=c).to_series() > 0 for c in (name, "baseline")}
        differ = crashed[name] != crashed["baseline"]
        for seed in differ.index[differ][:N_SHOWN]:
            one = ours.episode(int(seed))
            felt = decisions(policy, one, edits[name]).query("felt").iloc[0]
            told = f"unedited {actions[felt['plain']]}, edited {actions[felt['edited']]}"
            end = one if crashed[name][seed] else theirs.episode(int(seed))
            who = name if crashed[name][seed] else "the unedited policy"
            titles = {
                f"{name}, seed {seed}: here they part": (one, int(felt["step"]), told),
                f"{name}, seed {seed}: {who} crashes": (end, int(end.vehicles["step"].max()), "the other does not"),
            }
            for title, (recording, step, meaning) in titles.items():
                number = int(recording.episodes["episode"].iloc[0])
                figure = rlm.plot.scene(recording, episode=number, step=step, title=f"step {step}")
                panels.append(rlm.plot.Panel(title=title, meaning=f"{meaning[0].upper()}{meaning[1:]}.", figure=figure))
    return rlm.plot.Section(title="Where they disagree", panels=tuple(panels))


if __name__ == "__main__":
    main()
