"""Policies as they are before training, the floor that what a trained one shows is held against."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from rlmech.core.policy import HookedPolicy


def untrained(policy: HookedPolicy, seed: int) -> HookedPolicy:
    """The same architecture with weights as they are before training.

    Layers are initialised as torch does, those of Stable-Baselines3's actor-critics as it does where it was told to
    (`ortho_init`); parameters that no layer initialises are put in a random order.
    """
    twin = copy.deepcopy(policy)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in twin.module.modules():
            own = list(module.parameters(recurse=False))
            if not own:
                continue
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            else:
                for parameter in own:
                    _shuffle(parameter)
        for module in twin.module.modules():
            if getattr(module, "ortho_init", False):
                _orthogonal(module)
    return twin


GAINS = {
    "features_extractor": 2**0.5,
    "pi_features_extractor": 2**0.5,
    "vf_features_extractor": 2**0.5,
    "mlp_extractor": 2**0.5,
    "action_net": 0.01,
    "value_net": 1.0,
}
"""By part of an actor-critic: `ActorCriticPolicy._build` of Stable-Baselines3."""


def _orthogonal(policy: Any) -> None:
    """An actor-critic of Stable-Baselines3 as it begins: orthogonal weights without biases, by its own function."""
    for name, gain in GAINS.items():
        for module in getattr(policy, name, nn.Identity()).modules():
            policy.init_weights(module, gain)


def _shuffle(parameter: nn.Parameter) -> None:
    flat = parameter.detach().flatten()
    parameter.copy_(flat[torch.randperm(len(flat))].reshape(parameter.shape))
