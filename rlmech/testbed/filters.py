"""A convolutional policy that looks for bars with matched filters, under a dueling head whose value drowns all else."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.spec import PolicySpec
from rlmech.testbed.known import Effects, Equation, KnownPolicy, affine, layer

SIZE, FILTER, PLACES = 5, 3, 3
THRESHOLD = 4.0
VALUE = 1000.0
SPEC = PolicySpec(actions=("BRAKE", "SWERVE", "KEEP"))
FILTERS = (
    ((-1.0, 1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, 1.0, -1.0)),
    ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (-1.0, -1.0, -1.0)),
)
ADVANTAGES = ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
OFFSETS = (0.0, 0.0, 0.25)


class MatchedFilterNetwork(nn.Module):
    """Convolution, ReLU, max pooling, a linear layer, the same ReLU module again, a dueling head."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, len(FILTERS), FILTER, dtype=torch.float64)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.MaxPool2d(PLACES), nn.Flatten()
        self.detected = layer(torch.eye(2).tolist())
        self.value = layer([[VALUE, VALUE]])
        self.advantage = layer([list(row) for row in ADVANTAGES], list(OFFSETS))
        with torch.no_grad():
            self.filters.weight.copy_(torch.tensor(FILTERS, dtype=torch.float64)[:, None])
            self.filters.get_parameter("bias").fill_(-THRESHOLD)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch action"]:
        """Scores of BRAKE, SWERVE and KEEP."""
        found = self.flatten(self.pool(self.relu(self.filters(x))))
        detected = self.relu(self.detected(found))
        value, advantage = self.value(detected), self.advantage(detected)
        return value + advantage - advantage.mean(1, keepdim=True)


def matched_filter(*, n_pairs: int = 16, seed: int = 0) -> KnownPolicy:
    """Brake for an upright bar, swerve for a lying one, on a 5 x 5 grid.

        c_k[i, j] = ReLU(sum over the window of filter_k x grid - 4)    filter: 1 on the bar, -1 beside it
        p_k = max over i, j of c_k       h_k = ReLU(p_k)
        V = 1000 (h_0 + h_1)             A = (h_0, h_1, 1/4)            Q = V + A - mean A

    A bar is three cells of brightness a in [1.5, 2]: its own filter answers 3 a - 4 where it stands and nothing
    anywhere else, the other filter nothing at all. Clean grids hold an upright bar, corrupt ones a lying bar. The value
    stream moves every score by hundreds and the gap by nothing; an edge from V to one score alone moves the gap by
    hundreds, and only with its twins by nothing. None of V's edges is in the circuit.

    Args:
        n_pairs: Pairs; places and brightness differ from pair to pair.
        seed: Of the grids.

    Returns:
        Answers in `denoise` and `noise` for every position and every channel of the filters' ReLU, the pooled channels,
        the hidden neurons, the value and the advantages, and for all edges past the filters; in `zero` for the
        channels, the hidden neurons and the value.

    Example:
        >>> import rlmech as rlm, rlmech.testbed as testbed
        >>> known = testbed.matched_filter()
        >>> value = rlm.Site("value.hook_out", neuron=0)
        >>> bool((known.answers["denoise"][value] == 0).all())
        True
    """
    generator = torch.Generator().manual_seed(seed)
    brightness = 1.5 + 0.5 * torch.rand(2, n_pairs, generator=generator, dtype=torch.float64)
    places = torch.randint(0, PLACES, (2, n_pairs, 2), generator=generator)
    clean, corrupt = (torch.zeros(n_pairs, 1, SIZE, SIZE, dtype=torch.float64) for _ in range(2))
    for pair in range(n_pairs):
        (i, j), (k, m) = places[:, pair].tolist()
        clean[pair, 0, i : i + FILTER, j + 1] = brightness[0, pair]
        corrupt[pair, 0, k + 1, m : m + FILTER] = brightness[1, pair]
    upright, lying = 3 * brightness - THRESHOLD
    denoise = _answers(upright, lying, places)
    equations = _equations()
    nothing = torch.zeros(n_pairs, dtype=torch.float64)
    zero = {site: value for k, value in enumerate((-upright, nothing)) for site in _channel(k)}
    return KnownPolicy(
        policy=HookedPolicy(MatchedFilterNetwork(), clean, spec=SPEC),
        clean=clean,
        corrupt=corrupt,
        better="BRAKE",
        worse="SWERVE",
        equations=equations,
        edges=frozenset(
            edge for equation in equations for edge in equation.edges if not {edge[0], edge[1]} & {_VALUE, _KEEP}
        ),
        answers={
            "denoise": denoise,
            "noise": {site: -effect for site, effect in denoise.items()},
            "zero": {**zero, _VALUE: nothing},
        },
        description="Two matched filters, pooled, decide; a value stream a thousand times larger moves no gap.",
    )


