"""AND, OR and a backup: three ways in which units share a cause, told apart by denoising, noising and ablation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import Effects, Equation, KnownPolicy, affine, layer

ACTIONS = ("SLOWER", "FASTER")
MARGIN = 0.5
"""Q(FASTER), in all three policies."""


class GateNetwork(nn.Module):
    """a, b, c = ReLU(observation); g = ReLU(w a + w b + bias); Q(SLOWER) = sign g + offset."""

    def __init__(self, *, weight: float, bias: float, sign: float, offset: float) -> None:
        super().__init__()
        self.seen, self.seen_relu = layer(torch.eye(3).tolist()), nn.ReLU()
        self.gate, self.gate_relu = layer([[weight, weight, 0.0]], [bias]), nn.ReLU()
        self.head = layer([[sign], [0.0]], [offset, MARGIN])

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch action"]:
        """Scores of SLOWER and FASTER."""
        return self.head(self.gate_relu(self.gate(self.seen_relu(self.seen(x)))))


class BackupNetwork(nn.Module):
    """p = ReLU(x); b = ReLU(x - 2 p); Q(SLOWER) = p + b."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.primary_relu = layer([[1.0]]), nn.ReLU()
        self.backup, self.backup_relu = layer([[1.0, -2.0]]), nn.ReLU()
        self.head = layer([[1.0, 1.0], [0.0, 0.0]], [0.0, MARGIN])

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch action"]:
        """Scores of SLOWER and FASTER."""
        primary = self.primary_relu(self.primary(x))
        backup = self.backup_relu(self.backup(torch.cat((x, primary), dim=1)))
        return self.head(torch.cat((primary, backup), dim=1))


def and_gate(*, n_pairs: int = 8, seed: int = 0) -> KnownPolicy:
    """Slow down where there is a pedestrian AND a crossing.

        a = ReLU(pedestrian)     b = ReLU(crossing)     c = ReLU(rain)
        g = ReLU(a + b - 1.5)    Q(SLOWER) = 2 g        Q(FASTER) = 0.5

    The features are a detector's confidence: 1 for yes, 0.25 for no. Clean runs have both, corrupt runs neither.
    Denoising a or b alone does nothing (neither suffices), noising either does everything (each is necessary). Rain is
    seen by c, which nothing reads.

    Args:
        n_pairs: Pairs; they differ in the rain only.
        seed: Of the rain.

    Returns:
        Answers for all units in all five experiments, and for all edges in `denoise` and `noise`.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.and_gate()
        >>> a = known.hidden[0]
        >>> known.answers["denoise"][a].tolist()[0], known.answers["noise"][a].tolist()[0]
        (0.0, -1.0)
    """
    return _gate(
        weight=1.0,
        bias=-1.5,
        sign=2.0,
        offset=0.0,
        part={"denoise": 0.0, "noise": -1.0, "zero": -1.0, "attribute_denoise": 0.0, "attribute_noise": -1.5},
        gate={"denoise": 1.0, "noise": -1.0, "zero": -1.0, "attribute_denoise": 1.0, "attribute_noise": -1.0},
        n_pairs=n_pairs,
        seed=seed,
        description="Q(SLOWER) = 2 ReLU(a + b - 1.5): each part is necessary, none sufficient.",
    )


def or_gate(*, n_pairs: int = 8, seed: int = 0) -> KnownPolicy:
    """Slow down where there is a pedestrian OR a crossing.

        a = ReLU(pedestrian)     b = ReLU(crossing)     c = ReLU(rain)
        g = ReLU(1 - a - b)      Q(SLOWER) = 1 - 2 g    Q(FASTER) = 0.5

    The features are a detector's confidence: 1 for yes, 0.25 for no. Clean runs have both, corrupt runs neither.
    Denoising a or b alone does everything (each suffices), noising either does nothing (neither is necessary). Rain is
    seen by c, which nothing reads.

    Args:
        n_pairs: Pairs; they differ in the rain only.
        seed: Of the rain.

    Returns:
        Answers for all units in all five experiments, and for all edges in `denoise` and `noise`.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.or_gate()
        >>> a = known.hidden[0]
        >>> known.answers["denoise"][a].tolist()[0], known.answers["noise"][a].tolist()[0]
        (1.0, 0.0)
    """
    return _gate(
        weight=-1.0,
        bias=1.0,
        sign=-2.0,
        offset=1.0,
        part={"denoise": 1.0, "noise": 0.0, "zero": 0.0, "attribute_denoise": 1.5, "attribute_noise": 0.0},
        gate={"denoise": 1.0, "noise": -1.0, "zero": 0.0, "attribute_denoise": 1.0, "attribute_noise": -1.0},
        n_pairs=n_pairs,
        seed=seed,
        description="Q(SLOWER) = 1 - 2 ReLU(1 - a - b): each part is sufficient, none necessary.",
    )


