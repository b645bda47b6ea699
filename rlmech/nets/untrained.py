"""Policies as they are before training, the floor that what a trained one shows is held against."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlmech.core.policy import HookedPolicy


def untrained(policy: HookedPolicy, seed: int) -> HookedPolicy:
    """The same architecture with weights as they are before training.

    Layers are initialised as torch does; parameters that no layer initialises are put in a random order.
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
    return twin


def _shuffle(parameter: nn.Parameter) -> None:
    flat = parameter.detach().flatten()
    parameter.copy_(flat[torch.randperm(len(flat))].reshape(parameter.shape))
