"""From scores to actions."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.points import OutputKind


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as an array; bfloat16, which numpy has not, as float32."""
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).cpu().numpy()


def choose_actions(
    scores: Float[Tensor, "batch *choice action"],
    kind: OutputKind,
    space: object,
    *,
    deterministic: bool,
    uniform: np.ndarray | None = None,
) -> np.ndarray:
    """Actions of a batch of scores.

    Args:
        scores: Q-values, logits or the mean action; of several choices a row for each.
        kind: Which of them.
        space: The action space, for the bounds of continuous actions; None for none.
        deterministic: The best action; else logits are sampled.
        uniform: Numbers in [0, 1), `[batch *choice]`, that decide which; None draws with torch's generator.
    """
    if kind == "mean_action":
        actions = as_numpy(scores)
        low, high = getattr(space, "low", None), getattr(space, "high", None)
        if low is None or high is None:
            return actions
        return np.clip(actions.reshape(-1, *low.shape), low, high)
    if kind == "logits" and not deterministic and uniform is not None:
        passed = scores.double().softmax(-1).cumsum(-1)
        draws = torch.as_tensor(uniform, dtype=torch.float64, device=scores.device) * passed[..., -1]
        return _shaped((passed <= draws[..., None]).sum(-1).clamp(max=scores.shape[-1] - 1), space)
    if kind == "logits" and not deterministic:
        return _shaped(torch.distributions.Categorical(logits=scores).sample(), space)
    return _shaped(scores.argmax(-1), space)


def _shaped(actions: Tensor, space: object) -> np.ndarray:
    """Actions as the space has them: several choices keep its shape and type."""
    chosen = actions.cpu().numpy()
    if chosen.ndim == 1:
        return chosen
    shape = getattr(space, "shape", None) or chosen.shape[1:]
    return chosen.reshape(-1, *shape).astype(getattr(space, "dtype", None) or chosen.dtype)
