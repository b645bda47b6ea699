"""Cells whose memory is known: a delay line, a counter, one that forgets, and an LSTM that holds its first cue.

    h_t = K h_{t-1} + R x_t          Q(LEFT) = w h_t        Q(RIGHT) = 0.5

In a linear cell a difference d of unit j at step t changes the gap at step T by d times the j-th entry of w K^(T-t),
and one of observation i by that of w K^(T-t) R. The LSTM's gates are shut or open to within 1e-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import layer

ACTIONS = ("LEFT", "RIGHT")
MARGIN = 0.5
"""Q(RIGHT), in all of them."""
SATURATED = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownMemory:
    """A recurrent policy whose memory is known, float64, with pairs of sequences that put it to work.

    Attributes:
        policy: The policy.
        clean: Sequences `[pair step feature]`.
        corrupt: Their counterparts, row by row.
        better: The action whose score counts positively in the gap that the answers are given in.
        worse: The other one.
        answers: By experiment, then by site, each with its step: the change of the gap at the last step, per pair.
            Experiments: `denoise` (the clean run's value put into the corrupt run), `zero` (the clean run's value set
            to zero: of `hook_h_pre`, the memory wiped before that step).
        description: What it remembers, in a sentence.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.counting_cell()
        >>> known.policy.state_names, known.clean.shape
        (('hook_h',), torch.Size([8, 6, 1]))
    """

    policy: HookedPolicy
    clean: Float[Tensor, "pair step feature"]
    corrupt: Float[Tensor, "pair step feature"]
    better: str
    worse: str
    answers: Mapping[str, Mapping[Site, Float[Tensor, " pair"]]]
    description: str


class LinearCell(nn.Module):
    """h' = K h + R x; the scores are w h' and 0.5."""

    def __init__(self, *, kept: list[list[float]], read: list[list[float]], told: list[float]) -> None:
        super().__init__()
        self.kept, self.read = layer(kept), layer(read)
        self.head = layer([told, [0.0] * len(told)], [0.0, MARGIN])

    def forward(
        self, x: Float[Tensor, "batch feature"], state: Mapping[str, Float[Tensor, "batch neuron"]]
    ) -> tuple[Float[Tensor, "batch action"], dict[str, Float[Tensor, "batch neuron"]]]:
        """Scores of LEFT and RIGHT, and the state."""
        h = self.kept(state["h"]) + self.read(x)
        return self.head(h), {"h": h}


class CueLSTM(nn.Module):
    """An LSTM whose first unit takes the cue when `start` says so and keeps it; the second one follows the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 2, dtype=torch.float64), layer([[1.0, 0.0], [0.0, 0.0]], [0.0, MARGIN])
        gates = torch.zeros(4, 2, 3)  # i f g o, by unit and by cue, noise, start
        gates[0, 0, 2], gates[1, 0, 2], gates[2, 0, 0], gates[2, 1, 1] = 2 * SATURATED, -2 * SATURATED, 1.0, 1.0
        bias = torch.tensor([[-SATURATED, SATURATED], [SATURATED, -SATURATED], [0.0, 0.0], [SATURATED, SATURATED]])
        with torch.no_grad():
            for parameter in self.lstm.parameters():
                parameter.zero_()
            self.lstm.get_parameter("weight_ih_l0").copy_(gates.reshape(8, 3))
            self.lstm.get_parameter("bias_ih_l0").copy_(bias.reshape(8))

    def forward(
        self, x: Float[Tensor, "batch feature"], state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch action"], tuple[Tensor, Tensor]]:
        """Scores of LEFT and RIGHT, and the state."""
        y, state = self.lstm(x[None], state)
        return self.head(y[0]), state


def delay_line(*, n_delay: int = 3, n_steps: int = 6, n_pairs: int = 8, seed: int = 0) -> KnownMemory:
    """Remember each cue for exactly `n_delay` steps: unit 0 takes it, each later unit what the one before it had.

        h_0' = cue     h_j' = h_{j-1}     Q(LEFT) = h of the last unit

    So at step t only unit `n_delay` - (T - t) matters to the gap at step T, and only the cue of step T - `n_delay`.

    Args:
        n_delay: Steps between a cue and its effect.
        n_steps: Steps of the sequences, more than `n_delay`.
        n_pairs: Pairs.
        seed: Of the cues.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.delay_line()
        >>> change = known.answers["denoise"][rlm.Site("hook_h", step=4, neuron=2)]
        >>> bool((change == (known.clean - known.corrupt)[:, 2, 0]).all())
        True
    """
    n_units = n_delay + 1
    kept = [[float(i == j + 1) for j in range(n_units)] for i in range(n_units)]
    read = [[float(i == 0)] for i in range(n_units)]
    told = [float(i == n_units - 1) for i in range(n_units)]
    what = f"a delay line: the cue of step t decides at step t + {n_delay} and at no other"
    return _linear(kept, read, told, ("cue",), what, n_steps=n_steps, n_pairs=n_pairs, seed=seed)


def counting_cell(*, n_steps: int = 6, n_pairs: int = 8, seed: int = 0) -> KnownMemory:
    """Count: each step's cue is added to one number, and all count alike however long ago.

        h' = h + cue     Q(LEFT) = h

    Args:
        n_steps: Steps of the sequences.
        n_pairs: Pairs.
        seed: Of the cues.

    Example:
        >>> import rlmech as rlm
        >>> rlm.testbed.counting_cell(n_steps=3).clean.shape
        torch.Size([8, 3, 1])
    """
    what = "a counter: what came in at any step still counts in full"
    return _linear([[1.0]], [[1.0]], [1.0], ("cue",), what, n_steps=n_steps, n_pairs=n_pairs, seed=seed)


def forgetting_cell(*, decay: float = 0.5, n_steps: int = 6, n_pairs: int = 8, seed: int = 0) -> KnownMemory:
    """Forget: what came in k steps ago is worth `decay` to the power of k.

        h' = decay h + cue     Q(LEFT) = h

    Args:
        decay: What is left of the state after a step.
        n_steps: Steps of the sequences.
        n_pairs: Pairs.
        seed: Of the cues.

    Example:
        >>> import rlmech as rlm
        >>> rlm.testbed.forgetting_cell(decay=0.9, n_pairs=4).clean.shape
        torch.Size([4, 6, 1])
    """
    what = f"a leaky sum: what came in k steps ago is worth {decay:g}^k"
    return _linear([[decay]], [[1.0]], [1.0], ("cue",), what, n_steps=n_steps, n_pairs=n_pairs, seed=seed)


def cue_lstm(*, n_steps: int = 6, n_pairs: int = 8, seed: int = 0) -> KnownMemory:
    """An LSTM that keeps the first cue in the cell state of unit 0, and nothing in its hidden state.

    The hidden state is what the head reads, and nothing of it comes back: patched before the last step it does nothing.
    The cell state of unit 0 carries all of it at every step, that of unit 1 is noise. Exact to within 1e-7.

    Args:
        n_steps: Steps of the sequences.
        n_pairs: Pairs.
        seed: Of the cues and the noise.

    Example:
        >>> import rlmech as rlm
        >>> rlm.testbed.cue_lstm().policy.state_names
        ('lstm.hook_h', 'lstm.hook_c')
    """
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (torch.randn(n_pairs, n_steps, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for sequences in (clean, corrupt):
        sequences[:, :, 2] = 0
        sequences[:, 0, 2] = 1
    policy = _policy(CueLSTM(), ("cue", "noise", "start"), lambda n: tuple(torch.zeros(1, n, 2).double() for _ in "hc"))
    first, other = (torch.tanh(torch.tanh(sequences[:, 0, 0])) for sequences in (clean, corrupt))
    nothing, all_of_it = torch.zeros(n_pairs, dtype=torch.float64), first - other
    denoise: dict[Site, Tensor] = {}
    wiped: dict[Site, Tensor] = {}
    for step in range(n_steps):
        last = step == n_steps - 1
        denoise[Site("lstm.hook_c", step=step, neuron=0)] = all_of_it
        denoise[Site("lstm.hook_c", step=step, neuron=1)] = nothing
        denoise[Site("lstm.hook_h", step=step, neuron=0)] = all_of_it if last else nothing
        denoise[Site("lstm.hook_h", step=step, neuron=1)] = nothing
        denoise[Site("hook_obs", step=step, feature="cue")] = all_of_it if step == 0 else nothing
        wiped[Site("lstm.hook_c_pre", step=step)] = -first if step else nothing
        wiped[Site("lstm.hook_h_pre", step=step)] = nothing
    return KnownMemory(
        policy=policy,
        clean=clean,
        corrupt=corrupt,
        better=ACTIONS[0],
        worse=ACTIONS[1],
        answers={"denoise": denoise, "zero": wiped},
        description="the first cue lies in the cell state of unit 0 from step 0 on, and nowhere else",
    )


def _linear(
    kept: list[list[float]],
    read: list[list[float]],
    told: list[float],
    features: tuple[str, ...],
    description: str,
    *,
    n_steps: int,
    n_pairs: int,
    seed: int,
) -> KnownMemory:
    """A linear cell, whose answers are powers of its matrix."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_pairs, n_steps, len(features))
    clean, corrupt = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    n_units = len(kept)
    policy = _policy(
        LinearCell(kept=kept, read=read, told=told),
        features,
        lambda n: {"h": torch.zeros(n, n_units, dtype=torch.float64)},
    )
    matrix, entry, head = (torch.tensor(value, dtype=torch.float64) for value in (kept, read, told))
    states = [_states(matrix, entry, sequences) for sequences in (clean, corrupt)]
    denoise: dict[Site, Tensor] = {}
    wiped: dict[Site, Tensor] = {}
    for step in range(n_steps):
        worth = head @ torch.linalg.matrix_power(matrix, n_steps - 1 - step)
        for unit in range(n_units):
            difference = states[0][step][:, unit] - states[1][step][:, unit]
            denoise[Site("hook_h", step=step, neuron=unit)] = worth[unit] * difference
        for place, feature in enumerate(features):
            seen = (clean - corrupt)[:, step, place]
            denoise[Site("hook_obs", step=step, feature=feature)] = (worth @ entry[:, place]) * seen
        before = states[0][step - 1] if step else torch.zeros_like(states[0][0])
        wiped[Site("hook_h_pre", step=step)] = -(before @ matrix.T @ worth)
    return KnownMemory(
        policy=policy,
        clean=clean,
        corrupt=corrupt,
        better=ACTIONS[0],
        worse=ACTIONS[1],
        answers={"denoise": denoise, "zero": wiped},
        description=description,
    )


def _states(kept: Tensor, read: Tensor, sequences: Tensor) -> list[Tensor]:
    state, states = torch.zeros(len(sequences), len(kept), dtype=torch.float64), list[Tensor]()
    for step in range(sequences.shape[1]):
        state = state @ kept.T + sequences[:, step] @ read.T
        states.append(state)
    return states


def _policy(module: nn.Module, features: tuple[str, ...], state: object) -> HookedPolicy:
    spec = PolicySpec(features=tuple(FeatureSpec(name=name) for name in features), actions=ACTIONS)
    return HookedPolicy(module, torch.zeros(2, len(features), dtype=torch.float64), spec=spec, state=state)
