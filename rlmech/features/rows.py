"""The states that features are learned from, and whose episode each is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rlmech.core.many_rows import n_rows, rows_of
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.episodes import moments
from rlmech.episodes.recording import Recording
from rlmech.errors import ObservationError


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
