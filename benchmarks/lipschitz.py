"""Radii that Lipschitz constants certify, for comparison: products of operator norms, over all states and near one.

    |gap(x) - gap(x0)|  <=  L |x - x0|_2           certified within lead / L

Near a state, neurons that stay off within the radius fall out of their matrix, and what multiplies in attention is
bounded by its norm at the state and how far it can move. Rounding is left out, which only favours these bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import rlmech as rlm

_HALVINGS = 16


def radii(policy: rlm.HookedPolicy, obs: np.ndarray, move: rlm.certify.Move, *, local: bool) -> np.ndarray:
    """The radius of each state, in units of the move, up to 1e6."""
    (arrays,) = policy.coerce(obs)
    (reach,) = move.reach(policy, (arrays,))
    scores = policy(obs).detach().double()
    chosen = scores.argmax(1)
    gap = _attention_gap if hasattr(policy.module.features_extractor, "attention_layer") else _perceptron_gap
    found: list[float] = []
    for row, own in enumerate(chosen.tolist()):
        size = float(reach[row].norm())
        leads = {
            other: float(scores[row, own] - scores[row, other]) for other in range(scores.shape[1]) if other != own
        }

        def holds(radius: float, row: int = row, own: int = own, size: float = size, leads: dict = leads) -> bool:
            spread = radius * size
            grown = gap(policy.module, arrays[row].double(), spread if local else None)
            return all(grown(own, other) * spread < lead for other, lead in leads.items())

        found.append(_largest(holds))
    return np.array(found)


def _largest(holds: Callable[[float], bool]) -> float:
    low, high = 1e-12, 1e6
    if not holds(low):
        return 0.0
    for _ in range(2 * _HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _through(layers: Sequence[nn.Module], at: Tensor, spread: float | None) -> tuple[Tensor, float]:
    """What ReLU layers make of a value, and their constant: everywhere, or where the value moves by so much."""
    constant = 1.0
    for layer in layers:
        weight, bias = _weights(layer)
        before = at @ weight.T + bias
        if spread is not None:
            can = before + weight.norm(dim=1) * spread * constant > 0
            weight = weight[can.reshape(-1, can.shape[-1]).any(0)]
        constant *= _norm(weight)
        at = before.relu()
    return at, constant


def _perceptron_gap(module: nn.Module, x: Tensor, spread: float | None) -> Callable[[int, int], float]:
    *hidden, last = _linear(module.q_net)
    _, constant = _through(hidden, x.flatten(), spread)
    weight = _weights(last)[0]
    return lambda own, other: float((weight[own] - weight[other]).norm()) * constant


def _attention_gap(module: nn.Module, x: Tensor, spread: float | None) -> Callable[[int, int], float]:
    front, (*hidden, final) = module.features_extractor, _linear(module.q_net)
    attention = front.attention_layer
    there = x[:, 0] >= 0.5
    whole = x if spread is not None else torch.ones_like(x)  # the longest observation that there is
    ego, of_ego = _through(front.ego_embedding.layers, whole[:1], spread)
    others, of_others = _through(front.others_embedding.layers, whole[1:][there[1:]], spread)
    entities, of_entities = torch.cat([ego, others]), max(of_ego, of_others)
    if spread is None:  # from zero, where an embedding is its biases, to the longest observation
        zero = torch.zeros(1, x.shape[1], dtype=x.dtype)
        starts = [_through(s.layers, zero, None)[0].norm() for s in (front.ego_embedding, front.others_embedding)]
        entities = torch.full((len(entities), 1), float(max(starts)) + of_entities * x.shape[1] ** 0.5)
    n_heads = attention.n_heads
    total = 0.0
    parts = [_weights(layer)[0] for layer in (attention.query_ego, attention.key_all, attention.value_all)]
    for head in range(n_heads):
        q, k, v = (part.view(n_heads, -1, part.shape[1])[head] for part in parts)
        if spread is None:
            size = [_norm(w) * float(entities.norm()) for w in (k, v)]
            of_query = _norm(q) * float(entities[0].norm())
        else:
            size = [float((entities @ w.T).norm()) + _norm(w) * of_entities * spread for w in (k, v)]
            of_query = float((ego @ q.T).norm()) + _norm(q) * of_ego * spread
        of_scores = (of_query * _norm(k) * of_entities + size[0] * _norm(q) * of_ego) / len(q) ** 0.5
        total += (_norm(v) * of_entities + size[1] * of_scores / 2) ** 2  # a softmax moves by half of its scores
    combine = _weights(attention.attention_combine)[0]
    constant = (_norm(combine) * total**0.5 + of_ego) / 2
    for layer in hidden:
        constant *= _norm(_weights(layer)[0])
    last = _weights(final)[0]
    return lambda own, other: float((last[own] - last[other]).norm()) * constant


def _linear(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().double()
    bias = getattr(layer, "bias", None)
    return weight, torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.detach().double()


def _norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight, 2)) if weight.numel() else 0.0
