"""What an rl-agents network is built from, as plain values, and the network built from it.

The configuration is upstream's, completed with upstream's defaults and with the `in` and `out` that upstream takes
from the environment and that here the tensors tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from torch import Tensor, nn

from rlmech.adapters.rl_agents.config import Config, completed
from rlmech.errors import CheckpointError, ConfigError, EnvironmentFitError
from rlmech.nets import ConvolutionalNetwork, DuelingNetwork, EgoAttentionNetwork, MultiLayerPerceptron
from rlmech.nets.mlp import Activation
from rlmech.untyped import JsonObject, Settings

EMBEDDINGS = {"embedding_layer": "ego_embedding.", "others_embedding_layer": "others_embedding."}


@dataclass(frozen=True, slots=True, kw_only=True)
class RlAgentsPlan:
    """The architecture of an rl-agents network.

    Attributes:
        model: The complete configuration of the model, with its sizes.
        observation_shape: The shape of one observation.
        n_actions: The number of actions.
    """

    model: Config
    observation_shape: tuple[int, ...]
    n_actions: int

    def build(self) -> nn.Module:
        """Build the network, untrained, in eval mode."""
        model, n_actions = self.model, self.n_actions
        match model["type"]:
            case "EgoAttentionNetwork":
                return _ego_attention(model, n_actions).eval()
            case "DuelingNetwork":
                return _dueling(model, n_actions).eval()
            case "ConvolutionalNetwork":
                return _convolutional(model, self.observation_shape, n_actions).eval()
            case _:
                return _perceptron(model, model["in"], n_actions).eval()

    @property
    def observation_space(self) -> spaces.Box:
        """The observations that the network takes."""
        return spaces.Box(-np.inf, np.inf, self.observation_shape, np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        """The actions that it scores."""
        return spaces.Discrete(self.n_actions)

    def check_shape(self) -> None:
        """Check that the network takes observations of this shape.

        Raises:
            EnvironmentFitError: It does not.
        """
        model, shape = self.model, self.observation_shape
        match model["type"]:
            case "EgoAttentionNetwork":
                fits, wanted = len(shape) == 2 and shape[1] == model["in"], f"[entities, {model['in']} features]"
            case "ConvolutionalNetwork":
                fits, wanted = (
                    len(shape) == 3 and shape[0] == model["in_channels"],
                    f"[{model['in_channels']}, height, width]",
                )
            case _:
                fits, wanted = int(np.prod(shape)) == model["in"], f"any shape of {model['in']} numbers"
        if not fits:
            raise EnvironmentFitError(
                f"The environment's observations are not those of the {model['type']}.",
                given=f"observations of shape {list(shape)}",
                expected=wanted,
                fix="give the configuration of the environment that the network was trained in",
            )

    def to_json(self) -> JsonObject:
        """The plan as plain JSON values; `from_json` reads them back."""
        return asdict(self) | {"observation_shape": list(self.observation_shape)}

    @classmethod
    def from_json(cls, values: Settings) -> RlAgentsPlan:
        """Read a plan from the values that `to_json` wrote.

        Raises:
            CheckpointError: They are not a plan.
        """
        try:
            model, shape, n_actions = values["model"], values["observation_shape"], values["n_actions"]
            return cls(model=completed(model), observation_shape=tuple(shape), n_actions=int(n_actions))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                "The plan of the rl-agents policy is not one.",
                given=f"{values}",
                expected="model, observation_shape and n_actions",
                fix="write the file again with save_policy",
            ) from error

    @classmethod
    def of(cls, network: nn.Module, *, observation_shape: tuple[int, ...]) -> RlAgentsPlan:
        """Read the plan off a network of `rlmech.nets`, or off a live one of rl-agents.

        Raises:
            CheckpointError: It is neither.
        """
        config = _config_of(network)
        if config is None:
            raise CheckpointError(
                f"A {type(network).__name__} is a class of its own, which no file of plain values can rebuild.",
                given=f"{type(network).__module__}.{type(network).__name__}",
                expected="an SB3 policy, a network of rl-agents or of rlmech.nets",
                fix="save its weights, torch.save(module.state_dict(), path), and wrap it again with "
                "HookedPolicy(module, example_obs)",
            )
        model = sized(completed(config), network.state_dict())
        return cls(model=model, observation_shape=observation_shape, n_actions=int(model["out"]))


def sized(model: Config, tensors: Mapping[str, Tensor]) -> Config:
    """The configuration with the inputs and outputs that it leaves open, as wide as the tensors are."""

    def width(key: str, axis: int) -> int:
        return int(tensors[key].shape[axis]) if key in tensors and tensors[key].ndim > axis else 1

    def first(prefix: str) -> str:
        return f"{prefix}layers.0.weight" if f"{prefix}layers.0.weight" in tensors else f"{prefix}predict.weight"

    model = dict(model)
    match model["type"]:
        case "EgoAttentionNetwork":
            for part, prefix in EMBEDDINGS.items():
                model[part] = {**model[part], "in": model[part]["in"] or width(first(prefix), 1)}
            model["in"] = model["embedding_layer"]["in"]
            model["out"] = model["out"] or width("output_layer.predict.weight", 0)
        case "DuelingNetwork":
            model["in"] = model["in"] or width(first("base_module."), 1)
            head = "advantage.predict.weight" if model["advantage"] else "advantage.weight"
            model["out"] = model["out"] or width(head, 0)
        case "ConvolutionalNetwork":
            model["in_channels"] = model["in_channels"] or width("conv1.weight", 1)
            model["out"] = model["out"] or width("head.predict.weight", 0)
        case _:
            model["in"] = model["in"] or width(first(""), 1)
            model["out"] = model["out"] or width("predict.weight", 0)
    return model


def _activation(config: Config) -> Activation:
    return "tanh" if config["activation"] == "TANH" else "relu"


def _perceptron(config: Config, d_in: int, d_out: int | None, *, per_entity: bool = False) -> MultiLayerPerceptron:
    flatten = bool(config["reshape"])  # upstream's default is the text "True", and any text is true
    if config["type"] != "MultiLayerPerceptron" or (per_entity and flatten):
        raise ConfigError(
            "An embedding of entities must be a perceptron that keeps them apart.",
            given=f"type {config['type']!r}, reshape {config['reshape']!r}",
            expected="type 'MultiLayerPerceptron', reshape false",
            fix='write "reshape": false, without quotes around false',
        )
    return MultiLayerPerceptron(
        d_in, config["layers"], d_out=d_out or None, activation=_activation(config), flatten=flatten
    )


def _ego_attention(model: Config, n_actions: int) -> EgoAttentionNetwork:
    ego, others, output = (model[part] for part in ("embedding_layer", "others_embedding_layer", "output_layer"))
    self_attention, attention = model["self_attention_layer"], model["attention_layer"]
    network = EgoAttentionNetwork(
        ego["in"],
        n_actions,
        d_model=attention["feature_size"],
        n_heads=attention["heads"],
        presence_index=model["presence_feature_idx"],
        self_attention_heads=self_attention["heads"] if self_attention else 0,
    )
    if self_attention and self_attention["feature_size"] != attention["feature_size"]:
        raise ConfigError(
            "The self-attention and the ego attention have different widths, and one feeds the other.",
            given=f"feature_size {self_attention['feature_size']} and {attention['feature_size']}",
            expected="the same feature_size",
            fix="give the configuration that the checkpoint was trained with",
        )
    network.ego_embedding = _perceptron(ego, ego["in"], ego["out"], per_entity=True)
    network.others_embedding = _perceptron(others, others["in"], others["out"], per_entity=True)
    network.output_layer = _perceptron(output, attention["feature_size"], n_actions)
    return network


def _dueling(model: Config, n_actions: int) -> DuelingNetwork:
    base, value, advantage = (model[part] for part in ("base_module", "value", "advantage"))
    d_base = (base["layers"] or [model["in"]])[-1]
    return DuelingNetwork(
        _perceptron(base, model["in"], base["out"]),
        _perceptron(value, d_base, 1) if value else nn.Linear(d_base, 1),
        _perceptron(advantage, d_base, n_actions) if advantage else nn.Linear(d_base, n_actions),
    )


def _convolutional(model: Config, shape: tuple[int, ...], n_actions: int) -> ConvolutionalNetwork:
    head = model["head_mlp"]
    height, width = shape[1:] if len(shape) == 3 else (8, 8)  # the check of the shape comes after the weights
    return ConvolutionalNetwork(
        (model["in_channels"], height, width),
        n_actions,
        hidden=head["layers"],
        activation=_activation(model),
        head_activation=_activation(head),
    )


def _config_of(network: nn.Module) -> Config | None:
    """The configuration of a network, read off its modules; None where it is of no known class."""
    match network:
        case EgoAttentionNetwork():
            layer = network.self_attention_layer
            return {
                "type": "EgoAttentionNetwork",
                "presence_feature_idx": network.presence_index,
                "embedding_layer": _perceptron_config(network.ego_embedding),
                "others_embedding_layer": _perceptron_config(network.others_embedding),
                "self_attention_layer": {"feature_size": layer.d_model, "heads": layer.n_heads} if layer else None,
                "attention_layer": {
                    "feature_size": network.attention_layer.d_model,
                    "heads": network.attention_layer.n_heads,
                },
                "output_layer": _perceptron_config(network.output_layer),
            }
        case DuelingNetwork():
            parts: list[tuple[str, Any]] = [("value", network.value), ("advantage", network.advantage)]
            heads = {part: None if isinstance(head, nn.Linear) else _perceptron_config(head) for part, head in parts}
            return {"type": "DuelingNetwork", "base_module": _perceptron_config(network.base_module), **heads}
        case ConvolutionalNetwork():
            activation = network.activation.upper()
            return {
                "type": "ConvolutionalNetwork",
                "activation": activation,
                "head_mlp": _perceptron_config(network.head),
            }
        case MultiLayerPerceptron():
            return _perceptron_config(network)
        case _:
            config: Any = getattr(network, "config", None)
            upstream = type(network).__module__.split(".")[0] == "rl_agents" and isinstance(config, dict)
            return cast(Config, config) if upstream else None


def _perceptron_config(network: MultiLayerPerceptron) -> Config:
    sizes = [cast(nn.Linear, layer).out_features for layer in network.layers]
    out = None if network.predict is None else network.predict.out_features
    activation = network.activation.upper()
    return {
        "type": "MultiLayerPerceptron",
        "layers": sizes,
        "activation": activation,
        "reshape": network.flatten,
        "out": out,
    }
