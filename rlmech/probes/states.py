"""The rows that a probe sees: a recording's states, what stands at a site in each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.many_rows import values_at
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site, read
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError

_EPISODES_AT_ONCE = 64


def activations(policy: HookedPolicy, obs: Any, site: Site, *, per: str | None = None) -> Float[np.ndarray, "row ..."]:
    """What stands at a site, a row an observation; with `per`, a row for each position along that axis.

    Args:
        policy: The policy.
        obs: Observations.
        site: Where.
        per: An axis of the site's hook point whose positions are rows of their own, `[row position number]`.
    """
    return _as_rows(policy, values_at(policy, obs, site), site, per)


def recorded(
    policy: HookedPolicy, recording: Recording, site: Site, *, per: str | None = None
) -> Float[np.ndarray, "row ..."]:
    """What stands at a site at each recorded step: of a policy with memory, what each episode left in it until then.

    Args:
        policy: The policy, or one of its shape.
        recording: Its episodes.
        site: Where.
        per: As in `activations`.
    """
    if not policy.is_recurrent:
        return activations(policy, recording.observations, site, per=per)
    episode = recording.steps["episode"].to_numpy()
    _, first, counts = np.unique(episode, return_index=True, return_counts=True)
    index, parts = site.index(policy.point(site.name)), [torch.zeros(0)] * len(first)
    order = np.argsort(counts, kind="stable")  # episodes of about one length run together
    for start in range(0, len(order), _EPISODES_AT_ONCE):
        own = order[start : start + _EPISODES_AT_ONCE]
        # padded by the last observation: what comes after an episode changes nothing in it
        steps = np.minimum(np.arange(counts[own].max()), counts[own][:, None] - 1) + first[own][:, None]
        obs = _rows(recording.observations, steps)
        with torch.no_grad():
            value = policy.run_sequence(obs, names=[site.name])[1][site.name].detach()
        for place, number in enumerate(own):
            parts[number] = read(value[place, : counts[number]], index)
    return _as_rows(policy, torch.cat(parts), site, per)


def _rows(observations: Any, index: np.ndarray) -> Any:
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]


def _as_rows(policy: HookedPolicy, value: Tensor, site: Site, per: str | None) -> Float[np.ndarray, "row ..."]:
    value = value.double().cpu()
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
