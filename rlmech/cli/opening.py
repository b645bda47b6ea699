"""From what was typed to a policy, an environment and sites."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium as gym

    from rlmech.core.policy import HookedPolicy
    from rlmech.core.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A policy and the environment that it drives in."""

    policy: HookedPolicy
    env: gym.Env


def open_with_env(policy: str, env: str | None, *, wrappers: Sequence[str] = (), **given: Any) -> Opened:
    """Open a policy and make its environment.

    Args:
        policy: As typed.
        env: A Gymnasium id, or None for the policy's own.
        wrappers: As of `make_env`.
        **given: As of `open_policy`.
    """
    opened = open_policy(policy, env=env, **given)
    return Opened(policy=opened, env=make_env(opened, env, wrappers=wrappers))


def open_policy(
    policy: str,
    *,
    config: Path | None = None,
    extractor: str | None = None,
    vecnormalize: Path | None = None,
    env_config: Path | None = None,
    env: str | None = None,
) -> HookedPolicy:
    """Open a policy; an environment given by name tells what the numbers mean where the policy itself does not."""
    import rlmech as rlm
    from rlmech.errors import ConfigError

    given: Any = {"config": config}
    if extractor is not None:
        given["features_extractor_class"] = extractor
    if vecnormalize is not None:
        given["vecnormalize"] = str(vecnormalize)
    if env is None or env_config is not None:
        return rlm.load(policy, env_config=env_config, **given)
    try:
        opened = rlm.load(policy, **given)
    except ConfigError:  # its file does not tell the shapes; the environment may
        return rlm.load(policy, env=rlm.make_env(env), **given)
    return opened if opened.spec.env_id is not None else rlm.load(policy, env=rlm.make_env(env), **given)


def make_env(policy: HookedPolicy, env: str | None, *, wrappers: Sequence[str] = ()) -> Any:
    """The environment named, seen and driven as the policy was trained to; by default the one it was trained in.

    Args:
        policy: The policy.
        env: The id, or None.
        wrappers: Wrappers around it, the innermost first, as RL Zoo names them in a run's configuration.
    """
    import rlmech as rlm
    from rlmech.errors import ConfigError
    from rlmech.simulators.training_env import wrapped

    spec = policy.spec
    if env is None and spec.env_id is None:
        raise ConfigError(
            "The policy does not say which environment it is for.",
            given="no environment",
            expected="a Gymnasium id, e.g. intersection-v2",
            fix="name it after the policy",
        )
    name = env or str(spec.env_id)
    if name == spec.env_id:
        return wrapped(rlm.make_env(spec), tuple(wrappers))
    kept = {key: value for key, value in spec.env_config.items() if key in ("observation", "action")}
    try:
        made = rlm.make_env(name, config=kept or None)
    except ConfigError:
        made = rlm.make_env(name)  # no environment of highway-env's, or none at all
    return wrapped(made, tuple(wrappers))


def choose_sites(policy: HookedPolicy, names: str, over: str) -> str | list[Site]:
    """The sites that a sweep goes through: hook points as typed, and axes to run through."""
    if names == "auto" and not over:
        return "auto"
    axes = tuple(axis.strip() for axis in over.split(",") if axis.strip())
    chosen = None if names == "auto" else [name.strip() for name in names.split(",")]
    return policy.sites(chosen, over=axes)


def last_hidden(policy: HookedPolicy) -> str:
    """The last activation of one vector a state on the way to the scores: where what decides is together."""
    from rlmech.errors import ConfigError
    from rlmech.first_look.neurons import acting_layers

    acting = set(acting_layers(policy))
    hidden = [name for name, point in policy.hook_dict.items() if point.kind == "activation" and len(point.axes) == 2]
    if not hidden:
        raise ConfigError(
            "The policy has no hidden activation that is one vector a state.",
            given=f"{len(policy.hook_dict)} hook points",
            expected="a hook point with the axes batch and neuron",
            fix="--site NAME; rlmech inspect lists all of them",
        )
    return next((name for name in reversed(hidden) if name in acting), hidden[-1])


def refuse_unwritable(path: Path | None) -> None:
    """Refuse a path that cannot be written to, before the work and not after it.

    Raises:
        ConfigError: The nearest folder that is there may not be written to, or is a file.
    """
    from rlmech.errors import ConfigError

    if path is None:
        return
    there = path.absolute()
    while not there.exists():
        there = there.parent
    is_own = there == path.absolute()
    if (there.is_dir() or is_own) and os.access(there, os.W_OK):
        return
    raise ConfigError(
        f"Nothing can be written to {str(path)!r}.",
        given=f"{str(there)!r}, " + ("without permission to write" if there.is_dir() or is_own else "which is a file"),
        expected="a place that may be written to",
        fix="name another one",
    )
