"""A published checkpoint's heads, ablated in closed loop, against known answers.

    python -m benchmarks.known_answers FOLDER

FOLDER holds `model_4h.tar` with its `config/` and `observations.npy`, states that it met. Every head of its attention
is set to zero and to its mean over the observations; intersection-v0 with the checkpoint's own configuration, greedy,
paired by seed. Known: independent runs of the same, mean ± standard error. An hour on one core; a run that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import rlmech as rlm
from benchmarks import tables

FIRST, LAST = 1000, 1500
KNOWN = {
    ("mean 3", "return"): (-0.52, 0.16),
    ("mean 3", "crashed"): (0.162, 0.022),
    ("zero 0", "return"): (-2.83, 0.18),
    ("zero 0", "crashed"): (-0.172, 0.018),
    ("mean 0", "return"): (-0.28, 0.11),
    ("baseline", "return"): (5.19, None),
    ("baseline", "crashed"): (0.252, None),
}
SAMPLES = (50, 100, 200, 500)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_answers", description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint's folder")
    parser.add_argument("--seeds", type=int, nargs=2, default=(FIRST, LAST), metavar=("FIRST", "LAST"))
    parser.add_argument("--recordings", type=Path, default=Path("runs/known_answers"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=tables.RESULTS)
    given = parser.parse_args()
    policy, env = subject(given.folder)
    _, reference = policy.run_with_cache(np.load(given.folder / "observations.npy"), "*.hook_z")
    result = rlm.compare_rollouts(
        policy,
        env,
        conditions=conditions(policy, reference),
        seeds=range(*given.seeds),
        workers=given.workers,
        path=given.recordings,
    )
    rows = [*described(result)]
    print(rlm.episodes.comparison_table(result).to_string())
    table = tables.plain_table(rows) + "\n\nWhat sample size does to one effect, head 3 set to its mean:\n\n"
    growth = [*by_sample_size(result)]
    table += tables.plain_table(growth) + "\n"
    print(table)
    print("written:", *tables.save("known_answers", rows=rows + growth, table=table, where=given.out))


def subject(folder: Path) -> tuple[rlm.HookedPolicy, Any]:
    """The checkpoint and its environment."""
    agent, env_config = (next(folder.glob(f"config/**/{name}.json")) for name in ("ego_attention_4h", "env"))
    policy = rlm.load(folder / "model_4h.tar", config=agent, env_config=env_config)
    config = json.loads(env_config.read_text())
    made = {key: value for key, value in config.items() if key not in ("id", "import_module")}
    return policy, rlm.make_env(config["id"], config=made)


def conditions(policy: rlm.HookedPolicy, reference: rlm.ActivationCache) -> dict[str, list[rlm.Edit]]:
    """Every head set to its mean, and to zero."""
    found: dict[str, list[rlm.Edit]] = {}
    for site in policy.sites("*.hook_z", over=("head",)):
        head = dict(site.selection)["head"]
        found[f"mean {head}"] = [rlm.mean_ablation(site, reference=reference)]
        found[f"zero {head}"] = [rlm.zero_ablation(site)]
    return found


def described(result: xr.Dataset) -> Any:
    """A row a condition, with the known answer beside it."""
    for name in result["condition"].values.tolist():
        one, row = result.sel(condition=name), {"condition": name}
        kind = "mean" if name == "baseline" else "delta"
        for outcome in ("return", "crashed"):
            low, high = (float(one[f"{kind}_{outcome}_{end}"]) for end in ("low", "high"))
            row[outcome] = f"{float(one[f'{kind}_{outcome}']):+.3f} [{low:+.3f}, {high:+.3f}]"
            row[f"{outcome} se"] = f"{float(one[f'delta_{outcome}_se']):.3f}"
            known = KNOWN.get((name, outcome))
            row[f"{outcome} known"] = "" if known is None else f"{known[0]:+g}" + (f" ± {known[1]}" if known[1] else "")
        row["agreement"] = f"{float(one['agreement'].mean()):.2f}"
        yield row


def by_sample_size(result: xr.Dataset) -> Any:
    """One effect on the first seeds only."""
    differences = (result["return"].sel(condition="mean 3") - result["return"].sel(condition="baseline")).values
    for n in [n for n in SAMPLES if n <= len(differences)]:
        own = differences[:n]
        yield {"seeds": n, "change of return": float(own.mean()), "standard error": float(own.std(ddof=1) / np.sqrt(n))}


if __name__ == "__main__":
    main()
