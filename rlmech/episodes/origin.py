"""The environment that a recording is of, and its spaces, as far as this machine knows it.

A recording may be anybody's: only registered environments and Gymnasium's own wrappers are made of what it says.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Shaped

from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.simulators.env import make_env
from rlmech.untyped import JsonObject


def environment_of(recording: Recording) -> gym.Env | None:
    """Make the environment that a recording is of; None where its name is unknown or a package of it is missing."""
    told: JsonObject = recording.manifest["env"]
    if not told["id"]:
        return None
    keywords = {**told.get("keywords", {})}
    if told.get("max_episode_steps") is not None:
        keywords["max_episode_steps"] = told["max_episode_steps"]
    try:
        env = make_env(told["id"], config=told["config"] or None, **keywords)
        for wrapper in told.get("wrappers", []):
            module, _, name = str(wrapper["entry_point"]).partition(":")
            if module.startswith("gymnasium.wrappers.") and wrapper["keywords"] is not None:
                env = getattr(gym.wrappers, name)(env, **wrapper["keywords"])
        return env
    except (ConfigError, ImportError, gym.error.Error):
        return None


def spaces_of(recording: Recording, env: gym.Env | None) -> tuple[spaces.Space, spaces.Space]:
    """Spaces of the observations and the actions: an environment's where they are what was recorded, else the widest.

    Args:
        recording: At least one episode.
        env: What `environment_of` made of it.
    """
    first = next(recording.parts(n_steps=1))
    observations: Any = first.observations
    keyed = isinstance(observations, dict)
    sample = {key: values[0] for key, values in observations.items()} if keyed else observations[0]
    if env is not None and _holds(env.observation_space, sample) and _holds(env.action_space, first.actions[0]):
        return env.observation_space, env.action_space
    if keyed:
        observed: spaces.Space = spaces.Dict({key: _widest(values) for key, values in observations.items()})
    else:
        observed = _widest(observations)
    if first.actions.ndim > 1:
        acted: spaces.Space = _widest(first.actions)
    else:
        scored = bool(recording.manifest["policy"])
        acted = spaces.Discrete(first.scores.shape[1] if scored else int(recording.actions.max()) + 1)
    return observed, acted


def _widest(values: Shaped[np.ndarray, "step ..."]) -> spaces.Space:
    floating = values.dtype.kind == "f"
    low, high = (-np.inf, np.inf) if floating else (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max)
    return spaces.Box(low, high, values.shape[1:], values.dtype.type)  # type: ignore[arg-type]


def _holds(space: spaces.Space, sample: Any) -> bool:
    """Whether a space is of this structure, shape and type; the simulator's values may leave their stated ranges."""
    if isinstance(space, spaces.Dict) and isinstance(sample, dict):
        return space.keys() == sample.keys() and all(_holds(space[key], sample[key]) for key in sample)
    if isinstance(space, spaces.Discrete):
        return np.ndim(sample) == 0 and np.asarray(sample).dtype.kind in "iu"
    return isinstance(space, spaces.Box) and (space.shape, space.dtype) == (np.shape(sample), np.asarray(sample).dtype)
