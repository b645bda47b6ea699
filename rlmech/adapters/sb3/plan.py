"""What an SB3 policy is built from, as plain values: the plan that zips and the package's own files are rebuilt by.

A plan builds the policy class of Stable-Baselines3 itself, so that preprocessing (image scaling, one-hot, flattening)
and the arithmetic are SB3's. Only architectures that this package knows by name can be in one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from torch import nn

from rlmech.adapters.sb3.algorithms import BY_NAME, NetArch, algorithm_of_scores
from rlmech.adapters.sb3.normalized import NormalizedScores, Statistics
from rlmech.adapters.sb3.options import options_of_scores
from rlmech.adapters.sb3.scores import SharedLayers
from rlmech.adapters.spaces import space_from_json, space_to_json
from rlmech.errors import CheckpointError, nearest
from rlmech.nets.highway_extractor import HighwayExtractor
from rlmech.nets.sb3_extractor import EgoAttentionExtractor

EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    "FlattenExtractor": FlattenExtractor,
    "NatureCNN": NatureCNN,
    "CombinedExtractor": CombinedExtractor,
    "EgoAttentionExtractor": EgoAttentionExtractor,
    "HighwayExtractor": HighwayExtractor,
}
ACTIVATIONS = [
    "CELU",
    "ELU",
    "GELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "Tanhshrink",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SB3Plan:
    """The architecture of an SB3 policy.

    Attributes:
        policy_class: Name of a record in `algorithms`; an SB3 `CnnPolicy` is its base class with `NatureCNN`.
        observation_space: The space as `space_to_json` writes it, channels first for images.
        action_space: Likewise.
        net_arch: Hidden sizes; for actor-critics a dict with `pi` and `vf` (`qf` for SAC and TD3), and `shared` where
            the first layers are shared, as they could be before SB3 1.8.
        activation_fn: Name of the activation in `torch.nn`.
        features_extractor: Class name of the features extractor.
        features_extractor_kwargs: Its keyword arguments, JSON values.
        normalize_images: Whether SB3 divides images by 255.
        options: Further constructor arguments, JSON values.
        normalization: Of VecNormalize: `clip` and `epsilon`, and under `shapes` the shape by key; empty for none.
    """

    policy_class: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    net_arch: NetArch
    activation_fn: str
    features_extractor: str = "FlattenExtractor"
    features_extractor_kwargs: dict[str, Any] = field(default_factory=dict)
    normalize_images: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    normalization: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy_class not in BY_NAME:
            raise _unknown("policy class", self.policy_class, BY_NAME)
        if self.activation_fn not in ACTIVATIONS:
            raise _unknown("activation", self.activation_fn, ACTIVATIONS)

    def build(self, *, features_extractor_class: type[nn.Module] | None = None) -> BasePolicy:
        """Build the policy, untrained, in eval mode.

        Args:
            features_extractor_class: The class of the features extractor, where it is not one of `EXTRACTORS`.

        Raises:
            CheckpointError: The class is needed and not given, or the policy cannot be built.
        """
        extractor = features_extractor_class or EXTRACTORS.get(self.features_extractor)
        if extractor is None:
            raise CheckpointError(
                f"The policy's features extractor {self.features_extractor!r} is a class of its own.",
                given="no features_extractor_class",
                expected=f"the class {self.features_extractor}, or one of {', '.join(EXTRACTORS)} in the file",
                fix=f"import it: load(..., features_extractor_class={self.features_extractor.rsplit('.', 1)[-1]})",
            )
        algorithm = BY_NAME[self.policy_class]
        build: Any = algorithm.policy_class()
        arch = self.net_arch
        heads = {key: arch[key] for key in arch if key != "shared"} if isinstance(arch, dict) else arch
        with_extractor = {
            "features_extractor_class": extractor,
            "features_extractor_kwargs": copy.deepcopy(self.features_extractor_kwargs),
            "normalize_images": self.normalize_images,
            "optimizer_class": _NoOptimizer,
        }
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():  # gSDE keeps tensors that could not be copied else
                policy = build(
                    space_from_json(self.observation_space),
                    space_from_json(self.action_space),
                    *((_no_schedule,) if algorithm.has_extractor else ()),
                    net_arch=heads,
                    activation_fn=getattr(nn, self.activation_fn),
                    **(with_extractor if algorithm.has_extractor else {}),
                    **self.options,
                )
                if self._shared:
                    self._share_layers(policy)
        except Exception as error:  # whatever a foreign features extractor raises
            raise CheckpointError(
                f"The {self.policy_class} that the file describes cannot be built: {type(error).__name__}: {error}",
                given=f"{extractor.__name__} with {self.features_extractor_kwargs}, net_arch={self.net_arch}",
                expected="arguments that the class accepts",
                fix="check the class and its keyword arguments; load(..., config={'features_extractor_kwargs': {...}}) "
                "overrides what the file says",
            ) from error
        policy.set_training_mode(False)
        return cast(BasePolicy, policy)

    @property
    def _shared(self) -> list[int]:
        return self.net_arch.get("shared", []) if isinstance(self.net_arch, dict) else []

    def _share_layers(self, policy: Any) -> None:
        """Put the layers that actor and critic share before their own, which SB3 can no longer build."""
        arch = cast(dict[str, list[int]], self.net_arch)
        activation = getattr(nn, self.activation_fn)
        shared = MlpExtractor(policy.features_dim, {"pi": self._shared}, activation, device="cpu")
        own = MlpExtractor(self._shared[-1], {"pi": arch["pi"], "vf": arch["vf"]}, activation, device="cpu")
        policy.mlp_extractor = SharedLayers(shared.policy_net, own.policy_net, own.value_net)
        policy.action_net = _narrowed(policy.action_net, own.latent_dim_pi)
        policy.value_net = nn.Linear(own.latent_dim_vf, 1)

    def blank_statistics(self) -> Statistics | None:
        """Statistics of the plan's shapes, to put the file's into; None where there are none."""
        if not self.normalization:
            return None
        shapes = self.normalization["shapes"]
        return Statistics(
            mean={key: np.zeros(shape) for key, shape in shapes.items()},
            var={key: np.ones(shape) for key, shape in shapes.items()},
            clip=self.normalization["clip"],
            epsilon=self.normalization["epsilon"],
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SB3Plan:
        """Read a plan from the values that `to_json` wrote.

        Raises:
            CheckpointError: They are not a plan.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(
                "The plan of the SB3 policy has other entries than this version knows.",
                given=f"{sorted(values)}",
                expected=f"{[*cls.__dataclass_fields__]}",
                fix="open the file with the version of rlmech that wrote it",
            ) from error

    @classmethod
    def of(cls, module: nn.Module) -> SB3Plan | None:
        """Read the plan off a live module of scores; None where it is no such module.

        Raises:
            CheckpointError: It is, or holds, a class that this package does not know.
        """
        if isinstance(module, NormalizedScores):
            found, plan = module.statistics(), cls.of(module.scores)
            shapes = {key: list(mean.shape) for key, mean in found.mean.items()}
            normalization = {"clip": found.clip, "epsilon": found.epsilon, "shapes": shapes}
            return None if plan is None else replace(plan, normalization=normalization)
        algorithm = algorithm_of_scores(module)
        if algorithm is None:
            return None
        network = algorithm.family.owner(module)
        tensors = {algorithm.family.key(name): value for name, value in module.state_dict().items()}
        return cls(
            policy_class=algorithm.name,
            observation_space=space_to_json(network.observation_space),
            action_space=space_to_json(network.action_space),
            net_arch=algorithm.family.net_arch(tensors),
            activation_fn=network.activation_fn.__name__,
            features_extractor=_extractor_name(network.features_extractor),
            features_extractor_kwargs=_extractor_kwargs(network.features_extractor),
            normalize_images=network.normalize_images,
            options=options_of_scores(algorithm, module),
        )


