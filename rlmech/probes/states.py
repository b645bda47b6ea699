"""The rows that a probe sees: a recording's states, what stands at a site in each."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from rlmech.core.many_rows import values_at
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError


def activations(policy: HookedPolicy, obs: Any, site: Site, *, per: str | None = None) -> Float[np.ndarray, "row ..."]:
    """What stands at a site, a row an observation; with `per`, a row for each position along that axis.

    Args:
        policy: The policy.
        obs: Observations.
        site: Where.
        per: An axis of the site's hook point whose positions are rows of their own, `[row position number]`.
    """
    value = values_at(policy, obs, site).double().cpu()
    if per is None:
        return value.flatten(1).numpy()
    return value.movedim(policy.point(site.name).axes.index(per), 1).flatten(2).numpy()


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
