"""An environment for somebody else, pickled or made again, and found to be the same: a worker's, or a copy here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cloudpickle
import gymnasium as gym

from rlmech.errors import ConfigError
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.identity import differences, listed


def sent(env: gym.Env, identity: Mapping[str, str]) -> bytes:
    """An environment as another gets it: pickled, or where that loses something, what Gymnasium makes it of.

    Args:
        env: The environment.
        identity: Its identity; what comes out has been found to have the same.

    Raises:
        ConfigError: It cannot be sent as it is.
    """
    told: list[str] = []
    for what, content in (("pickled", env), ("made anew", simulator_of(env).maker(env))):
        if content is None:
            continue
        try:
            packed = cloudpickle.dumps(content)
            other = made(packed)
            different = differences(identity, simulator_of(other).identity(other))
        except Exception as error:  # whatever an environment raises when it is pickled, or made
            told.append(f"{what}: {type(error).__name__}: {error}")
            continue
        if not different:
            return packed
        told.append(f"{what}, it differs in {listed(different)} (here, there)")
    raise ConfigError(
        "The environment cannot be sent to workers as it is.",
        given="; ".join(told),
        expected="an environment that pickles with all that makes its episodes, or that gymnasium.make makes again",
        fix="set workers=1, or give what was changed as keywords to gymnasium.make; a wrapper of your own is made "
        "again when it inherits gymnasium.utils.RecordConstructorArgs, too",
    )


def made(packed: bytes) -> gym.Env:
    """The environment that comes out of what was sent."""
    content: Any = cloudpickle.loads(packed)
    return content if isinstance(content, gym.Env) else content()
