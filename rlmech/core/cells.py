"""Recurrent layers taken apart: one step of torch's LSTM, GRU and RNN as the operations that its equations name.

    i, f, g, o = s(W_i x + U_i h + b), ..., t(W_g x + U_g h + b), ...;   c' = f c + i g;   h' = o t(c')     (LSTM)
    r, z, n    = s(...), s(...), t(W_n x + b + r (U_n h + b'));          h' = (1 - z) n + z h              (GRU)

torch runs a whole layer as one operation, which no analysis can look into. While a step is exported, its calls are
replaced by these equations, and `mark` tells the reader of the graph which values are states and gates. A call that is
no single step (a longer sequence, both directions, a packed one) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlmech.untyped import Args, Kwargs

GATES: dict[int, tuple[str, ...]] = {4: ("i", "f", "g", "o"), 3: ("r", "z", "n")}
"""Names of the gates, by how many there are: of an LSTM, of a GRU."""
LAYERS = (nn.RNNBase, nn.RNNCellBase)
"""Torch's own recurrent modules: what stands inside one of them is told by its states and gates."""
_MARK = "mark"


@cache
def _library() -> torch.library.Library:
    library = torch.library.Library("rlmech", "FRAGMENT")
    library.define(f"{_MARK}(Tensor value, str role) -> Tensor")
    library.impl(_MARK, lambda value, role: value.clone(), "CompositeExplicitAutograd")
    return library


def is_mark(target: object) -> bool:
    """Whether an exported call is a mark: the value goes through, and its second argument says what it is."""
    return str(target).startswith(f"rlmech.{_MARK}")


class CellsAsOperations(TorchFunctionMode):
    """Runs single steps of recurrent layers by their equations, with states and gates marked.

    A mark's role is `h`, `c` or `gates`, after `l0.`, `l1.`... in a layer of several.
    """

    def __torch_function__(self, func: Any, types: object, args: Args = (), kwargs: Kwargs | None = None) -> object:
        name = getattr(func, "__name__", "")
        if not kwargs and name in _CELLS:
            state, weights = args[1], args[2:]
            result = _step(name.removesuffix("_cell"), args[0], state, weights, "")
            return result if name == "lstm_cell" else result[0]
        if not kwargs and name in _STACKS and _is_one_step(args):
            return _stack(name, args)
        return func(*args, **(kwargs or {}))


def _is_one_step(args: Args) -> bool:
    if len(args) != 9 or args[7]:  # packed sequences have one argument more, and no `batch_first`
        return False
    return args[0].ndim == 3 and args[0].shape[1 if args[8] else 0] == 1


def _stack(name: str, args: Args) -> tuple[Tensor, ...]:
    """One step of a layer of several cells, one on the other: what torch returns for it."""
    value, given, flat, biased, n_layers, _, _, _, batch_first = args
    time = 1 if batch_first else 0
    value = value.squeeze(time)
    states = list(given) if name == "lstm" else [given]
    per_layer = len(flat) // n_layers
    after: list[tuple[Tensor, ...]] = []
    for layer in range(n_layers):
        weights = flat[layer * per_layer : (layer + 1) * per_layer]
        before = tuple(state[layer] for state in states)
        role = f"l{layer}." if n_layers > 1 else ""
        after.append(_step(name, value, before, _ordered(weights, biased=biased), role))
        value = after[-1][0]
    stacked = tuple(torch.stack(list(parts)) for parts in zip(*after, strict=True))
    return value.unsqueeze(time), *stacked


def _ordered(weights: Sequence[Tensor], *, biased: bool) -> tuple[Tensor | None, ...]:
    """Input and hidden weights, both biases and, of an LSTM that has one, the projection."""
    return tuple(weights) if biased else (weights[0], weights[1], None, None, *weights[2:])


def _step(name: str, x: Tensor, state: Any, weights: Sequence[Tensor | None], role: str) -> tuple[Tensor, ...]:
    before: list[Tensor] = list(state) if isinstance(state, tuple | list) else [state]
    w_ih, w_hh, *rest = weights
    assert w_ih is not None and w_hh is not None  # noqa: S101, PT018  # torch's own calls always give both
    b_ih, b_hh, *projection = [*rest, None, None][: max(2, len(rest))]
    read, kept = F.linear(x, w_ih, b_ih), F.linear(before[0], w_hh, b_hh)
    if name == "lstm":
        return _lstm(read + kept, before[1], projection[0] if projection else None, role)
    if name == "gru":
        return (_gru(read, kept, before[0], role),)
    bend: Callable[[Tensor], Tensor] = torch.relu if name == "rnn_relu" else torch.tanh
    return (_marked(bend(read + kept), f"{role}h"),)


def _lstm(drive: Tensor, c: Tensor, projection: Tensor | None, role: str) -> tuple[Tensor, Tensor]:
    i, f, g, o = drive.chunk(4, dim=1)
    gates = torch.stack([torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)], dim=1)
    gates = _marked(gates, f"{role}gates")
    c = _marked(gates.select(1, 1) * c + gates.select(1, 0) * gates.select(1, 2), f"{role}c")
    h = gates.select(1, 3) * torch.tanh(c)
    return _marked(h if projection is None else F.linear(h, projection), f"{role}h"), c


def _gru(read: Tensor, kept: Tensor, h: Tensor, role: str) -> Tensor:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = read.chunk(3, dim=1), kept.chunk(3, dim=1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    gates = _marked(torch.stack([r, z, torch.tanh(x_n + r * h_n)], dim=1), f"{role}gates")
    z = gates.select(1, 1)
    return _marked((1 - z) * gates.select(1, 2) + z * h, f"{role}h")


def _marked(value: Tensor, role: str) -> Tensor:
    _library()
    return torch.ops.rlmech.mark(value, role)


_STACKS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
