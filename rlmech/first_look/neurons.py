"""The neurons of the acting network, each at its mean: how much does what is done change?"""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Int

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes import Recording
from rlmech.metrics.measure import Metric
from rlmech.metrics.score_metrics import action_flip, action_shift
from rlmech.patching.ablation import ablation_sweep

MOST_ROWS = 512  # that neurons are ranked in: enough for a share within some percent, also for images
_UNITS: dict[tuple[str, ...], str] = {("batch", "neuron"): "neuron", ("batch", "channel", "height", "width"): "channel"}


def acting_layers(policy: HookedPolicy) -> list[str]:
    """Hook points of the hidden activations that the scores are computed from, in order.

    A critic's are not among them, nor what bends the scores themselves, such as the tanh on an action.
    """
    names = list(policy.hook_dict)
    if policy.engine == "graph":
        points = policy.points
        scores = next(point.address.node for point in points.values() if point.kind == "output")
        read = set(policy.graph_engine.graph.computed_order([scores]))
        names = [name for name in points if points[name].address.node in read]
    kinds = [policy.hook_dict[name].kind for name in names]
    last = max((place for place, kind in enumerate(kinds) if kind in ("linear", "convolution")), default=0)
    return [name for name, kind in zip(names[:last], kinds[:last], strict=True) if kind == "activation"]


def decision_change(policy: HookedPolicy) -> Metric:
    """What an ablation is measured by: how often another action is chosen, or how far a continuous one moves."""
    return action_shift() if policy.output_kind == "mean_action" else action_flip()


def unit_sites(policy: HookedPolicy) -> list[Site]:
    """Every neuron, or channel of a convolution, of the acting network."""
    return [
        site
        for name in acting_layers(policy)
        if policy.hook_dict[name].axes in _UNITS
        for site in policy.sites(name, over=_UNITS[policy.hook_dict[name].axes])
    ]


def spread_rows(recording: Recording) -> Int[np.ndarray, " row"]:
    """Rows of a recording, evenly spread where they are many."""
    n = len(recording.steps)
    return np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(int)


def rank_neurons(policy: HookedPolicy, recording: Recording) -> xr.Dataset | None:
    """Each unit of the acting network at its mean, the strongest first.

    Args:
        policy: The policy.
        recording: Its episodes.

    Returns:
        The sweep, its sites in order of their effect; None where the network has no such layer.
    """
    sites, observations = unit_sites(policy), recording.observations
    if not sites or isinstance(observations, dict) or policy.is_recurrent:
        return None
    rows = spread_rows(recording)
    episodes = recording.steps["episode"].to_numpy()[rows]
    result = ablation_sweep(
        policy,
        observations[rows],
        sites=sites,
        metric=decision_change(policy),
        clusters=episodes if len(np.unique(episodes)) > 1 else None,
    )
    return result.isel(site=np.argsort(-np.abs(result["effect"].values), kind="stable"))
