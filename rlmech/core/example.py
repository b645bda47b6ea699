"""The format of a policy's observations, from an example in the precision that the network computes in."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from rlmech.core.modes import evaluating
from rlmech.core.observation import Observation, ObservationFormat


def format_of(example: Observation, module: nn.Module, *, images: Collection[str] = ()) -> ObservationFormat:
    """The format of an example; where it is float64, numpy's own, and the network refuses that, in its own precision.

    Args:
        example: A batch of observations.
        module: The network.
        images: Keys of images, channels first.
    """
    form = ObservationFormat(example, images=images)
    own = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), torch.float64)
    if own != torch.float64 and torch.float64 in form.dtypes.values() and not _takes(module, form):
        form.retype(own)
    return form


def _takes(module: nn.Module, form: ObservationFormat) -> bool:
    with torch.no_grad(), evaluating(module), torch.random.fork_rng(devices=[]):
        try:
            module(form.argument(form.samples(1)))
        except RuntimeError:
            return False
        except Exception:  # its own words come where the policy is wrapped
            return True
    return True
