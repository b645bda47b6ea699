"""Reading an SB3 zip without unpickling: weights as tensors, and of `data` what stands in clear.

`data` is JSON whose `:serialized:` entries are pickles: they are never touched. The architecture comes from the
shapes of the tensors; the JSON gives what shapes cannot show (activation, features extractor, spaces, image scaling).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor

from rlmech.adapters.clear_text import space_from_clear_text
from rlmech.adapters.environment import action_space_of, observation_space_of
from rlmech.adapters.safe import as_tensors, read_weights
from rlmech.adapters.sb3.algorithms import ALGORITHMS, Algorithm
from rlmech.adapters.sb3.options import options_of_zip
from rlmech.adapters.sb3.plan import EXTRACTORS, SB3Plan
from rlmech.adapters.spaces import ordered_dict, space_to_json
from rlmech.errors import CheckpointError, ConfigError, nearest
from rlmech.files import DamagedError, parse_json
from rlmech.nets.highway_extractor import is_published

KWARGS = ("activation_fn", "features_extractor_class", "features_extractor_kwargs", "normalize_images")
TOLD_BY_TENSORS = ("net_arch", "ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs", "use_sde")
OPTIONS = tuple(dict.fromkeys(option for algorithm in ALGORITHMS for option in algorithm.options))


def read_data(path: Path) -> dict[str, Any]:
    """Read the JSON of an SB3 zip; pickles in it stay the text they are.

    Raises:
        CheckpointError: The zip is damaged, or is not SB3's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = parse_json(archive.read("data"))
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
        DamagedError,
    ) as error:
        raise _damaged(path, error) from error
    if not isinstance(data, dict):
        raise _damaged(path, TypeError("`data` is not a JSON object"))
    return data


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a whole SB3 zip: it is damaged, incomplete, or something else.",
        given=f"{path.stat().st_size} bytes; {type(error).__name__}: {error}",
        expected="a zip with `data` and `policy.pth`, written by model.save(path)",
        fix="copy or download it again, and compare its size with the original's",
    )


