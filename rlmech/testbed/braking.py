"""A policy that brakes when the time to collision is short, through a single gate."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import Effects, Equation, KnownPolicy, affine, layer

HORIZON = 2.0
"""T of the equations, in seconds."""

SPEC = PolicySpec(
    features=(FeatureSpec(name="closing_speed", unit="m/s"), FeatureSpec(name="distance", unit="m")),
    actions=("BRAKE", "KEEP"),
)


class BrakeNetwork(nn.Module):
    """One hidden layer: the gate ReLU(T v - d) and three neurons that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layer([[HORIZON, -1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        self.relu = nn.ReLU()
        self.head = layer([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], [0.0, 1.0])

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch action"]:
        """Scores of BRAKE and KEEP."""
        return self.head(self.relu(self.hidden(x)))


def brake(*, n_pairs: int = 16, seed: int = 0) -> KnownPolicy:
    """A brake that acts when less than T = 2 s are left until a collision.

        h = ReLU(T v - d)     v: closing speed, m/s     d: distance, m
        Q(BRAKE) = h          Q(KEEP) = 1

    Three more hidden neurons, ReLU(v), ReLU(d) and ReLU(v + d), are alive in every run and have output weight zero.
    In clean runs (close and fast) the gate is on, in corrupt runs (far and slow) off. A gradient taken at a corrupt
    run misses everything before the gate, and one taken at a clean run promises more than the gate can give; patching
    does neither.

    Args:
        n_pairs: Pairs.
        seed: Of the observations.

    Returns:
        Answers for all features and neurons and for `hidden.hook_out` of the gate, in all five experiments, and for
        all edges in `denoise` and `noise`.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.brake()
        >>> speed = known.inputs[0]
        >>> bool((known.answers["attribute_denoise"][speed] == 0).all())
        True
        >>> bool((known.answers["denoise"][speed] > 0).any())
        True
    """
    v, d = Site("hook_obs", feature=0), Site("hook_obs", feature=1)
    h, *idle = (Site("relu.hook_out", neuron=i) for i in range(4))
    before = Site("hidden.hook_out", neuron=0)
    press, keep = Site("hook_q_values", action=0), Site("hook_q_values", action=1)
    equations = (
        Equation(unit=v),
        Equation(unit=d),
        Equation(unit=h, reads=(v, d), rule=affine(HORIZON, -1.0, relu=True)),
        Equation(unit=idle[0], reads=(v,), rule=affine(1.0, relu=True)),
        Equation(unit=idle[1], reads=(d,), rule=affine(1.0, relu=True)),
        Equation(unit=idle[2], reads=(v, d), rule=affine(1.0, 1.0, relu=True)),
        Equation(unit=press, reads=(h,), rule=affine(1.0)),
        Equation(unit=keep, rule=affine(bias=1.0)),
    )
    clean, corrupt = _observations(n_pairs, seed)
    nothing = torch.zeros(n_pairs, dtype=torch.float64)
    dead: Effects = dict.fromkeys((*idle, keep), nothing)
    ends: dict[str, Effects] = {}
    for direction, base, source in (("denoise", corrupt, clean), ("noise", clean, corrupt)):
        by_gate = _gate(source) - _gate(base)
        by_speed = _gate(torch.stack((source[:, 0], base[:, 1]), 1)) - _gate(base)
        by_distance = _gate(torch.stack((base[:, 0], source[:, 1]), 1)) - _gate(base)
        through = {v: by_speed, d: by_distance, h: by_gate, before: by_gate, press: by_gate}
        edges = {(v, h): by_speed, (d, h): by_distance, (h, press): by_gate}
        off_circuit = {(v, idle[0]): nothing, (d, idle[1]): nothing, (v, idle[2]): nothing, (d, idle[2]): nothing}
        ends[direction] = dead | through | off_circuit | edges
        is_open = (_gate(base) > 0).double()
        ends[f"attribute_{direction}"] = dead | {
            v: is_open * HORIZON * (source[:, 0] - base[:, 0]),
            d: -is_open * (source[:, 1] - base[:, 1]),
            before: is_open * (HORIZON * (source[:, 0] - base[:, 0]) - (source[:, 1] - base[:, 1])),
            h: by_gate,
            press: by_gate,
        }
    all_of_it = -_gate(clean)
    zero = dead | {v: all_of_it, d: clean[:, 1], h: all_of_it, before: all_of_it, press: all_of_it, keep: nothing + 1}
    return KnownPolicy(
        policy=HookedPolicy(BrakeNetwork(), clean, spec=SPEC),
        clean=clean,
        corrupt=corrupt,
        better="BRAKE",
        worse="KEEP",
        equations=equations,
        edges=frozenset({(v, h), (d, h), (h, press)}),
        answers={**ends, "zero": zero},
        description="Q(BRAKE) = ReLU(2 s x closing speed - distance); three live neurons lead nowhere.",
    )


def _gate(obs: Tensor) -> Tensor:
    return (HORIZON * obs[:, 0] - obs[:, 1]).clamp(min=0)


def _observations(n_pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Closing speed and distance: fast and close, so that the gate is on; slow and far, so that it is off."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(2, n_pairs, 2, generator=generator, dtype=torch.float64)
    clean = torch.tensor([8.0, 2.0]) + share[0] * torch.tensor([8.0, 8.0])
    corrupt = torch.tensor([1.0, 15.0]) + share[1] * torch.tensor([4.0, 10.0])
    return clean.double(), corrupt.double()
