"""Numbers with their intervals, as the README quotes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from pairs import Pairs

N_DRAWS = 2000


def recovery(result: xr.Dataset, pairs: Pairs, direction: str) -> xr.Dataset:
    """The same shares of the gap with intervals over episodes."""
    base, source = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    gain, span = (result["patched"] - result[base]).values, (result[source] - result[base]).values
    return over_episodes(result, pairs, gain=gain, span=span)


def over_episodes(result: xr.Dataset, pairs: Pairs, *, gain: np.ndarray, span: np.ndarray) -> xr.Dataset:
    """Intervals of mean(gain) / mean(span) from a bootstrap over episodes: pairs of one episode resemble each other."""
    episodes, member = np.unique(pairs.episode, return_inverse=True)
    belongs = np.eye(len(episodes))[member]
    shares = [1 / len(episodes)] * len(episodes)
    weights = np.random.default_rng(0).multinomial(len(episodes), shares, size=N_DRAWS)
    draws = (weights @ (gain @ belongs).T) / (weights @ (span @ belongs))[:, None]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    attrs = {"interval": "bootstrap over episodes, percentile", "n_resamples": N_DRAWS}
    return result.assign(effect_low=("site", low), effect_high=("site", high)).assign_attrs(attrs)


def table(results: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """One row per site, both directions side by side."""
    first = next(iter(results.values()))
    axes = [str(name) for name, c in first.coords.items() if c.dims == ("site",) and name not in ("site", "hook")]
    rows: list[dict[str, Any]] = []
    for i in range(first.sizes["site"]):
        values = {axis: first[axis].values[i] for axis in axes if first[axis].values[i] not in ("", -1)}
        where = dict.fromkeys(f"head {v}" if axis == "head" else str(v) for axis, v in values.items())
        hooks = " and ".join(_hook(name) for name in str(first["hook"].values[i]).split(" & "))
        row: dict[str, Any] = {"site": f"{hooks} {', '.join(where)}".strip()}
        rows.append(row | {what: interval(result, i) for what, result in results.items()})
    return rows


def _hook(name: str) -> str:
    """`hook_z` as `z`, `others_embedding.relu_1.hook_out` as `others_embedding`."""
    *path, last = name.split(".")
    return path[-2] if last == "hook_out" else last.removeprefix("hook_")


def interval(result: xr.Dataset, site: int) -> list[float]:
    """Effect of a site with its interval."""
    return [round(float(result[f"effect{suffix}"].values[site]), 4) for suffix in ("", "_low", "_high")]


def quantity(result: xr.Dataset, name: str) -> list[float]:
    """A number with its interval."""
    return [round(float(result[f"{name}{suffix}"]), 4) for suffix in ("", "_low", "_high")]


def quartiles(values: np.ndarray) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(float(v), 3) for v in np.quantile(values, [0.25, 0.5, 0.75])]
