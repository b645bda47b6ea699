"""Random sparse ReLU networks with planted circuits.

A layer reads the observation and all layers before it. Planted edges lie on paths that carry the decision; background
edges are weak, or strong and lead to units that nothing reads. Cost: about as long as wrapping the network.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import Equation, KnownPolicy, affine, layer

ACTIONS = ("GO", "WAIT")
ATTEMPTS = 200
COUNTS = 0.05
"""What a planted edge alone must move the gap by, on average over pairs, where gaps are of the order of 1."""


class SkipNetwork(nn.Module):
    """ReLU layers, each of which reads the observation and all layers before it; so does the linear head.

    Args:
        weights: `[unit][units before]` of each hidden layer, then of the head.
        biases: Likewise.
    """

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray]) -> None:
        super().__init__()
        made = [layer(weight.tolist(), bias.tolist()) for weight, bias in zip(weights, biases, strict=True)]
        self.hidden = nn.ModuleList(nn.Sequential(linear, nn.ReLU()) for linear in made[:-1])
        self.head = made[-1]

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch action"]:
        """Scores of the actions."""
        seen = x
        for hidden in self.hidden:
            seen = torch.cat((seen, hidden(seen)), dim=1)
        return self.head(seen)


def random_circuit(
    seed: int,
    *,
    n_features: int = 6,
    width: int = 6,
    n_layers: int = 3,
    n_paths: int = 4,
    background: float = 0.5,
    weak: float = 0.01,
    n_pairs: int = 64,
) -> KnownPolicy:
    """A random ReLU network with skip connections and a planted circuit.

        unit = ReLU(sum of planted weights x units + weak background + bias),    Q(GO) = the same without ReLU

    Planted are the edges of `n_paths` random paths from features to Q(GO), each through a random subset of the layers.
    A planted unit is scaled to a planted input of standard deviation 1 and is on in about four fifths of the runs.
    Draws in which a planted edge alone moves the gap by less than 0.05, on average over pairs, because paths cancel,
    are thrown away. The other units are alive and read strongly, but what reads them does so weakly or not at all;
    Q(WAIT) reads nothing. At the default sizes every planted edge alone moves the gap more than any other.

    Args:
        seed: Of network and observations; the same seed draws the same policy.
        n_features: Features of the observation.
        width: Units of a hidden layer.
        n_layers: Hidden layers.
        n_paths: Planted paths; they may share units and edges.
        background: Probability that an edge that is not planted is there; a unit outside the circuit always reads one
            feature.
        weak: Size of the background's weights, against planted ones of about 1.
        n_pairs: Pairs of observations, drawn from a normal distribution and independent of each other.

    Returns:
        No answers: `brute_force` gives the exact effect of every edge.

    Raises:
        ConfigError: A number is out of its range, or no draw of this shape had only planted edges that count.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.random_circuit(0)
        >>> len(known.edges) < len(known.all_edges)
        True
    """
    if seed < 0:
        raise ConfigError("A seed is not negative.", given=f"seed={seed}", expected="0 or more", fix="seed=0")
    _check(n_features=n_features, width=width, n_layers=n_layers, n_paths=n_paths, n_pairs=n_pairs)
    if not (0 <= background <= 1 and 0 <= weak <= 0.1):
        raise ConfigError(
            "The background of a planted circuit is sparse and weak.",
            given=f"background={background}, weak={weak}",
            expected="background from 0 to 1, weak from 0 to 0.1",
            fix="background=0.5, weak=0.01",
        )
    shape = _Shape(n_features=n_features, width=width, n_layers=n_layers)
    for attempt in range(ATTEMPTS):
        generator = np.random.default_rng([seed, attempt])
        paths = [_path(shape, generator) for _ in range(n_paths)]
        planted = {step for path in paths for step in itertools.pairwise(path)}
        obs = generator.standard_normal((2 * n_pairs, n_features))
        drawn = _draw(shape, planted, obs, generator, background=background, weak=weak)
        clean, corrupt = obs[:n_pairs].copy(), obs[n_pairs:].copy()
        if all(drawn.counts(edge, clean=clean, corrupt=corrupt) for edge in planted):
            return _known(drawn, planted, clean=torch.from_numpy(clean), corrupt=torch.from_numpy(corrupt))
    raise ConfigError(
        "No random circuit of this shape was found in which every planted edge counts.",
        given=f"{ATTEMPTS} draws of {n_paths} paths through {n_layers} layers of {width} units",
        expected="fewer paths or wider layers, and some pairs",
        fix="n_paths=4, width=6, n_pairs=64",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The units in a row: features, hidden layers, actions; and which weight each one is."""

    n_features: int
    width: int
    n_layers: int

    @property
    def first_action(self) -> int:
        """Number of the first score, and of units that it can read."""
        return self.n_features + self.width * self.n_layers

    def unit(self, depth: int, column: int) -> int:
        """Number of a unit of hidden layer `depth`, from 0."""
        return self.n_features + self.width * depth + column

    def sites(self) -> list[Site]:
        return [
            *(Site("hook_obs", feature=i) for i in range(self.n_features)),
            *(Site(f"hidden.{d}.1.hook_out", neuron=i) for d in range(self.n_layers) for i in range(self.width)),
            *(Site("hook_q_values", action=i) for i in range(len(ACTIONS))),
        ]


