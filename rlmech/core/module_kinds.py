"""The module that is opened: out of torch's wrappers (compile, DataParallel, export), or refused in words.

What has no Python modules inside (TorchScript), no floating-point weights (quantised layers) or no weights yet (lazy
layers) cannot be hooked, and says so here instead of deep inside torch.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram, unflatten
from torch.nn.parameter import UninitializedParameter

from rlmech.errors import ConfigError

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
WRAP_SOURCE = "wrap the nn.Module that it was made from: HookedPolicy(module, example_obs)"


def unwrapped(module: Any) -> nn.Module:
    """The module itself, out of what torch has put around it.

    Args:
        module: A module; a compiled or parallel one stands for the one inside, an exported program for its modules.

    Raises:
        ConfigError: It is no module, or one that cannot be opened.
    """
    if isinstance(module, ExportedProgram):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own copying
            module = unflatten(module)
    while hasattr(module, "_orig_mod") or isinstance(module, WRAPPERS):
        module = getattr(module, "_orig_mod", None) or module.module
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"A {type(module).__name__} is no torch module, and hook points are modules' and operations' inside one.",
            given=f"{type(module).__module__}.{type(module).__name__}",
            expected="a torch.nn.Module, which maps a batch of observations to action scores",
            fix="HookedPolicy.from_sb3(model) for a model of Stable-Baselines3, rlmech.load(path) for a file; "
            "a function goes into the forward of an nn.Module",
        )
    for path, part in module.named_modules():
        _check(part, f"its part {path!r}" if path else "it", type(module).__name__)
    return module


def _check(part: nn.Module, which: str, network: str) -> None:
    kind = f"{type(part).__module__}.{type(part).__name__}"
    if isinstance(part, torch.jit.ScriptModule):
        raise ConfigError(
            f"The {network} is TorchScript, or {which} is: compiled code, whose inside has nothing to hook.",
            given=kind,
            expected="modules that run in Python",
            fix=WRAP_SOURCE,
        )
    if kind.startswith(QUANTIZED):
        raise ConfigError(
            f"The {network} has quantised layers ({which}): packed integers, which have no weights to read or edit.",
            given=kind,
            expected="layers with floating-point weights",
            fix="wrap the network as it was before quantisation",
        )
    if isinstance(part, torch.fx.GraphModule) and "eval" in vars(part):  # of ExportedProgram.module(): eval() raises
        raise ConfigError(
            f"The {network} is what an exported program's module() gives, which keeps none of its own modules.",
            given=kind,
            expected="the exported program itself",
            fix="HookedPolicy(exported_program, example_obs)",
        )
    for name, parameter in part.named_parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            raise ConfigError(
                f"The {network} has lazy layers that have not seen an input yet ({which}), so they have no weights.",
                given=f"{kind} with {name} uninitialised",
                expected="weights",
                fix="run it once, module(example_obs), or load its weights, before it is wrapped",
            )
