"""Two paths from one unit that cancel: the unit does nothing, each of its edges does everything."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import Equation, KnownPolicy, affine, layer

SPEC = PolicySpec(
    features=(FeatureSpec(name="brake_light"), FeatureSpec(name="obstacle")),
    actions=("SLOWER", "IDLE"),
)


class CancellationNetwork(nn.Module):
    """h1 = ReLU(light), h2 = ReLU(h1), g = ReLU(obstacle); Q = +h1 - h2 + g."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_relu = layer([[1.0, 0.0], [0.0, 1.0]]), nn.ReLU()
        self.second, self.second_relu = layer([[1.0, 0.0]]), nn.ReLU()
        self.direct, self.inverting = layer([[1.0, 1.0], [0.0, 0.0]]), layer([[-1.0], [0.0]])

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch action"]:
        """Scores of SLOWER and IDLE."""
        first = self.first_relu(self.first(x))
        return self.direct(first) + self.inverting(self.second_relu(self.second(first)))


def cancellation(*, n_pairs: int = 8) -> KnownPolicy:
    """A brake light that is seen twice, with opposite signs, beside an obstacle that counts.

        h1 = ReLU(light)     h2 = ReLU(h1)     g = ReLU(obstacle)
        Q(SLOWER) = h1 - h2 + g                Q(IDLE) = 0

    Patching h1, or the light, does nothing; patching the edge h1 -> Q moves the gap by +1, h1 -> h2 and h2 -> Q by -1.
    The obstacle alone makes the difference between clean and corrupt runs, 1 in every pair. All gates are open in
    both, so that first-order attributions are exact.

    Args:
        n_pairs: Pairs; all are alike (clean: light 2, obstacle 2; corrupt: both 1).

    Returns:
        Answers for all units in all five experiments, and for all edges in all but `zero`.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.cancellation()
        >>> h1, q = known.hidden[0], known.outputs[0]
        >>> known.answers["denoise"][h1].tolist()[0], known.answers["denoise"][h1, q].tolist()[0]
        (0.0, 1.0)
    """
    light, obstacle = Site("hook_obs", feature=0), Site("hook_obs", feature=1)
    h1, g = Site("first_relu.hook_out", neuron=0), Site("first_relu.hook_out", neuron=1)
    h2 = Site("second_relu.hook_out", neuron=0)
    slower, idle = Site("hook_q_values", action=0), Site("hook_q_values", action=1)
    equations = (
        Equation(unit=light),
        Equation(unit=obstacle),
        Equation(unit=h1, reads=(light,), rule=affine(1.0, relu=True)),
        Equation(unit=g, reads=(obstacle,), rule=affine(1.0, relu=True)),
        Equation(unit=h2, reads=(h1,), rule=affine(1.0, relu=True)),
        Equation(unit=slower, reads=(h1, h2, g), rule=affine(1.0, -1.0, 1.0)),
        Equation(unit=idle, rule=affine()),
    )
    clean = torch.full((n_pairs, 2), 2.0, dtype=torch.float64)
    corrupt = torch.ones_like(clean)
    up = clean[:, 0] - corrupt[:, 0]
    effects = {
        light: 0 * up,
        obstacle: up,
        h1: 0 * up,
        g: up,
        h2: -up,
        slower: up,
        idle: 0 * up,
        (light, h1): 0 * up,
        (obstacle, g): up,
        (h1, h2): -up,
        (h1, slower): up,
        (h2, slower): -up,
        (g, slower): up,
    }
    opposite = {key: -effect for key, effect in effects.items()}
    return KnownPolicy(
        policy=HookedPolicy(CancellationNetwork(), clean, spec=SPEC),
        clean=clean,
        corrupt=corrupt,
        better="SLOWER",
        worse="IDLE",
        equations=equations,
        edges=frozenset(edge for equation in equations for edge in equation.edges),
        answers={
            "denoise": effects,
            "noise": opposite,
            "attribute_denoise": effects,
            "attribute_noise": opposite,
            "zero": {unit: -2 * effects[unit] for unit in (light, obstacle, h1, g, h2, slower, idle)},
        },
        description="Two paths from h1 to Q(SLOWER), +1 and -1: the node does nothing, its edges do.",
    )
