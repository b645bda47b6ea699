"""Forward passes whose rows do not depend on their company: how closed loops decide, one at a time or many at once.

A matrix product rounds otherwise for one row than for eight, and some heads and activations otherwise at another place
of the batch. So rows are run in passes of a few sizes, filled up with copies, and for each set of hooked points it is
proved at first use that a row gets the same bits at each place of each size, whatever stands beside it. Where
no size passes, as for a head of five outputs over 25 inputs, rows run one at a time; so do those of large networks,
which eight rows cost eight times. What is found depends on the machine and on torch, never on the time that it takes.
Cost: the proof, some twenty passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rlmech.core.engine import Engine, GraphEngine
from rlmech.core.graph import Graph
from rlmech.core.hook_point import HookPoint, HookRegistry
from rlmech.core.observation import ObservationFormat
from rlmech.core.parity import on_device
from rlmech.core.row_edits import FirstRow, RowEdits, Unchanged
from rlmech.core.wrapped_module import WrappedModule

SMALLEST = (4, 32)
"""Sizes for few rows, the first that passes: at 32 no activation has a remainder of its vectors."""
LARGER = (64, 256)
"""Sizes for more rows."""
MOST_PRODUCTS = 2**20
"""Multiplications with weights of a row; a network with more is run one row at a time."""
COMPARED = 2
"""Rows that are compared with a pass of their own copies."""

Values = tuple[Tensor, dict[str, Tensor]]


class _Proved:
    """Sizes in which rows are the same.

    Args:
        base: The smallest; with 1 there are no others.
    """

    def __init__(self, base: int) -> None:
        self.sizes, self.left = [base], list(LARGER) if base > 1 else []


class RowPasses:
    """The passes of a policy.

    Args:
        module: The user's own module.
        wrapped: It, on its engine.
        form: Its observation format.
        registry: What is attached to the policy.
        hook_dict: Its hook points.
    """

    def __init__(
        self,
        module: nn.Module,
        wrapped: WrappedModule,
        form: ObservationFormat,
        registry: HookRegistry,
        hook_dict: Mapping[str, HookPoint],
    ) -> None:
        self._module, self._wrapped, self._form = module, wrapped, form
        self._registry, self._hook_dict = registry, hook_dict
        self._proved: dict[tuple[object, ...], _Proved] = {}

    def run(
        self, arrays: tuple[Tensor, ...], names: tuple[str, ...], edits: RowEdits | None, rows: Tensor | None
    ) -> Values:
        """Scores and named values of some rows.

        Args:
            arrays: Observations, as the format coerces them.
            names: Hook points whose values are given.
            edits: Those of the rows; None for none. Functions attached to the policy act besides, on one row each.
            rows: Numbers of the rows in `edits`.
        """
        with torch.no_grad():
            return self._run(arrays, names, edits, rows)

    def _run(
        self, arrays: tuple[Tensor, ...], names: tuple[str, ...], edits: RowEdits | None, rows: Tensor | None
    ) -> Values:
        engine, n_rows = self._wrapped.active(), arrays[0].shape[0]
        if not self._registry.is_idle:
            return self._with_attached(engine, arrays, names)
        hooked = () if edits is None else edits.points
        found: list[Values] = []
        start = 0
        while start < n_rows:
            size = self._size_for(engine, hooked, n_rows - start, arrays[0].device)
            stop = min(start + size, n_rows)
            part = arrays if size == n_rows else tuple(_filled(array[start:stop], size) for array in arrays)
            acting = self._registry if edits is None or rows is None else edits.of(rows[start:stop], size=size)
            scores, values = engine.run(part, names, acting, self._hook_dict)
            n = stop - start
            found.append((scores[:n], {name: value[:n] for name, value in values.items()}))
            start = stop
        return _joined(found, names)

    def _with_attached(self, engine: Engine, arrays: tuple[Tensor, ...], names: tuple[str, ...]) -> Values:
        """With what is attached to the policy, which sees one row at a time."""
        hooked = tuple(sorted(self._registry.active()))
        size, acting = self._size_for(engine, hooked, 1, arrays[0].device), FirstRow(self._registry)
        found: list[Values] = []
        for row in range(arrays[0].shape[0]):
            part = tuple(_filled(array[row : row + 1], size) for array in arrays)
            scores, values = engine.run(part, names, acting, self._hook_dict)
            found.append((scores[:1], {name: value[:1] for name, value in values.items()}))
        return _joined(found, names)

    def smallest(self) -> int:
        """Rows of the smallest pass with nothing attached: 1 where rows are run one at a time."""
        device = on_device(self._form.samples(1), self._module)[0].device
        with torch.no_grad():
            return self._size_for(self._wrapped.active(), (), 1, device)

    def _size_for(self, engine: Engine, hooked: tuple[str, ...], n_rows: int, device: torch.device) -> int:
        """Size of the next pass: the smallest that takes all rows, or the largest; sizes are proved when needed."""
        key = engine.name, hooked, tuple(self._form.dtypes.values()), device.type
        proved = self._proved.get(key)
        if proved is None:
            proved = self._proved[key] = _Proved(self._base(engine, hooked))
        size = proved.sizes[-1]
        if n_rows <= size or size == 1:
            return next(size for size in proved.sizes if size >= n_rows) if size > 1 else 1
        for larger in proved.left[:]:
            proved.left.remove(larger)
            run = self._values_of(engine, hooked)
            own = _own(run, proved.sizes[0])
            if own is not None and _alike(run, larger, own, shifts=(0, larger // 2 + 5)):
                proved.sizes.append(larger)
                if larger >= n_rows:
                    break
        return next((size for size in proved.sizes if size >= n_rows), proved.sizes[-1])

    def _base(self, engine: Engine, hooked: tuple[str, ...]) -> int:
        """Rows of the smallest pass."""
        if isinstance(engine, GraphEngine) and _products(engine.graph) <= MOST_PRODUCTS:
            run = self._values_of(engine, hooked)
            for size in SMALLEST:
                own = _own(run, size)
                if own is not None and _alike(run, size, own, shifts=range(size)):
                    return size
        return 1

    def _values_of(self, engine: Engine, hooked: tuple[str, ...]) -> Callable[[Tensor], list[Tensor]]:
        """From numbers of sample rows to the scores and all values in a pass of them."""
        names = tuple(name for name in engine.points if self._hook_dict[name].kind != "result")
        acting, arrays = Unchanged(hooked), on_device(self._form.samples(LARGER[-1]), self._module)

        def run(rows: Tensor) -> list[Tensor]:
            scores, values = engine.run(tuple(array[rows] for array in arrays), names, acting, self._hook_dict)
            return [scores.clone(), *(value.clone() for value in values.values())]

        return run


def _joined(found: Sequence[Values], names: Sequence[str]) -> Values:
    """The values of some passes, as copies: what is given may be a part of the observation."""
    if len(found) == 1:
        scores, values = found[0]
        return scores.clone(), {name: values[name].clone() for name in names}
    return torch.cat([scores for scores, _ in found]), {
        name: torch.cat([values[name] for _, values in found]) for name in names
    }


def _own(run: Callable[[Tensor], list[Tensor]], size: int) -> list[list[Tensor]] | None:
    """Values of the first rows, each among copies of itself; None where its copies differ."""
    found: list[list[Tensor]] = []
    for row in range(COMPARED):
        values = run(torch.full((size,), row))
        if not all(_same(value, value[:1].expand_as(value)) for value in values):
            return None
        found.append([value[0] for value in values])
    return found


def _alike(run: Callable[[Tensor], list[Tensor]], size: int, own: list[list[Tensor]], *, shifts: Sequence[int]) -> bool:
    """Whether rows are the same at other places, and the first ones as among copies of themselves."""
    first: list[Tensor] | None = None
    for shift in shifts:
        values = [value.roll(-shift, 0) for value in run(torch.arange(size).roll(shift))]
        first = first or values
        if not all(map(_same, values, first)):
            return False
    return first is not None and all(
        _same(value[row], own[row][k]) for k, value in enumerate(first) for row in range(COMPARED)
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _filled(rows: Tensor, size: int) -> Tensor:
    """Rows as the beginning of a pass, the last one repeated."""
    n_rows = rows.shape[0]
    return rows if n_rows == size else torch.cat([rows, rows[-1:].expand(size - n_rows, *rows.shape[1:])])


def _products(graph: Graph) -> int:
    """Multiplications with weights that a row takes, roughly."""
    total = 0
    for node in graph.nodes:
        weights = [
            source.owner[source.args[0]] for source in node.inputs() if source.op == "parameter" and source.owner
        ]
        largest = max((w.numel() / len(w) for w in weights if w is not None and w.ndim > 1 and len(w)), default=0)
        if largest and node.shape is not None:
            n_values = 1
            for size in node.shape:
                n_values *= 1 if size == -1 else abs(size)
            total += int(n_values * largest)
    return total
