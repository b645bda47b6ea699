"""What happened along an episode beside the baseline's: where edits were at work, where another action came first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Shaped

from rlmech.core.acting import choose_actions
from rlmech.episodes.recording import Recording

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy


def along_episodes(
    recording: Recording, baseline: Recording, seeds: list[int], policy: HookedPolicy | None
) -> pd.DataFrame:
    """A row a seed: where edits were at work, how often the policy agrees, when another action came first.

    Args:
        recording: The condition's episodes.
        baseline: The baseline's.
        seeds: Whose rows are wanted, in order.
        policy: The baseline's, asked in the condition's states; None where the condition's own, unedited, is it.
    """
    in_baseline, actions_of, steps = _actions(baseline), _actions(recording), recording.steps
    agrees = ~steps["action_changed"] if policy is None else _agrees(recording, policy)
    crashed = steps["crashed"] if "crashed" in steps else np.zeros(len(steps), bool)
    columns = [np.asarray(column).astype(bool) for column in (steps["edited"], agrees, crashed)]
    ends = np.cumsum([len(actions) for actions in actions_of.values()])[:-1]
    rows: dict[int, dict[str, float]] = {}
    for seed, *own in zip(actions_of, *(np.split(column, ends) for column in columns), strict=True):
        edited, agreeing, crash = own
        onset = _first(edited)
        divergence = _first_difference(actions_of[seed], in_baseline[seed]) if seed in in_baseline else np.nan
        ended = _first(crash) - onset
        rows[seed] = {
            "edited": edited.mean(),
            "agreement": agreeing.mean(),
            "onset": onset,
            "divergence": divergence,
            "steps_to_change": divergence - onset,
            "steps_to_crash": ended if ended >= 0 else np.nan,
        }
    return pd.DataFrame.from_dict(rows, orient="index").loc[seeds]


def _first(held: Bool[np.ndarray, " step"]) -> float:
    """The first step at which something held; NaN where it never did."""
    return float(held.argmax()) if held.any() else np.nan


def _actions(recording: Recording) -> dict[int, Shaped[np.ndarray, "step ..."]]:
    actions, seeds = recording.actions, recording.steps["seed"].to_numpy()
    order = recording.episodes["seed"].to_list()
    starts = np.flatnonzero(np.r_[True, seeds[1:] != seeds[:-1]])
    return dict(zip(order, np.split(actions, starts[1:]), strict=True))


def _first_difference(one: Shaped[np.ndarray, "one ..."], other: Shaped[np.ndarray, "other ..."]) -> float:
    n = min(len(one), len(other))
    differ = np.flatnonzero((one[:n] != other[:n]).reshape(n, -1).any(1))
    return float(differ[0]) if len(differ) else np.nan


def _agrees(recording: Recording, policy: HookedPolicy) -> Shaped[np.ndarray, " step"]:
    """Whether a policy would do in each recorded state what was done there."""
    if recording.manifest["policy"].get("fingerprint") == policy.fingerprint:
        return ~recording.steps["action_changed"].to_numpy()
    if policy.is_recurrent:
        actions = [_in_order(recording.episode(seed), policy) for seed in recording.episodes["seed"]]
    else:
        actions = [policy.predict(part.observations, deterministic=True)[0] for part in recording.parts()]
    return (np.concatenate(actions) == recording.actions).reshape(len(recording.actions), -1).all(1)


def _in_order(episode: Recording, policy: HookedPolicy) -> Shaped[np.ndarray, "step ..."]:
    """What a policy with a memory would do along an episode, having seen what was seen there."""
    seen = episode.observations
    sequence = {key: value[None] for key, value in seen.items()} if isinstance(seen, dict) else seen[None]
    with torch.no_grad():
        scores, _ = policy.run_sequence(sequence, names=())
    return choose_actions(scores[0], policy.output_kind, policy.action_space, deterministic=True)
