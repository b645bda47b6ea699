"""Which simulator an environment is of, and what may be given for an environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.simulators.highway.simulator import Highway
from rlmech.simulators.minigrid.simulator import MiniGrid
from rlmech.simulators.plain import Plain
from rlmech.simulators.protocol import Simulator

SIMULATORS: tuple[Simulator, ...] = (Highway(), MiniGrid(), Plain())
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
    check_single(env)
    return next(simulator for simulator in SIMULATORS if simulator.supports(env))


def check_single(env: object) -> None:
    """Check that something is one Gymnasium environment.

    Raises:
        ConfigError: It is not: several at once, another library's, or none.
    """
    if isinstance(env, gym.Env):
        return
    n = getattr(env, "num_envs", None)
    if n is not None and hasattr(env, "step"):
        raise ConfigError(
            "This is a vector environment: several environments that are stepped at once.",
            given=f"a {type(env).__name__} of {n}",
            expected="one gymnasium.Env, e.g. rlm.make_env('CartPole-v1')",
            fix="give a single environment as the policy was trained in, e.g. vector.envs[0] where nothing normalises "
            "around it, and workers=... to run several at once",
        )
    raise ConfigError(
        "This is not a Gymnasium environment.",
        given=repr(env)[:200],
        expected="a gymnasium.Env, or the id of one",
        fix="rlm.make_env('CartPole-v1'); of the older gym: gymnasium.make('GymV21Environment-v0', env=env)",
    )
