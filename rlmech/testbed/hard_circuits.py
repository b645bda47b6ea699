"""Planted circuits that methods stumble over: weak, redundant, cancelling and self-repairing edges, beside twins.

    weak             a path whose edges move the gap by a fiftieth of what the others do
    redundant        1 - ReLU(1 - a - b) and ReLU(a + b - 1): either part is enough, or both are needed
    cancelling       a - ReLU(a - y): nothing, until y is there
    self_repairing   p + ReLU(0.8 x - 2 p) with p = ReLU(x - 3 z): a fault z takes p away, and a backup stands in

Where a part of the circuit does something is in one pair of eight. Twins are no part of it: two equal units with
opposite weights, each edge of which does much, and all of them together nothing. Cost: that of wrapping the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError, nearest
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import Equation, KnownPolicy, affine
from rlmech.testbed.random_circuits import ACTIONS, SkipNetwork

Kind = Literal["weak", "redundant", "cancelling", "self_repairing", "mixed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can be planted; `mixed` is some of each."""
WEAK = 0.02
RARE = 8
"""One in so many pairs tells what a hidden edge is for."""
N_LAYERS = 3
_MOTIFS: dict[Kind, tuple[str, ...]] = {
    "weak": ("plain", "plain", "weak", "weak", "weak"),
    "redundant": ("plain", "either", "both", "either", "both"),
    "cancelling": ("plain", "cancelling", "cancelling", "cancelling"),
    "self_repairing": ("plain", "repairing", "repairing", "repairing"),
    "mixed": ("plain", "weak", "either", "both", "cancelling", "repairing"),
}
Draw = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(generator, which pairs are rare) -> a feature's values in clean and in corrupt runs."""


def hard_circuit(kind: Kind, seed: int = 0, *, n_twins: int = 3, n_pairs: int = 64) -> KnownPolicy:
    """A ReLU network with a planted circuit that is hard to find.

    The circuit is the smallest part that gives the policy's scores in every run: without all other edges nothing
    changes, and without any edge of it some score does (`prove_circuit`). Edges alone mislead: those of the circuit do
    little or nothing in most pairs, those of twins much in all.

    Args:
        kind: `weak`, `redundant`, `cancelling`, `self_repairing`, or `mixed`; see the module.
        seed: Of sizes, signs and observations.
        n_twins: Pairs of equal units with opposite weights, which are no part of the circuit.
        n_pairs: Pairs of observations, 8 or more.

    Returns:
        No answers: `brute_force` gives the exact effect of any edges.

    Raises:
        ConfigError: No such kind, or a number out of its range.

    Source:
        Redundant and backup parts: McGrath et al. 2023, *The Hydra Effect*, arXiv 2307.15771; cancelling ones and the
        weakness of single edges: Miller et al. 2024, *Transformer Circuit Faithfulness Metrics Are Not Robust*, arXiv
        2407.08734.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.hard_circuit("cancelling")
        >>> rlm.testbed.prove_circuit(known).holds
        True
    """
    if kind not in KINDS:
        close = nearest(kind, KINDS)
        raise ConfigError(
            f"No circuit of kind {kind!r} can be planted.",
            given=repr(kind),
            expected=f"one of {', '.join(KINDS)}",
            fix=f"did you mean {close[0]!r}?" if close else "rlm.testbed.KINDS lists them",
        )
    if seed < 0 or n_twins < 0 or n_pairs < RARE:
        raise ConfigError(
            "A number is out of its range.",
            given=f"seed={seed}, n_twins={n_twins}, n_pairs={n_pairs}",
            expected=f"seed and n_twins of 0 or more, n_pairs of {RARE} or more",
            fix="seed=0, n_twins=3, n_pairs=64",
        )
    planted = _Planted(generator=np.random.default_rng([KINDS.index(kind), seed]), n_pairs=n_pairs)
    for motif in _MOTIFS[kind]:
        _WRITE[motif](planted)
    for _ in range(n_twins):
        planted.twins()
    planted.idle_units()
    return planted.known(kind)


