"""The rows that a probe sees: a recording's states, what stands at a site in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site, read
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError

AT_ONCE = 4096


def activations(policy: HookedPolicy, obs: Any, site: Site, *, per: str | None = None) -> Float[np.ndarray, "row ..."]:
    """What stands at a site, a row an observation; with `per`, a row for each position along that axis.

    Args:
        policy: The policy.
        obs: Observations.
        site: Where.
        per: An axis of the site's hook point whose positions are rows of their own, `[row position number]`.
    """
    point = policy.point(site.name)
    index = site.index(point)
    n = len(next(iter(obs.values()))) if isinstance(obs, Mapping) else len(obs)
    parts: list[np.ndarray] = []
    for start in range(0, n, AT_ONCE):
        chosen = slice(start, start + AT_ONCE)
        part = {key: value[chosen] for key, value in obs.items()} if isinstance(obs, Mapping) else obs[chosen]
        with torch.no_grad():
            value = read(policy.run_with_cache(part, [site.name])[1][site.name], index).double().cpu()
        if per is None:
            parts.append(value.flatten(1).numpy())
        else:
            parts.append(value.movedim(point.axes.index(per), 1).flatten(2).numpy())
    return np.concatenate(parts)


def entity_axis(policy: HookedPolicy, site: Site, n_entities: int) -> str:
    """The axis of a site that entities stand along.

    Raises:
        ConfigError: It has none of that size.
    """
    point = policy.point(site.name)
    selected = {axis for axis, _ in site.selection}
    for axis in ("entity", "key", "query"):
        if axis in point.axes and axis not in selected and point.size(axis) == n_entities:
            return axis
    raise ConfigError(
        "A target of one value for each entity is probed where entities stand.",
        given=f"{n_entities} values a step, and {site} with axes {' '.join(point.axes)}",
        expected=f"a hook point with an axis entity or key of size {n_entities}",
        fix="choose e.g. an embedding of entities, or a target of one value a step (rlm.probes.of_entity)",
    )


def states_of(policy: HookedPolicy, recording: Recording) -> object:
    """The recording's observations, after a look whether they are the policy's."""
    recording.check_policy(policy)
    return recording.observations
