"""Table E: the agent with the largest gain by one unit's removal, opened: where, when, how much, and the lasting mend.

The unit was chosen on the choosing seeds. Here everything is measured on seeds that neither chose nor measured it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import rlmech as rlm

DOSES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Constants that the unit is set to: its mean, and so many of its standard deviations beside it."""
FRESH = 300
"""First seed of those that nothing else has used."""


def chosen(loops: pd.DataFrame) -> pd.Series:
    """The agent whose best unit's removal gains most, as a share of its way down to random, on the measuring seeds."""
    gains = (loops["gain"] / loops["way"]).where(loops["way"] > 0)
    return loops.loc[gains.astype(float).idxmax()]


def site_of(policy: rlm.HookedPolicy, label: str) -> rlm.Site:
    """The unit that a label of the tables, `layer 2 unit 17`, names."""
    _, layer, _, unit = label.split()
    units = rlm.atlas.hidden_units(policy)
    layers = list(dict.fromkeys(site.name for site in units))
    return rlm.Site(layers[int(layer) - 1], neuron=int(unit))


def open_up(
    policy: rlm.HookedPolicy, label: str, *, n_seeds: int, n_recorded: int = 40
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What one unit does, and what its removal does.

    Returns:
        Conditions driven, a row each: removed always, in the first fifth of an episode, after it, and set to constants
        (the dose-response); and where it acts: by feature, its correlation with the unit, and how the states in which
        its removal changes the action differ from the others.
    """
    env, site = rlm.make_env(policy.spec), site_of(policy, label)
    own = rlm.record(policy, env, seeds=range(n_recorded), names=site.name, progress=False)
    values = own.activation(site.name)[:, dict(site.selection)["neuron"]].astype(float)
    observations, length = np.asarray(own.observations), int(own.episodes["length"].median())
    _, cache = policy.run_with_cache(observations, site.name)
    removed = rlm.mean_ablation(site, reference=cache)
    early = rlm.episodes.when.from_step(max(1, length // 5))
    conditions: dict[str, Any] = {
        "removed": [removed],
        "removed in the first fifth": rlm.Condition(edits=[removed], when=~early),
        "removed after the first fifth": rlm.Condition(edits=[removed], when=early),
    }
    mean, spread = values.mean(), values.std()
    doses = {f"mean {dose:+g} sd": dose for dose in DOSES}
    for name, dose in doses.items():
        constant = torch.zeros(1, policy.hook_dict[site.name].size("neuron")) + float(mean + dose * spread)
        conditions[name] = [rlm.mean_ablation(site, reference={site.name: constant})]
    found = rlm.compare_rollouts(
        policy, env, conditions=conditions, seeds=range(FRESH, FRESH + n_seeds), progress=False
    )
    driven = pd.DataFrame(
        [
            {
                "condition": name,
                "dose": doses.get(name),
                "return": float(found["return"].sel(condition=name).mean()),
                **{
                    f"change{end}": float(found[f"delta_return{end}"].sel(condition=name))
                    for end in ("", "_low", "_high")
                },
                "length": float(found["length"].sel(condition=name).mean()),
                "n_seeds": n_seeds,
            }
            for name in found["condition"].values.tolist()
        ]
    )
    return driven, _where(policy, removed, observations, values)


def _where(policy: rlm.HookedPolicy, removed: rlm.Edit, observations: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    before = np.asarray(policy.predict(observations)[0]).reshape(len(observations), -1).astype(float)
    with policy.edited([removed]):
        after = np.asarray(policy.predict(observations)[0]).reshape(len(observations), -1).astype(float)
    moved = np.abs(after - before).max(1)
    strongest = moved > np.quantile(moved, 0.9) if (moved > 0).mean() > 0.1 else moved > 0
    names = [feature.name for feature in policy.spec.features] or [f"number {i}" for i in range(observations.shape[1])]
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        column = observations[:, place].astype(float)
        varies = column.std() > 0 and values.std() > 0
        there = strongest.any() and (~strongest).any()
        rows.append(
            {
                "feature": name,
                "correlation_with_unit": float(np.corrcoef(column, values)[0, 1]) if varies else None,
                "mean_where_it_acts": float(column[strongest].mean()) if there else None,
                "mean_elsewhere": float(column[~strongest].mean()) if there else None,
                "spread": float(column.std()),
            }
        )
    return pd.DataFrame(rows)


def write(loops: pd.DataFrame, load: Any, out: Path, *, n_seeds: int) -> pd.DataFrame:
    """Open the agent that gains most, and write `opened.csv` and `opened_where.csv`."""
    row = chosen(loops)
    driven, where = open_up(load(row["policy"]), row["best"], n_seeds=n_seeds)
    for name, result in (("opened", driven), ("opened_where", where)):
        result.insert(0, "unit", row["best"])
        result.insert(0, "policy", row["policy"])
        result.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
        result.to_parquet(out / f"{name}.parquet", index=False)
    return driven
