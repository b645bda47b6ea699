"""Reading an SB3 zip without unpickling: weights as tensors, and of `data` what stands in clear.

`data` is JSON whose `:serialized:` entries are pickles: they are never touched. The architecture comes from the
shapes of the tensors; the JSON gives what shapes cannot show (activation, features extractor, spaces, image scaling).
"""

from __future__ import annotations

import json
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

from rlmech.adapters.environment import action_space_of, observation_space_of
from rlmech.adapters.safe import as_tensors, read_weights
from rlmech.adapters.sb3_plan import EXTRACTORS, SB3Plan
from rlmech.adapters.spaces import space_from_clear_text, space_to_json
from rlmech.errors import CheckpointError, ConfigError, nearest

POLICY_CLASSES: dict[tuple[str, str], tuple[str, str]] = {
    ("dqn", "DQNPolicy"): ("DQNPolicy", "FlattenExtractor"),
    ("dqn", "CnnPolicy"): ("DQNPolicy", "NatureCNN"),
    ("dqn", "MultiInputPolicy"): ("DQNPolicy", "CombinedExtractor"),
    ("common", "ActorCriticPolicy"): ("ActorCriticPolicy", "FlattenExtractor"),
    ("common", "ActorCriticCnnPolicy"): ("ActorCriticPolicy", "NatureCNN"),
    ("common", "MultiInputActorCriticPolicy"): ("ActorCriticPolicy", "CombinedExtractor"),
    ("sac", "SACPolicy"): ("SACPolicy", "FlattenExtractor"),
    ("sac", "CnnPolicy"): ("SACPolicy", "NatureCNN"),
    ("sac", "MultiInputPolicy"): ("SACPolicy", "CombinedExtractor"),
    ("td3", "TD3Policy"): ("TD3Policy", "FlattenExtractor"),
    ("td3", "CnnPolicy"): ("TD3Policy", "NatureCNN"),
    ("td3", "MultiInputPolicy"): ("TD3Policy", "CombinedExtractor"),
}
"""What SB3's policy classes are: (subpackage, class) -> (base class, default features extractor)."""

DEFAULT_ACTIVATION = {"DQNPolicy": "ReLU", "ActorCriticPolicy": "Tanh", "SACPolicy": "ReLU", "TD3Policy": "ReLU"}
EXTRACTOR_PREFIX = {
    "DQNPolicy": "q_net.features_extractor.",
    "ActorCriticPolicy": "features_extractor.",
    "SACPolicy": "actor.features_extractor.",
    "TD3Policy": "actor.features_extractor.",
}
KWARGS = ("activation_fn", "features_extractor_class", "features_extractor_kwargs", "normalize_images")
TOLD_BY_TENSORS = ("net_arch", "ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs", "use_sde")
OPTIONS = ("full_std", "use_expln", "squash_output", "clip_mean", "n_critics", "share_features_extractor")


def read_data(path: Path) -> dict[str, Any]:
    """Read the JSON of an SB3 zip; pickles in it stay the text they are.

    Raises:
        CheckpointError: The zip is damaged, or is not SB3's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, ValueError, NotImplementedError) as error:
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
    tensors = as_tensors(weights, name=f"policy.pth in {path.name}")
    policy_class, default_extractor = _policy_class(data.get("policy_class"))
    stored = data.get("policy_kwargs")
    kwargs = {**(stored if isinstance(stored, dict) else {}), **overrides}
    extractor = _class_name(kwargs.get("features_extractor_class")) or default_extractor
    plan = SB3Plan(
        policy_class=policy_class,
        observation_space=space_to_json(
            _space(data, "observation_space", given=observation_space, otherwise=observation_space_of(env))
        ),
        action_space=space_to_json(_space(data, "action_space", given=action_space, otherwise=action_space_of(env))),
        net_arch=_net_arch(policy_class, tensors),
        activation_fn=_activation(kwargs.get("activation_fn")) or DEFAULT_ACTIVATION[policy_class],
        features_extractor=extractor,
        features_extractor_kwargs=_extractor_kwargs(kwargs, extractor, tensors, EXTRACTOR_PREFIX[policy_class]),
        normalize_images=bool(kwargs.get("normalize_images", True)),
        options=_options(policy_class, kwargs, tensors, use_sde=data.get("use_sde") is True),
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
        return spaces.Dict({key: channels_first(sub) for key, sub in space.spaces.items()})
    channels_last = is_image_space(space) and not is_image_space_channels_first(space)
    return VecTransposeImage.transpose_space(space) if channels_last else space


def _policy_class(entry: Any) -> tuple[str, str]:
    """Recognise the policy class by its module and by the name that its `__init__` prints."""
    module = str(entry.get("__module__", "")) if isinstance(entry, Mapping) else ""
    printed = (
        re.match(r"<function (\w+)\.__init__", str(entry.get("__init__", ""))) if isinstance(entry, Mapping) else None
    )
    package = re.fullmatch(r"stable_baselines3\.(\w+)\.policies", module)
    if package and printed and (package[1], printed[1]) in POLICY_CLASSES:
        return POLICY_CLASSES[package[1], printed[1]]
    contrib = module.startswith("sb3_contrib.")
    raise CheckpointError(
        "The zip's policy class is not one of Stable-Baselines3's own, and the class itself is only there as a pickle.",
        given=f"{module or 'an unnamed module'}{f'.{printed[1]}' if printed else ''}",
        expected="MlpPolicy, CnnPolicy or MultiInputPolicy of DQN, PPO, A2C, SAC, TD3 or DDPG",
        fix="load the model with sb3_contrib and wrap what scores its actions: HookedPolicy(module, example_obs)"
        if contrib
        else "load the model with SB3 and open it live: HookedPolicy.from_sb3(model); "
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


def _out_sizes(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    found = {
        int(match[1]): int(value.shape[0])
        for key, value in tensors.items()
        if (match := re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", key)) and value.ndim == 2
    }
    return [found[index] for index in sorted(found)]


def _net_arch(policy_class: str, tensors: Mapping[str, Tensor]) -> list[int] | dict[str, list[int]]:
    match policy_class:
        case "DQNPolicy":
            return _out_sizes(tensors, "q_net.q_net.")[:-1]
        case "ActorCriticPolicy":
            return {
                "pi": _out_sizes(tensors, "mlp_extractor.policy_net."),
                "vf": _out_sizes(tensors, "mlp_extractor.value_net."),
            }
        case "SACPolicy":
            return {"pi": _out_sizes(tensors, "actor.latent_pi."), "qf": _out_sizes(tensors, "critic.qf0.")[:-1]}
        case _:
            return {"pi": _out_sizes(tensors, "actor.mu.")[:-1], "qf": _out_sizes(tensors, "critic.qf0.")[:-1]}


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


def _options(
    policy_class: str, kwargs: Mapping[str, Any], tensors: Mapping[str, Tensor], *, use_sde: bool
) -> dict[str, Any]:
    options = {key: kwargs[key] for key in OPTIONS if key in kwargs and policy_class != "DQNPolicy"}
    if policy_class in ("SACPolicy", "TD3Policy"):
        heads = {match[1] for key in tensors if (match := re.match(r"critic\.qf(\d+)\.", key))}
        options["n_critics"] = len(heads)
    if use_sde and policy_class in ("ActorCriticPolicy", "SACPolicy"):
        options["use_sde"] = True
    return options