def _path(shape: _Shape, generator: np.random.Generator) -> list[int]:
    """From a feature, through a unit of most of the layers, at least one, to the first action."""
    depths = [depth for depth in range(shape.n_layers) if generator.random() < 0.75]
    depths = depths or [int(generator.integers(shape.n_layers))]
    hidden = [shape.unit(depth, int(generator.integers(shape.width))) for depth in depths]
    return [int(generator.integers(shape.n_features)), *hidden, shape.first_action]


def _draw(
    shape: _Shape,
    planted: set[tuple[int, int]],
    obs: np.ndarray,
    generator: np.random.Generator,
    *,
    background: float,
    weak: float,
) -> _Drawn:
    """Weights and biases layer by layer, scaled by what the units before have been seen to do."""
    into: dict[int, list[int]] = {}
    for source, target in sorted(planted):
        into.setdefault(target, []).append(source)
    inside = {unit for edge in planted for unit in edge}
    seen = obs
    weights: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    for depth in range(shape.n_layers + 1):
        is_head, n_before = depth == shape.n_layers, seen.shape[1]
        n_units = len(ACTIONS) if is_head else shape.width
        weight, bias = np.zeros((n_units, n_before)), np.zeros(n_units)
        first = shape.first_action if is_head else shape.unit(depth, 0)
        for column in range(1 if is_head else n_units):  # the head's second action reads nothing
            chance = generator.random(n_before) < background
            size = generator.uniform(0.5, 1.0, n_before) * generator.choice([-1.0, 1.0], n_before)
            main = into.get(first + column, [])
            if main:
                weight[column] = chance * size * weak
                weight[column, main] = _scaled(seen[:, main], generator)
            else:  # alive, and strongly fed by the circuit; but a unit of this kind is only ever read weakly
                chance[generator.integers(shape.n_features)] = True  # one feature at least, or it would be dead
                strong = np.array([unit in inside or unit < shape.n_features for unit in range(n_before)])
                weight[column] = chance * size * np.where(strong, 1.0, weak)
            if not is_head:
                bias[column] = -np.quantile(seen @ weight[column], 0.2)
        weights.append(weight)
        biases.append(bias)
        seen = np.concatenate([seen, np.maximum(seen @ weight.T + bias, 0)], axis=1)
    return _Drawn(shape=shape, weights=weights, biases=biases)


def _scaled(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Weights of either sign that give each unit read a like share of a sum whose standard deviation is about 1."""
    n_read = values.shape[1]
    sign = generator.choice([-1.0, 1.0], n_read)
    spread = np.maximum(values.std(0), 1e-3)  # of few pairs, a unit may be constant
    return sign * generator.uniform(0.8, 1.2, n_read) / (spread * np.sqrt(n_read))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """A network as its matrices: hidden layers, then the head; each reads all units before it."""

    shape: _Shape
    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def values(
        self, obs: np.ndarray, *, edge: tuple[int, int] | None = None, carried: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Every unit's value, `[row, unit]`; where an edge (read, reader) is given, it carries what it is told to."""
        seen = obs
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            before = seen @ weight.T + bias
            if edge is not None and 0 <= (row := edge[1] - seen.shape[1]) < len(bias):
                before[:, row] += weight[row, edge[0]] * (carried - seen[:, edge[0]])
            seen = np.concatenate([seen, before if depth == self.shape.n_layers else np.maximum(before, 0)], axis=1)
        return seen

    def counts(self, edge: tuple[int, int], *, clean: np.ndarray, corrupt: np.ndarray) -> bool:
        """Whether an edge alone, fed from the other runs, moves the gap enough on average, both ways round."""
        for base, other in ((clean, corrupt), (corrupt, clean)):
            moved = self.values(base, edge=edge, carried=self.values(other)[:, edge[0]]) - self.values(base)
            if np.abs(moved[:, self.shape.first_action]).mean() < COUNTS:
                return False
        return True


def _known(drawn: _Drawn, planted: set[tuple[int, int]], *, clean: Tensor, corrupt: Tensor) -> KnownPolicy:
    shape, sites = drawn.shape, drawn.shape.sites()
    equations = [Equation(unit=unit) for unit in sites[: shape.n_features]]
    for depth in range(shape.n_layers + 1):
        for weight, bias in zip(drawn.weights[depth].tolist(), drawn.biases[depth].tolist(), strict=True):
            read = [i for i, value in enumerate(weight) if value]
            rule = affine(*(weight[i] for i in read), bias=bias, relu=depth < shape.n_layers)
            equations.append(Equation(unit=sites[len(equations)], reads=tuple(sites[i] for i in read), rule=rule))
    features = tuple(FeatureSpec(name=f"feature_{i}") for i in range(shape.n_features))
    spec = PolicySpec(features=features, actions=ACTIONS)
    return KnownPolicy(
        policy=HookedPolicy(SkipNetwork(drawn.weights, drawn.biases), clean[:3], spec=spec),
        clean=clean,
        corrupt=corrupt,
        better=ACTIONS[0],
        worse=ACTIONS[1],
        equations=tuple(equations),
        edges=frozenset((sites[a], sites[b]) for a, b in planted),
        answers={},
        description=f"{len(planted)} edges planted in a random ReLU network of {len(equations)} units.",
    )


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(
                f"A random circuit needs at least one of {name}.",
                given=f"{name}={count}",
                expected="a whole number from 1",
                fix=f"{name}=4",
            )
