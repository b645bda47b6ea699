"""rl-agents' JSON configurations: inheritance, the defaults that its networks fill in, and what tensors tell.

A file may name a `base_config`, upstream relative to the working directory of the training; here it is looked for
beside the file and in the folders above it. `__class__` and `import_module` name Python code to import: never followed.
Source: the networks' `default_config` in eleurent/rl-agents.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlmech.errors import CheckpointError, ConfigError, nearest
from rlmech.files import DamagedError, parse_json
from rlmech.untyped import JsonObject, Settings

Config = JsonObject

_PERCEPTRON: Config = {"type": "MultiLayerPerceptron"}
_EMBEDDING: Config = {"type": "MultiLayerPerceptron", "layers": [128, 128, 128], "reshape": False}
DEFAULTS: dict[str, Config] = {
    "MultiLayerPerceptron": {"in": None, "layers": [64, 64], "activation": "RELU", "reshape": "True", "out": None},
    "DuelingNetwork": {
        "in": None,
        "base_module": _PERCEPTRON | {"out": None},
        "value": _PERCEPTRON | {"layers": [], "out": None},
        "advantage": _PERCEPTRON | {"layers": [], "out": None},
        "out": None,
    },
    "ConvolutionalNetwork": {
        "in_channels": None,
        "in_height": None,
        "in_width": None,
        "activation": "RELU",
        "head_mlp": _PERCEPTRON | {"layers": [], "out": None},
        "out": None,
    },
    "EgoAttentionNetwork": {
        "in": None,
        "out": None,
        "presence_feature_idx": 0,
        "embedding_layer": _EMBEDDING,
        "others_embedding_layer": _EMBEDDING,
        "self_attention_layer": {"type": "SelfAttention", "feature_size": 128, "heads": 4},
        "attention_layer": {"type": "EgoAttention", "feature_size": 128, "heads": 4},
        "output_layer": _EMBEDDING,
    },
    "EgoAttention": {"feature_size": 64, "heads": 4, "dropout_factor": 0},
    "SelfAttention": {"feature_size": 64, "heads": 4, "dropout_factor": 0},
}
OLD_DUELING = "advantage.weight"
"""A tensor of dueling networks of before 2022, whose two heads were single linear layers."""
PARTS = (
    "embedding_layer",
    "others_embedding_layer",
    "self_attention_layer",
    "attention_layer",
    "output_layer",
    "base_module",
    "value",
    "advantage",
    "head_mlp",
)


def read_config(config: Mapping[str, object] | str | Path, *, name: str = "config") -> Config:
    """Read a configuration with what it inherits, as rl-agents' `load_agent_config` would.

    Args:
        config: The values, or the path to a JSON file.
        name: The argument that it was given as, for errors.

    Raises:
        ConfigError: A file is missing or is not JSON, or files inherit from each other in a circle.
    """
    if isinstance(config, Mapping):
        return copy.deepcopy(dict(config))
    return _read_file(Path(config), name=name, chain=())


def _read_file(path: Path, *, name: str, chain: tuple[Path, ...]) -> Config:
    if not path.is_file():
        others = [str(other) for other in path.parent.glob("*.json")] if path.parent.is_dir() else []
        close = nearest(str(path), others)
        raise ConfigError(
            f"There is no configuration file at {path}.",
            given=f"{name}={str(path)!r}",
            expected="a JSON file",
            fix=f"did you mean {close[0]!r}?" if close else "check the path",
        )
    try:
        values = parse_json(path.read_bytes())
    except (DamagedError, OSError) as error:
        raise ConfigError(
            f"{path} is not a JSON file: {error}.",
            given=f"{name}={str(path)!r}",
            expected="a JSON object",
            fix="mend the file at that place",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no JSON object.",
            given=type(values).__name__,
            expected="{...}",
            fix="give the configuration of the agent or environment",
        )
    base = values.pop("base_config", None)
    if base is None:
        return values
    chain = (*chain, path.resolve())
    return merged(_read_file(_find_base(str(base), path, chain), name="base_config", chain=chain), values)


def _find_base(base: str, path: Path, chain: tuple[Path, ...]) -> Path:
    folders = [path.resolve().parent, *path.resolve().parent.parents]
    found = next((folder / base for folder in folders if (folder / base).is_file()), None)
    if found is None:
        raise ConfigError(
            f"{path} inherits from a file that is not there.",
            given=f"base_config {base!r}",
            expected=f"{base!r} in {folders[0]} or a folder above it",
            fix="copy the base configuration there, laid out as in the project it comes from",
        )
    if found.resolve() in chain:
        raise ConfigError(
            f"{path} inherits from itself.",
            given=" -> ".join(step.name for step in (*chain, found)),
            expected="a chain of base_config that ends",
            fix="take one base_config out",
        )
    return found


def merged(base: Mapping[str, object], over: Mapping[str, object]) -> Config:
    """A copy of `base` with the entries of `over`, nested ones entry by entry."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        below = result.get(key)
        nested = isinstance(value, Mapping)
        result[key] = merged(below if isinstance(below, Mapping) else {}, value) if nested else copy.deepcopy(value)
    return result