_VALUE = Site("value.hook_out", neuron=0)
_SCORES = (Site("hook_q_values", action=0), Site("hook_q_values", action=1))
_KEEP = Site("hook_q_values", action=2)


def _channel(k: int) -> tuple[Site, ...]:
    """The sites that carry all that filter k found."""
    return (
        Site("relu.hook_out", channel=k),
        Site("pool.hook_out", channel=k, height=0, width=0),
        Site("relu@1.hook_out", neuron=k),
    )


def _position(k: int, i: int, j: int) -> Site:
    return Site("relu.hook_out", channel=k, height=i, width=j)


def _answers(upright: Tensor, lying: Tensor, places: Tensor) -> Effects:
    """Of denoising: the upright bar's answer appears, or the lying bar's goes."""
    answers: Effects = {}
    for k, strength in enumerate((upright, lying)):
        _, pooled, hidden = _channel(k)
        for i in range(PLACES):
            for j in range(PLACES):
                here = (places[k] == torch.tensor([i, j])).all(1)
                answers[_position(k, i, j)] = answers[_position(k, i, j), pooled] = strength * here
        advantage = Site("advantage.hook_out", neuron=k)
        answers |= dict.fromkeys((*_channel(k), advantage, (pooled, hidden), (hidden, advantage)), strength)
        answers |= {(hidden, _VALUE): 0 * strength}
        # Q = V + A - mean A: this advantage in one score alone; in SWERVE's it counts against the gap
        answers |= {(advantage, _SCORES[k]): strength * 2 / 3, (advantage, _SCORES[1 - k]): strength / 3}
        answers |= {(advantage, _KEEP): 0 * strength}
    idle = Site("advantage.hook_out", neuron=2)
    more_value = VALUE * (upright - lying)
    answers |= dict.fromkeys(
        (_VALUE, (_VALUE, _KEEP), idle, *((idle, score) for score in (*_SCORES, _KEEP))), 0 * upright
    )
    return answers | {(_VALUE, _SCORES[0]): more_value, (_VALUE, _SCORES[1]): -more_value}


def _equations() -> tuple[Equation, ...]:
    cells = [[Site("hook_obs", channel=0, height=i, width=j) for j in range(SIZE)] for i in range(SIZE)]
    equations = [Equation(unit=cell) for row in cells for cell in row]
    window = [(i, j) for i in range(FILTER) for j in range(FILTER)]
    positions = [(i, j) for i in range(PLACES) for j in range(PLACES)]
    for k, weights in enumerate(FILTERS):
        rule = affine(*(weights[i][j] for i, j in window), bias=-THRESHOLD, relu=True)
        for i, j in positions:
            reads = tuple(cells[i + di][j + dj] for di, dj in window)
            equations.append(Equation(unit=_position(k, i, j), reads=reads, rule=rule))
    for k in range(2):
        pooled = _channel(k)[1]
        equations.append(Equation(unit=pooled, reads=tuple(_position(k, i, j) for i, j in positions), rule=_largest))
        equations.append(Equation(unit=_channel(k)[2], reads=(pooled,), rule=affine(1.0, relu=True)))
    hidden = (_channel(0)[2], _channel(1)[2])
    equations.append(Equation(unit=_VALUE, reads=hidden, rule=affine(VALUE, VALUE)))
    advantages = tuple(Site("advantage.hook_out", neuron=a) for a in range(3))
    for advantage, weights, offset in zip(advantages, ADVANTAGES, OFFSETS, strict=True):
        read = tuple(unit for unit, weight in zip(hidden, weights, strict=True) if weight)
        equations.append(Equation(unit=advantage, reads=read, rule=affine(*filter(None, weights), bias=offset)))
    for action in range(3):
        shares = [float(a == action) - 1 / 3 for a in range(3)]
        score = Site("hook_q_values", action=action)
        equations.append(Equation(unit=score, reads=(_VALUE, *advantages), rule=affine(1.0, *shares)))
    return tuple(equations)


def _largest(*values: Tensor) -> Tensor:
    return torch.stack(values).amax(0)
