"""Where does the shipped LSTM keep its cue, and what proves it?

    python experiments/07_where_is_the_memory/run.py [--smoke] [--delay N] [--pairs N] [--policy P] [--out FOLDER]

Only what `import rlmech` shows. About a minute; `--smoke` takes few pairs and seeds. Writes `memory.csv`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import rlmech as rlm

LSTM = "lstm_actor"
H, C = f"{LSTM}.hook_h", f"{LSTM}.hook_c"
GAP = rlm.metrics.action_gap("RIGHT", "LEFT")


def pairs(n: int, delay: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sequences [pair step feature] that differ in the cue of their first step alone: RIGHT clean, LEFT corrupt."""
    sequences = np.zeros((n, delay + 1, 3), np.float32)
    sequences[:, :, 1] = np.random.default_rng(seed).uniform(-1, 1, (n, delay + 1))
    sequences[:, 0, 0], sequences[:, -1, 2] = 1, 1
    corrupt = sequences.copy()
    corrupt[:, 0, 0] = -1
    return sequences, corrupt


def whole_states(policy: rlm.HookedPolicy, clean: np.ndarray, corrupt: np.ndarray) -> xr.Dataset:
    """What brings the cue back when it is put into the other run after each step: h, c, or both."""
    steps = range(clean.shape[1])
    jobs = [tuple(rlm.Site(name, step=step) for name in names) for names in ((H,), (C,), (H, C)) for step in steps]
    result = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=jobs, metric=GAP)
    return result.assign_coords(
        state=("site", np.repeat(["h", "c", "h and c"], len(steps))), step=("site", np.tile(np.array(steps), 3))
    )


def units(policy: rlm.HookedPolicy, clean: np.ndarray, corrupt: np.ndarray, *, step: int) -> xr.Dataset:
    """The same for single units of c after one step."""
    sites = [rlm.Site(C, step=step, neuron=unit) for unit in range(policy.point(C).size("neuron"))]
    return rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites, metric=GAP)


def fewest(
    policy: rlm.HookedPolicy, clean: np.ndarray, corrupt: np.ndarray, order: np.ndarray, step: int
) -> xr.Dataset:
    """The best units together, one more at a time, each with its h: how many carry it all?"""
    jobs = [
        (rlm.Site(C, step=step, neuron=tuple(order[: n + 1])), rlm.Site(H, step=step, neuron=tuple(order[: n + 1])))
        for n in range(len(order))
    ]
    return rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=jobs, metric=GAP)


def on_episodes(policy: rlm.HookedPolicy, order: np.ndarray, seeds: range) -> xr.Dataset:
    """The proof: the memory exchanged in the middle of an episode, and what is done at its end."""
    env = rlm.make_env("CueRecall-v0")
    few, rest = tuple(int(unit) for unit in order[:4]), tuple(int(unit) for unit in order[4:])
    conditions = {
        "all of h and c wiped": [rlm.zero_ablation(rlm.Site(f"{name}_pre", step=3)) for name in (H, C)],
        "h wiped": [rlm.zero_ablation(rlm.Site(f"{H}_pre", step=3))],
        "c wiped": [rlm.zero_ablation(rlm.Site(f"{C}_pre", step=3))],
        "4 units wiped": [rlm.zero_ablation(rlm.Site(f"{name}_pre", step=3, neuron=few)) for name in (H, C)],
        "the other 12 wiped": [rlm.zero_ablation(rlm.Site(f"{name}_pre", step=3, neuron=rest)) for name in (H, C)],
    }
    return rlm.compare_rollouts(policy, env, conditions=conditions, seeds=seeds, progress=False)


def main() -> None:
    """Patch, rank, prove, write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", default="zoo:cue-recall-lstm")
    parser.add_argument("--delay", type=int, default=6, help="steps between the cue and the answer")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("report/where_is_the_memory"))
    parser.add_argument("--smoke", action="store_true", help="few pairs and seeds: does it run?")
    given = parser.parse_args()
    policy = rlm.load(given.policy)
    clean, corrupt = pairs(8 if given.smoke else given.pairs, given.delay)

    whole = whole_states(policy, clean, corrupt)
    middle = given.delay // 2
    single = units(policy, clean, corrupt, step=middle)
    order = np.argsort(-single.effect.values)
    together = fewest(policy, clean, corrupt, order, middle)
    seen = rlm.activation_patching(
        policy,
        clean=clean,
        corrupt=corrupt,
        sites=[rlm.Site("hook_obs", step=step) for step in range(given.delay + 1)],
        metric=GAP,
    )
    driven = on_episodes(policy, order, range(30 if given.smoke else 200))

    given.out.mkdir(parents=True, exist_ok=True)
    table = whole[["effect", "effect_low", "effect_high", "state", "step"]].to_dataframe()
    table.to_csv(given.out / "memory.csv", index=False)
    for state in ("h", "c", "h and c"):
        own = whole.where(whole.state == state, drop=True)
        print(f"{state:8s} put in after each step brings back", np.round(own.effect.values, 2))
    print("what was observed at each step brings back", np.round(seen.effect.values, 2))
    print(f"single units of c after step {middle}:", {int(u): round(float(single.effect[u]), 2) for u in order[:6]})
    reached = np.round(together.effect.values, 2)
    print("the best 1, 2, 4, 8, 16 units, h and c:", [float(reached[n - 1]) for n in (1, 2, 4, 8, 16)])
    for name in driven.condition.values:
        one = driven.sel(condition=name)
        low, high = float(one.delta_return_low), float(one.delta_return_high)
        print(
            f"{name}: return {float(one['return'].mean()):.2f}, {float(one.delta_return):+.2f} [{low:.2f}, {high:.2f}]"
        )


if __name__ == "__main__":
    main()
