"""Constructor arguments of SB3's policies beyond sizes, activation and features extractor.

Each stands in the clear text of a zip or shows in its tensors, and can be read off a live network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from rlmech.adapters.sb3.algorithms import Algorithm, sizes
from rlmech.untyped import JsonObject

ONLY_WITH_SDE = ("full_std", "squash_output", "use_expln", "clip_mean")


def options_of_zip(
    algorithm: Algorithm,
    *,
    data: Mapping[str, object],
    kwargs: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    variant: str,
    n_actions: int | None,
) -> dict[str, object]:
    """The options of a zip: what its keyword arguments say, and what its tensors show.

    Args:
        algorithm: The record of its policy's class.
        data: Its JSON.
        kwargs: Its `policy_kwargs`, as far as they are in clear.
        tensors: Its weights.
        variant: The class as it is printed in the zip.
        n_actions: Number of discrete actions, where there are such.
    """
    options = {key: kwargs[key] for key in algorithm.options if key in kwargs}
    if "n_critics" in algorithm.options:
        options["n_critics"] = len({match[1] for key in tensors if (match := re.match(r"critic\.qf(\d+)\.", key))})
    if "use_sde" in algorithm.options:
        options = {key: value for key, value in options.items() if key != "use_sde"}
        if data.get("use_sde") is True:
            options["use_sde"] = True
    if "n_quantiles" in algorithm.options:
        of_actions = sizes(tensors, "quantile_net.quantile_net.")
        options["n_quantiles"] = of_actions[-1] // (n_actions or 1) if of_actions else sizes(tensors, "critic.qf0.")[-1]
    if "batch_norm" in algorithm.options:
        options["batch_norm"] = any(key.endswith(".ra_mean") for key in tensors)
    if "lstm_kwargs" in algorithm.options:
        options |= _lstm_options(tensors, options.get("lstm_kwargs"))
    if "with_bias" in algorithm.options:
        options["with_bias"] = any(key.endswith(".bias") for key in tensors)
        options.setdefault("squash_output", variant != "ARSLinearPolicy")
    return options


def _lstm_options(tensors: Mapping[str, Tensor], kwargs: object) -> dict[str, object]:
    """Sizes of the LSTMs, and who has one of their own."""
    recurrent = tensors["lstm_actor.weight_hh_l0"]
    projected = "lstm_actor.weight_hr_l0" in tensors
    shown = {"bias": "lstm_actor.bias_ih_l0" in tensors} | ({"proj_size": recurrent.shape[1]} if projected else {})
    has_own = any(key.startswith("lstm_critic.") for key in tensors)
    return {
        "lstm_hidden_size": recurrent.shape[0] // 4,
        "n_lstm_layers": sum(re.fullmatch(r"lstm_actor\.weight_hh_l\d+", key) is not None for key in tensors),
        "enable_critic_lstm": has_own,
        "shared_lstm": not has_own and "critic.weight" not in tensors,
        "lstm_kwargs": {**shown, **(kwargs if isinstance(kwargs, Mapping) else {})},
    }


def options_of_scores(algorithm: Algorithm, module: nn.Module) -> JsonObject:
    """The options of a live policy, read off the module of its scores."""
    network = algorithm.family.owner(module)
    critic = getattr(module, "critic", None)
    readers: dict[str, Callable[[], Any]] = {
        "use_sde": lambda: network.use_sde,
        "full_std": lambda: network.dist_kwargs["full_std"],
        "squash_output": lambda: network.squash_output,
        "use_expln": lambda: (getattr(network, "dist_kwargs", None) or vars(network))["use_expln"],
        "clip_mean": lambda: network.clip_mean,
        "share_features_extractor": lambda: (
            network.share_features_extractor
            if critic is None
            else network.features_extractor is critic.features_extractor
        ),
        "ortho_init": lambda: network.ortho_init,
        "n_critics": lambda: sum(name.startswith("qf") for name, _ in critic.named_children()) if critic else 1,
        "n_quantiles": lambda: (network if critic is None else critic).n_quantiles,
        "batch_norm": lambda: any(hasattr(layer, "ra_mean") for layer in network.modules()),
        "batch_norm_eps": lambda: next((layer.eps for layer in network.modules() if hasattr(layer, "ra_mean")), 0.001),
        "lstm_hidden_size": lambda: network.lstm_actor.hidden_size,
        "n_lstm_layers": lambda: network.lstm_actor.num_layers,
        "shared_lstm": lambda: network.shared_lstm,
        "enable_critic_lstm": lambda: network.enable_critic_lstm,
        "lstm_kwargs": lambda: dict(network.lstm_kwargs),
        "with_bias": lambda: any(name.endswith(".bias") for name, _ in network.named_parameters()),
    }
    without_sde = "use_sde" in algorithm.options and not network.use_sde
    unused = ("use_sde", *ONLY_WITH_SDE) if without_sde else ()
    return {option: readers[option]() for option in algorithm.options if option not in unused}