def backup(*, n_pairs: int = 8, seed: int = 0) -> KnownPolicy:
    """A unit that lives only when its twin is ablated.

        p = ReLU(x)     b = ReLU(x - 2 p)     Q(SLOWER) = p + b     Q(FASTER) = 0.5

    In every unpatched run b is off. Set p to zero and b gives x in its place: the ablation does nothing, though the
    edge p -> Q carries all of Q. Denoising p does everything, noising it little; no gradient sees b.

    Args:
        n_pairs: Pairs; x, a brake light's brightness, is 1 to 2 in clean runs and 0.1 to 0.4 in corrupt ones.
        seed: Of the observations.

    Returns:
        Answers for all units in all five experiments, and for all edges in `denoise` and `noise`.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.backup()
        >>> p, q = known.hidden[0], known.outputs[0]
        >>> bool((known.answers["zero"][p] == 0).all()), bool((known.answers["noise"][p, q] < -0.5).all())
        (True, True)
    """
    x, p, b = (
        Site("hook_obs", feature=0),
        Site("primary_relu.hook_out", neuron=0),
        Site("backup_relu.hook_out", neuron=0),
    )
    slower, faster = (Site("hook_q_values", action=i) for i in range(2))
    equations = (
        Equation(unit=x),
        Equation(unit=p, reads=(x,), rule=affine(1.0, relu=True)),
        Equation(unit=b, reads=(x, p), rule=affine(1.0, -2.0, relu=True)),
        Equation(unit=slower, reads=(p, b), rule=affine(1.0, 1.0)),
        Equation(unit=faster, rule=affine(bias=MARGIN)),
    )
    share = torch.rand(2, n_pairs, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clean, corrupt = 1 + share[0], 0.1 + 0.3 * share[1]
    high, low = clean[:, 0], corrupt[:, 0]
    up, nothing = high - low, torch.zeros(n_pairs, dtype=torch.float64)
    repaired = high - 2 * low  # what b gives in a clean run that is told of the corrupt one's p
    none = {b: nothing, faster: nothing}
    attribution = {x: up, p: up, slower: up}
    answers: dict[str, Effects] = {
        "denoise": {x: up, p: up, slower: up, **none}
        | {(x, p): up, (x, b): repaired, (p, b): nothing, (p, slower): up, (b, slower): nothing},
        "noise": {x: -up, p: -low, slower: -up, **none}
        | {(x, p): -low, (x, b): nothing, (p, b): repaired, (p, slower): -up, (b, slower): nothing},
        "zero": {x: -high, p: nothing, b: nothing, slower: -high, faster: nothing + MARGIN},
        "attribute_denoise": {**none, **attribution},
        "attribute_noise": {**none, **{unit: -effect for unit, effect in attribution.items()}},
    }
    return KnownPolicy(
        policy=HookedPolicy(
            BackupNetwork(), clean, spec=PolicySpec(features=(FeatureSpec(name="brake_light"),), actions=ACTIONS)
        ),
        clean=clean,
        corrupt=corrupt,
        better=ACTIONS[0],
        worse=ACTIONS[1],
        equations=equations,
        edges=frozenset(edge for equation in equations for edge in equation.edges),
        answers=answers,
        description="b = ReLU(x - 2 p) takes over where p is ablated: total effect 0, direct effect all of Q.",
    )


def _gate(
    *,
    weight: float,
    bias: float,
    sign: float,
    offset: float,
    part: Mapping[str, float],
    gate: Mapping[str, float],
    n_pairs: int,
    seed: int,
    description: str,
) -> KnownPolicy:
    """AND or OR; `part` is the answer for a and b and for what leads to them, `gate` for g, by experiment."""
    pedestrian, crossing, rain = (Site("hook_obs", feature=i) for i in range(3))
    a, b, c = (Site("seen_relu.hook_out", neuron=i) for i in range(3))
    g = Site("gate_relu.hook_out", neuron=0)
    slower, faster = (Site("hook_q_values", action=i) for i in range(2))
    equations = (
        *(Equation(unit=unit) for unit in (pedestrian, crossing, rain)),
        Equation(unit=a, reads=(pedestrian,), rule=affine(1.0, relu=True)),
        Equation(unit=b, reads=(crossing,), rule=affine(1.0, relu=True)),
        Equation(unit=c, reads=(rain,), rule=affine(1.0, relu=True)),
        Equation(unit=g, reads=(a, b), rule=affine(weight, weight, bias=bias, relu=True)),
        Equation(unit=slower, reads=(g,), rule=affine(sign, bias=offset)),
        Equation(unit=faster, rule=affine(bias=MARGIN)),
    )
    circuit = {(pedestrian, a), (crossing, b), (a, g), (b, g), (g, slower)}
    one = torch.ones(n_pairs, dtype=torch.float64)
    answers: dict[str, Effects] = {}
    for experiment in part:
        by_part, by_gate = part[experiment] * one, gate[experiment] * one
        answers[experiment] = {
            **dict.fromkeys((pedestrian, crossing, a, b), by_part),
            **dict.fromkeys((rain, c, faster), 0 * one),
            **dict.fromkeys((g, slower), by_gate),
        }
        if experiment in ("denoise", "noise"):
            answers[experiment] |= dict.fromkeys(circuit, by_part) | {(g, slower): by_gate, (rain, c): 0 * one}
    answers["zero"] |= {slower: -one, faster: MARGIN * one}
    wet = torch.rand(2, n_pairs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clean, corrupt = torch.stack((one, one, wet[0]), 1), torch.stack((one / 4, one / 4, wet[1]), 1)
    features = tuple(FeatureSpec(name=name) for name in ("pedestrian", "crossing", "rain"))
    return KnownPolicy(
        policy=HookedPolicy(
            GateNetwork(weight=weight, bias=bias, sign=sign, offset=offset),
            clean,
            spec=PolicySpec(features=features, actions=ACTIONS),
        ),
        clean=clean,
        corrupt=corrupt,
        better=ACTIONS[0],
        worse=ACTIONS[1],
        equations=equations,
        edges=frozenset(circuit),
        answers=answers,
        description=description,
    )
