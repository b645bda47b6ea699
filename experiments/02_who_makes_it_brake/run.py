"""Which vehicle, head, feature and path make the shipped intersection policy choose SLOWER instead of FASTER?

    python experiments/02_who_makes_it_brake/run.py [--smoke] [--episodes N] [--out FOLDER]

Writes a page with the figures, `numbers.json` with what the README quotes, and the drawn circuit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pairs as pairing
import xarray as xr
from circuits import THRESHOLDS, curve
from describe import described
from places import THE, Places
from tables import interval, over_episodes, recovery, table

import rlmech as rlm

POLICY = "zoo:intersection-ego-attention"
FIRST_SEED = 200_000  # none of them was trained, validated or evaluated on
GAP = rlm.metrics.action_gap(pairing.BRAKE, pairing.GO)
FEATURES = {"position": ("x", "y"), "velocity": ("vx", "vy"), "heading": ("cos_h", "sin_h")}


def main() -> None:
    """Record, pair, patch, attribute, discover, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("report/who_makes_it_brake"))
    parser.add_argument("--recordings", type=Path, default=Path("runs/02_who_makes_it_brake"))
    parser.add_argument("--smoke", action="store_true", help="six episodes: does it run?")
    given = parser.parse_args()
    start = time.perf_counter()
    policy = rlm.load(POLICY)
    places = Places(policy)
    recording = recorded(policy, given.recordings, 6 if given.smoke else given.episodes)
    print(f"recorded: {time.perf_counter() - start:.0f} s")
    removed, candidates = pairing.removed(policy, recording)
    kinds = {
        "removed": removed,
        "replaced": pairing.replaced(policy, recording, removed),
        "matched": pairing.matched(policy, recording),
        "unrelated": pairing.unrelated(policy, recording),
    }
    print(f"pairs: {time.perf_counter() - start:.0f} s")
    numbers: dict[str, Any] = {"pairs": described(places, recording, kinds, candidates)}
    print(f"described: {time.perf_counter() - start:.0f} s")
    sections = [whom(policy, recording, candidates)]
    found_at = THRESHOLDS[2:3] if given.smoke else THRESHOLDS
    parts = {
        "patched": patched,
        "features": features,
        "attributed": attributed,
        "paths": paths,
        "circuits": partial(circuits, thresholds=found_at),
        "together": together,
    }
    for name, part in parts.items():
        shown, found = part(places, kinds)
        sections.append(shown)
        numbers[name] = found
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    facts = [("episodes", str(len(recording))), *((f"{kind} pairs", str(len(p))) for kind, p in kinds.items())]
    page = rlm.plot.page(sections, given.out / "index.html", title="Who makes it brake?", facts=facts)
    (given.out / "numbers.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    single = numbers["patched"]["removed"]["z"][: len(places.heads)]
    best = max(single, key=lambda row: row["enough"][0])
    low, high = best["enough"][1:]
    print(f"the output of {best['site']} alone brings back {best['enough'][0]:.2f} [{low:.2f}, {high:.2f}] of the gap")
    print(f"the page is at {page}, after {time.perf_counter() - start:.0f} s")


def recorded(policy: rlm.HookedPolicy, folder: Path, episodes: int) -> rlm.Recording:
    """The policy's own episodes, recorded once."""
    path = folder / f"{episodes}_episodes"
    if path.exists() and len(kept := rlm.Recording.load(path)) == episodes:
        if kept.manifest["policy"]["fingerprint"] == policy.fingerprint:
            return kept
        raise SystemExit(f"{path} holds episodes of another policy: remove it, or give --recordings another folder.")
    env = rlm.make_env("intersection-v2", config=policy.spec.env_config or None)
    return rlm.record(policy, env, seeds=range(FIRST_SEED, FIRST_SEED + episodes), names=(), path=path)


def whom(policy: rlm.HookedPolicy, recording: rlm.Recording, candidates: np.ndarray) -> rlm.plot.Section:
    """Where the vehicles are that it brakes for, and what taking each row away does in all states."""
    states = recording.observations[np.unique(candidates[:, 0])]
    rows = policy.sites("hook_obs", over="entity")[1:]
    zeroed = rlm.ablation_sweep(policy, states, sites=rows, kind="zero", metric=GAP)
    where = figures.vehicles(policy, recording.observations, candidates)
    return section(
        "Whom does it brake for?",
        ("Every vehicle of the SLOWER states, taken away", "Red: without this one vehicle it chooses FASTER.", where),
        ("Each row taken away, over all SLOWER states", "Change of Q(SLOWER) - Q(FASTER); rows follow the ego's lane. "
         "Intervals are over states and take no account of episodes.", rlm.plot.sweep(zeroed)),
    )  # fmt: skip


def patched(places: Places, kinds: dict[str, pairing.Pairs]) -> tuple[rlm.plot.Section, dict[str, Any]]:
    """Heads, the vehicle, head by vehicle: sufficient (denoise) and necessary (noise)."""
    policy = places.policy
    heads = [places.head("z", h) for h in places.heads]
    heads += [rlm.Site(places.block.names["z"], head=list(several)) for several in ((1, 2), (2, 3), (1, 2, 3))]
    embedding, mask = places.vehicle(THE)
    whole = [embedding, mask, (embedding, mask)]
    parts = [places.head(part, h, entity=THE) for part in "kv" for h in places.heads]
    parts += [places.head("mask", h, key=THE) for h in places.heads]
    q = [places.head("q", h) for h in places.heads]
    groups = {
        "removed": {"z": heads, "vehicle": whole, "parts": parts},
        "replaced": {"z": heads, "vehicle": [embedding], "parts": parts[: 2 * len(places.heads)]},
        "matched": {"z": heads, "q": q, "ego": [rlm.Site(places.ego)],
                    "vehicle": [places.vehicle(entity) for entity in policy.spec.entities[1:9]]},
        "unrelated": {"z": heads, "q": q, "ego": [rlm.Site(places.ego)]},
    }  # fmt: skip
    found: dict[str, Any] = {}
    panels = []
    for kind, sweeps in groups.items():
        results = {name: both(policy, kinds[kind], sites) for name, sites in sweeps.items()}
        found[kind] = {name: table(result) for name, result in results.items()}
        found[kind]["decisions"] = decisions(policy, kinds[kind], heads)
        for name, result in results.items():
            title = f"{kind.capitalize()} pairs: {MEANT[name]}"
            rows = found[kind][name]
            panels.append((title, ENOUGH, rlm.plot.sweep(result, limit=1) if name == "z" else figures.bars(rows)))
    return section("Which parts carry it?", *panels), found


def decisions(policy: rlm.HookedPolicy, pairs: pairing.Pairs, sites: list[rlm.Site]) -> list[dict[str, Any]]:
    """Share of pairs in which a patch brings SLOWER back, and in which it drives SLOWER away."""
    changed = {
        what: rlm.activation_patching(
            policy,
            clean=pairs.clean,
            corrupt=pairs.corrupt,
            sites=sites,
            metric=rlm.metrics.action_flip(),
            direction=direction,
        )["patched"].values.mean(1)
        for what, direction in DIRECTIONS.items()
    }
    return [
        {
            "site": f"head {dict(site.selection)['head']}",
            "SLOWER comes back": 1 - float(back),
            "SLOWER goes": float(gone),
        }
        for site, back, gone in zip(sites, changed["enough"], changed["needed"], strict=True)
    ]


MEANT = {"z": "each head's output", "vehicle": "the vehicle", "parts": "the vehicle in each head", "q": "each query",
         "ego": "the ego's embedding"}  # fmt: skip
ENOUGH = (
    "Share of the gap Q(SLOWER) - Q(FASTER): 'enough' is denoising, clean values in the corrupt run; 'needed' is "
    "noising, corrupt values in the clean run. Brackets are 95 % intervals over episodes."
)


def features(places: Places, kinds: dict[str, pairing.Pairs]) -> tuple[rlm.plot.Section, dict[str, Any]]:
    """Features of the vehicle's row, one by one and two by two, where another vehicle stands in its place."""
    single = [rlm.Site("hook_obs", entity=THE, feature=f.name) for f in places.policy.spec.features[1:]]
    couples = [rlm.Site("hook_obs", entity=THE, feature=list(pair)) for pair in FEATURES.values()]
    results = {"one": both(places.policy, kinds["replaced"], single)}
    results["two"] = both(places.policy, kinds["replaced"], couples)
    panels = [(f"Replaced pairs: {name} at a time", ENOUGH, rlm.plot.sweep(r, limit=1)) for name, r in results.items()]
    return section("Which features?", *panels), {name: table(result) for name, result in results.items()}


def attributed(places: Places, kinds: dict[str, pairing.Pairs]) -> tuple[rlm.plot.Section, dict[str, Any]]:
    """First-order estimates against exact patches, and where they are certified to be equal."""
    policy, pairs = places.policy, kinds["replaced"]
    sites = {
        "z": [places.head("z", h) for h in places.heads],
        "k": [places.head("k", h, entity=THE) for h in places.heads],
        "v": [places.head("v", h, entity=THE) for h in places.heads],
        "embedding": [places.vehicle(THE)[0]],
        "features": [rlm.Site("hook_obs", entity=THE, feature=f.name) for f in policy.spec.features[1:]],
    }
    found: dict[str, Any] = {}
    drawn: dict[str, dict[str, xr.Dataset]] = {"gradient": {}, "integrated": {}}
    for name, chosen in sites.items():
        row: dict[str, Any] = {}
        for what, options in {"gradient": {"certificate": True}, "integrated": {"n_steps": 16, "exact": True}}.items():
            result = rlm.attribution_patching(
                policy, clean=pairs.clean, corrupt=pairs.corrupt, sites=chosen, metric=GAP, direction="noise", **options
            )
            exact, estimate = (result["patched"] - result["clean"]).values.ravel(), result["estimate"].values.ravel()
            row[what] = {
                "correlation": float(np.corrcoef(exact, estimate)[0, 1]),
                "remainder over effect": float(np.abs(exact - estimate).mean() / np.abs(exact).mean()),
                "wrong sign": float((exact * estimate < 0).mean()),
                "mean effect, estimated": [round(float(v), 3) for v in result["effect"].values],
                "mean effect, exact": [
                    round(float(v), 3)
                    for v in (result["patched"] - result["clean"]).mean("pair")
                    / (result["corrupt"] - result["clean"]).mean("pair")
                ],
            }
            drawn[what][MEANT_ESTIMATES[name]] = result
            if "certified" in result:
                certified = result["certified"].values.ravel()
                row[what]["certified"] = float(certified.mean())
                row[what]["largest error where certified"] = float(np.abs((exact - estimate)[certified]).max(initial=0))
        found[name] = row
    figure = figures.attributions(drawn, "clean")
    text = (
        "Noising on replaced pairs, every site and pair a point. Left the gradient at the clean run, right integrated "
        "gradients in 16 steps. On the dotted line the estimate is exact; estimates beyond 16 are drawn at the edge."
    )
    return section("How good are attributions?", ("Estimate against exact patch", text, figure)), found


MEANT_ESTIMATES = {"z": "head outputs", "k": "the vehicle's keys", "v": "its values", "embedding": "its embedding",
                   "features": "its features"}  # fmt: skip


def paths(places: Places, kinds: dict[str, pairing.Pairs]) -> tuple[rlm.plot.Section, dict[str, Any]]:
    """From the vehicle through keys or values of a head, and from the heads and the ego straight to the Q layers."""
    policy, sender = places.policy, [places.vehicle(THE)[0]]
    keys, values = ([places.head(part, h, entity=THE) for h in places.heads] for part in "kv")
    receivers = {f"{part} of head {h}": [places.head(part, h, entity=THE)] for part in "kv" for h in places.heads}
    receivers |= {"all keys": keys, "all values": values, "keys and values": [*keys, *values]}
    replaced = kinds["replaced"]
    found: dict[str, Any] = {"vehicle ->": path_rows(policy, replaced, sender, receivers)}
    direct = {"skip (ego)": [rlm.Site(places.ego)]} | {f"head {h}": [places.head("z", h)] for h in places.heads}
    for kind in ("removed", "unrelated"):
        found[f"-> Q layers, {kind}"] = [
            path_rows(policy, kinds[kind], site, {name: places.reader})[0] for name, site in direct.items()
        ]
    edges = rlm.edges.edge_patching(
        policy, clean=replaced.clean, corrupt=replaced.corrupt, metric=GAP, direction="noise"
    )  # fmt: skip
    every, magnitude = edges["effect"].values, np.abs(edges["effect"].values)
    top = np.argsort(-np.where(np.isclose(every, 1), 0, magnitude))[:12]  # 1: an edge that everything goes through
    found["edges"] = [
        {"edge": f"{short(edges['sender'].values[i])} → {short(edges['receiver'].values[i])}",
         "needed": [float(edges[f"effect{s}"].values[i]) for s in ("", "_low", "_high")]}
        for i in top
    ]  # fmt: skip
    titles = {
        "vehicle ->": "Replaced pairs: from the vehicle's embedding to keys and values",
        "-> Q layers, removed": "Removed pairs: straight to the Q layers",
        "-> Q layers, unrelated": "Unrelated pairs: straight to the Q layers",
    }
    panels = [(title, ENOUGH, figures.bars(found[name])) for name, title in titles.items()]
    text = "Noising along one edge of the component graph only, replaced pairs. Intervals over pairs."
    panels.append(("The twelve strongest edges that something bypasses", text, figures.bars(found["edges"])))
    return section("Along which paths?", *panels), found


def path_rows(
    policy: rlm.HookedPolicy, pairs: pairing.Pairs, sender: list[rlm.Site], receivers: dict[str, Any]
) -> list[dict[str, Any]]:
    """Path effects of one sender on each of the receivers, both directions."""
    rows: list[dict[str, Any]] = []
    for name, receiver in receivers.items():
        row: dict[str, Any] = {"site": name}
        for what, direction in DIRECTIONS.items():
            result = rlm.edges.path_patching(
                policy, clean=pairs.clean, corrupt=pairs.corrupt, sender=sender, receiver=receiver, metric=GAP,
                direction=direction,
            )  # fmt: skip
            row[what] = interval(recovery(result, pairs, direction), 0)
        rows.append(row)
    return rows


def circuits(
    places: Places, kinds: dict[str, pairing.Pairs], *, thresholds: Sequence[float]
) -> tuple[rlm.plot.Section, dict[str, Any]]:
    """Circuits of growing size, found on the pairs of two thirds of the episodes, measured on those of the others."""
    found: dict[str, Any] = {}
    panels = []
    for kind in ("replaced", "matched"):
        pairs = kinds[kind]
        held = np.isin(pairs.episode, np.unique(pairs.episode)[2::3])
        sizes, small = curve(places.policy, pairs.of(~held), pairs.of(held), metric=GAP, thresholds=thresholds)
        found[kind] = {"pairs found on, measured on": [int((~held).sum()), int(held.sum())], "by size": sizes}
        value, low, high = (drawn := next(row for row in sizes if row["circuit"] is small))["faithfulness"]
        title = f"{len(small.kept)} of {len(small.candidates)} edges, faithfulness {value:.2f} [{low:.2f}, {high:.2f}]"
        found[kind]["drawn"] = drawn["edges"]
        panels += [
            (f"{kind.capitalize()} pairs: faithfulness by size", CURVE, figures.faithfulness_by_size(sizes)),
            (f"{kind.capitalize()} pairs: the smallest circuit that is enough", DRAWN[kind],
             rlm.plot.circuit_graph(small, title=title).update_layout(width=1000)),
        ]  # fmt: skip
        for row in sizes:
            del row["circuit"]
    return section("Which circuit?", *panels), found


CURVE = (
    "On pairs of episodes that it was not found on, with 95 % intervals over pairs. Grey: random circuits of the same "
    "size made of whole paths, median and quartiles of 20: any paths, or paths from the circuit's own observation rows."
)
DRAWN = {
    "replaced": "At least 0.8 of the gap on the pairs that it was found on. vehicle_1: the vehicle it brakes for.",
    "matched": "At least 0.8 of the gap on the pairs that it was found on. Rows follow the ego's lane.",
}


def together(places: Places, kinds: dict[str, pairing.Pairs]) -> tuple[rlm.plot.Section, dict[str, Any]]:
    """Do two heads do more or less together than the sum of both alone?"""
    found: dict[str, Any] = {}
    panels = []
    pairs = kinds["removed"]
    for what, direction in DIRECTIONS.items():
        result = rlm.patching.pairwise_interactions(
            places.policy, clean=pairs.clean, corrupt=pairs.corrupt, sites=[places.head("z", h) for h in places.heads],
            metric=GAP, direction=direction,
        )  # fmt: skip
        result = over_episodes(result, pairs, gain=result["synergy"].values, span=np.ones(len(pairs)))
        rows = [
            {"site": f"heads {int(result['first_head'][i])} and {int(result['second_head'][i])}",
             what: interval(result, i)}
            for i in range(result.sizes["site"])
        ]  # fmt: skip
        found[what] = rows
        text = "Metric with both patched, less each alone, plus neither, in units of return. 0: they add up."
        panels.append((f"Two heads, {what} ({direction})", text, figures.bars(rows, unit="synergy [return]")))
    return section("Do heads work together?", *panels), found


DIRECTIONS = {"enough": "denoise", "needed": "noise"}


def both(policy: rlm.HookedPolicy, pairs: pairing.Pairs, sites: list[Any]) -> dict[str, xr.Dataset]:
    """Denoised and noised, with intervals over episodes."""
    results: dict[str, xr.Dataset] = {}
    for what, direction in DIRECTIONS.items():
        result = rlm.activation_patching(
            policy, clean=pairs.clean, corrupt=pairs.corrupt, sites=sites, metric=GAP, direction=direction
        )
        results[what] = recovery(result, pairs, direction)
    return results


def short(unit: str) -> str:
    """A unit of the component graph without the module's path, e.g. `k head 2, vehicle_1`."""
    name, *where = unit.split(" ")
    parts = name.removesuffix(".hook_out").split(".")
    last = parts[-1].removeprefix("hook_") if parts[-1].startswith("hook_") else ".".join(parts[-2:])
    chosen = ", ".join(part.replace("head=", "head ").removeprefix("entity=") for part in where)
    return f"{last} {chosen}".strip()


def section(title: str, *panels: tuple[str, str, Any]) -> rlm.plot.Section:
    """A section of the page."""
    made = tuple(rlm.plot.Panel(title=name, meaning=meaning, figure=figure) for name, meaning, figure in panels)
    return rlm.plot.Section(title=title, panels=made)


if __name__ == "__main__":
    main()