@dataclass(kw_only=True)
class _Planted:
    """A circuit as it grows: features, hidden units by layer, and what each reads.

    Attributes:
        generator: What sizes, signs and observations are drawn from.
        n_pairs: Pairs of observations.
        columns: By feature, its values in clean and corrupt runs.
        units: By hidden unit, its layer, what it reads and its bias. Names begin with `f` for features.
        head: What the first score reads.
        aside: The units of twins, and those that nothing reads.
    """

    generator: np.random.Generator
    n_pairs: int
    columns: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    units: list[tuple[int, dict[str, float], float]] = field(default_factory=list)
    head: dict[str, float] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)

    def feature(self, draw: Draw) -> str:
        rare = np.zeros(self.n_pairs, dtype=bool)
        rare[self.generator.permutation(self.n_pairs)[: max(1, self.n_pairs // RARE)]] = True
        self.columns.append(draw(self.generator, rare))
        return f"f{len(self.columns) - 1}"

    def unit(self, layer: int, reads: dict[str, float], bias: float = 0.0) -> str:
        self.units.append((layer, reads, bias))
        return f"u{len(self.units) - 1}"

    def score(self, **weights: float) -> None:
        """Let the first score read units, all with one sign and size that are drawn."""
        factor = float(self.generator.choice([-1.0, 1.0]) * self.generator.uniform(0.8, 1.2))
        self.head |= {unit: factor * weight for unit, weight in weights.items()}

    def twins(self) -> None:
        """Two equal units that read a feature of the circuit, and cancel."""
        read = f"f{self.generator.integers(len(self.columns))}"
        pair = [self.unit(int(layer), {read: 1.0}, 0.5) for layer in self.generator.choice(N_LAYERS, 2)]
        self.aside |= set(pair)
        self.score(**{pair[0]: 1.0, pair[1]: -1.0})

    def idle_units(self) -> None:
        """A unit in every layer that is alive and that nothing reads."""
        self.aside |= {
            self.unit(layer, {"f0": 1.0, f"f{layer % len(self.columns)}": 1.0}, 0.5) for layer in range(N_LAYERS)
        }

    def known(self, kind: Kind) -> KnownPolicy:
        order = [f"f{i}" for i in range(len(self.columns))]
        layers: list[list[str]] = []
        for layer in range(N_LAYERS):
            layers.append([f"u{i}" for i, (own, _, _) in enumerate(self.units) if own == layer])
        sites = {name: Site("hook_obs", feature=i) for i, name in enumerate(order)}
        equations = [Equation(unit=site) for site in sites.values()]
        weights: list[np.ndarray] = []
        biases: list[np.ndarray] = []
        for layer, names in enumerate(layers):
            rows = [(self.units[int(name[1:])][1], self.units[int(name[1:])][2]) for name in names]
            weights.append(np.array([[reads.get(before, 0.0) for before in order] for reads, _ in rows]))
            biases.append(np.array([bias for _, bias in rows]))
            for place, (name, (reads, bias)) in enumerate(zip(names, rows, strict=True)):
                unit = Site(f"hidden.{layer}.1.hook_out", neuron=place)
                rule = affine(*reads.values(), bias=bias, relu=True)
                equations.append(Equation(unit=unit, reads=tuple(sites[read] for read in reads), rule=rule))
                sites[name] = unit
            order += names
        go, wait = (Site("hook_q_values", action=i) for i in range(2))
        weights.append(np.array([[self.head.get(name, 0.0) for name in order], [0.0] * len(order)]))
        biases.append(np.zeros(2))
        equations.append(
            Equation(unit=go, reads=tuple(sites[name] for name in self.head), rule=affine(*self.head.values()))
        )
        equations.append(Equation(unit=wait, rule=affine()))
        aside = {sites[name] for name in self.aside}
        clean, corrupt = (torch.from_numpy(np.stack([c[side] for c in self.columns], 1)) for side in (0, 1))
        spec = PolicySpec(
            features=tuple(FeatureSpec(name=f"feature_{i}") for i in range(len(self.columns))), actions=ACTIONS
        )
        edges = frozenset(edge for one in equations for edge in one.edges if not aside & set(edge))
        return KnownPolicy(
            policy=HookedPolicy(SkipNetwork(weights, biases), clean[:3], spec=spec),
            clean=clean,
            corrupt=corrupt,
            better=ACTIONS[0],
            worse=ACTIONS[1],
            equations=tuple(equations),
            edges=edges,
            answers={},
            description=f"{len(edges)} edges of a {kind.replace('_', '-')} circuit, beside {len(aside)} other units.",
        )


def _between(low: float, high: float) -> Draw:
    return lambda generator, rare: tuple(generator.uniform(low, high, (2, len(rare))))  # type: ignore[return-value]


def _seldom(low: float, high: float) -> Draw:
    """0, but in rare pairs, and there in one of the two runs."""

    def draw(generator: np.random.Generator, rare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = np.where(rare, generator.uniform(low, high, len(rare)), 0.0)
        is_clean = generator.random(len(rare)) < 0.5
        return np.where(is_clean, size, 0.0), np.where(is_clean, 0.0, size)

    return draw


def _switch(*, usual: float, seldom: float) -> Draw:
    """Much the same in both runs; in rare pairs another value in the clean one."""

    def draw(generator: np.random.Generator, rare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        clean, corrupt = generator.uniform(usual, usual + 0.2, (2, len(rare)))
        return np.where(rare, seldom, clean), corrupt

    return draw


def _plain(planted: _Planted) -> None:
    first = planted.unit(0, {planted.feature(_between(-1, 1)): 1.0}, 0.3)
    planted.score(**{planted.unit(1, {first: 1.0}): 1.0})


def _weak(planted: _Planted) -> None:
    first = planted.unit(0, {planted.feature(_between(-1, 1)): 1.0}, 0.3)
    planted.score(**{planted.unit(2, {first: 1.0}): WEAK})


def _either(planted: _Planted) -> None:
    """Two parts that are both there as a rule: g = ReLU(1 - a - b) is off unless both are away."""
    parts = [planted.unit(0, {planted.feature(_switch(usual=0.7, seldom=0.0)): 1.0}) for _ in range(2)]
    planted.score(**{planted.unit(1, dict.fromkeys(parts, -1.0), 1.0): 1.0})


def _both(planted: _Planted) -> None:
    """Two parts that are both away as a rule: g = ReLU(a + b - 1) is off unless both are there."""
    parts = [planted.unit(0, {planted.feature(_switch(usual=0.2, seldom=0.9)): 1.0}) for _ in range(2)]
    planted.score(**{planted.unit(1, dict.fromkeys(parts, 1.0), -1.0): 1.0})


def _cancelling(planted: _Planted) -> None:
    a = planted.unit(0, {planted.feature(_between(0.5, 1.5)): 1.0})
    y = planted.feature(_seldom(0.5, 1.0))
    planted.score(**{a: 1.0, planted.unit(1, {a: 1.0, y: -1.0}): -1.0})


def _repairing(planted: _Planted) -> None:
    x, z = planted.feature(_between(0.8, 1.2)), planted.feature(_seldom(0.3, 0.5))
    p = planted.unit(0, {x: 1.0, z: -3.0})
    planted.score(**{p: 1.0, planted.unit(1, {x: 0.8, p: -2.0}): 1.0})


_WRITE: dict[str, Callable[[_Planted], None]] = {
    "plain": _plain,
    "weak": _weak,
    "either": _either,
    "both": _both,
    "cancelling": _cancelling,
    "repairing": _repairing,
}
