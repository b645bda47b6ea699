"""The line from a baseline to an observation, in the pieces between which no gate turns, and the integral over them.

A gate's breakpoints are found layer by layer: between those of the layers before it, what it reads is linear in t, so
two values give its crossing. The last gates need none: their mean slope over a piece is that of their secant. Where
attention or a curve bends the line, pieces are integrated and halved until a tolerance is met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlmech.attribution.quadrature import Integrals, integrate
from rlmech.attribution.readouts import Readouts, scores_of
from rlmech.circuits.frozen import Frozen, Gate, freeze
from rlmech.core.attention import AttentionBlock
from rlmech.core.attention_nodes import LEARNED, Role
from rlmech.core.bounds.intervals import curve_of
from rlmech.core.curves import Points
from rlmech.core.graph import Node
from rlmech.core.operations.reading import record_of, rows_first
from rlmech.core.operations.record import Boundary
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address

_POINTS_AT_ONCE = 1024


_TIES = 64
"""How often at most competitors of a pool are compared anew."""


_PARTS, _MOST_PARTS, _REFINEMENTS = 8, 128, 9
"""On a line that bends: equal parts to begin with and at most, and how often crossings of gates are located anew."""


_NOISE = 64
"""Epsilons, of the attributions, that may be missing by rounding."""


_LOCATED = 1e-8
"""How closely a crossing need be held there, of the line: what a rule misses at a kink falls as the square of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Lines of a policy's observations: nothing of it is frozen, and its gates stand by layer.

    Attributes:
        policy: The policy.
        scores_at: Where its scores lie.
        layers: The gates whose breakpoints are looked for, by how many others stand before them.
        last: Those that no other stands behind, whose slopes are put in.
        linear: Whether it is piecewise linear: no pattern moves along the line, and no curve.
    """

    policy: HookedPolicy
    scores_at: Address
    layers: tuple[tuple[Gate, ...], ...]
    last: tuple[Gate, ...]
    linear: bool

    @classmethod
    def of(cls, policy: HookedPolicy) -> Line:
        """The lines of a policy."""
        scores_at = scores_of(policy)
        before = [node for block in policy.attention.values() for node in _before_pattern(policy, block)]
        whole = freeze(policy, (scores_at.node,), curves="tangent")
        if whole.patterns:
            whole = freeze(policy, (scores_at.node, *before), curves="tangent")
        linear = not whole.patterns and not whole.curves
        last = _last(whole) if linear else ()
        return cls(policy=policy, scores_at=scores_at, layers=_layers(whole, without=last), last=last, linear=linear)

    def scores(self, arrays: Sequence[Tensor]) -> Tensor:
        """The action scores."""
        program = self.policy.graph_engine.program(returned=[self.scores_at.node])
        return self.scores_at.layout.show(program(arrays, (), ())[0])

    def integrate(self, start: Sequence[Tensor], ends: Sequence[Tensor], rows: Readouts, tolerance: float) -> Integrals:
        """Attributions by array, `[batch action ...]`, and what is known of their error."""
        if self.linear:
            row, t = self._breakpoints(start, ends, _PARTS)
            return self._add_pieces(start, ends, rows, row, t)
        with torch.no_grad():
            total = (self.scores(ends) - self.scores(start)) @ rows.weights.T
        parts, before = _PARTS, torch.inf
        while True:  # a gate that turns twice in one part is seen in finer ones
            found = self._integrate(start, ends, rows, tolerance, parts)
            missing = (sum(part.flatten(2).sum(2) for part in found.attributions) - total).abs()
            size = total.abs() + sum(part.abs().flatten(2).sum(2) for part in found.attributions)
            allowed = (tolerance + _NOISE * torch.finfo(total.dtype).eps) * size
            worst = float((missing / allowed.clamp(min=torch.finfo(total.dtype).tiny)).max()) if len(total) else 0.0
            if worst <= 1 or worst > before / 2 or parts >= _MOST_PARTS:
                return found
            parts, before = 4 * parts, worst

    def _integrate(
        self, start: Sequence[Tensor], ends: Sequence[Tensor], rows: Readouts, tolerance: float, parts: int
    ) -> Integrals:
        row, t = self._breakpoints(start, ends, parts)
        inside, width = row[1:] == row[:-1], t[1:] - t[:-1]

        def gradients(which: Tensor, at: Tensor) -> list[Tensor]:
            points = tuple(v.requires_grad_() for v in _between(start, ends, which, at))
            with torch.enable_grad():
                scores = self.scores(points)
            return _stacked_slopes(scores, points, rows)

        return integrate(
            gradients,
            row[:-1][inside],
            t[:-1][inside],
            width[inside],
            change=[end - begin for begin, end in zip(start, ends, strict=True)],
            n_readouts=len(rows.weights),
            tolerance=tolerance,
            at_once=_POINTS_AT_ONCE,
        )

    def _add_pieces(
        self, start: Sequence[Tensor], ends: Sequence[Tensor], rows: Readouts, row: Tensor, t: Tensor
    ) -> Integrals:
        """The sum over linear pieces, each with the gradient of its middle."""
        slopes_put_in = self._secants(start, ends, row, t)
        inside, row, t, width = row[1:] == row[:-1], row[:-1], t[:-1], t[1:] - t[:-1]
        width = width * inside  # between the end of one line and the beginning of the next there is no piece
        at, share = t + width / 2, width.to(start[0].dtype)
        totals = [value.new_zeros(len(value), len(rows.weights), *value.shape[1:]) for value in start]
        for first in range(0, len(at), _POINTS_AT_ONCE):
            rest = slice(first, first + _POINTS_AT_ONCE)
            points = tuple(v.requires_grad_() for v in _between(start, ends, row[rest], at[rest]))
            with torch.enable_grad():
                scores = self._with_slopes(points, [slope[rest] for slope in slopes_put_in])
            for total, slopes in zip(totals, _stacked_slopes(scores, points, rows), strict=True):
                weighted = slopes * share[rest].reshape(1, -1, *(1,) * (slopes.ndim - 2))
                total.index_add_(0, row[rest], weighted.transpose(0, 1))
        change = [(end - begin)[:, None] for begin, end in zip(start, ends, strict=True)]
        return Integrals(
            attributions=[total * by for total, by in zip(totals, change, strict=True)],
            error=totals[0].new_zeros(len(start[0]), len(rows.weights)),
            n_pieces=torch.bincount(row[inside], minlength=len(start[0])),
        )

    def _secants(self, start: Sequence[Tensor], ends: Sequence[Tensor], row: Tensor, t: Tensor) -> list[Tensor]:
        """The mean slope of each of the last gates between neighbouring points: its secant's where it turns."""
        if not self.last:
            return []
        nodes = tuple(dict.fromkeys(read for gate in self.last for read in gate.reads))
        program = self.policy.graph_engine.program(returned=nodes)
        found: list[Tensor] = []
        with torch.no_grad():
            values = dict(zip(nodes, program(_between(start, ends, row, t), (), ()), strict=True))
            for gate in self.last:
                x = values[gate.node.args[0]]
                y, middle = gate.apply(x, values), (x[1:] + x[:-1]).div_(2)
                turns = torch.zeros_like(middle, dtype=torch.bool)
                for boundary in gate.boundaries(values):
                    turns |= boundary.distance[:-1] * boundary.distance[1:] < 0
                secant = (y[1:] - y[:-1]).div_(torch.where(turns, x[1:] - x[:-1], 1.0))
                with torch.enable_grad():
                    (slope,) = torch.autograd.grad(gate.apply(middle.requires_grad_(), values).sum(), middle)
                found.append(torch.where(turns, secant, slope))
        return found

    def _with_slopes(self, points: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
        """What has the scores' gradient at points, with the last gates' slopes put in; not the scores themselves."""
        if not self.last:
            return self.scores(points)
        held: dict[Node, Tensor] = {}

        def keep(node: Node) -> Callable[[Tensor], Tensor]:
            return lambda value: held.setdefault(node, value)

        def bend(gate: Gate, slope: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda value: slope * held[gate.node.args[0]]

        reads = tuple(dict.fromkeys(gate.node.args[0] for gate in self.last))
        hooked = (*reads, *(gate.node for gate in self.last))
        program = self.policy.graph_engine.program(returned=[self.scores_at.node], hooked=hooked)
        bends = [bend(gate, slope) for gate, slope in zip(self.last, slopes, strict=True)]
        return self.scores_at.layout.show(program(points, (), [*map(keep, reads), *bends])[0])

    def _breakpoints(self, start: Sequence[Tensor], ends: Sequence[Tensor], parts: int) -> tuple[Tensor, Tensor]:
        """Rows and places in [0, 1], in order, between which no gate turns."""
        n, device = len(start[0]), start[0].device
        grid = torch.linspace(0, 1, 2 if self.linear else parts + 1, dtype=torch.float64, device=device)
        row, t = torch.arange(n, device=device).repeat_interleave(len(grid)), grid.repeat(n)
        for turn in range(1 if self.linear else 1 + _REFINEMENTS):
            n_before = len(row)
            for layer in self.layers:
                for _ in range(_TIES):
                    new_row, new_t, again = self._crossings(layer, start, ends, row, t, beyond=turn % 2 == 1)
                    row, t = _merged(torch.cat([row, new_row]), torch.cat([t, new_t]))
                    if not again or not len(new_row):
                        break
            if len(row) == n_before:
                break
        return row, t

    def _crossings(
        self,
        layer: Sequence[Gate],
        start: Sequence[Tensor],
        ends: Sequence[Tensor],
        row: Tensor,
        t: Tensor,
        *,
        beyond: bool,
    ) -> tuple[Tensor, Tensor, bool]:
        """Where the gates of a layer turn between neighbouring points, and whether that must be looked at again.

        Where the line bends, a secant's point lies near the turn, on one side of it; `beyond` puts the point farther
        from the nearer neighbour, at the root of its share, so that the next two neighbours hold the turn closely.
        """
        reads = tuple(dict.fromkeys(read for gate in layer for read in gate.reads))
        program = self.policy.graph_engine.program(returned=reads)
        with torch.no_grad():
            values = dict(zip(reads, program(_between(start, ends, row, t), (), ()), strict=True))
            boundaries = [boundary for gate in layer for boundary in _boundaries(gate, values)]
        piece = row[1:] == row[:-1]
        width = (t[1:] - t[:-1])[:, None]
        rows: list[Tensor] = []
        places: list[Tensor] = []
        for boundary in boundaries:
            share = _turning(boundary)
            inside = (share > 0) & (share < 1) & piece[:, None]
            nearer = torch.minimum(share, 1 - share)
            if not self.linear:  # what is located well enough is left alone, and what is a breakpoint already
                inside &= (width > _LOCATED) & (nearer.double() * width > torch.finfo(width.dtype).eps)
            if beyond:
                share = torch.where(share < 0.5, nearer.sqrt(), 1 - nearer.sqrt())
            where = (t[:-1, None] + share.double() * width)[inside]
            rows.append(row[:-1, None].expand_as(inside)[inside])
            places.append(where)
        return torch.cat(rows), torch.cat(places), any(boundary.competing for boundary in boundaries)


def _stacked_slopes(scores: Tensor, points: Sequence[Tensor], rows: Readouts) -> list[Tensor]:
    """The gradient of each readout at points, `[readout point ...]` for each array."""
    found = [
        torch.autograd.grad(scores, points, weight.expand_as(scores), retain_graph=True, materialize_grads=True)
        for weight in rows.weights
    ]
    return [torch.stack(slopes) for slopes in zip(*found, strict=True)]


def _boundaries(gate: Gate, values: dict[Node, Tensor]) -> list[Boundary]:
    """Those of a gate; of a curve the kinks, which a rule would not see near the end of a piece."""
    if not record_of(gate.node).curve:
        return gate.boundaries(values)
    x = values[gate.node.args[0]]
    return [Boundary(distance=rows_first(gate.node, x - kink)) for kink in _kinks(gate)]


def _kinks(gate: Gate) -> Points:
    curve = curve_of(gate.node, {})
    return () if curve is None else curve.kinks


def _turning(boundary: Boundary) -> Tensor:
    """For neighbouring points, at which share of the way between them each gate turns; 0 where it does not."""
    if boundary.competing:
        behind = boundary.distance.flatten(1, -2) if boundary.distance.ndim > 2 else boundary.distance[:, None]
        before, after = behind[:-1], behind[1:]
        winner, next_winner = before.argmin(-1, keepdim=True), after.argmin(-1, keepdim=True)
        gap, lead = before.gather(-1, next_winner)[..., 0], after.gather(-1, winner)[..., 0]
        slack = torch.finfo(gap.dtype).eps * 64 * (gap + lead)
        return torch.where((gap > slack) & (lead > slack), gap / (gap + lead), 0.0)
    before, after = boundary.distance[:-1].flatten(1), boundary.distance[1:].flatten(1)
    return torch.where(before * after < 0, before / (before - after), 0.0)


def _merged(row: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort(row * 2 + t)
    row, t = row[order], t[order]
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = (row[1:] != row[:-1]) | (t[1:] > t[:-1])
    return row[new], t[new]


def _between(start: Sequence[Tensor], ends: Sequence[Tensor], row: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """The points at t on the lines of some rows."""
    points: list[Tensor] = []
    for begin, end in zip(start, ends, strict=True):
        share = t.to(begin.dtype).reshape(-1, *(1,) * (begin.ndim - 1))
        points.append(torch.lerp(begin[row], end[row], share))
    return tuple(points)


def _before_pattern(policy: HookedPolicy, block: AttentionBlock) -> list[Node]:
    """What a pattern is made of by a product and a softmax: queries and keys, or the scores where they are others."""
    product = "k" in block.names and ("q" in block.names or block.reasons.get("q") == LEARNED)
    roles: list[Role] = [role for role in ("q", "k") if role in block.names] if product else ["attn_scores"]
    return [policy.points[block.names[role]].address.node for role in roles]


def _last(whole: Frozen) -> tuple[Gate, ...]:
    """The gates that no other gate stands behind, of those that act on each number alone and do not jump."""
    before: set[Node] = set()
    stack = [read for gate in whole.gates for read in gate.node.inputs()]
    while stack:
        node = stack.pop()
        if node not in before:
            before.add(node)
            stack.extend(node.inputs())
    return tuple(
        gate
        for gate in whole.gates
        if gate.node not in before
        and gate.node.shape is not None
        and gate.node.sizes[0] == -1
        and _is_of_one(gate, whole)
    )


def _is_of_one(gate: Gate, whole: Frozen) -> bool:
    """Whether a gate is a continuous function of each number by itself, whatever else it takes being fixed."""
    gating = record_of(gate.node).gating
    alone = [read for read in gate.reads if read in whole.varying] == [gate.node.args[0]]
    return gating is not None and gating.each and gating.continuous and alone


def _layers(whole: Frozen, *, without: Sequence[Gate]) -> tuple[tuple[Gate, ...], ...]:
    """The gates but for some, and the curves with kinks, by how many others stand before them at most."""
    graph = whole.policy.graph_engine.graph
    depth: dict[Node, int] = {}
    gates = {gate.node: gate for gate in (*whole.gates, *(curve for curve in whole.curves if _kinks(curve)))}

    def of(end: Node) -> int:
        stack = [end]
        while stack:
            node = stack[-1]
            reads = [read for read in node.inputs() if read.op != "sym_size"]
            missing = [read for read in reads if read not in depth]
            if missing:
                stack.extend(missing)
            else:
                depth[stack.pop()] = max((depth[read] + (read in gates) for read in reads), default=0)
        return depth[end]

    layers: dict[int, list[Gate]] = {}
    for node in graph.nodes:
        if node in gates and gates[node] not in without:
            layers.setdefault(of(node), []).append(gates[node])
    return tuple(tuple(layers[level]) for level in sorted(layers))
