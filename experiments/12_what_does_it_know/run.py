"""What does the shipped intersection policy know, what of it does it use, and does it know what it will do?

    python experiments/12_what_does_it_know/run.py [--smoke] [--episodes N] [--driven N] [--out FOLDER]

Only what `import rlmech` shows. Some ten minutes of a free core; `--smoke` takes few episodes and controls. Writes
`known.csv` (each target, site and probe seed with its controls), `used.csv` (erased and pushed, driven) and
`planned.csv` (actions some steps later) into `--out FOLDER`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import rlmech as rlm

FRONT = "features_extractor"
SITES = {
    "ego embedding": f"{FRONT}.ego_embedding.relu_1.hook_out",
    "attention": f"{FRONT}.attention_layer.hook_attn_out",
    "hidden 1": "q_net.1.hook_out",
    "hidden 2": "q_net.3.hook_out",
}
DRIVEN_AT = "hidden 2"


def danger(recording: rlm.Recording) -> np.ndarray:
    """Whether a vehicle would be met within three seconds, as both drive now."""
    return recording.steps["ttc"].to_numpy() < 3


def nearest(recording: rlm.Recording) -> np.ndarray:
    """Distance to the nearest vehicle, in metres."""
    return recording.steps["distance"].to_numpy(dtype=float)


def coin(recording: rlm.Recording) -> np.ndarray:
    """A control that nothing can know: a coin thrown for each step."""
    return np.random.default_rng(0).random(len(recording.steps)) < 0.5


TARGETS = {
    "nearest vehicle": nearest,
    "danger": danger,
    "own speed": "speed",
    "crash within 5 steps": rlm.probes.within("crashed", 5),
    "distance of vehicle 1": rlm.probes.of_entity("distance", 1),
    "coin": coin,
}


def known(policy: rlm.HookedPolicy, recording: rlm.Recording, seeds: range) -> tuple[pd.DataFrame, rlm.probes.Probes]:
    """What can be read where, for several draws of folds, controls and fresh weights; the last draw's probes."""
    tables: list[pd.DataFrame] = []
    for seed in seeds:
        found = rlm.probes.fit_probe(policy, recording, target=TARGETS, sites=list(SITES.values()), seed=seed)
        tables.append(found.table().assign(seed=seed))
    names = {site: name for name, site in SITES.items()}
    table = pd.concat(tables)
    table["site"] = [next((own for hook, own in names.items() if hook in site), site) for site in table["site"]]
    return table, found


def used(policy: rlm.HookedPolicy, probes: rlm.probes.Probes, seeds: range, n_controls: int) -> pd.DataFrame:
    """What driving without each, or with more or less of it, does, beside random directions."""
    rows: list[dict[str, object]] = []
    env = rlm.make_env(policy.spec)
    for name in TARGETS:
        probe = probes.probe(name, SITES[DRIVEN_AT])
        result = rlm.probes.is_used(policy, env, probe, seeds=seeds, n_controls=n_controls, progress=False)
        for condition in result["condition"].values[1:]:
            one = result.sel(condition=condition)
            rows.append(
                {
                    "target": name,
                    "condition": condition,
                    "control_of": str(one["control_of"].values),
                    **{
                        f"{what}{end}": float(one[f"delta_{what}{end}"])
                        for what in ("return", "crashed")
                        for end in ("", "_low", "_high")
                    },
                    "baseline": float(result["return"].sel(condition="baseline").mean()),
                    "verdict": result.attrs["verdict"],
                }
            )
    return pd.DataFrame(rows)


def planned(policy: rlm.HookedPolicy, recording: rlm.Recording, horizon: int) -> pd.DataFrame:
    """The action some steps later, read off each site and off all else that is known by then."""
    slower = 0

    def brakes(recording: rlm.Recording) -> np.ndarray:
        return recording.steps["action"].to_numpy() == slower

    found = rlm.probes.planning(policy, recording, target=brakes, horizon=horizon, sites=list(SITES.values()))
    rows: list[dict[str, object]] = []
    for place, name in enumerate(SITES):
        for step in found["step"].values:
            one = found.isel(site=place).sel(step=step)
            by = {str(c): float(one["score"].sel(control=c)) for c in found["control"].values}
            rows.append({"site": name, "steps ahead": int(step), **by, "says": str(one["says"].values)})
    return pd.DataFrame(rows)


def main() -> None:
    """Record, probe, drive, look ahead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few episodes: does it run?")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--driven", type=int, default=200)
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/what_does_it_know"))
    given = parser.parse_args()
    n_seeds, n_controls = 5, 5
    if given.smoke:
        given.episodes, given.driven, given.horizon, n_seeds, n_controls = 60, 4, 1, 1, 1
    policy = rlm.load("zoo:intersection-ego-attention")
    recording = rlm.record(policy, rlm.make_env(policy.spec), seeds=range(given.episodes), progress=False)
    given.out.mkdir(parents=True, exist_ok=True)
    table, probes = known(policy, recording, range(n_seeds))
    table.to_csv(given.out / "known.csv", index=False)
    print(
        f"{len(recording.steps)} steps of {given.episodes} episodes; means over {n_seeds} draws of folds and controls"
    )
    columns = ["score", "observation", "untrained", "shuffled", "episode_mean"]
    print(table.groupby(["target", "site"], sort=False)[columns].mean().round(2).to_string())
    print(table.groupby("target", sort=False)["says"].agg(lambda says: says.value_counts().to_dict()).to_string())
    ahead = planned(policy, recording, given.horizon)
    ahead.to_csv(given.out / "planned.csv", index=False)
    print("\nbrakes some steps later, balanced accuracy:")
    print(ahead.round(2).to_string(index=False))
    fresh = range(given.episodes, given.episodes + given.driven)
    driven = used(policy, probes, fresh, n_controls)
    driven.to_csv(given.out / "used.csv", index=False)
    print(f"\ndriven at {DRIVEN_AT}, {given.driven} further episodes, baseline {driven['baseline'].iloc[0]:.2f}:")
    print(driven.drop(columns=["baseline"]).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
