"""Attention weights and scores of a policy, and those of networks that were never trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import policies
import torch
from scenes import Scenes

import rlmech as rlm

AT_ONCE = 1024
N_UNTRAINED = 10
N_SHUFFLED = 19  # one policy beyond all of them: 1 in 20 by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a policy computes.

    Attributes:
        pattern: Attention of the ego, `[row, head, entity]`; a row's and head's weights add up to 1.
        scores: `[row, action]`.
    """

    pattern: np.ndarray
    scores: np.ndarray


def read(policy: rlm.HookedPolicy, observations: np.ndarray) -> Reading:
    """Attention and scores on observations `[row, entity, feature]`."""
    (block,) = policy.attention.values()
    name = block.names["pattern"]
    patterns, scores = [], []
    with torch.no_grad():
        for start in range(0, len(observations), AT_ONCE):
            out, cache = policy.run_with_cache(observations[start : start + AT_ONCE], name)
            patterns.append(cache[name][:, :, 0].cpu().numpy())
            scores.append(out.cpu().numpy())
    return Reading(pattern=np.concatenate(patterns), scores=np.concatenate(scores))


def weights(policy: rlm.HookedPolicy, scenes: Scenes) -> np.ndarray:
    """Attention to the vehicle, or to the ego, that each scene asks about: `[scene, condition, head]`."""
    pattern = read(policy, scenes.observations).pattern
    return scenes.table(pattern[np.arange(len(pattern)), :, scenes.read])


def untrained(scenes: Mapping[str, Scenes]) -> list[dict[str, np.ndarray]]:
    """Weights of networks like the zoo's as they are before training."""
    policy = policies.subjects()[0].load()
    return [all_weights(policies.untrained(policy, seed=seed), scenes) for seed in range(N_UNTRAINED)]


def shuffled(subject: policies.Subject, scenes: Mapping[str, Scenes]) -> list[dict[str, np.ndarray]]:
    """Weights of networks with a policy's own weights, each time in another order."""
    policy = subject.load()
    return [all_weights(policies.shuffled(policy, seed=seed), scenes) for seed in range(N_SHUFFLED)]


def all_weights(policy: rlm.HookedPolicy, scenes: Mapping[str, Scenes]) -> dict[str, np.ndarray]:
    """Weights on several kinds of scenes."""
    return {name: weights(policy, one) for name, one in scenes.items()}
