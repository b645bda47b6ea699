"""The numbers of a first look, as plain values: for a table on the terminal, and for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from rlmech.episodes import Recording
from rlmech.first_look.analysis import FirstLook

MOST_NEURONS = 16


def summary(look: FirstLook) -> dict[str, Any]:
    """The numbers of a first look.

    Returns:
        Episode means with standard errors, counts of pairs, and for each site of the sweeps its effect with the 95 %
        interval; of ablations that drove, the differences from the baseline; plain Python values.
    """
    table: Any = look.recording.episodes
    found: dict[str, Any] = {
        "environment": look.recording.manifest["env"]["id"],
        "policy_fingerprint": look.policy.fingerprint,
        "n_episodes": len(table),
        "n_steps": len(look.recording.steps),
    }
    for name in dict.fromkeys(("return", *shares(look.recording), "length", "speed")):
        if name in table:
            values = np.asarray(table[name], dtype=float)
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
            found[name] = {"mean": float(values.mean()), "se": error}
    if look.pairs is not None:
        found["pairs"] = {
            "n_pairs": len(look.pairs.rows),
            "n_states": look.pairs.n_states,
            "n_flips": look.pairs.n_flips,
            "vehicle": look.pairs.chosen_by,
        }
    found["patching"] = {name: rows(result) for name, result in look.patching.items()}
    found["ablation"] = {name: rows(result) for name, result in look.ablation.items()}
    if look.neurons is not None:
        found["neurons"] = {"mean ablation": rows(look.neurons.isel(site=slice(MOST_NEURONS)))}
    if look.driven is not None:
        found["driven"] = {
            "n_seeds": look.driven.result.sizes["seed"],
            "shown": {"condition": look.driven.condition, "seed": look.driven.seed},
            "conditions": conditions(look.driven.result),
        }
    return found


def shares(recording: Recording) -> list[str]:
    """What the simulator tells of an episode as true or false: `crashed`, `arrived`, `success`."""
    return [str(one["name"]) for one in recording.manifest["outcomes"] if one["kind"] == "share"]


def conditions(result: xr.Dataset) -> list[dict[str, Any]]:
    """A comparison's conditions as plain values: means, differences from the baseline, intervals, p-values.

    Args:
        result: What `compare_rollouts` returned.
    """
    columns = [str(name) for name, values in result.data_vars.items() if values.dims == ("condition",)]
    along = [name for name in ("edited", "agreement") if name in result]
    table: list[dict[str, Any]] = []
    for name in result["condition"].values.tolist():
        one = result.sel(condition=name)
        row: dict[str, Any] = {"condition": name, "edits": str(one["edits"].item())}
        row |= {"control_of": str(one["control_of"].item())} if "control_of" in one.coords else {}
        row |= {column: _plain(one[column].values[()]) for column in columns}
        row |= {column: _plain(one[column].mean().values[()]) for column in along}
        row["episodes_changed"] = _plain(one["divergence"].notnull().mean().values[()])
        table.append(row)
    return table


def rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """A sweep's sites with their effects and intervals, as plain values."""
    axes = [
        str(name) for name, coordinate in result.coords.items() if coordinate.dims == ("site",) and str(name) != "site"
    ]
    table: list[dict[str, Any]] = []
    for site in range(result.sizes["site"]):
        named = {axis: _plain(result.coords[axis].values[site]) for axis in axes}
        row: dict[str, Any] = {axis: name for axis, name in named.items() if name not in (None, "", -1)}
        for name in ("effect", "effect_low", "effect_high"):
            if name in result:
                row[name] = _plain(result[name].values[site])
        table.append(row)
    return table


def _plain(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain
