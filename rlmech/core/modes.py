"""Train and eval mode, weights and their fingerprint: the state of a module that decides how it may be run."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from types import FunctionType

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Put a module in eval mode, and every part of it back as it was."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def depends_on_mode(module: nn.Module) -> bool:
    """Whether train mode may change what a module itself computes, its children aside."""
    if hasattr(module, "track_running_stats"):  # batch norm, and instance norm that keeps statistics
        return True
    if isinstance(module, nn.RReLU) or (type(module).__module__.partition(".")[0] != "torch" and _reads_mode(module)):
        return True
    if "ra_mean" in module._buffers:  # batch renorm of sb3-contrib  # pyright: ignore[reportPrivateUsage]
        return True
    dropout = getattr(module, "p" if type(module).__name__.endswith("Dropout") else "dropout", 0.0)
    return isinstance(dropout, float) and dropout > 0


def _reads_mode(module: nn.Module) -> bool:
    """Whether a method of the module's own class reads `training`: noisy layers, `F.dropout(x, training=…)`."""
    return any(
        "training" in function.__code__.co_names
        for owner in type(module).__mro__
        if owner.__module__.partition(".")[0] != "torch"
        for name, function in vars(owner).items()
        if isinstance(function, FunctionType) and name not in ("train", "eval")
    )


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's names, shapes and present weights: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.numel():  # an empty tensor has no bytes to look at
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
