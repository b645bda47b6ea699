"""First-order estimates on the eager engine: one backward pass through the live modules.

    estimate[site, pair] = sum over the site of (source - base) * d metric(base run) / d activation

Without a graph there are no repairs, no integration and no certificate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlmech.core.hook_point import HookPoint
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.gradients.at_nodes import first_order_change, sites_at
from rlmech.metrics.measure import BoundMetric


def estimate_eagerly(
    policy: HookedPolicy, sites: Sequence[Site], *, base: Observation, source: Observation, metric: BoundMetric
) -> dict[str, np.ndarray]:
    """The estimate of each site, `[site, pair]`.

    Args:
        policy: A policy on the eager engine, with nothing attached.
        sites: Where.
        base: The runs that the gradient is taken in.
        source: The runs whose activations would be put in.
        metric: Bound to the unpatched runs.

    Raises:
        HookError: The base runs do not reach a site.
        SiteError: An element of a site changes by an infinite amount.
    """
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: HookPoint) -> Tensor:
        kept[hook.name] = value if value.requires_grad else value.detach().requires_grad_()
        return kept[hook.name]

    names = list(dict.fromkeys(site.name for site in sites))
    outputs = [name for name, point in policy.hook_dict.items() if point.kind == "output"]
    hooked = dict.fromkeys((*names, *outputs))
    with torch.enable_grad(), policy.hooks(fwd_hooks=[(name, keep) for name in hooked]):
        scores = policy(base)
        measured = metric(scores, value=kept.get("hook_value"))
    found = torch.autograd.grad(measured.sum(), [kept[name] for name in names], materialize_grads=True)
    with torch.no_grad():
        _, cache = policy.run_with_cache(source, names)
    estimate = np.zeros((len(sites), len(scores)))
    for name, slope in zip(names, found, strict=True):
        places, here = sites_at(sites, name)
        estimate[places] = first_order_change(
            policy.hook_dict[name], here, base=kept[name].detach(), source=cache[name], slope=slope
        )
    return {"estimate": estimate}
