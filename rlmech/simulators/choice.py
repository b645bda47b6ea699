"""Which simulator an environment is of."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.simulators.highway.simulator import Highway
from rlmech.simulators.plain import Plain
from rlmech.simulators.protocol import Simulator

SIMULATORS: tuple[Simulator, ...] = (Highway(), Plain())
"""In the order in which they are asked; the last takes any environment."""


@explain_misuse
def simulator_of(env: gym.Env | Any) -> Simulator:
    """The first simulator that supports an environment.

    Raises:
        ConfigError: It is no single Gymnasium environment.

    Example:
        >>> import rlmech as rlm
        >>> type(rlm.simulators.simulator_of(rlm.make_env("CartPole-v1"))).__name__
        'Plain'
    """
    if not isinstance(env, gym.Env):
        named = isinstance(env, str)
        raise ConfigError(
            "An environment is needed, not its name." if named else "This is not a Gymnasium environment.",
            given=repr(env)[:200],
            expected="a gymnasium.Env",
            fix=f"rlm.make_env({env!r})"
            if named
            else "take one environment out of a vectorised one, e.g. venv.envs[0]",
        )
    return next(simulator for simulator in SIMULATORS if simulator.supports(env))