def completed(model: Settings) -> Config:
    """A model's configuration with the defaults that rl-agents would fill in.

    Raises:
        ConfigError: It names a network that rl-agents does not have, or a value that it would not take.
    """
    kind = str(model.get("type", "DuelingNetwork"))  # the default of its DQN agent
    if kind not in DEFAULTS:
        close = nearest(kind, DEFAULTS)
        raise ConfigError(
            f"rl-agents has no network of type {kind!r}.",
            given=repr(kind),
            expected=f"one of {', '.join(known for known in DEFAULTS if not known.endswith('Attention'))}",
            fix=f"did you mean {close[0]!r}?"
            if close
            else "wrap the network itself: HookedPolicy(module, example_obs)",
        )
    config: Config = merged(DEFAULTS[kind], model) | {"type": kind}
    for part in PARTS:
        if part in DEFAULTS[kind] and config[part]:
            config[part] = completed(config[part])
    _check_values(config, kind)
    return config


def _check_values(config: Config, kind: str) -> None:
    if "activation" in DEFAULTS[kind] and config["activation"] not in ("RELU", "TANH"):
        raise ConfigError(
            f"rl-agents has no activation {config['activation']!r}.",
            given=f"activation {config['activation']!r} of {kind}",
            expected="RELU or TANH",
            fix="write the one that the network was trained with",
        )
    if "heads" not in DEFAULTS[kind]:
        return
    refuse_dropout(config, kind)
    heads, size = config["heads"], config["feature_size"]
    if not isinstance(heads, int) or heads < 1 or size % heads:
        raise ConfigError(
            f"The number of heads of {kind} does not divide its features.",
            given=f"heads {heads}, feature_size {size}",
            expected="a number of heads that divides feature_size",
            fix=f"one of {[n for n in range(1, size + 1) if size % n == 0]}",
        )


def refuse_dropout(config: Mapping[str, object], kind: str) -> None:
    """Refuse an attention layer whose dropout never ends.

    Raises:
        ConfigError: `dropout_factor` is above 0.
    """
    if config.get("dropout_factor"):
        raise ConfigError(
            "rl-agents makes its dropout anew inside forward, so it never leaves training mode: with it the same "
            "observation has another score each time, and no activation can be compared with another.",
            given=f"dropout_factor {config['dropout_factor']} of {kind}",
            expected="dropout_factor 0",
            fix="set it to 0 in the configuration: that is the network without dropout, with the same weights",
        )


def inferred(tensors: Mapping[str, Tensor], *, name: str) -> Config:
    """The model's configuration as far as the tensors tell: all but heads, activations and the presence feature.

    Raises:
        CheckpointError: The tensors are of no network that rl-agents has.
    """
    if "attention_layer.query_ego.weight" in tensors:
        attention: Config = {"feature_size": int(tensors["attention_layer.query_ego.weight"].shape[0])}
        has_self_attention = "self_attention_layer.query_all.weight" in tensors
        return {
            "type": "EgoAttentionNetwork",
            "embedding_layer": {"layers": _sizes(tensors, "ego_embedding.")},
            "others_embedding_layer": {"layers": _sizes(tensors, "others_embedding.")},
            "self_attention_layer": dict(attention) if has_self_attention else None,
            "attention_layer": attention,
            "output_layer": {"layers": _sizes(tensors, "output_layer.")},
        }
    if "advantage.predict.weight" in tensors:
        parts = ("base_module", "value", "advantage")
        return {"type": "DuelingNetwork"} | {part: {"layers": _sizes(tensors, f"{part}.")} for part in parts}
    if OLD_DUELING in tensors:
        base = {"layers": _sizes(tensors, "base_module.")}
        return {"type": "DuelingNetwork", "base_module": base, "value": None, "advantage": None}
    if "conv1.weight" in tensors:
        return {"type": "ConvolutionalNetwork", "head_mlp": {"layers": _sizes(tensors, "head.")}}
    if "predict.weight" in tensors:
        return {"type": "MultiLayerPerceptron", "layers": _sizes(tensors, "")}
    raise CheckpointError(
        f"The tensors of {name} are of no network that rl-agents has.",
        given=f"{', '.join(list(tensors)[:6])}{', ...' if len(tensors) > 6 else ''}",
        expected="an EgoAttentionNetwork, MultiLayerPerceptron, DuelingNetwork or ConvolutionalNetwork",
        fix="wrap the network itself: HookedPolicy(module, example_obs)",
    )


