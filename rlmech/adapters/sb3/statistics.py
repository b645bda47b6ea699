"""Where VecNormalize's statistics come from: a live object, its pickle, read as data, or an npz.

And what lies beside a zip: `vecnormalize.pkl`, and RL Zoo's `config.yml`, which says whether the run was normalised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from rlmech.adapters.inert_pickle import Stub, read_inert
from rlmech.adapters.sb3.normalized import SKIP, Statistics
from rlmech.errors import CheckpointError, ConfigError
from rlmech.untyped import JsonObject, Settings

PICKLES = ("vecnormalize.pkl", "vec_normalize.pkl")


def find_statistics(path: Path, given: object) -> Statistics | None:
    """The statistics of a zip's policy.

    Args:
        path: The zip.
        given: `vecnormalize` of `load`: a path to a pickle or npz, a live `VecNormalize`, False for none; None looks
            beside the zip, and in the folder of its name.

    Returns:
        None where its observations were not normalised, as far as is told.

    Raises:
        ConfigError: The run's configuration says that they were, and there are no statistics; or `given` is none.
        CheckpointError: A file of statistics is damaged.
    """
    if given is False:
        return None
    if given is not None:
        return read_statistics(given)
    folders = (path.with_suffix(""), path.parent)
    checkpoint = re.fullmatch(r"(.*)_(\d+)_steps", path.stem)
    names = (*((f"{checkpoint[1]}_vecnormalize_{checkpoint[2]}_steps.pkl",) if checkpoint else ()), *PICKLES)
    found = next((file for folder in folders for name in names if (file := folder / name).is_file()), None)
    if found is not None:
        return read_statistics(found)
    config = next((read for folder in folders if (read := read_run_config(folder / "config.yml"))), None)
    if config is not None and _normalised(config):
        raise ConfigError(
            f"{path.name} was trained on normalised observations, and the statistics are not beside it.",
            given=f"config.yml with normalize: {config['normalize']}, no vecnormalize.pkl",
            expected="the file that VecNormalize.save wrote, which the policy cannot do without",
            fix=f"load(..., vecnormalize='path/to/vecnormalize.pkl'); {SKIP}",
        )
    return None


def read_statistics(source: object) -> Statistics | None:
    """Statistics from a live `VecNormalize`, its pickle or an npz; None where it leaves observations as they are.

    An npz has `mean` and `var` (`mean.key` and `var.key` for the keys of a Dict), and may have `clip` and `epsilon`.

    Raises:
        ConfigError: It is none of these.
        CheckpointError: The file is damaged, or holds something else.
    """
    if isinstance(source, str | Path):
        file = Path(source).expanduser()
        if not file.is_file():
            raise _no_statistics(f"vecnormalize={str(source)!r}, where there is no file")
        return _from_npz(file) if file.read_bytes()[:2] == b"PK" else _from_pickle(file)
    if hasattr(source, "obs_rms") and hasattr(source, "norm_obs"):
        return _from_state(vars(source), vars)
    raise _no_statistics(f"a {type(source).__name__}")


def _no_statistics(given: str) -> ConfigError:
    return ConfigError(
        "There are no statistics of VecNormalize there.",
        given=given,
        expected="a vecnormalize.pkl, an npz with `mean` and `var`, or a live VecNormalize",
        fix=f"check the path; {SKIP}",
    )


def _from_pickle(file: Path) -> Statistics | None:
    read = read_inert(file.read_bytes(), name=file.name)
    if not isinstance(read, Stub) or not read.name.endswith(".VecNormalize"):
        raise CheckpointError(
            f"{file.name} is not a file of VecNormalize.",
            given=read.name if isinstance(read, Stub) else type(read).__name__,
            expected="what VecNormalize.save(path) wrote",
            fix="give an npz with `mean` and `var` instead: vecnormalize='statistics.npz'",
        )
    try:
        return _from_state(read.state, lambda stub: cast(Stub, stub).state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file.name} has not the statistics that VecNormalize keeps.",
            given=f"{type(error).__name__}: {error}",
            expected="obs_rms with mean and var, clip_obs and epsilon",
            fix="give an npz with `mean` and `var` instead: vecnormalize='statistics.npz'",
        ) from error


def _from_state(state: Settings, attributes: Any) -> Statistics | None:
    if not state["norm_obs"]:
        return None
    running = state["obs_rms"]
    parts = {"": running} if not isinstance(running, Mapping) else running
    return Statistics(
        mean={str(key): np.array(attributes(part)["mean"], np.float64) for key, part in parts.items()},
        var={str(key): np.array(attributes(part)["var"], np.float64) for key, part in parts.items()},
        clip=float(state["clip_obs"]),
        epsilon=float(state["epsilon"]),
    )


def _from_npz(file: Path) -> Statistics:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            values = {name: np.array(arrays[name]) for name in arrays.files}
        parts = [name.removeprefix("mean").removeprefix(".") for name in values if name.split(".")[0] == "mean"]
        named = {key: f".{key}" if key else "" for key in parts}
        if not parts:
            raise KeyError("mean")
        return Statistics(
            mean={key: values[f"mean{end}"].astype(np.float64) for key, end in named.items()},
            var={key: values[f"var{end}"].astype(np.float64) for key, end in named.items()},
            clip=float(values.get("clip", 10.0)),
            epsilon=float(values.get("epsilon", 1e-8)),
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file.name} cannot be read as statistics.",
            given=f"{type(error).__name__}: {error}",
            expected="arrays `mean` and `var`, and numbers `clip` and `epsilon` where they are not 10 and 1e-8",
            fix="numpy.savez(path, mean=env.obs_rms.mean, var=env.obs_rms.var, clip=env.clip_obs, epsilon=env.epsilon)",
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; what is tagged as Python's is its plain content."""


def _content(loader: Any, _tag: str, node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _content)


def read_run_config(file: Path) -> JsonObject | None:
    """RL Zoo's `config.yml`; None where there is none, or it is another's.

    Raises:
        ConfigError: It is no YAML.
    """
    read = read_yaml(file)
    return read if {"policy", "n_timesteps"} <= set(read) else None


def read_yaml(file: Path) -> JsonObject:
    """A mapping that RL Zoo wrote as YAML, an OrderedDict's pairs too; empty where there is none.

    Raises:
        ConfigError: It is no YAML.
    """
    if not file.is_file():
        return {}
    try:
        read: Any = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} is not a configuration that can be read.",
            given=f"{type(error).__name__}: {str(error)[:120]}",
            expected="YAML, as RL Zoo writes it",
            fix=f"mend the file; {SKIP}",
        ) from error
    if isinstance(read, list) and len(read) == 1:
        read = read[0]  # an OrderedDict is written as its pairs
    if isinstance(read, list):
        read = dict(pair for pair in read if isinstance(pair, list) and len(pair) == 2)
    return read if isinstance(read, dict) else {}


def _normalised(config: Mapping[str, object]) -> bool:
    """Whether a run normalised its observations: `true`, or keywords, in which `norm_obs` may be off."""
    value = config.get("normalize", False)
    if isinstance(value, Mapping):
        return value.get("norm_obs", True) is not False
    if isinstance(value, str):
        return re.search(r"norm_obs['\"]?\s*[=:]\s*False", value) is None and value.strip().lower() != "false"
    return bool(value)
