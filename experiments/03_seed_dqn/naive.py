"""The formulas that are commonly written down for such a network, each with what is wrong with it.

They are here to be compared with, and for nothing else.
"""

from __future__ import annotations

import numpy as np
import torch

import rlmech as rlm

STEPS = 50


def weights(policy: rlm.HookedPolicy) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights `[out, in]` and biases of the three layers, in double precision."""
    layers = [policy.module.get_submodule(f"q_net.{i}") for i in (0, 2, 4)]
    w, b = ([getattr(layer, part).detach().double().numpy() for layer in layers] for part in ("weight", "bias"))
    return w, b


def product(w: list[np.ndarray]) -> np.ndarray:
    """From inputs to the second layer as `W0ᵀ W1`: of the right shape because the second layer is square."""
    return w[0].T @ w[1]


def zero_baseline_gradients(policy: rlm.HookedPolicy, seen: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Integrated gradients of the raw score of one action from a row of zeros, with points at the left ends.

    At zero nobody is present, not even the ego: the line crosses the presence flags.
    """
    end = torch.as_tensor(seen)
    total = torch.zeros_like(end)
    for step in range(STEPS):
        point = (end * (step / STEPS)).requires_grad_()
        score = policy(point).gather(1, torch.as_tensor(action)[:, None]).sum()
        total += torch.autograd.grad(score, point)[0]
    return (total * end / STEPS).numpy()


def lenses(w: list[np.ndarray], b: list[np.ndarray], hidden: np.ndarray) -> dict[str, np.ndarray]:
    """Scores read off the first hidden layer `[batch, neuron]` through weights that fit by their shape alone."""
    through = np.maximum(hidden @ w[1] + b[1], 0)  # right would be W1ᵀ
    return {
        "output weights on hidden 1": hidden @ w[2].T + b[2],
        "W1 transposed, then the output": through @ w[2].T + b[2],
    }


def hooks_on(module: torch.nn.Module) -> dict[int, object]:
    """The forward hooks of a module, which torch keeps to itself."""
    return vars(module)["_forward_hooks"]


def left_on(policy: rlm.HookedPolicy, first: np.ndarray, then: np.ndarray) -> dict[str, np.ndarray | int]:
    """Hooks registered by a cell that is run twice and never removed, and the network run on something else between.

    Returns the second layer's activations found in the dictionary when those of `first` are looked up, the number of
    hooks on the module then, and how often they were called. The hooks are removed here.
    """
    kept: dict[str, np.ndarray] = {}
    calls = 0

    def note(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        kept["hidden_2_relu"] = output.detach().numpy()

    layer = policy.module.get_submodule("q_net.3")
    handles = [layer.register_forward_hook(note) for _ in range(2)]
    try:
        with torch.no_grad():
            policy.module(torch.as_tensor(first))
            policy.module(torch.as_tensor(then))
        return {"found": kept["hidden_2_relu"], "hooks": len(hooks_on(layer)), "calls": calls}
    finally:
        for handle in handles:
            handle.remove()
