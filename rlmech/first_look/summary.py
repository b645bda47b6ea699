"""The numbers of a first look, as plain values: for a table on the terminal, and for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from rlmech.first_look.analysis import FirstLook


def summary(look: FirstLook) -> dict[str, Any]:
    """The numbers of a first look.

    Returns:
        Episode means with standard errors, counts of pairs, and for each site of the sweeps its effect with the 95 %
        interval; plain Python values.
    """
    table: Any = look.recording.episodes
    found: dict[str, Any] = {
        "environment": look.recording.manifest["env"]["id"],
        "policy_fingerprint": look.policy.fingerprint,
        "n_episodes": len(table),
        "n_steps": len(look.recording.steps),
    }
    for name in ("return", "crashed", "arrived", "length", "speed"):
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
    return found


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
