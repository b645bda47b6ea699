"""A policy whose decision reads a causal variable along a planted subspace of a rotated layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError
from rlmech.spec import FeatureSpec, PolicySpec

ACTIONS = ("SLOWER", "IDLE", "FASTER")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSubspace:
    """A policy with a variable that stands in a known subspace, float64, and pairs that tell whether it was moved.

    Attributes:
        policy: The policy.
        base: Observations `[pair feature]`.
        source: Their counterparts, row by row.
        counterfactual: The base observations with the variable's features taken from the source.
        expected: What the policy does there, `[pair]`: what an interchange of the variable must lead to.
        site: Where the variable stands.
        basis: Orthonormal directions that span it, `[direction neuron]`.
        description: The circuit, in a sentence.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.planted_subspace()
        >>> known.basis.shape
        torch.Size([2, 12])
    """

    policy: HookedPolicy
    base: Float[Tensor, "pair feature"]
    source: Float[Tensor, "pair feature"]
    counterfactual: Float[Tensor, "pair feature"]
    expected: Int[Tensor, " pair"]
    site: Site
    basis: Float[Tensor, "direction neuron"]
    description: str


class RotatedNetwork(nn.Module):
    """Features rotated into a layer, from which a head reads two variables: hidden = R x, scores = W R' hidden.

    Args:
        rotation: R, orthogonal, `[neuron feature]`.
        weights: W, `[action feature]`.
    """

    def __init__(self, rotation: Tensor, weights: Tensor) -> None:
        super().__init__()
        n = len(rotation)
        self.hidden = nn.Linear(n, n, bias=False, dtype=torch.float64)
        self.head = nn.Linear(n, len(weights), bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(rotation)
            self.head.weight.copy_(weights @ rotation.T)

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch action"]:
        """Scores of the actions."""
        return self.head(self.hidden(x))


def planted_subspace(*, n_idle: int = 8, n_pairs: int = 2000, seed: int = 0) -> KnownSubspace:
    """A variable in a plane of a rotated layer, beside another variable that must stay, and idle directions.

        hidden = R x     Q(SLOWER) = x_0 + x_2     Q(IDLE) = x_1 + x_3     Q(FASTER) = 0

    The variable is (x_0, x_1), the one that must stay (x_2, x_3); no neuron is either of them alone. An interchange of
    a plane leads to what is expected in every pair if and only if the first two columns of R span it; of more
    dimensions any subspace that holds them and is orthogonal to the next two will do.

    Args:
        n_idle: Features, and directions of the layer, that nothing reads.
        n_pairs: Pairs, of independent standard normal features.
        seed: Of the rotation and the pairs.

    Raises:
        ConfigError: A negative number of idle features, or no pairs.

    Example:
        >>> import rlmech as rlm, torch
        >>> known = rlm.testbed.planted_subspace()
        >>> edit = rlm.subspace_patch(known.site, known.basis, source=known.source)
        >>> with known.policy.edited(edit):
        ...     bool((known.policy(known.base).argmax(1) == known.expected).all())
        True
    """
    if n_idle < 0 or n_pairs < 1:
        raise ConfigError(
            "A planted subspace has pairs that tell of it.",
            given=f"n_idle={n_idle}, n_pairs={n_pairs}",
            expected="n_idle of 0 or more, n_pairs of 1 or more",
            fix="n_idle=8, n_pairs=2000",
        )
    n = 4 + n_idle
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    weights = torch.zeros(3, n, dtype=torch.float64)
    weights[0, [0, 2]] = weights[1, [1, 3]] = 1.0
    base, source = torch.randn(2, n_pairs, n, generator=generator, dtype=torch.float64)
    counterfactual = torch.cat([source[:, :2], base[:, 2:]], dim=1)
    spec = PolicySpec(features=tuple(FeatureSpec(name=f"feature_{i}") for i in range(n)), actions=ACTIONS)
    return KnownSubspace(
        policy=HookedPolicy(RotatedNetwork(rotation, weights), base[:3], spec=spec),
        base=base,
        source=source,
        counterfactual=counterfactual,
        expected=(counterfactual @ weights.T).argmax(1),
        site=Site("hidden.hook_out"),
        basis=rotation[:, :2].T.contiguous(),
        description=f"A variable in a plane of a rotated layer of {n} neurons, beside one that must stay.",
    )
