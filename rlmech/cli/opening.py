"""From what was typed to a policy, an environment and sites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy
    from rlmech.core.site import Site


def open_policy(
    policy: str,
    *,
    config: Path | None = None,
    extractor: str | None = None,
    env_config: Path | None = None,
    env: str | None = None,
) -> HookedPolicy:
    """Open a policy; an environment given by name tells what the numbers mean where the policy itself does not."""
    import rlmech as rlm
    from rlmech.errors import ConfigError

    given: Any = {"config": config}
    if extractor is not None:
        given["features_extractor_class"] = extractor
    if env is None or env_config is not None:
        return rlm.load(policy, env_config=env_config, **given)
    try:
        opened = rlm.load(policy, **given)
    except ConfigError:  # its file does not tell the shapes; the environment may
        return rlm.load(policy, env=rlm.make_env(env), **given)
    return opened if opened.spec.env_id is not None else rlm.load(policy, env=rlm.make_env(env), **given)


def make_env(policy: HookedPolicy, env: str | None) -> Any:
    """The environment named, seen and driven as the policy was trained to; by default the one it was trained in."""
    import rlmech as rlm
    from rlmech.errors import ConfigError

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
        return rlm.make_env(spec)
    kept = {key: value for key, value in spec.env_config.items() if key in ("observation", "action")}
    try:
        return rlm.make_env(name, config=kept or None)
    except ConfigError:
        return rlm.make_env(name)  # no environment of highway-env's, or none at all


def choose_sites(policy: HookedPolicy, names: str, over: str) -> str | list[Site]:
    """The sites that a sweep goes through: hook points as typed, and axes to run through."""
    if names == "auto" and not over:
        return "auto"
    axes = tuple(axis.strip() for axis in over.split(",") if axis.strip())
    chosen = None if names == "auto" else [name.strip() for name in names.split(",")]
    return policy.sites(chosen, over=axes)
