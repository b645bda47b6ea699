"""How one of MiniGrid's environments was made: its id, its keywords and its wrappers, so that it can be made again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from importlib import import_module

import gymnasium as gym

from rlmech.errors import MissingPackageError
from rlmech.simulators.minigrid.view import is_own, layers

PREFIXES = ("MiniGrid-", "BabyAI-")


def is_minigrid(env_id: str) -> bool:
    """Whether an id is one of MiniGrid's."""
    return env_id.startswith(PREFIXES)


def register() -> None:
    """Make MiniGrid's ids known to Gymnasium.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import_module("minigrid")
    except ImportError:
        raise MissingPackageError(
            "MiniGrid's environments need a package that is not installed.",
            given="an id that begins with " + " or ".join(PREFIXES),
            expected="the package minigrid",
            fix="pip install 'rlmech[minigrid]'",
        ) from None


def keywords_of(env: gym.Env) -> dict[str, object]:
    """The keywords that it was made with beside those of its id, as JSON values."""
    if env.spec is None:
        return {}
    registered: Mapping[str, object] = gym.registry[env.spec.id].kwargs if env.spec.id in gym.registry else {}
    own = {
        name: value
        for name, value in env.spec.kwargs.items()
        if name != "render_mode" and not (name in registered and registered[name] == value)
    }
    return json.loads(json.dumps(own, default=str))


def wrappers_of(env: gym.Env) -> tuple[str, ...]:
    """MiniGrid's wrappers around it, the innermost first, each with those of its keywords that are not the defaults."""
    return tuple(_told(layer) for layer in layers(env) if is_own(layer))


def _told(layer: object) -> str:
    parameters = list(inspect.signature(type(layer).__init__).parameters.values())[2:]  # after self and env
    changed = {
        one.name: getattr(layer, one.name)
        for one in parameters
        if hasattr(layer, one.name) and getattr(layer, one.name) != one.default
    }
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return f"{name}({json.dumps(changed, default=str)})" if changed else name
