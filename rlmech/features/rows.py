"""The states that features are learned from, whose episode each is of, and what stands at a site in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site, read
from rlmech.episodes import moments
from rlmech.episodes.recording import Recording
from rlmech.errors import ObservationError

AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Observations, and which episode each is of.

    Attributes:
        obs: Observations, as the policy takes them.
        episode: A label for each; every state its own where none was told.
        recorded: Whether they are a recording's.
    """

    obs: Observation
    episode: np.ndarray
    recorded: bool

    def __len__(self) -> int:
        return len(self.episode)

    def rows(self, index: Any) -> Observation:
        """Some of the observations."""
        return rows_of(self.obs, index)


def states_of(policy: HookedPolicy, states: Recording | Observation, clusters: Any = None) -> States:
    """A recording's states with their episodes, or observations with the labels that were given.

    Raises:
        RecordingError: The recording is of another policy.
        ObservationError: There are no states, or another number of labels.
    """
    if isinstance(states, Recording):
        states.check_policy(policy)
        obs = moments(states, policy)
        episode = states.steps["episode"].to_numpy() if clusters is None else np.asarray(clusters)
    else:
        obs = states
        episode = np.arange(n_rows(obs)) if clusters is None else np.asarray(clusters)
    if len(episode) != n_rows(obs) or len(episode) == 0:
        raise ObservationError(
            "Every state has one label of its episode.",
            given=f"{n_rows(obs)} states and {len(episode)} labels",
            expected="as many of each, at least one",
            fix='clusters=recording.steps["episode"]',
        )
    _, number = np.unique(episode, return_inverse=True)
    return States(obs=obs, episode=number, recorded=isinstance(states, Recording))


def n_rows(obs: Observation) -> int:
    """How many observations there are."""
    return len(next(iter(obs.values()))) if isinstance(obs, Mapping) else len(obs)


def rows_of(obs: Observation, index: Any) -> Observation:
    """Some of a batch of observations, in the order of the index."""
    if isinstance(obs, Mapping):
        return {key: value[index] for key, value in obs.items()}
    return obs[index]


def parts_of(n: int) -> list[slice]:
    """Pieces of a batch that fit into memory."""
    return [slice(start, min(n, start + AT_ONCE)) for start in range(0, n, AT_ONCE)]


def scores_of(policy: HookedPolicy, obs: Observation) -> Tensor:
    """The scores of many observations."""
    with torch.no_grad():
        return torch.cat([policy(rows_of(obs, part)) for part in parts_of(n_rows(obs))])


def values_at(policy: HookedPolicy, obs: Observation, site: Site) -> Tensor:
    """A site's values in many observations, with all axes of its hook point."""
    index = site.index(policy.point(site.name))
    with torch.no_grad():
        parts = [
            read(policy.run_with_cache(rows_of(obs, part), [site.name])[1][site.name], index).detach()
            for part in parts_of(n_rows(obs))
        ]
    return torch.cat(parts)
