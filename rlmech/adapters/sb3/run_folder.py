"""What stands beside a zip and decides how it drives: RL Zoo's `config.yml` and `args.yml`.

They name the environment, its keywords and its wrappers. Nothing of them is imported here: `make_env` of the policy's
spec makes the environment, of wrappers that are installed libraries' own.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlmech.adapters.sb3.statistics import read_run_config, read_yaml
from rlmech.spec import PolicySpec


def with_training(spec: PolicySpec, path: Path) -> PolicySpec:
    """A spec with what the run's own files say of its environment, as far as the spec does not.

    Args:
        spec: Of the policy.
        path: The zip.

    Raises:
        ConfigError: A file of the run is no YAML.
    """
    folders = (path.with_suffix(""), path.parent)
    config = next((read for folder in folders if (read := read_run_config(folder / "config.yml"))), None)
    if config is None:
        return spec
    arguments = next((read for folder in folders if (read := read_yaml(folder / "args.yml"))), {})
    kwargs = {**_mapping(config.get("env_kwargs")), **_mapping(arguments.get("env_kwargs"))}
    wrappers = _wrappers(config.get("env_wrapper"))
    if config.get("frame_stack"):
        wrappers += [f"frame_stack({int(config['frame_stack'])})"]
    own = kwargs.pop("config", None)
    return replace(
        spec,
        env_id=spec.env_id or _text(arguments.get("env") or arguments.get("env_id")),
        env_config=spec.env_config or _mapping(own),
        env_kwargs=kwargs,
        env_wrappers=tuple(wrappers),
    )


def _text(value: object) -> str | None:
    return str(value) if value else None


def _mapping(value: object) -> dict[str, object]:
    """Keywords: a mapping, or the text of one as RL Zoo writes it, `dict(a=1)` or `{'a': 1}`."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if not isinstance(value, str):
        return {}
    try:
        tree = ast.parse(value.strip(), mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "dict":
            return {str(entry.arg): ast.literal_eval(entry.value) for entry in tree.keywords if entry.arg}
        read = ast.literal_eval(tree)
    except (SyntaxError, ValueError):
        return {}
    return dict(read) if isinstance(read, Mapping) else {}


def _wrappers(value: object) -> list[str]:
    """Wrappers by name, with their keywords as JSON: `pkg.Class` or `pkg.Class({"skip": 4})`."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, Mapping):
            found += [f"{name}({json.dumps(_mapping(kwargs), sort_keys=True)})" for name, kwargs in entry.items()]
        else:
            found.append(str(entry))
    return found
