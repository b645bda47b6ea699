"""Students of a policy against their size: how faithful they are, and how they drive beside the policy."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.saving import PlotFigure, subplots
from rlmech.plot.style import INK, MUTED, POSITIVE, TEMPLATE

_WIDTH, _HEIGHT = 330, 340


@explain_misuse
def students(result: xr.Dataset, *, title: str | None = None) -> PlotFigure:
    """Draw fidelity, return and, where the environment has crashes, their rate against the students' size.

    Args:
        result: `rlm.distil.distil(...).result`.
        title: Title of the figure.

    Returns:
        A plotly figure with a panel for each; bars are 95 % intervals: of the share of steps, and of the paired
        difference to the policy, drawn around the policy's own mean, which is the dotted line.

    Raises:
        ConfigError: These are no students.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> env = rlm.make_env(policy.spec, config={"duration": 3})
        >>> found = rlm.distil.distil(policy, env, seeds=range(4), test_seeds=range(10, 14), sizes=[2], n_rounds=1)
        >>> len(rlm.plot.students(found.result).data)
        3
    """
    if not {"fidelity", "size", "delta_return"} <= set(result.variables):
        raise ConfigError(
            "These are no students.",
            given=f"a dataset with {', '.join(map(str, result)) or 'nothing in it'}",
            expected="size, fidelity and what compare_rollouts gives",
            fix="rlm.plot.students(rlm.distil.distil(...).result)",
        )
    measured = ["fidelity", *(name for name in ("return", "crashed") if f"delta_{name}" in result)]
    names = {"fidelity": "share of steps alike", "return": "return", "crashed": "share of episodes with a crash"}
    figure = subplots(
        rows=1, cols=len(measured), subplot_titles=[names[name] for name in measured], horizontal_spacing=0.08
    )
    taught = result.isel(condition=slice(1, None))
    for column, name in enumerate(measured, start=1):
        baseline = 1.0 if name == "fidelity" else float(result[name].isel(condition=0).astype(float).mean())
        at, low, high = (
            taught[f"{name if name == 'fidelity' else f'delta_{name}'}{end}"].values for end in ("", "_low", "_high")
        )
        offset = 0.0 if name == "fidelity" else baseline
        known = np.isfinite(low) & np.isfinite(high)
        figure.add_trace(
            go.Scatter(
                x=taught["size"].values,
                y=at + offset,
                mode="lines+markers",
                line={"color": POSITIVE, "width": 2},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": np.where(known, high - at, 0.0),
                    "arrayminus": np.where(known, at - low, 0.0),
                    "color": POSITIVE,
                },
                showlegend=False,
                hovertemplate="size %{x}: %{y:.3f}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        figure.add_hline(y=baseline, line={"color": MUTED, "width": 1, "dash": "dot"}, row=1, col=column)  # type: ignore[arg-type]
    figure.update_xaxes(title_text="size", type="log", tickvals=taught["size"].values, zeroline=False)
    figure.update_yaxes(zeroline=False)
    figure.update_layout(
        template=TEMPLATE,
        title_text=title,
        width=_WIDTH * len(measured),
        height=_HEIGHT,
        margin={"t": 60 + 30 * bool(title), "b": 56, "l": 56, "r": 20},
    )
    figure.update_annotations(font={"size": 13, "color": INK})
    return figure