def _sizes(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    found = {
        int(match[1]): int(value.shape[0])
        for key, value in tensors.items()
        if (match := re.fullmatch(re.escape(prefix) + r"layers\.(\d+)\.weight", key))
    }
    return [found[index] for index in sorted(found)]


def model_config(config: Mapping[str, object] | None, tensors: Mapping[str, Tensor], *, name: str) -> Config:
    """The model's complete configuration, from what was given and what the tensors tell.

    A configuration with a `type` (under `model`, as in an agent's, or at its top) is completed as rl-agents would;
    one without, or none, completes what the tensors tell.

    Raises:
        ConfigError: The number of heads is not given, or the configuration is malformed.
        CheckpointError: The tensors are of no known network.
    """
    given = dict(config or {})
    model = given.get("model", given)
    if config and "model" not in given and not {"type", "activation", *PARTS} & set(given):
        raise ConfigError(
            "The configuration says nothing of a model, so its activations and heads would be guessed.",
            given=f"entries {', '.join(list(given)[:6])}",
            expected="an agent's configuration, with `model`, or a run's metadata, with `agent`",
            fix="give the one that the checkpoint was trained with; without config, the tensors tell what they can",
        )
    if not isinstance(model, Mapping):
        raise ConfigError(
            "The configuration's `model` is not an object.",
            given=repr(model),
            expected="{'type': ..., ...}",
            fix="give the agent's configuration file",
        )
    if "type" in model:
        plain_heads = {"value": None, "advantage": None} if OLD_DUELING in tensors else {}
        return completed({**model, **plain_heads})
    partial = merged(inferred(tensors, name=name), model)
    for part in ("self_attention_layer", "attention_layer"):
        if part in partial and partial[part] and "heads" not in partial[part]:
            size = int(partial[part].get("feature_size", 64))
            raise ConfigError(
                f"{name} does not tell how many heads its {part} has: every number has the same tensors.",
                given=f"{'a configuration without it' if given else 'no configuration'}; feature_size {size}",
                expected=f"heads, one of {[n for n in range(1, size + 1) if size % n == 0]}",
                fix="give the agent's configuration file, load(path, config='ego_attention.json'), or at least "
                f"config={{'model': {{'{part}': {{'heads': 4}}}}}}",
            )
    return completed(partial)


def split_run(config: Settings) -> tuple[Config, Config | None]:
    """The agent's and the environment's configuration out of a run's metadata, `{"agent", "env"}`.

    Any other configuration is the agent's, and there is none of the environment.
    """
    if isinstance(config.get("agent"), Mapping):
        env = config.get("env")
        return dict(config["agent"]), dict(env) if isinstance(env, Mapping) else None
    return dict(config), None


def find_metadata(path: Path) -> Config | None:
    """The metadata that rl-agents writes into a run's folder, beside a checkpoint or one folder above.

    Raises:
        ConfigError: There are several that differ, or one is no JSON object.
    """
    for folder in (path.parent, path.parent.parent):
        found = [read_config(file) for file in sorted(folder.glob("metadata*.json"))]
        runs = [run for run in found if isinstance(run.get("agent"), Mapping)]
        if runs and any(run["agent"] != runs[0]["agent"] for run in runs):
            raise ConfigError(
                f"Beside {path.name} lie the metadata of several runs, and they differ.",
                given=", ".join(file.name for file in sorted(folder.glob("metadata*.json"))[:4]),
                expected="those of one run",
                fix="name its own: load(path, config='metadata.....json')",
            )
        if runs:
            return runs[0]
    return None
