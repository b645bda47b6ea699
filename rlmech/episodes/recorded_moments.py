"""Recorded decisions as what an analysis takes: observations, each with the state in which the policy met it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rlmech.arguments import explain_misuse
from rlmech.core.observation import Observation
from rlmech.errors import RecordingError

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy
    from rlmech.episodes.recording import Recording


@explain_misuse
def moments(recording: Recording, policy: HookedPolicy) -> Observation:
    """The moments in which a policy decided, for sweeps, attributions and the like.

    Args:
        recording: A recording of whole episodes.
        policy: Its policy.

    Returns:
        The observations `[step ...]`; of a recurrent policy with the state before each step, so that
        `policy(moments(recording, policy))` gives the recorded scores.

    Raises:
        RecordingError: Of a recurrent policy: its state was not recorded, or steps are missing in between.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=[0], progress=False)
        >>> bool((rlm.episodes.moments(recording, policy) == recording.observations).all())
        True
    """
    if not policy.is_recurrent:
        return recording.observations
    steps = recording.steps
    first = steps["step"].to_numpy() == 0
    whole = len(steps) == int(recording.episodes["length"].sum())
    if not whole:
        raise RecordingError(
            "The state before a step is that after the one before, which is not among these steps.",
            given=f"{len(steps)} steps of {int(recording.episodes['length'].sum())}",
            expected="whole episodes",
            fix="take the moments of the whole recording, and choose among them afterwards",
        )
    state = {}
    for name, initial in policy.initial_state().items():
        after = torch.as_tensor(recording.activation(name))
        before = torch.cat([initial.to(after), after[:-1]])
        before[np.flatnonzero(first)] = initial.to(after)
        state[name] = before
    return policy.with_state(recording.observations, state)