def _narrowed(layer: nn.Linear, width: int) -> nn.Linear:
    """A layer like this one for inputs of another width."""
    return nn.Linear(width, layer.out_features, bias="bias" in dict(layer.named_parameters()))


class _NoOptimizer:
    """Stands for the optimiser that SB3 builds with each policy: torch's first one costs seconds of imports."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def load_state_dict(self, _: Any) -> None:
        """Nothing is trained."""


def _no_schedule(_: float) -> float:
    return 0.0


def _unknown(what: str, given: str, known: Any) -> CheckpointError:
    close = nearest(given, known)
    return CheckpointError(
        f"rlmech does not know the {what} {given!r}, so it cannot rebuild a policy of it from plain values.",
        given=repr(given),
        expected=f"one of {', '.join(known)}",
        fix=f"did you mean {close[0]!r}?" if close else "open the live object instead: HookedPolicy.from_sb3(model)",
    )


def _extractor_name(extractor: nn.Module) -> str:
    name = type(extractor).__name__
    if EXTRACTORS.get(name) is not type(extractor):
        raise _unknown("features extractor", name, EXTRACTORS)
    return name


def _extractor_kwargs(extractor: nn.Module) -> dict[str, Any]:
    """The keyword arguments of a features extractor, read off its layers."""
    match extractor:
        case NatureCNN():
            return {"features_dim": extractor.features_dim}
        case CombinedExtractor():
            widths = [child.features_dim for child in extractor.extractors.values() if isinstance(child, NatureCNN)]
            return {"cnn_output_dim": widths[0]} if widths else {}
        case HighwayExtractor():
            return dict(extractor.keywords)
        case EgoAttentionExtractor():
            return {
                "d_model": extractor.attention_layer.d_model,
                "n_heads": extractor.attention_layer.n_heads,
                "embedding": [cast(nn.Linear, layer).out_features for layer in extractor.ego_embedding.layers],
                "presence_index": extractor.presence_index,
            }
        case _:
            return {}
