"""Whether a circuit is one: what is left out does nothing, and nothing can be left out.

It asks the equations, not the network: `brute_force` with edges fed from another run. Cost: one evaluation an edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlmech.testbed.known import Edge, KnownPolicy
from rlmech.testbed.oracle import brute_force

ROUNDING = 1e-9
"""The largest change of a score that is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitProof:
    """What a policy of known circuit does without some of its edges, over its pairs, either run as the base.

    Attributes:
        without_others: The largest change of a score when all edges outside the circuit carry what they carry in the
            other run: 0, but for rounding, where the circuit is sufficient.
        without_edge: By edge of the circuit, the largest change when it goes as well, alone: above 0 where it is
            necessary.

    Example:
        >>> import rlmech as rlm
        >>> rlm.testbed.prove_circuit(rlm.testbed.known_program("reverse")).holds
        True
    """

    without_others: float
    without_edge: Mapping[Edge, float]

    @property
    def unneeded(self) -> tuple[Edge, ...]:
        """The edges that could be left out as well."""
        return tuple(edge for edge, change in self.without_edge.items() if change <= ROUNDING)

    @property
    def holds(self) -> bool:
        """Whether the circuit is sufficient, and every edge of it necessary."""
        return self.without_others <= ROUNDING and not self.unneeded


def prove_circuit(known: KnownPolicy) -> CircuitProof:
    """Take away all edges that are not of the circuit, then each that is.

    Args:
        known: A policy of known circuit; its pairs are what is tried.

    Returns:
        The changes, in the unit of the scores.

    Source:
        Sufficiency and minimality of a circuit: Wang et al. 2023, *Interpretability in the Wild*, arXiv 2211.00593,
        section 4, here over every pair instead of on average.

    Example:
        >>> import rlmech as rlm
        >>> proof = rlm.testbed.prove_circuit(rlm.testbed.hard_circuit("redundant"))
        >>> proof.holds, proof.without_others < 1e-9
        (True, True)
    """
    others = known.all_edges - known.edges
    runs = ((known.clean, known.corrupt), (known.corrupt, known.clean))
    before = [known.policy(base).detach() for base, _ in runs]

    def change(edges: frozenset[Edge]) -> float:
        after = [brute_force(known, base=base, other=other, edges=edges) for base, other in runs]
        return max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))

    order = {unit: place for place, unit in enumerate(known.units)}
    edges = sorted(known.edges, key=lambda edge: (order[edge[1]], order[edge[0]]))
    return CircuitProof(without_others=change(others), without_edge={edge: change(others | {edge}) for edge in edges})
