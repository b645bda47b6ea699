"""What a policy with a known circuit consists of: the policy, pairs of observations, and every unit as an equation.

    unit = rule(the units that it reads)

Units are numbers of one row, or several that belong together, named by sites; an edge is (what is read, what reads it).
The equations are written beside the network, not read off it, so that one checks the other. They leave nothing out: a
unit depends on the observation through the units it reads and in no other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError

Edge = tuple[Site, Site]
"""(what is read, what reads it)."""

Rule = Callable[..., Tensor]
"""(values of the units read, each `[pair]` or `[pair …]`) -> value likewise; of nothing read, without pairs."""


Effects = dict[Site | Edge, Tensor]
"""By site or edge: the change of the gap, `[pair]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """One unit, and how it follows from others.

    Attributes:
        unit: A site that selects a single number, or several as one unit.
        reads: The units it reads, in the rule's order; empty for a constant, and for a number of the observation.
        rule: From their values to its own; None for a number of the observation.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.and_gate()
        >>> known.equations[-1].reads
        ()
    """

    unit: Site
    reads: tuple[Site, ...] = ()
    rule: Rule | None = None

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges into this unit."""
        return tuple((read, self.unit) for read in self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPolicy:
    """A policy whose circuit is known, float64, with pairs of observations that put it to work.

    Attributes:
        policy: The policy.
        clean: Observations `[pair …]`, one row per pair.
        corrupt: Their counterparts, row by row.
        better: The action whose score counts positively in the gap that the answers are given in; None where it differs
            from pair to pair: what the clean run does.
        worse: The other one: the metric is `action_gap(better, worse)`, and `action_gap()` where they are None.
        equations: All units, each after those it reads; numbers of the observation first, scores of all actions last.
        edges: The edges of the circuit, among `all_edges`.
        answers: By experiment, then by site or edge: the change of the gap, patched minus base, per pair, derived by
            hand. Experiments: `denoise` and `noise` (one site or edge takes the other run's value), `zero` (a site of
            the clean run set to zero), `attribute_denoise` and `attribute_noise` (the first order of the same patch,
            (source - base) times the gradient at the base run). Most sites are units, some stand for several. A
            missing key has not been worked out.
        description: The circuit, in a sentence.

    Raises:
        ConfigError: A unit stands before one that it reads, or an edge of the circuit is no edge.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.and_gate()
        >>> len(known.edges), known.clean.shape
        (5, torch.Size([8, 3]))
    """

    policy: HookedPolicy
    clean: Float[Tensor, "pair ..."]
    corrupt: Float[Tensor, "pair ..."]
    better: str | None
    worse: str | None
    equations: tuple[Equation, ...]
    edges: frozenset[Edge]
    answers: Mapping[str, Mapping[Site | Edge, Float[Tensor, " pair"]]]
    description: str

    def __post_init__(self) -> None:
        known: set[Site] = set()
        for equation in self.equations:
            unknown = [read for read in equation.reads if read not in known]
            if unknown or equation.unit in known:
                raise ConfigError(
                    f"The equations are not in order at {equation.unit}.",
                    given=f"it reads {unknown[0]}" if unknown else "it stands there twice",
                    expected="each unit once, after all that it reads",
                    fix="sort the equations by layer",
                )
            known.add(equation.unit)
        strays = self.edges - self.all_edges
        if strays:
            raise ConfigError(
                "An edge of the circuit is no edge of the network.",
                given=str(next(iter(strays))),
                expected="(unit read, unit that reads it), as in the equations",
                fix="add it to the reads of its equation",
            )

    @property
    def units(self) -> tuple[Site, ...]:
        """All units, each after those it reads."""
        return tuple(equation.unit for equation in self.equations)

    @property
    def inputs(self) -> tuple[Site, ...]:
        """The units that are numbers of the observation."""
        return tuple(unit for unit in self.units if unit.name == "hook_obs")

    @property
    def outputs(self) -> tuple[Site, ...]:
        """The units that are scores, in the order of the actions; one unit where the scores are one."""
        return tuple(unit for unit in self.units if unit.name == "hook_q_values")

    @property
    def hidden(self) -> tuple[Site, ...]:
        """The units between."""
        return tuple(unit for unit in self.units if unit.name not in ("hook_obs", "hook_q_values"))

    @property
    def all_edges(self) -> frozenset[Edge]:
        """All edges of the network, those of the circuit and all others."""
        return frozenset(edge for equation in self.equations for edge in equation.edges)


def affine(*weights: float, bias: float = 0.0, relu: bool = False) -> Rule:
    """The rule bias + sum of weight times value, cut off below zero where `relu`.

    Example:
        >>> import torch
        >>> from rlmech.testbed.known import affine
        >>> affine(2.0, -1.0, relu=True)(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 9.0])).tolist()
        [5.0, 0.0]
    """

    def rule(*values: Tensor) -> Tensor:
        total = torch.tensor(bias, dtype=torch.float64)
        for weight, value in zip(weights, values, strict=True):
            total = total + weight * value
        return total.clamp(min=0) if relu else total

    return rule


def layer(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    """A float64 linear layer with given weights `[out][in]`, and no bias where none is given."""
    made = nn.Linear(len(weight[0]), len(weight), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        if bias is not None:
            made.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return made