def read_zip(
    path: Path,
    *,
    overrides: Mapping[str, Any],
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    env: Any = None,
) -> tuple[SB3Plan, dict[str, Tensor]]:
    """Read the plan and the weights of an SB3 zip.

    Args:
        path: The zip.
        overrides: Entries of `policy_kwargs` that replace the zip's.
        observation_space: The space, where the zip holds it only as a pickle.
        action_space: Likewise.
        env: An environment that has the spaces, where the zip holds them only as pickles and none is given.

    Raises:
        CheckpointError: The zip is damaged, or does not say in clear what is needed.
        ConfigError: `overrides` has an entry that SB3's policies do not take.
    """
    _check_overrides(overrides)
    data = read_data(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
            weights = read_weights(file, name=f"policy.pth in {path.name}")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    algorithm, variant = _policy_class(data.get("policy_class"))
    tensors: dict[str, Tensor] = {}
    for key, value in as_tensors(weights, name=f"policy.pth in {path.name}").items():
        plain = key.replace("_orig_mod.", "")  # of modules that torch.compile wrapped
        tensors[algorithm.earlier_names.get(plain, plain)] = value
    stored = data.get("policy_kwargs")
    kwargs = {**(stored if isinstance(stored, dict) else {}), **overrides}
    extractor = _class_name(kwargs.get("features_extractor_class")) or algorithm.variants[variant]
    if extractor not in EXTRACTORS and extractor.endswith(".CustomExtractor"):
        own = {
            key.removeprefix(algorithm.family.extractor)
            for key in tensors
            if key.startswith(algorithm.family.extractor)
        }
        extractor = "HighwayExtractor" if is_published(kwargs.get("features_extractor_kwargs"), own) else extractor
    actions = _space(data, "action_space", given=action_space, otherwise=action_space_of(env))
    plan = SB3Plan(
        policy_class=algorithm.name,
        observation_space=space_to_json(
            _space(data, "observation_space", given=observation_space, otherwise=observation_space_of(env))
        ),
        action_space=space_to_json(actions),
        net_arch=algorithm.family.net_arch(tensors),
        activation_fn=_activation(kwargs.get("activation_fn")) or algorithm.activation,
        features_extractor=extractor,
        features_extractor_kwargs=_extractor_kwargs(kwargs, extractor, tensors, algorithm.family.extractor),
        normalize_images=bool(kwargs.get("normalize_images", True)),
        options=options_of_zip(
            algorithm,
            data=data,
            kwargs=kwargs,
            tensors=tensors,
            variant=variant,
            n_actions=int(actions.n) if isinstance(actions, spaces.Discrete) else None,
        ),
    )
    return plan, tensors


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    known = (*KWARGS, *OPTIONS, *TOLD_BY_TENSORS)
    unknown = next((key for key in overrides if key not in known), None)
    if unknown is not None:
        close = nearest(unknown, known)
        raise ConfigError(
            f"SB3's policies take no argument {unknown!r}.",
            given=f"config with {unknown!r}",
            expected=f"entries of policy_kwargs: {', '.join((*KWARGS, *OPTIONS))}",
            fix=f"did you mean {close[0]!r}?" if close else "leave it out: the zip tells the rest",
        )


def _space(
    data: Mapping[str, Any], name: str, *, given: spaces.Space[Any] | None, otherwise: spaces.Space[Any] | None
) -> spaces.Space[Any]:
    """The space as the policy sees it: what the user gives, what stands in clear, or the environment's."""
    if given is None:
        try:
            return space_from_clear_text(data.get(name), argument=name)
        except CheckpointError:
            if otherwise is None:
                raise
    return channels_first(given or otherwise)


def channels_first(space: Any) -> Any:
    """SB3 turns images round before a policy sees them."""
    if isinstance(space, spaces.Dict):
        return ordered_dict({key: channels_first(sub) for key, sub in space.spaces.items()})
    channels_last = is_image_space(space) and not is_image_space_channels_first(space)
    return VecTransposeImage.transpose_space(space) if channels_last else space


def _policy_class(entry: Any) -> tuple[Algorithm, str]:
    """Recognise the policy class by its module and by the name that its `__init__` prints."""
    module = str(entry.get("__module__", "")) if isinstance(entry, Mapping) else ""
    printed = (
        re.match(r"<function (\w+)\.__init__", str(entry.get("__init__", ""))) if isinstance(entry, Mapping) else None
    )
    for algorithm in ALGORITHMS:
        if module == algorithm.module and printed and printed[1] in algorithm.variants:
            return algorithm, printed[1]
    raise CheckpointError(
        "The zip's policy class is not one of Stable-Baselines3's or sb3-contrib's own, and the class itself is "
        "only there as a pickle.",
        given=f"{module or 'an unnamed module'}{f'.{printed[1]}' if printed else ''}",
        expected="MlpPolicy, CnnPolicy, MultiInputPolicy or MlpLstmPolicy of an algorithm of SB3 or sb3-contrib",
        fix="load the model with SB3 and open it live: HookedPolicy.from_sb3(model); "
        "or, if you trust whoever wrote the file, load(..., trust_pickle=True)",
    )


def _class_name(value: Any) -> str | None:
    """The name that `<class 'package.module.Name'>` gives; SB3's and this package's own without their module."""
    if value is None:
        return None
    path = re.sub(r"^<class '(.*)'>$", r"\1", str(value))
    known = path.startswith(("stable_baselines3.common.torch_layers.", "rlmech.nets."))
    name = path.rsplit(".", 1)[-1]
    return name if (known and name in EXTRACTORS) or path in EXTRACTORS else path


def _activation(value: Any) -> str | None:
    if value is None:
        return None
    path = re.sub(r"^<class '(.*)'>$", r"\1", str(value))
    return path.rsplit(".", 1)[-1] if path.startswith("torch.nn.") else path


def _extractor_kwargs(
    kwargs: Mapping[str, Any], extractor: str, tensors: Mapping[str, Tensor], prefix: str
) -> dict[str, Any]:
    given = kwargs.get("features_extractor_kwargs") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(
            f"The zip holds the keyword arguments of its features extractor {extractor!r} only as a pickle.",
            given=f"shown as {given}",
            expected="keyword arguments that are JSON values",
            fix="give them: load(..., config={'features_extractor_kwargs': {...}})",
        )
    widths = {
        "NatureCNN": ("features_dim", r"linear\.0"),
        "CombinedExtractor": ("cnn_output_dim", r"extractors\..+\.linear\.0"),
    }
    inferred: dict[str, Any] = {}
    if extractor in widths:
        argument, layer = widths[extractor]
        sizes = [
            int(v.shape[0]) for k, v in tensors.items() if re.fullmatch(re.escape(prefix) + layer + r"\.weight", k)
        ]
        inferred = {argument: sizes[0]} if sizes else {}
    return {**inferred, **given}
