"""The sites of a sweep with the largest effects, the largest first, with their intervals."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.saving import PlotFigure
from rlmech.plot.style import MUTED, NEGATIVE, POSITIVE, TEMPLATE

_BAR, _AROUND = 26, 96  # pixels


@explain_misuse
def ranking(result: xr.Dataset, *, n: int = 12, title: str | None = None) -> PlotFigure:
    """Draw the sites of a sweep that have the largest effects as bars, with their intervals.

    Args:
        result: What a sweep returned.
        n: How many sites, at most.
        title: Title of the figure.

    Returns:
        A plotly figure; blue is positive, red negative.

    Raises:
        ConfigError: It is not the result of a sweep.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> effects = rlm.ablation_sweep(policy, torch.rand(8, 4), sites=policy.sites("1.hook_out", over="neuron"))
        >>> len(rlm.plot.ranking(effects, n=3).data[0].y)
        3
    """
    if "effect" not in result or result["effect"].dims != ("site",):
        raise ConfigError(
            "This is not the result of a sweep.",
            given=f"variables {sorted(map(str, result.data_vars))}",
            expected="'effect' over 'site'",
            fix="give what rlm.ablation_sweep or rlm.activation_patching returned",
        )
    order = np.argsort(-np.abs(np.nan_to_num(result["effect"].values)), kind="stable")[:n]
    shown = result.isel(site=order)
    effect = shown["effect"].values
    low, high = (np.nan_to_num(np.abs(shown[f"effect_{end}"].values - effect)) for end in ("low", "high"))
    names = site_names(shown)
    figure = PlotFigure(
        go.Bar(
            x=effect,
            y=names,
            orientation="h",
            marker={"color": [POSITIVE if value >= 0 else NEGATIVE for value in effect]},
            error_x={"array": high, "arrayminus": low, "symmetric": False, "color": MUTED, "thickness": 1.5},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    unit = str(result["effect"].attrs.get("units", ""))
    said = str(result["effect"].attrs.get("long_name", "effect"))
    figure.update_layout(template=TEMPLATE, title_text=title, height=_AROUND + _BAR * len(names), bargap=0.35)
    figure.update_xaxes(title_text=f"{said} [{unit}]" if unit else said)
    figure.update_yaxes(autorange="reversed", title_text=None)
    return figure


def site_names(result: xr.Dataset) -> list[str]:
    """The sites of a sweep in words: the hook point without `hook_out`, and what is selected of it."""
    axes = [
        str(name)
        for name, values in result.coords.items()
        if values.dims == ("site",) and str(name) not in ("site", "hook")
    ]
    names: list[str] = []
    for place in range(result.sizes["site"]):
        one = result.isel(site=place)
        chosen = [f"{axis} {one[axis].item()}" for axis in axes if one[axis].item() not in (None, "", -1)]
        names.append(", ".join([str(one["hook"].item()).removesuffix(".hook_out"), *chosen]))
    return names
